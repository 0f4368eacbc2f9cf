"""How far the probabilities of a study can be trusted: temperature, calibration, and the disagreement of folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from megavoxel.inference.confidence import TEMPERATURES, UNCHANGED, Confidence, Reliability, together
from megavoxel.inference.temperature import Temperature, load_temperature, read_confidence
from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored

FEWEST_CASES = 3
"""Cases from which on a rank correlation is worked out."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A setting's cases of a split."""

    setting: str
    split: str
    cases: Mapping[str, Confidence]
    tempered: Sequence[tuple[Confidence, int]]
    """Sums over parts of the cases, each with the place in `TEMPERATURES` of a temperature that was chosen without
    them; empty where there is none."""

    @cached_property
    def whole(self) -> Confidence:
        """The sums over all cases."""
        return together(list(self.cases.values()))

    def bins(self, name: str, *, tempered: bool) -> np.ndarray:
        """Voxels, sum of probabilities and hits of a label or region by bin, (3, bins)."""
        parts = self.tempered if tempered else [(self.whole, UNCHANGED)]
        return np.sum([_bins(own.structures[name], place) for own, place in parts], axis=0)


def _bins(own: Reliability, place: int) -> np.ndarray:
    return np.array([own.voxels[place], own.probability[place], own.hits[place]])


def judged_parts(stored: Stored) -> list[Judged]:
    """What there is by split and setting.

    Raises:
        UserError: a file is damaged.
    """
    found = []
    for setting in stored.definition.settings:
        folder = stored.results / setting
        path = folder / "temperature.json"
        temperature = load_temperature(path) if path.is_file() else None
        folds = {f"fold-{fold}": folder / f"fold-{fold}/confidence" for fold in stored.definition.folds[setting]}
        if temperature is not None and all(fold.is_dir() for fold in folds.values()):
            cases = {name: read_confidence(fold) for name, fold in folds.items()}
            found.append(_validation(setting, cases, temperature))
        if any((folder / "confidence-test").glob("*.json")):
            found.append(_test(setting, read_confidence(folder / "confidence-test"), temperature))
    return sorted(found, key=lambda own: own.split, reverse=True)


def _validation(setting: str, folds: Mapping[str, Mapping[str, Confidence]], temperature: Temperature) -> Judged:
    others, cases = temperature.of_other_folds, {name: own for fold in folds.values() for name, own in fold.items()}
    known = folds if folds.keys() <= others.keys() else {}
    tempered = [(together(list(own.values())), _place(others[fold])) for fold, own in known.items()]
    return Judged(setting=setting, split="validation", cases=cases, tempered=tempered)


def _test(setting: str, cases: Mapping[str, Confidence], temperature: Temperature | None) -> Judged:
    tempered = [] if temperature is None else [(together(list(cases.values())), _place(temperature.temperature))]
    return Judged(setting=setting, split="test", cases=cases, tempered=tempered)


def _place(temperature: float) -> int:
    return int(np.argmin(np.abs(np.array(TEMPERATURES) - temperature)))


def confidence_table(stored: Stored, judged: Sequence[Judged]) -> pd.DataFrame:
    """Per split and setting: cases, temperatures, NLL in nats per voxel at temperature 1 and at one that was chosen
    without these cases, mean disagreement in nats, and its rank correlation (Spearman) with the first metric.
    """
    rows = []
    for own in judged:
        whole, told = own.whole, disagreements(stored, own)
        places = sorted({TEMPERATURES[place] for _, place in own.tempered})
        rows.append({
            "setting": own.setting, "split": own.split, "cases": len(own.cases),
            "temperature_low": places[0] if places else np.nan, "temperature_high": places[-1] if places else np.nan,
            "nll": _mean(whole.nll[UNCHANGED], whole.voxels),
            "nll_tempered": _mean(sum(one.nll[place] for one, place in own.tempered), whole.voxels, own.tempered),
            "disagreement": told["disagreement"].mean(), "rho": _rho(told), "rho_cases": len(told),
        })  # fmt: skip
    columns = [
        "setting", "split", "cases", "temperature_low", "temperature_high", "nll", "nll_tempered", "disagreement",
        "rho", "rho_cases",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _mean(total: float, voxels: int, parts: Any = True) -> float:
    return total / voxels if voxels and parts else np.nan


def _rho(told: pd.DataFrame) -> float:
    varies = len(told) >= FEWEST_CASES and told["disagreement"].nunique() > 1 and told["score"].nunique() > 1
    return float(spearmanr(told["disagreement"], told["score"]).statistic) if varies else np.nan


def disagreements(stored: Stored, own: Judged) -> pd.DataFrame:
    """Columns `disagreement`, and `score`, the mean over labels of the first metric, of the cases that have both."""
    means = case_means(stored.scores)
    means = means[(means["split"] == own.split) & (means["setting"] == own.setting)]
    scores = means.set_index("case")[stored.metrics[0].name] if len(means) else pd.Series(dtype=float)
    told = pd.Series({case: one.disagreement for case, one in own.cases.items()}, dtype=float)
    return pd.DataFrame({"disagreement": told, "score": scores}).dropna()


def reliability_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """Per split, setting and label: voxels that count, and the expected calibration error (ECE) at temperature 1 and at
    one that was chosen without these cases.
    """
    rows = []
    for own in judged:
        for name in own.whole.structures:
            plain = own.bins(name, tempered=False)
            tempered = error_of(own.bins(name, tempered=True)) if own.tempered else np.nan
            row = {"split": own.split, "label": name, "setting": own.setting, "voxels": int(plain[0].sum())}
            rows.append(row | {"ece": error_of(plain), "ece_tempered": tempered})
    return pd.DataFrame(rows, columns=["split", "label", "setting", "voxels", "ece", "ece_tempered"])


def error_of(bins: np.ndarray) -> float:
    """The expected calibration error of bins (3, bins); NaN without voxels."""
    voxels, probability, hits = bins
    return float(np.abs(probability - hits).sum() / voxels.sum()) if voxels.sum() else np.nan
