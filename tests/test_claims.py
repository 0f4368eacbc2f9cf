"""Claims of papers: each compares two published rows that exist, and two settings of a study that exist."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml

COLUMNS = ["paper", "claim", "published", "table", "row", "against", "metric", "study", "setting", "reference"]


@pytest.fixture(scope="module")
def claims(repository) -> pd.DataFrame:
    return pd.read_csv(repository / "config/claims.csv", dtype=str, keep_default_na=False)


def change(repository, claim: pd.Series) -> float:
    """The published value of the row less that of the one it is held against; NaN where no number is published."""
    if not claim["published"]:
        return float("nan")
    lines = pd.read_csv(repository / f"config/published/{claim['published']}.csv", dtype={"row": str})
    lines = lines[lines["metric"] == claim["metric"]]
    if claim["table"]:
        lines = lines[lines["table"] == claim["table"]]
    values = lines.set_index("row")["value"]
    return values[claim["row"]] - values[claim["against"]]


def test_every_claim_has_two_published_rows_or_says_that_no_number_is_published(claims, repository):
    assert list(claims.columns) == COLUMNS
    assert not claims.duplicated().any()
    changes = claims.apply(lambda claim: change(repository, claim), axis=1)
    assert claims.loc[changes.isna(), "claim"].tolist() == ["a larger batch learns more steadily (figure 1)"]


def test_published_changes_looked_up_by_hand(claims, repository):
    changes = claims.assign(change=claims.apply(lambda claim: change(repository, claim), axis=1))
    found = changes.set_index(["claim", "row", "metric"])["change"]
    assert found["the largest patch is worse", "(64, 384, 384)", "NSD"] == pytest.approx(0.7731 - 0.8255)
    assert found["a larger batch is better", "16", "DSC"] == pytest.approx(0.0114)
    assert found["squeeze-and-excitation is better", "se-unet-128-whole", "DSC"] == pytest.approx(0.7952 - 0.7815)
    assert found["a large input takes less time", "unet-128-whole", "seconds"] == pytest.approx(0.90 - 2.53)


def test_every_claim_is_measured_by_settings_of_a_study_or_by_none(claims, repository):
    for _, claim in claims.iterrows():
        named = [claim["study"], claim["setting"], claim["reference"]]
        if not any(named):
            continue
        study = yaml.safe_load((repository / f"config/studies/{claim['study']}.yaml").read_text())
        models = {*study["settings"], *study.get("ensembles", {})}
        assert {claim["setting"], claim["reference"]} <= models, claim["claim"]
