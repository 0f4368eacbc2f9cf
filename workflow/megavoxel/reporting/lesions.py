"""How many connected components of a label, such as lesions, are found, by their size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.evaluation.lesions import read_lesions
from megavoxel.reporting.stored import Stored

SIZES_ML = (0.0, 0.1, 1.0, 10.0)
"""Where each class of size begins, in ml."""
COLUMNS = ["split", "label", "model", "low", "referred", "found", "predicted", "false"]


def counts_components(stored: Stored) -> bool:
    """Whether a metric of the study counts components."""
    return any(metric.of_components for metric in stored.metrics)


def lesion_table(stored: Stored) -> pd.DataFrame:
    """Per split, label, class of size (`low`, in ml) and model: components of the reference and those found, components
    of the prediction and those that are none of the reference.

    A component is found, or none, by the rule of lesion-wise F1 (`megavoxel.evaluation.components`). Those of the
    prediction are counted by their own size.
    """
    rows: list[dict[str, Any]] = []
    places = {name: place for place, name in enumerate(stored.labels)}
    for own in _stored_lesions(stored):
        sizes = np.digitize(own["volume_ml"], SIZES_ML) - 1
        for (split, label, model, size), part in own.groupby(["split", "label", "setting", sizes]):
            rows.append({"split": split, "label": label, "model": model, "low": SIZES_ML[size]} | _counts(part))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(
        ["split", "label", "low"],
        key=lambda own: own.map(places) if own.name == "label" else own,
        kind="stable",
        ascending=[False, True, True],
        ignore_index=True,
    )


def _stored_lesions(stored: Stored) -> list[pd.DataFrame]:
    """The lesions of each model, all folds together."""
    files = {model: _files(stored, model) for model in stored.definition.models}
    return [pd.concat([read_lesions(path) for path in paths], ignore_index=True) for paths in files.values() if paths]


def _counts(part: pd.DataFrame) -> dict[str, int]:
    is_matched, is_reference = part["same_as"] != "", part["map"] == "reference"
    return {
        "referred": int(is_reference.sum()), "found": int((is_reference & is_matched).sum()),
        "predicted": int((~is_reference).sum()), "false": int((~is_reference & ~is_matched).sum()),
    }  # fmt: skip


def _files(stored: Stored, model: str) -> list[Path]:
    folder, folds = stored.folder(model), stored.definition.folds[model]
    paths = [*(folder / f"fold-{fold}" / "lesions.csv" for fold in folds), folder / "lesions-test.csv"]
    return [path for path in paths if path.is_file()]
