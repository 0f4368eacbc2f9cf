"""Looks at every case of a dataset and collects all that is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path

import numpy as np
import pandas

from megavoxel.config.records import to_plain
from megavoxel.datasets.cases import Case
from megavoxel.datasets.layout import Layout
from megavoxel.errors import UserError
from megavoxel.files import atomic_path
from megavoxel.parallel import map_cases
from megavoxel.volumes.nifti import DamagedFileError, Geometry, read_geometry
from megavoxel.volumes.slabs import read_image_slabs, read_label_slabs, stored_shape

SPACING_TOLERANCE = 1e-3
"""Largest relative difference of spacings along an axis."""
AFFINE_TOLERANCE = 0.05
"""Largest distance between the places of a corner voxel in two files, in units of the smallest voxel side."""
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
    """For the reader."""


def check_layout(
    root: Path, layout: Layout, *, background_values: tuple[int, ...] = (), processes: int = 1
) -> list[Finding]:
    """Checks all cases of a dataset; the findings come in order of the cases.

    Args:
        root: the dataset's folder.
        layout: its cases, channels and labels.
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
        root: the dataset's folder.
        case: its files.
        channels: names of the channels that the image must have.
        labels: values by name that the label map may have besides 0.
        background_values: others that count as background, like 0.
    """

    def found(check: str, message: str, severity: str = "error") -> Finding:
        return Finding(case=case.id, check=check, severity=severity, message=message)

    faults, grids, count = _check_images(root, case)
    if len(grids) == len(case.images) and count != len(channels):
        faults.append(("channels", f"{count} channels, declared are {len(channels)}: {', '.join(channels)}"))
    findings = [found(check, message) for check, message in faults]
    if case.label is not None:
        background = {0, *background_values}
        faults, grid, values = _check_labels(root, case.label, labels, background)
        findings += [found(check, message) for check, message in faults]
        drawn = [name for name in case.unannotated if labels[name] in values]
        if drawn:
            message = (
                f"{case.label} has voxels of {', '.join(drawn)}, which count for nothing: the dataset file calls it"
            )
            findings.append(found("unannotated", f"{message} unannotated in this case", "warning"))
        if values and values <= background:
            findings.append(found("foreground", f"{case.label} has no voxel of any label", "warning"))
        if grid is not None:
            grids[case.label] = grid
    elif case.split == "training":
        findings.append(found("missing-label", "this training case has no label map"))
    names = list(grids)
    for name in names[1:]:
        for check, message in compare_grids(grids[names[0]], grids[name]):
            findings.append(found(check, f"{names[0]} and {name}: {message}"))
    return findings or [found("all", _summary(grids[names[0]], count), "ok")]


def compare_grids(first: Geometry, second: Geometry) -> list[tuple[str, str]]:
    """How two grids differ beyond the tolerances: check (`shape`, `spacing` or `affine`) and message, or nothing."""
    if first.shape != second.shape:
        return [("shape", f"{_times(first.shape)} and {_times(second.shape)} voxels")]
    sides, other_sides = (np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (first, second))
    if (np.abs(other_sides - sides) > SPACING_TOLERANCE * sides).any():
        return [("spacing", f"spacings of {_times(sides)} and {_times(other_sides)} mm (in the files' order)")]
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in first.shape))])
    moved = np.linalg.norm((corners @ (second.affine - first.affine).T)[:, :3], axis=1).max()
    allowed = AFFINE_TOLERANCE * sides.min()
    if moved > allowed:
        place = f"their affines place a corner {moved:.3g} mm apart, allowed are {allowed:.3g} mm"
        return [("affine", f"{place}; if the voxels do match, copy the image's affine to the label map")]
    return []


def _check_images(root: Path, case: Case) -> tuple[list[tuple[str, str]], dict[str, Geometry], int]:
    """Faults, grids of the readable files by name, and the number of channels in them."""
    faults, grids, count = [], {}, 0
    for name in case.images:
        if not (root / name).is_file():
            faults.append(("missing-image", f"there is no {name}"))
            continue
        try:
            channels = stored_shape(root / name)[0]
            found = list(_check_intensities(root, name))
            grids[name] = read_geometry(root / name)
        except UserError as fault:
            faults.append(("readable" if isinstance(fault, DamagedFileError) else "header", str(fault)))
            continue
        count += channels
        faults += found
    return faults, grids, count


def _check_intensities(root: Path, name: str) -> Iterator[tuple[str, str]]:
    """Faults of an image's voxels, which are read slab by slab."""
    shape = stored_shape(root / name)
    if 0 in shape:
        yield "empty", f"{name} has no voxels"
        return
    bad, low, high = 0, np.full(shape[0], np.inf), np.full(shape[0], -np.inf)
    for slab in read_image_slabs(root / name):
        bad += slab.voxels.size - int(np.count_nonzero(np.isfinite(slab.voxels)))
        low[slab.channel] = min(low[slab.channel], slab.voxels.min())
        high[slab.channel] = max(high[slab.channel], slab.voxels.max())
    if bad:
        yield "finite", f"{name} has {bad} voxels that are NaN or infinite"
        return
    for number in np.flatnonzero(low == high):
        which = f"channel {number} of {name}" if shape[0] > 1 else name
        yield "empty", f"{which} has the value {low[number]:g} in every voxel"


def _check_labels(
    root: Path, name: str, labels: dict[str, int], background: set[int]
) -> tuple[list[tuple[str, str]], Geometry | None, set[int]]:
    """Faults, grid and values of a label map."""
    if not (root / name).is_file():
        return [("missing-label", f"there is no {name}")], None, set()
    try:
        grid = read_geometry(root / name)
        slabs = read_label_slabs(root / name)
        values = {int(value) for slab in slabs for value in pandas.unique(slab.voxels.ravel(order="K"))}
    except UserError as fault:
        return [("readable" if isinstance(fault, DamagedFileError) else "label-values", str(fault))], None, set()
    undeclared = sorted(values - background - set(labels.values()))
    if not undeclared:
        return [], grid, values
    meanings = dict.fromkeys(sorted(background), "background") | {value: label for label, value in labels.items()}
    declared = ", ".join(f"{value} {meaning}" for value, meaning in meanings.items())
    listing = ", ".join(map(str, undeclared[:10])) + (", ..." if len(undeclared) > 10 else "")
    return [("label-values", f"{name} has the undeclared value {listing}; declared are {declared}")], grid, values


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


def _summary(grid: Geometry, channels: int) -> str:
    unit = "channel" if channels == 1 else "channels"
    return f"{_times(grid.canonical_shape)} voxels of {_times(grid.spacing)} mm (z, y, x), {channels} {unit}"


def _times(numbers: tuple[float, ...] | np.ndarray) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)
