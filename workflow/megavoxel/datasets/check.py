"""Looks at every case of a dataset and collects all that is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import pandas

from megavoxel.config.records import to_plain
from megavoxel.datasets.cases import Case
from megavoxel.datasets.layout import Layout
from megavoxel.errors import UserError
from megavoxel.files import atomic_path
from megavoxel.parallel import map_cases
from megavoxel.volumes.checks import Fault, channel_faults, grid_faults, intensity_faults, label_faults
from megavoxel.volumes.grid import shown_sizes
from megavoxel.volumes.open import open_volume
from megavoxel.volumes.volume import DamagedFileError, Volume

COLUMNS = ("case", "check", "severity", "message")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of checks.csv."""

    case: str
    """Id of the case."""
    check: str
    """What was looked at; `all` for a case without any fault."""
    severity: str
    """`error`, `warning`, `excluded` or `ok`."""
    message: str
    """What was found, for the reader."""


def check_layout(
    root: Path, layout: Layout, *, background_values: tuple[int, ...] = (), processes: int = 1
) -> list[Finding]:
    """Checks all cases of a dataset; the findings come in order of the cases.

    Args:
        background_values: what label maps may hold besides 0 and the labels.
        processes: cases that are read at the same time; the result does not depend on it.
    """
    look = partial(
        check_case, root, channels=layout.channels, labels=layout.labels, background_values=background_values
    )
    findings = chain.from_iterable(map_cases(look, layout.cases, processes=processes, title="checking"))
    excluded = [
        Finding(case=case, check="all", severity="excluded", message="left out by the dataset file")
        for case in layout.excluded
    ]
    return sorted([*_duplicates(layout), *findings, *excluded], key=lambda finding: finding.case)


def write_findings(path: Path, findings: list[Finding]) -> None:
    """Writes checks.csv: case, check, severity, message."""
    with atomic_path(path) as partial_path:
        pandas.DataFrame(map(to_plain, findings), columns=COLUMNS).to_csv(partial_path, index=False)


def check_case(
    root: Path,
    case: Case,
    *,
    channels: tuple[str, ...],
    labels: dict[str, int],
    background_values: tuple[int, ...] = (),
) -> list[Finding]:
    """All faults of one case, or one finding with severity `ok` that describes it.

    Args:
        channels: names of the channels that the image must have.
        labels: values by name that the label map may have besides 0.
        background_values: others that count as background, like 0.
    """

    def found(check: str, message: str, severity: str = "error") -> Finding:
        return Finding(case=case.id, check=check, severity=severity, message=message)

    images, faults = _check_images(root, case)
    if len(images) == len(case.images):
        faults += channel_faults(list(images.values()), channels)
    findings = [found(check, message) for check, message in faults]
    grids = dict(images)
    if case.label is not None:
        background = {0, *background_values}
        opened, faults, values = _check_labels(root, case.label, labels, background)
        grids |= opened
        findings += [found(check, message) for check, message in faults]
        drawn = [name for name in case.unannotated if labels[name] in values]
        if drawn:
            message = (
                f"{case.label} has voxels of {', '.join(drawn)}, which count for nothing: the dataset file calls it"
            )
            findings.append(found("unannotated", f"{message} unannotated in this case", "warning"))
        if values and values <= background:
            findings.append(found("foreground", f"{case.label} has no voxel of any label", "warning"))
    elif case.split == "training":
        findings.append(found("missing-label", "this training case has no label map"))
    findings += [found(check, message) for check, message in grid_faults(grids)]
    return findings or [found("all", _summary(list(images.values())), "ok")]


def _check_images(root: Path, case: Case) -> tuple[dict[str, Volume], list[Fault]]:
    """The readable files of a case by name, and the faults of all."""
    opened, faults = {}, []
    for name in case.images:
        if not (root / name).exists():
            faults.append(("missing-image", f"there is no {name}"))
            continue
        try:
            volume = open_volume(root / name)
            faults += intensity_faults(volume, name)
            opened[name] = volume
        except UserError as fault:
            faults.append(("readable" if isinstance(fault, DamagedFileError) else "header", str(fault)))
    return opened, faults


def _check_labels(
    root: Path, name: str, labels: dict[str, int], background: set[int]
) -> tuple[dict[str, Volume], list[Fault], set[int]]:
    """The label map by its name where it is readable, its faults, and its values."""
    if not (root / name).exists():
        return {}, [("missing-label", f"there is no {name}")], set()
    try:
        volume = open_volume(root / name)
        faults, values = label_faults(volume, name, labels, background)
    except UserError as fault:
        return {}, [("readable" if isinstance(fault, DamagedFileError) else "label-values", str(fault))], set()
    return {name: volume}, faults, values


def _duplicates(layout: Layout) -> list[Finding]:
    times = Counter(case.id for case in layout.cases)
    return [
        Finding(
            case=name,
            check="duplicate",
            severity="error",
            message="several cases have this id: " + ", ".join(c.images[0] for c in layout.cases if c.id == name),
        )
        for name, number in times.items()
        if number > 1
    ]


def _summary(images: Sequence[Volume]) -> str:
    channels, grid = sum(volume.channels for volume in images), images[0].geometry
    unit = "channel" if channels == 1 else "channels"
    return f"{shown_sizes(grid.canonical_shape)} voxels of {shown_sizes(grid.spacing)} mm (z, y, x), {channels} {unit}"
