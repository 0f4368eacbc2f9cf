"""Checks of a dataset of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megavoxel.config.dataset import Dataset
from megavoxel.datasets.cases import Cases
from megavoxel.datasets.check import Finding, check_layout, unused_findings
from megavoxel.datasets.layout import read_layout


def check(root: Path, dataset: Dataset, *, processes: int = 1) -> tuple[Cases, list[Finding], list[str]]:
    """All cases of a dataset, each opened, what was found, and lines about them."""
    layout = read_layout(root, dataset)
    scheme = layout.scheme
    tolerances = {name: dataset.tolerance(name) for name in scheme.structures}
    findings = check_layout(root, layout, background_values=dataset.background_values, processes=processes)
    findings += unused_findings(root, layout)
    cases = Cases(
        dataset=dataset.name,
        root=str(root),
        channels=layout.channels,
        labels=scheme.labels,
        regions=scheme.regions,
        ignore_value=scheme.ignore_value,
        nsd_tolerance_mm=tolerances,
        cases=layout.cases,
        background_values=dataset.background_values,
    )
    return cases, findings, describe(cases, findings)


def describe(cases: Cases, findings: Sequence[Finding]) -> list[str]:
    """Lines with the warnings, how many cases are sound, and where labels are not annotated."""
    lines = [
        f"warning: {finding.case}: {finding.check}: {finding.message}"
        for finding in findings
        if finding.severity == "warning"
    ]
    excluded = sum(finding.severity == "excluded" for finding in findings)
    lines.append(
        f"dataset {cases.dataset}: {len(cases.of_split('training'))} training and {len(cases.of_split('test'))} test "
        f"cases are sound, {excluded} left out"
    )
    for label in cases.labels:
        unannotated = sum(label in case.unannotated for case in cases.cases)
        hidden = sum(label in case.hidden for case in cases.cases)
        if unannotated or hidden:
            lines.append(f"{label}: not annotated in {unannotated} cases, hidden from training in {hidden}")
    return lines
