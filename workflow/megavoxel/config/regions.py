"""What the values of label maps mean: labels, regions that are unions of labels, and voxels that nobody annotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from megavoxel.config.fields import between, refuse
from megavoxel.config.records import from_plain, record, rule
from megavoxel.errors import UserError, shown

IGNORE = "ignore"
"""Name of the value of voxels that nobody annotated, in nnU-Net's dataset.json and in dataset files."""
PRESENT = 0.5
"""Probability above which a voxel is in a region."""
Value = Annotated[int, between(1, 65535)]


@record
class Regions:
    """Regions that are segmented in place of labels. Each is a union of labels, and regions may overlap."""

    values: Annotated[dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]], Field(min_length=1)]
    """Label values of each region by its name, in the order of the network's outputs."""
    class_order: tuple[Value, ...]
    """For each region the value that a voxel gets in a predicted label map if no later region has it."""

    @rule
    def _values_are_of_regions(self) -> None:
        if len(self.class_order) != len(self.values):
            refuse(f"expected {len(self.values)} values, one for each of {', '.join(self.values)}", "class_order")
        known = sorted({value for values in self.values.values() for value in values})
        unknown = [value for value in self.class_order if value not in known]
        if unknown:
            refuse(f"{unknown[0]} is no label of any region; allowed: {', '.join(map(str, known))}", "class_order")


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """The values of a dataset's label maps."""

    labels: dict[str, int]
    """Values 1 and up by name, in ascending order; those of regions have a name made of the value."""
    regions: Regions | None = None
    """What is segmented in place of the labels; None: the labels."""
    ignore_value: int | None = None
    """Value of voxels that nobody annotated; None: there is none."""

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is segmented and scored, by name."""
        return structures_of(self.labels, self.regions)


def structures_of(labels: Mapping[str, int], regions: Regions | None) -> dict[str, tuple[int, ...]]:
    """What is segmented and scored by its name, with the values that it has in label maps: regions, else labels."""
    if regions is not None:
        return dict(regions.values)
    return {name: (value,) for name, value in sorted(labels.items(), key=lambda item: item[1])}


def label_scheme(entries: Mapping[str, Any], class_order: Any, where: str) -> LabelScheme:
    """Reads `labels` as nnU-Net writes them: a value by name, or several for a region; `ignore` is no label.

    Args:
        entries: of dataset.json or a dataset file. Backgrounds, which have the value 0, may be among them.
        class_order: nnU-Net's `regions_class_order`, a list of values; None: not given.
        where: begins the messages.

    Raises:
        UserError: a value is none, two labels have the same one, there is nothing to segment, or regions and their
            order contradict one another.
    """
    values = {name: _values(name, value, where) for name, value in entries.items()}
    ignored = values.pop(IGNORE, None)
    named = {name: found for name, found in values.items() if found != (0,)}
    if not named:
        raise UserError(f"{where}: labels: there is no label above 0, so there is nothing to segment")
    overlapping = any(len(found) > 1 for found in named.values())
    labels = _labels_of_regions(named) if overlapping else _plain_labels(values, where)
    return LabelScheme(
        labels=dict(sorted(labels.items(), key=lambda item: item[1])),
        regions=_regions(named, class_order, where) if overlapping else None,
        ignore_value=None if ignored is None else _ignored_value(ignored, labels, where),
    )


def _values(name: str, value: Any, where: str) -> tuple[int, ...]:
    given = value if isinstance(value, list | tuple) else [value]
    sound = [isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= 65535 for one in given]
    if not given or not all(sound):
        raise UserError(
            f"{where}: labels: '{name}' has the value {shown(value)}; allowed: whole numbers from 0 to 65535, or a "
            "list of them for a region"
        )
    if len(set(given)) < len(given) or (0 in given and len(given) > 1):
        raise UserError(f"{where}: labels: the region '{name}' is {list(given)}; list each value once, and no 0")
    return tuple(given)


def _plain_labels(values: Mapping[str, tuple[int, ...]], where: str) -> dict[str, int]:
    every = [found[0] for found in values.values()]
    twice = [name for name, (value,) in values.items() if every.count(value) > 1]
    if twice:
        raise UserError(f"{where}: labels: {' and '.join(twice)} have the same value; give each label its own")
    return {name: value for name, (value,) in values.items() if value > 0}


def _labels_of_regions(named: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """A name for each value of regions: that of a region that it makes up alone, or one made of the number."""
    own = {found[0]: name for name, found in named.items() if len(found) == 1}
    return {own.get(value, f"value {value}"): value for found in named.values() for value in found}


def _regions(named: Mapping[str, tuple[int, ...]], class_order: Any, where: str) -> Regions:
    if class_order is None:
        raise UserError(
            f"{where}: labels: {', '.join(named)} are regions, and 'regions_class_order' is missing: list one value "
            "for each of them, that of voxels where it is the last region"
        )
    sound = isinstance(class_order, list | tuple)
    if not sound or not all(isinstance(value, int) and not isinstance(value, bool) for value in class_order):
        raise UserError(f"{where}: regions_class_order: {shown(class_order)} is not allowed; a list of label values")
    plain = {"values": {name: list(found) for name, found in named.items()}, "class_order": list(class_order)}
    try:
        return from_plain(Regions, plain, where=where)
    except UserError as fault:
        raise UserError(str(fault).replace("class_order", "regions_class_order")) from None


def _ignored_value(ignored: tuple[int, ...], labels: Mapping[str, int], where: str) -> int:
    taken = {0, *labels.values()}
    if len(ignored) > 1 or ignored[0] in taken:
        raise UserError(
            f"{where}: labels: '{IGNORE}' is {list(ignored)}; it must be one value that no label and no region has"
        )
    return ignored[0]
