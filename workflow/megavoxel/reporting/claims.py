"""Claims of papers: the change that a paper prints beside the change that a study measures, and whether they agree.

A claim is about two models of a study, each with its repeats, and one metric. Absolute numbers of a paper do not
compare with those of other data; the direction and the size of a change do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import read_text
from megavoxel.reporting.best import LOWEST
from megavoxel.reporting.cells import NONE, show, signed, signed_with_interval
from megavoxel.reporting.costs import PEAK, case_seconds, own_peaks
from megavoxel.reporting.published import COSTS, SECONDS, read_published
from megavoxel.reporting.statistics import RESAMPLES
from megavoxel.reporting.stored import Stored
from megavoxel.tasks.classification.scores import PROBABILITY, TRUTH

STEADINESS = "SD of pseudo-Dice over the last epochs"
LAST_EPOCHS = 0.25
"""Share of a run's epochs that count as its last ones."""
DIRECTIONS = {"higher": 1.0, "lower": -1.0}
"""What stands in the column `published` where a paper shows a direction and no number."""
COLUMNS = ["paper", "claim", "published", "table", "row", "against", "metric", "study", "setting", "reference"]
MEASURED = ["published_change", "measured", "low", "high", "seeds", "cases", "verdict"]
ACCURACY = "accuracy"
SAME, WITHIN, OPPOSITE, ABSENT = "same direction beyond noise", "within noise", "opposite", "not measured"
UNREADABLE = "claims cannot be read ({fault})"


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What a study has measured."""

    scores: pd.DataFrame
    """As `megavoxel.evaluation.tidy.read_scores` gives them."""
    peaks: Mapping[str, float] = field(default_factory=dict)
    """Peak memory in GiB, by setting."""
    seconds: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Seconds of prediction (settings, cases); empty where nothing was timed."""
    steadiness: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """`steadiness_of` each fold, by setting."""


def steadiness_of(history: pd.DataFrame) -> float:
    """Standard deviation (n - 1) of the pseudo-Dice over the last quarter of a run's epochs."""
    count = math.ceil(LAST_EPOCHS * len(history))
    return float(history["pseudo_dice"].iloc[-count:].std())


def seconds_by_case(timings: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds (settings, cases) of the first window that each setting was timed with."""
    cases = case_seconds(timings).drop_duplicates(["setting", "case"])
    return cases.pivot(index="setting", columns="case", values="seconds")


def read_claims(path: Path, published: Path, *, study: str | None = None) -> pd.DataFrame:
    """Lines of a file of claims: all columns as text, and `published_change`, float64.

    `setting` and `reference` are models of `study`; the name of a setting with `seeds` stands for all of its repeats.

    Args:
        published: folder of the files of published numbers, which the column `published` names.
        study: whose lines are read; None: all.

    Raises:
        UserError: a file cannot be read, or has no number of a row.
    """
    table = read_text(path, COLUMNS, missing=UNREADABLE, unreadable=UNREADABLE, is_ours=False)
    table = table if study is None else table[table["study"] == study]
    changes = [published_change(line, published, where=str(path)) for line in table.to_dict("records")]
    return table.assign(published_change=pd.Series(changes, index=table.index, dtype=float))


def published_change(claim: dict[str, str], folder: Path, *, where: str) -> float:
    """The published value of the row less that of the row `against` it; of memory and time as a share of the latter.

    NaN where the paper prints no number; then `DIRECTIONS` may stand in place of a file's name. A metric that is
    printed label by label alone is the mean over labels.

    Raises:
        UserError: names the claim where a row has no number.
    """
    if claim["published"] in ("", *DIRECTIONS):
        return math.nan
    name = claim["published"]
    table = read_published(folder / f"{name}.csv", classifies=claim["metric"] == ACCURACY)
    table = table if not claim["table"] else table[table["table"] == claim["table"]]
    values = []
    for row in (claim["row"], claim["against"]):
        own = table[table["row"] == row].drop_duplicates("metric").set_index("metric")["value"]
        of_labels = own[own.index.str.startswith(f"{claim['metric']} ")]
        if claim["metric"] not in own and of_labels.empty:
            raise UserError(f"{where}: {claim['claim']}: {name}.csv has no {claim['metric']} of the row '{row}'")
        values.append(own[claim["metric"]] if claim["metric"] in own else of_labels.mean())
    change = values[0] - values[1]
    return change / values[1] if claim["metric"] in COSTS else change


def measured_claims(claims: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    """Claims of a study with what was measured: columns of `COLUMNS` and `MEASURED`.

    `measured` is the mean over cases and repeats of the setting minus that of the reference, over the cases that all of
    them have, on the test split where there are two such cases, else on validation. `low` and `high` bound its
    95 % bootstrap interval, in which cases are drawn, and of each side its repeats. `seeds` is the smaller number of
    repeats. The verdict says whether the interval lies on one side of 0, and whether that is the paper's. A label that
    the study does not have stands for the mean over labels. Time and memory are shares of the reference's, memory
    without an interval. How steady pseudo-Dice is belongs to runs and not to cases: repeats and folds alone are drawn.

    Args:
        claims: as `read_claims` gives them.
    """
    rows = [{**line, **_measured(line, measures)} for line in claims.to_dict("records")]
    return pd.DataFrame(rows, columns=[*COLUMNS, *MEASURED])


def study_claims(path: Path | None, stored: Stored, timings: pd.DataFrame) -> pd.DataFrame | None:
    """The claims that a study measures, with what it has measured; None where there is no file of claims.

    The papers' numbers are in the folder `published` beside the file.

    Raises:
        UserError: as `read_claims`.
    """
    if path is None:
        return None
    claims = read_claims(path, path.parent / "published", study=stored.definition.study)
    measures = Measures(
        scores=stored.scores,
        peaks=own_peaks(stored)[PEAK].dropna().to_dict(),
        seconds=seconds_by_case(timings),
        steadiness={
            setting: [steadiness_of(history) for history in histories.values()]
            for setting, histories in stored.histories.items()
            if not stored.definition.classifies
        },
    )
    return measured_claims(claims, measures)


def show_claims(table: pd.DataFrame) -> pd.DataFrame:
    """Claims with rounded numbers."""
    compared = table["setting"] + " − " + table["reference"]
    columns = {
        "Paper": "paper", "Claim": "claim", "Metric": "metric", "Published": ("published_change", signed),
        "Compared": "compared", "Measured [95 %]": ("measured low high", signed_with_interval),
        "Seeds": ("seeds", _or_none), "Cases": ("cases", _or_none), "Verdict": "verdict",
    }  # fmt: skip
    return show(table.assign(compared=compared), columns)


def _or_none(count: int) -> str:
    return str(count) if count else NONE


def verdict_of(published: float, low: float, high: float) -> str:
    """What an interval says of a published change; without a published number there is none."""
    if math.isnan(low) or math.isnan(published):
        return ABSENT
    if low <= 0 <= high or published == 0:
        return WITHIN
    return SAME if (low > 0) == (published > 0) else OPPOSITE


def repeats_of(name: str, settings: Iterable[str]) -> list[str]:
    """The repeats of a setting, or itself."""
    pattern = re.compile(rf"{re.escape(name)}(-seed\d+)?")
    return sorted(setting for setting in set(settings) if name and pattern.fullmatch(setting))


def change_with_interval(
    first: np.ndarray, second: np.ndarray, *, relative: bool = False
) -> tuple[float, float, float]:
    """Mean of the second minus that of the first, with the ends of its 95 % bootstrap interval.

    Args:
        first: (repeats, cases).
        second: (repeats, the same cases); repeats need not be as many.
        relative: whether the change is a share of the first mean.
    """
    random = np.random.default_rng(0)
    cases = random.multinomial(first.shape[1], np.full(first.shape[1], 1 / first.shape[1]), RESAMPLES).T
    means = []
    for values in (first, second):
        repeats = random.multinomial(len(values), np.full(len(values), 1 / len(values)), RESAMPLES).T
        means.append((values @ cases * repeats).sum(axis=0) / (len(values) * values.shape[1]))
    by = means[0] if relative else 1.0
    low, high = np.quantile((means[1] - means[0]) / by, [LOWEST, 1 - LOWEST])
    change = second.mean() - first.mean()
    return float(change / first.mean() if relative else change), float(low), float(high)


def _measured(claim: dict[str, Any], measures: Measures) -> dict[str, Any]:
    nothing = {"measured": math.nan, "low": math.nan, "high": math.nan, "seeds": 0, "cases": 0, "verdict": ABSENT}
    if claim["metric"] == PEAK:
        return nothing | _memory(claim, measures.peaks)
    values = _values(claim, measures)
    if values is None:
        return nothing
    measured, low, high = change_with_interval(*values, relative=claim["metric"] == SECONDS)
    seeds = min(len(side) for side in values)
    cases = 0 if claim["metric"] == STEADINESS else values[0].shape[1]
    found = {"measured": measured, "low": low, "high": high, "seeds": seeds, "cases": cases}
    published = DIRECTIONS.get(claim["published"], claim["published_change"])
    return nothing | found | {"verdict": verdict_of(published, low, high)}


def _values(claim: dict[str, Any], measures: Measures) -> tuple[np.ndarray, np.ndarray] | None:
    """What is compared of the reference and of the setting, each (repeats, cases); None where one has nothing."""
    if claim["metric"] == STEADINESS:
        sides = _sides(claim, measures.steadiness)
        found = [[value for name in side for value in measures.steadiness[name]] for side in sides]
        runs = [np.array(side)[~np.isnan(side)][:, None] for side in found]
        return (runs[0], runs[1]) if min(map(len, runs)) > 1 else None
    is_time, scores = claim["metric"] == SECONDS, measures.scores
    sides = _sides(claim, measures.seconds.index if is_time else scores["setting"].unique())
    if not all(sides):
        return None
    wanted = [*sides[0], *sides[1]]
    own = scores[scores["setting"].isin(wanted)]
    by_split = (_by_case(own[own["split"] == split], claim["metric"]) for split in ("test", "validation"))
    for table in [measures.seconds] if is_time else by_split:
        shared = table.reindex(wanted).dropna(axis="columns")
        if shared.shape[1] > 1:
            return shared.loc[sides[0]].to_numpy(), shared.loc[sides[1]].to_numpy()
    return None


def _sides(claim: dict[str, Any], known: Iterable[str]) -> list[list[str]]:
    """The repeats of the reference and of the setting."""
    return [repeats_of(claim[side], known) for side in ("reference", "setting")]


def _memory(claim: dict[str, Any], peaks: Mapping[str, float]) -> dict[str, Any]:
    sides = _sides(claim, peaks)
    if not all(sides):
        return {}
    first, second = (max(peaks[name] for name in side) for side in sides)
    change = second / first - 1
    return {"measured": change, "verdict": verdict_of(claim["published_change"], change, change)}


def _by_case(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Values of a metric by setting and case: the mean over labels, or that of one label."""
    if metric == ACCURACY:
        return _correct(scores)
    name, _, label = metric.partition(" ")
    label = label if (scores["label"] == label).any() else ""
    own = scores[(scores["metric"] == name) & ((scores["label"] == label) | (label == ""))]
    return own.groupby(["setting", "case"])["value"].mean().unstack("case")


def _correct(scores: pd.DataFrame) -> pd.DataFrame:
    """1 where the most probable class of an image is its own, else 0, by setting and case."""
    keys = ["setting", "case"]
    certain = (
        scores[scores["metric"] == PROBABILITY]
        .sort_values([*keys, "value", "label"])
        .drop_duplicates(keys, keep="last")
    )
    truth = scores[scores["metric"] == TRUTH].drop_duplicates(keys)
    both = certain.merge(truth, on=keys, suffixes=("", "_true"))
    return both.assign(correct=(both["label"] == both["label_true"]).astype(float)).pivot(
        index="setting", columns="case", values="correct"
    )
