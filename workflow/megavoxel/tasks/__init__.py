"""Tasks: what the stages do differently for segmentation and for classification."""

from __future__ import annotations

from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import read_json
from megavoxel.tasks.task import ImportedLate, Task

SEGMENTATION = Task(
    name="segmentation",
    unit="case",
    labels_scans=True,
    check=ImportedLate("tasks.segmentation.check", "check"),
    split=ImportedLate("tasks.segmentation.plan", "split"),
    plan=ImportedLate("tasks.segmentation.plan", "plan"),
    data=ImportedLate("tasks.segmentation.data", "data_of"),
    check_fits=ImportedLate("tasks.segmentation.forecast", "check_fits_here"),
    train=ImportedLate("tasks.segmentation.training", "train"),
    predict=ImportedLate("tasks.segmentation.predict", "predict"),
    score=ImportedLate("tasks.segmentation.score", "score"),
    forecast=ImportedLate("tasks.segmentation.forecast", "forecast"),
)
CLASSIFICATION = Task(
    name="classification",
    unit="image",
    labels_scans=False,
    check=ImportedLate("tasks.classification.check", "check"),
    split=ImportedLate("tasks.classification.splits", "split"),
    plan=ImportedLate("tasks.classification.plan", "plan"),
    data=ImportedLate("tasks.classification.data", "data_of"),
    check_fits=ImportedLate("tasks.classification.forecast", "check_fits_here"),
    train=ImportedLate("tasks.classification.training", "train"),
    predict=ImportedLate("tasks.classification.predict", "predict"),
    score=ImportedLate("tasks.classification.scores", "score"),
    forecast=ImportedLate("tasks.classification.forecast", "forecast"),
)
TASKS = {task.name: task for task in (SEGMENTATION, CLASSIFICATION)}


def task_of(path: Path, *, what: str) -> Task:
    """The task that a `cases.json` or `plan.json` is of.

    Raises:
        UserError: the file is missing, no JSON, or names a task that there is not.
    """
    content = read_json(path, what=what)
    name = content.get("task", SEGMENTATION.name) if isinstance(content, dict) else SEGMENTATION.name
    if name not in TASKS:
        raise UserError(f"{path}: task: found {name!r}, allowed: {', '.join(TASKS)}")
    return TASKS[name]
