"""Tasks: what the stages do differently for segmentation and for classification."""

from __future__ import annotations

from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import read_json
from megavoxel.tasks.task import Task, imported_late

SEGMENTATION = Task(
    name="segmentation",
    unit="case",
    check=imported_late("tasks.segmentation.check", "check"),
    save_cases=imported_late("datasets.cases", "save_cases"),
    describe=imported_late("tasks.segmentation.check", "describe"),
    split=imported_late("tasks.segmentation.plan", "split"),
    plan=imported_late("tasks.segmentation.plan", "plan"),
    load_plan=imported_late("planning.plan", "load_plan"),
    data=imported_late("tasks.segmentation.data", "data_of"),
    check_fits=imported_late("tasks.segmentation.forecast", "check_fits_here"),
    train=imported_late("tasks.segmentation.training", "train"),
    forecast_gib=imported_late("tasks.segmentation.forecast", "forecast_gib"),
    predict=imported_late("tasks.segmentation.predict", "predict"),
    score=imported_late("tasks.segmentation.score", "score"),
    forecast=imported_late("tasks.segmentation.forecast", "forecast"),
)
CLASSIFICATION = Task(
    name="classification",
    unit="image",
    check=imported_late("tasks.classification.check", "check_images"),
    save_cases=imported_late("tasks.classification.cases", "save_image_cases"),
    describe=imported_late("tasks.classification.check", "describe"),
    split=imported_late("tasks.classification.splits", "split"),
    plan=imported_late("tasks.classification.plan", "plan"),
    load_plan=imported_late("tasks.classification.plan", "load_classifier_plan"),
    data=imported_late("tasks.classification.data", "data_of"),
    check_fits=imported_late("tasks.classification.forecast", "check_fits_here"),
    train=imported_late("tasks.classification.training", "train"),
    forecast_gib=imported_late("tasks.classification.forecast", "forecast_gib"),
    predict=imported_late("tasks.classification.predict", "predict"),
    score=imported_late("tasks.classification.scores", "score"),
    forecast=imported_late("tasks.classification.forecast", "forecast"),
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
