"""Fills the table of claims: what papers say that changes, and what finished studies measured.

python -m benchmarks.claims [--results DIR] [--note TEXT]

Reads config/claims.csv, and of each study in it DIR/STUDY/scores.csv, or the scores of those folds that are there.
Writes benchmarks/results/studies/claims.csv; what has no results keeps the numbers that stand there.
`python -m benchmarks.tables` then writes the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pandas as pd

from benchmarks.measure import REPOSITORY, RESULTS, commit, machine, today
from megavoxel.evaluation.tidy import COLUMNS as OF_SCORES
from megavoxel.evaluation.tidy import read_scores
from megavoxel.reporting.claims import (
    ABSENT,
    COLUMNS,
    MEASURED,
    Measures,
    measured_claims,
    read_claims,
    seconds_by_case,
    steadiness_of,
)
from megavoxel.reporting.costs import read_timings

CLAIMS, PUBLISHED = REPOSITORY / "config/claims.csv", REPOSITORY / "config/published"
OUTPUT = RESULTS / "studies/claims.csv"
ORIGIN = ["date", "machine", "commit", "note"]
NUMBERS = ["published_change", "measured", "low", "high"]


def scores_of(study: Path) -> pd.DataFrame:
    """All scores of a study, or those of its folds where it is not finished."""
    whole = study / "scores.csv"
    paths = [whole] if whole.is_file() else sorted(study.glob("*/fold-*/scores.csv"))
    return pd.concat([pd.DataFrame(columns=OF_SCORES), *map(read_scores, paths)], ignore_index=True)


def peaks_of(study: Path) -> dict[str, float]:
    """Peak memory of the runs of a study in GiB, by setting."""
    peaks: dict[str, float] = {}
    for path in sorted(study.glob("*/fold-*/manifest.json")):
        peak = (json.loads(path.read_text()).get("peak_memory") or {}).get("gib")
        if peak is not None:
            setting = path.parents[1].name
            peaks[setting] = max(peak, peaks.get(setting, 0.0))
    return peaks


def measures_of(study: Path) -> Measures:
    """All that a study has measured so far."""
    histories: dict[str, list[float]] = {}
    for path in sorted(study.glob("*/fold-*/history.csv")):
        history = pd.read_csv(path)
        if "pseudo_dice" in history:
            histories.setdefault(path.parents[1].name, []).append(steadiness_of(history))
    timings = study / "timings.csv"
    timed = seconds_by_case(read_timings([timings])) if timings.is_file() else pd.DataFrame()
    return Measures(scores=scores_of(study), peaks=peaks_of(study), seconds=timed, steadiness=histories)


def table_of(results: Path, note: str, known: pd.DataFrame) -> pd.DataFrame:
    """The lines of all claims, measured anew where there are results."""
    claims = read_claims(CLAIMS, PUBLISHED)
    parts = []
    for study, own in claims.groupby("study", sort=False):
        parts.append(measured_claims(own, measures_of(results / study)).set_index(own.index))
    found = pd.concat(parts).sort_index()
    numbers = found[NUMBERS].astype(float).map(lambda value: "" if math.isnan(value) else f"{value:.3f}")
    counts = found[["seeds", "cases"]].astype("Int64").astype(str).replace("0", "")
    text = found.assign(**counts, **numbers).astype(str)
    text = text.assign(date=today(), machine=machine(), commit=commit(), note=note)
    older = known.drop_duplicates(COLUMNS).set_index(COLUMNS) if len(known) else None
    for row in text.index[text["verdict"] == ABSENT]:
        key = tuple(text.loc[row, COLUMNS])
        is_known = older is not None and key in older.index
        text.loc[row, ORIGIN] = ""
        if is_known:
            kept = [*MEASURED[1:], *ORIGIN]
            text.loc[row, kept] = older.loc[key, kept].to_numpy()
    return text[[*COLUMNS, *MEASURED, *ORIGIN]]


def main() -> int:
    """Writes the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results", help="folder of the studies' results")
    parser.add_argument("--note", default="", help="conditions, for the last column")
    options = parser.parse_args()
    known = pd.read_csv(OUTPUT, dtype=str, keep_default_na=False) if OUTPUT.is_file() else pd.DataFrame()
    table = table_of(options.results, options.note, known)
    table.to_csv(OUTPUT, index=False)  # minus signs are numbers, and no formulas
    print(table[["paper", "claim", "published_change", "measured", "low", "high", "verdict"]].to_string(index=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
