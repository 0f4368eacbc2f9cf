"""The notices of the page: parts of the study that are missing, left out or odd."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from megavoxel.csv_files import as_written
from megavoxel.errors import UserError
from megavoxel.files import table_text
from megavoxel.reporting.odd import odd_runs
from megavoxel.reporting.provenance import differing, without_manifest
from megavoxel.reporting.stored import Stored, StoredClassification
from megavoxel.training.class_weights import silenced_classes

FINDINGS_SHOWN = 100


def notices(stored: Stored) -> dict[str, Any]:
    """What the notices say; `doubts` counts the lines that speak against the numbers of the page.

    Raises:
        UserError: checks.csv is damaged.
    """
    random = []
    if isinstance(stored, StoredClassification):
        random = [cell for cell in stored.definition.cells if not stored.cell_plan(cell).pretrained]
    found = {
        "missing": stored.missing,
        "odd": odd_runs(stored),
        "never_seen": labels_never_seen(stored),
        "silenced": silenced(stored),
        "differing": differing(stored),
        "without_manifest": without_manifest(stored),
    }
    return found | {
        "doubts": sum(map(len, found.values())),
        "random": random,
        "ignored": stored.ignored,
        "findings": findings_of(stored),
        "findings_shown": FINDINGS_SHOWN,
    }


def findings_of(stored: Stored) -> list[dict[str, str]]:
    """Findings of the study's data check besides sound cases."""
    # The checks.csv of images has lines of faults alone.
    has_lines_of_all = stored.cases is not None and not stored.definition.classifies
    names = [case.id for case in stored.cases.cases] if has_lines_of_all else []
    return read_findings(stored.results / "checks.csv", names)


def read_findings(path: Path, cases: Iterable[str] = ()) -> list[dict[str, str]]:
    """Findings of `megavoxel check` besides sound cases: warnings, errors and excluded cases; empty without the file.

    Args:
        cases: that it must have a line of.

    Raises:
        UserError: the file cannot be read, or was cut.
    """
    if not path.exists():
        return []
    try:
        table = as_written(pd.read_csv(table_text(path), dtype=str, keep_default_na=False))
        found = table.loc[table["severity"] != "ok", ["severity", "case", "message"]].to_dict("records")
    except (OSError, UnicodeDecodeError, KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); run 'megavoxel check' again") from None
    unseen = sorted(set(cases) - set(table["case"]))
    if unseen:
        raise UserError(f"{path}: there is no line of case {unseen[0]}, so it was cut; run 'megavoxel check' again")
    return found


def labels_never_seen(stored: Stored) -> list[str]:
    """One line per setting and fold whose training cases lack labels, by the manifests."""
    return [
        f"{setting}, fold {fold}: {', '.join(labels)}"
        for setting, manifests in stored.manifests.items()
        for fold, manifest in manifests.items()
        if (labels := manifest.get("data", {}).get("labels_never_seen"))
    ]


def silenced(stored: Stored) -> list[str]:
    """One line per setting and fold whose class weights leave a class without one, by the manifests."""
    lines = []
    for setting, manifests in stored.manifests.items():
        for fold, manifest in manifests.items():
            weights = manifest.get("data", {}).get("class_weights")
            silent = silenced_classes(stored.plans[setting], list(weights.values())) if weights else []
            if silent:
                given = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
                lines.append(f"{setting}, fold {fold}: {', '.join(silent)} (weights: {given})")
    return lines
