"""Hashes of plans: what they see, and that they outlive versions which add keys."""

from __future__ import annotations

from dataclasses import field, make_dataclass, replace

from helpers import tiny_plan
from megavoxel.config.records import deviations
from megavoxel.files import content_hash
from megavoxel.planning.plan import Plan, load_plan, save_plan


def test_a_new_key_with_a_default_leaves_the_hash_of_older_records_as_it_was():
    inner_before = make_dataclass("Inner", [("size", int)])
    inner_after = make_dataclass("Inner", [("size", int), ("order", int, 3), ("names", tuple, field(default=()))])
    before = make_dataclass("Outer", [("inner", inner_before)])(inner_before(2))
    outer = make_dataclass("Outer", [("inner", inner_after), ("extra", dict, field(default_factory=dict))])
    assert content_hash(deviations(outer(inner_after(2)))) == content_hash(deviations(before))
    for other in (outer(inner_after(2, order=1)), outer(inner_after(2), extra={"a": 1}), outer(inner_after(3))):
        assert content_hash(deviations(other)) != content_hash(deviations(before))


def test_records_in_lists_and_mappings_are_seen():
    kind = make_dataclass("Kind", [("size", int), ("order", int, 3)])
    assert deviations({"a": [kind(1), kind(2, order=0)]}) == {"a": [{"size": 1}, {"size": 2, "order": 0}]}


def test_the_hash_is_that_of_the_content_wherever_the_plan_came_from(tmp_path):
    plan = tiny_plan()
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json").hash == plan.hash


def changed(plan: Plan) -> list[Plan]:
    """Plans that differ in one thing that weights depend on."""
    return [
        replace(plan, batch=plan.batch + 1),
        replace(plan, augmentation=replace(plan.augmentation, rotation=0.123)),
        replace(plan, training=replace(plan.training, gradient_clip=1.5)),
        replace(plan, preprocessing=replace(plan.preprocessing, image_order=1)),
        replace(plan, preprocessing=replace(plan.preprocessing, axes="LPS")),
    ]


def test_a_difference_that_weights_depend_on_is_seen():
    plan = tiny_plan()
    assert len({one.hash for one in (plan, *changed(plan))}) == 6
    assert replace(plan, notes=("a",), study="other").hash == plan.hash
    assert replace(plan, training=replace(plan.training, workers=3)).hash == plan.hash
