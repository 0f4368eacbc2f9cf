"""Tasks: what the stages do differently for segmentation and for classification."""

from __future__ import annotations

from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import read_json
from megavoxel.tasks.task import Task, imported_late

SEGMENTATION = Task(
    name="segmentation",
    unit="case",
    split=imported_late("segmentation.plan", "split"),
    plan=imported_late("segmentation.plan", "plan"),
    load_plan=imported_late("segmentation.plan", "load_plan"),
    data=imported_late("segmentation.data", "data_of"),
    check_fits=imported_late("segmentation.forecast", "check_fits_here"),
    train=imported_late("segmentation.training", "train"),
    forecast_gib=imported_late("segmentation.forecast", "forecast_gib"),
    predict=imported_late("segmentation.predict", "predict"),
    score=imported_late("segmentation.score", "score"),
    forecast=imported_late("segmentation.forecast", "forecast"),
)
CLASSIFICATION = Task(
    name="classification",
    unit="image",
    split=imported_late("classification.splits", "split"),
    plan=imported_late("classification.plan", "plan"),
    load_plan=imported_late("classification.plan", "load_classifier_plan"),
    data=imported_late("classification.data", "data_of"),
    check_fits=imported_late("classification.forecast", "check_fits_here"),
    train=imported_late("classification.training", "train"),
    forecast_gib=imported_late("classification.forecast", "forecast_gib"),
    predict=imported_late("classification.predict", "predict"),
    score=imported_late("classification.scores", "score"),
    forecast=imported_late("classification.forecast", "forecast"),
)
TASKS = {task.name: task for task in (SEGMENTATION, CLASSIFICATION)}


def task_of(path: Path, *, what: str) -> Task:
    """The task that a `cases.json` or `plan.json` is of.

    Args:
        path: of the file.
        what: names the file in errors.

    Raises:
        UserError: the file is missing, no JSON, or names a task that there is not.
    """
    content = read_json(path, what=what)
    name = content.get("task", SEGMENTATION.name) if isinstance(content, dict) else SEGMENTATION.name
    if name not in TASKS:
        raise UserError(f"{path}: task: found {name!r}, allowed: {', '.join(TASKS)}")
    return TASKS[name]
