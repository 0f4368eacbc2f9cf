"""Looks at every case of a dataset and collects all that is wrong with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import pandas

from megavoxel.config.records import to_plain
from megavoxel.config.regions import LabelScheme
from megavoxel.csv_files import write_csv
from megavoxel.datasets.cases import Case
from megavoxel.datasets.folder import unused_files
from megavoxel.datasets.layout import Layout
from megavoxel.datasets.pairs import listed
from megavoxel.errors import UserError
from megavoxel.parallel import map_cases
from megavoxel.volumes.checks import (
    Fault,
    channel_faults,
    grid_faults,
    intensity_faults,
    undeclared_faults,
    values_of,
)
from megavoxel.volumes.grid import shown_sizes
from megavoxel.volumes.no_scans import is_link_to_nothing
from megavoxel.volumes.open import open_volume, stem_of
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


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What is known of a case whose files were read."""

    findings: tuple[Finding, ...]
    content: tuple[str, ...]
    """Checksums of the voxels of its images; empty where one of them is not sound."""
    units: frozenset[str]
    """Units that the headers of its images state."""


def check_layout(
    root: Path, layout: Layout, *, background_values: tuple[int, ...] = (), processes: int = 1
) -> list[Finding]:
    """Checks all cases of a dataset; the findings come in order of the cases.

    Args:
        background_values: what label maps may hold besides 0 and the labels.
        processes: cases that are read at the same time; the result does not depend on it.
    """
    look = partial(
        check_case, root, channels=layout.channels, scheme=layout.scheme, background_values=background_values
    )
    looked_at = map_cases(look, layout.cases, processes=processes, title="checking")
    found = [finding for looked in looked_at for finding in looked.findings]
    found += [*_same_images(layout.cases, [looked.content for looked in looked_at]), *_units(layout.cases, looked_at)]
    excluded = [
        Finding(case=case, check="all", severity="excluded", message="left out by the dataset file")
        for case in layout.excluded
    ]
    findings = _without_praise([*_duplicates(layout), *found, *excluded])
    return sorted(findings, key=lambda finding: finding.case)


def unused_findings(root: Path, layout: Layout) -> list[Finding]:
    """Files beside those of the cases, folder by folder, that no case has, but for those of excluded cases."""
    by_folder: dict[str, list[str]] = {}
    for name in map(PurePosixPath, unused_files(root, layout.cases)):
        if re.sub(r"_\d{4}$", "", stem_of(name.name)) not in layout.excluded:
            by_folder.setdefault(str(name.parent), []).append(name.name)
    return [
        Finding(
            case=folder,
            check="unused",
            severity="warning",
            message=f"{len(names)} files of this folder belong to no case: {listed(names)}",
        )
        for folder, names in by_folder.items()
    ]


def write_findings(path: Path, findings: list[Finding]) -> None:
    """Writes checks.csv: case, check, severity, message."""
    write_csv(path, pandas.DataFrame(map(to_plain, findings), columns=COLUMNS))


def check_case(
    root: Path,
    case: Case,
    *,
    channels: tuple[str, ...],
    scheme: LabelScheme,
    background_values: tuple[int, ...] = (),
) -> Looked:
    """A case's files, read to their end: all faults, or one finding with severity `ok` that describes it.

    Args:
        channels: names of the channels that the image must have.
        scheme: the values that the label map may have besides 0; that of the ignore label only in training.
        background_values: others that count as background, like 0.
    """

    def found(check: str, message: str, severity: str = "error") -> Finding:
        return Finding(case=case.id, check=check, severity=severity, message=message)

    images, faults, content = _check_images(root, case, channels)
    if len(images) == len(case.images):
        faults += channel_faults(list(images.values()), channels)
    findings = [found(check, message) for check, message in faults]
    findings += [found(check, message, "warning") for check, message in _doubts(images)]
    grids = dict(images)
    if case.label is not None:
        background, labels = {0, *background_values}, scheme.labels
        opened, faults, values = _check_labels(root, case.label, scheme, background)
        grids |= opened
        findings += [found(check, message) for check, message in faults]
        if case.split == "test" and scheme.ignore_value in values:
            findings.append(found("ignore-label", _incomplete_test(case.label, scheme.ignore_value)))
        drawn = [name for name in case.unannotated if labels[name] in values]
        if drawn:
            message = (
                f"{case.label} has voxels of {', '.join(drawn)}, which count for nothing: the dataset file calls it"
            )
            findings.append(found("unannotated", f"{message} unannotated in this case", "warning"))
        if values and values <= {*background, scheme.ignore_value}:
            findings.append(found("foreground", f"{case.label} has no voxel of any label", "warning"))
    elif case.split == "training":
        findings.append(found("missing-label", "this training case has no label map"))
    findings += [found(check, message) for check, message in grid_faults(grids)]
    return Looked(
        findings=tuple(findings or [found("all", _summary(list(images.values())), "ok")]),
        content=tuple(content) if len(content) == len(case.images) else (),
        units=frozenset(volume.geometry.unit for volume in images.values()) - {None},
    )


def _check_images(
    root: Path, case: Case, channels: tuple[str, ...]
) -> tuple[dict[str, Volume], list[Fault], list[str]]:
    """The readable files of a case by name, the faults of all, and checksums of the voxels of those that are sound."""
    opened, faults, content = {}, [], []
    for number, name in enumerate(case.images):
        if not (root / name).exists():
            lost = "" if len(case.images) == 1 else _lost_channel(number, channels)
            faults.append(("missing-image", f"{_absence(root / name, name)}{lost}"))
            continue
        try:
            volume = open_volume(root / name)
            found, checksum = intensity_faults(volume, name)
            faults += found
            opened[name] = volume
            content += [] if found else [checksum]
        except UserError as fault:
            faults.append(("readable" if isinstance(fault, DamagedFileError) else "header", str(fault)))
    return opened, faults, content


def _absence(path: Path, name: str) -> str:
    return f"{name} is a link to nothing" if is_link_to_nothing(path) else f"there is no {name}"


def _lost_channel(number: int, channels: tuple[str, ...]) -> str:
    """What follows of the absence of one of several channels of a case."""
    which = f", the channel {channels[number]}" if number < len(channels) else ""
    return (
        f"{which}: every case needs all of {', '.join(channels)}; bring the file, leave the case out by 'exclude' of "
        "the dataset file, or take the channel off all cases"
    )


def _doubts(images: dict[str, Volume]) -> list[Fault]:
    """What is not known to be wrong, and may be."""
    found = [("incomplete", f"{name}: {doubt}") for name, volume in images.items() for doubt in volume.doubts]
    lost = [name for name, volume in images.items() if not volume.is_oriented]
    return found + [
        ("orientation", f"{name} does not say how it lies in the patient; left and right may be exchanged")
        for name in lost
    ]


def _check_labels(
    root: Path, name: str, scheme: LabelScheme, background: set[int]
) -> tuple[dict[str, Volume], list[Fault], set[int]]:
    """The label map by its name where it is readable, its faults, and its values."""
    if not (root / name).exists():
        return {}, [("missing-label", _absence(root / name, name))], set()
    try:
        volume = open_volume(root / name)
        values = values_of(volume)
        ignored = set() if scheme.ignore_value is None else {scheme.ignore_value}
        faults = undeclared_faults(values - ignored, name, scheme.labels, background)
    except UserError as fault:
        return {}, [("readable" if isinstance(fault, DamagedFileError) else "label-values", str(fault))], set()
    return {name: volume}, faults, values


def _incomplete_test(label: str, ignored: int) -> str:
    return (
        f"{label} has voxels of the ignore label ({ignored}); test cases are scored, so their label maps must be "
        "complete: annotate them, or take the case out of the test split"
    )


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


def _same_images(cases: Sequence[Case], contents: Sequence[tuple[str, ...]]) -> Iterator[Finding]:
    """Cases whose images have the same voxels: one scan under two names, perhaps in training and in test."""
    alike: dict[tuple[str, ...], list[Case]] = {}
    for case, content in zip(cases, contents, strict=True):
        alike.setdefault(content, []).append(case)
    for content, same in alike.items():
        for case in same if content and len(same) > 1 else ():
            others = ", ".join(f"{other.id} ({other.split})" for other in same if other is not case)
            message = f"its image ({case.split}) has the same voxels as that of {others}; one scan under two names"
            yield Finding(case=case.id, check="same-image", severity="warning", message=message)


def _units(cases: Sequence[Case], looked_at: Sequence[Looked]) -> Iterator[Finding]:
    """Cases whose headers state another unit than those of most others; what states none may be of any."""
    counts = Counter(unit for looked in looked_at for unit in looked.units)
    usual = max(counts, key=lambda unit: counts[unit], default="")
    for case, looked in zip(cases, looked_at, strict=True):
        for unit in sorted(looked.units - {usual}):
            message = (
                f"its header is in {unit}, and those of {counts[usual]} cases are in {usual}; bring all in one unit"
            )
            yield Finding(case=case.id, check="unit", severity="error", message=message)


def _without_praise(findings: Sequence[Finding]) -> list[Finding]:
    """Leaves out `ok` of the cases about which there is something else to say."""
    blamed = {finding.case for finding in findings if finding.severity != "ok"}
    return [finding for finding in findings if finding.severity != "ok" or finding.case not in blamed]


def _summary(images: Sequence[Volume]) -> str:
    channels, grid = sum(volume.channels for volume in images), images[0].geometry
    voxels = f"{shown_sizes(grid.canonical_shape)} voxels of {shown_sizes(grid.spacing)} {grid.unit or 'mm'} (z, y, x)"
    return f"{voxels}, {channels} {'channel' if channels == 1 else 'channels'}"
