"""The two tasks: which one a file is of, and that every function of theirs is there."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields

import pytest

from megavoxel.errors import UserError
from megavoxel.tasks import CLASSIFICATION, SEGMENTATION, TASKS, task_of


@pytest.mark.parametrize(
    ("content", "task"), [({"cases": []}, SEGMENTATION), ({"task": "classification"}, CLASSIFICATION)]
)
def test_a_file_says_which_task_it_is_of(tmp_path, content, task):
    (tmp_path / "cases.json").write_text(json.dumps(content))
    assert task_of(tmp_path / "cases.json", what="list of cases") is task


def test_an_unknown_task_is_refused_with_those_that_there_are(tmp_path):
    (tmp_path / "plan.json").write_text('{"task": "regression"}')
    with pytest.raises(UserError, match="task: found 'regression', allowed: segmentation, classification"):
        task_of(tmp_path / "plan.json", what="plan")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"plan\.json"):
        task_of(tmp_path / "plan.json", what="plan")


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_function_of_a_task_can_be_imported(task):
    for field in fields(task):
        value = getattr(task, field.name)
        if not isinstance(value, str | bool):
            assert inspect.isfunction(value.function), field.name
