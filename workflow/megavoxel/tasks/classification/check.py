"""Looks at every image of a dataset and collects all that is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megavoxel.config.dataset import Dataset
from megavoxel.datasets.check import Finding
from megavoxel.errors import UserError
from megavoxel.files import file_sha256
from megavoxel.parallel import map_cases
from megavoxel.tasks.classification.cases import ImageCase, ImageCases
from megavoxel.tasks.classification.images import COLOUR, GREY, image_mode
from megavoxel.tasks.classification.layout import ImageLayout, read_image_layout

AMONG = {
    GREY: "grey among colour images; its grey stands for all three colours",
    COLOUR: "in colour among grey images, whose grey stands for all three colours",
}


def check(root: Path, dataset: Dataset, *, processes: int = 1) -> tuple[ImageCases, list[Finding], list[str]]:
    """All images of a dataset, what was found, and lines about them; see `check_images`."""
    cases, findings = check_images(root, dataset, processes=processes)
    return cases, findings, describe(cases, findings)


def check_images(root: Path, dataset: Dataset, *, processes: int = 1) -> tuple[ImageCases, list[Finding]]:
    """All images of a dataset, each opened and decoded, and what was found.

    An image that cannot be read, a table's line without a file, a file in two lines, a patient in both splits, and a
    class without training images are errors. Where most images are in colour, a grey one is a warning, and the other
    way round: the grey of grey images stands for all three colours.
    """
    layout = read_image_layout(root, dataset)
    looked_at = map_cases(partial(_look, root), layout.cases, processes=processes, title="checking", unit="image")
    findings = [*layout.findings, *_images(layout, looked_at), *_same_images(layout, looked_at), *_untrained(layout)]
    cases = ImageCases(dataset=dataset.name, root=str(root), classes=layout.classes, cases=layout.cases)
    return cases, findings


def describe(cases: ImageCases, findings: Sequence[Finding]) -> list[str]:
    """Lines with what was found and how many images each class has."""
    counts = Counter((case.split, case.label) for case in cases.cases)
    found = [f"{finding.severity}: {finding.case}: {finding.check}: {finding.message}" for finding in findings]
    return found + [
        f"{name}: {counts['training', name]} training, {counts['test', name]} test" for name in cases.classes
    ]


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """What is known of an image that was read: its mode and its file's checksum, or a fault."""

    mode: str = ""
    checksum: str = ""
    fault: str = ""


def _look(root: Path, case: ImageCase) -> _Looked:
    try:
        return _Looked(mode=image_mode(root / case.id), checksum=file_sha256(root / case.id))
    except UserError as error:
        return _Looked(fault=str(error))


def _same_images(layout: ImageLayout, looked_at: Sequence[_Looked]) -> list[Finding]:
    """Files of equal bytes, the later ones of which are named with the first: scores may then count a known image."""
    first: dict[str, ImageCase] = {}
    findings = []
    for case, looked in zip(layout.cases, looked_at, strict=True):
        known = first.setdefault(looked.checksum, case) if looked.checksum else case
        if known is not case:
            message = f"this file ({case.split}, {case.label}) is that of {known.id} ({known.split}, {known.label})"
            findings.append(Finding(case=case.id, check="same-image", severity="warning", message=message))
    return findings


def _images(layout: ImageLayout, looked_at: Sequence[_Looked]) -> list[Finding]:
    counts = Counter(looked.mode for looked in looked_at)
    rarer = min(GREY, COLOUR, key=lambda mode: counts[mode])
    findings = []
    for case, looked in zip(layout.cases, looked_at, strict=True):
        if looked.fault:
            findings.append(Finding(case=case.id, check="image", severity="error", message=looked.fault))
        elif looked.mode == rarer:
            findings.append(Finding(case=case.id, check="colour", severity="warning", message=AMONG[rarer]))
    return findings


def _untrained(layout: ImageLayout) -> list[Finding]:
    """Classes of which the test split takes every image."""
    trained = {case.label for case in layout.cases if case.split == "training"}
    message = "all images of this class are test images, none is left for training; keep fewer for the test split"
    return [
        Finding(case=f"class {name}", check="class", severity="error", message=message)
        for name in layout.classes
        if name not in trained
    ]
