"""Files that a run leaves: its manifest, its history, and the forecasts of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from megavoxel.csv_files import as_written
from megavoxel.errors import UserError, expect
from megavoxel.files import read_json, table_text

HISTORY_COLUMNS = ("epoch", "training_loss", "validation_loss", "pseudo_dice", "seconds", "peak_memory_mib")
MANIFEST_NUMBERS = ("parameters", "devices", "epochs", "seconds", "peak_memory_mib")


def read_manifest(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The manifest of a training.

    Args:
        needed: entries that must be there.

    Raises:
        UserError: the file is missing or no manifest, or an entry that a report computes with is missing or of another
            kind.
    """
    found = read_json(path, what="manifest")
    expect(isinstance(found, dict), str(path), "a manifest of a training, which is an object")
    expect(isinstance(found.get("peak_memory"), dict | None), f"{path}: peak_memory", "an object")
    expect(isinstance(found.get("data", {}), dict), f"{path}: data", "an object")
    peak = found.get("peak_memory") or {}
    numbers = {key: found[key] for key in MANIFEST_NUMBERS if key in found}
    numbers |= {f"peak_memory.{key}": peak[key] for key in ("gib", "forecast_gib") if key in peak}
    for key, value in numbers.items():
        expect(isinstance(value, int | float) and not isinstance(value, bool), f"{path}: {key}", "a number")
    for key in needed:
        expect(found.get(key) is not None, f"{path}: {key}", "an entry of this name")
    return found


def read_history(path: Path, columns: Sequence[str] = HISTORY_COLUMNS) -> pd.DataFrame:
    """Reads a `history.csv`: one line per epoch.

    Args:
        columns: those that have to be there, with numbers.

    Raises:
        UserError: the file is missing, unreadable, empty, or lacks a column.
    """
    try:
        table = pd.read_csv(table_text(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such history; run 'megavoxel train' for this setting and fold") from None
    except (OSError, OverflowError, ValueError) as fault:
        raise UserError(f"{path}: cannot be read as CSV ({fault}); train this setting and fold again") from None
    missing = [column for column in columns if column not in table]
    if missing or table.empty:
        what = f"the column {missing[0]} is missing" if missing else "there is no epoch in it"
        raise UserError(f"{path}: {what}; train this setting and fold again")
    words = [column for column in columns if not pd.api.types.is_numeric_dtype(table[column])]
    if words:
        raise UserError(f"{path}: the column {words[0]} holds something else than numbers; train it again")
    return table


def read_forecast(path: Path) -> pd.DataFrame:
    """A `plan.tsv` by setting.

    Returns:
        Empty where the file is missing: a study can be run without a forecast.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    if not path.exists():
        return pd.DataFrame()
    try:
        # A setting may be called NA; only an empty field is no number.
        table = pd.read_csv(table_text(path), sep="\t", dtype={"setting": str}, keep_default_na=False, na_values=[""])
        return as_written(table).set_index("setting").astype({"peak_gib": float})
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{path}: cannot be read as a forecast ({fault}); run 'snakemake plan' again") from None
