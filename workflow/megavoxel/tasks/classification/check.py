"""Looks at every image of a dataset and collects all that is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megavoxel.config.dataset import Dataset
from megavoxel.datasets.check import Finding
from megavoxel.errors import UserError
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
    findings = [*layout.findings, *_images(layout, looked_at), *_untrained(layout)]
    cases = ImageCases(dataset=dataset.name, root=str(root), classes=layout.classes, cases=layout.cases)
    return cases, findings


def describe(cases: ImageCases, findings: Sequence[Finding]) -> list[str]:
    """Lines with what was found and how many images each class has."""
    counts = Counter((case.split, case.label) for case in cases.cases)
    found = [f"{finding.severity}: {finding.case}: {finding.check}: {finding.message}" for finding in findings]
    return found + [
        f"{name}: {counts['training', name]} training, {counts['test', name]} test" for name in cases.classes
    ]


def _look(root: Path, case: ImageCase) -> tuple[str, str]:
    """An image's mode, or an empty one and the fault."""
    try:
        return image_mode(root / case.id), ""
    except UserError as error:
        return "", str(error)


def _images(layout: ImageLayout, looked_at: list[tuple[str, str]]) -> list[Finding]:
    counts = Counter(mode for mode, _ in looked_at)
    rarer = min(GREY, COLOUR, key=lambda mode: counts[mode])
    findings = []
    for case, (mode, fault) in zip(layout.cases, looked_at, strict=True):
        if fault:
            findings.append(Finding(case=case.id, check="image", severity="error", message=fault))
        elif mode == rarer:
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
