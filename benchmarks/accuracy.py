"""Accuracy within a budget on hippocampus, fold 0: the study hippocampus-budget, trained and scored by the workflow.

The peer is nnU-Net v2's default training on two such cores: mean DSC 0.698 on the validation cases of fold 0 after 500
iterations of batch 7, in 38 minutes. These values were recorded once and are not measured again. The small setting,
which gets further, is trained in both precisions: bfloat16 may not be worse than float32 by more than 0.005.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas
import yaml

from benchmarks.made import call
from benchmarks.measure import REPOSITORY, Row, larger_is_better, smaller_is_better
from benchmarks.nnunet import data_folder

STUDY = "hippocampus-budget"
RECORDED = "nnunetv2, recorded"
THEIR_DSC, THEIR_MINUTES = 0.698, 38.0
WANTED_DSC = 0.86
"""The DSC that the small setting must reach in those minutes."""
ACCEPTED_LOSS = 0.005
"""The DSC that half precision may cost."""


def run() -> list[Row]:
    """DSC and minutes of the default's 500 steps and of the small setting, and the DSC of the latter by precision."""
    study = yaml.safe_load((REPOSITORY / f"config/studies/{STUDY}.yaml").read_text())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train(root, study, ("default", "small"))
        default, small = (score(root, name) for name in ("default", "small"))
        chosen = precision(root, "small")
        other = "float32" if chosen == "bfloat16" else "bfloat16"
        study["settings"]["other"] = {"inherits": "small", "training": {"precision": other}}
        train(root, study, ("other",))
        by_precision = {chosen: small[0], other: score(root, "other")[0]}
    print("DSC of the small setting:", by_precision, flush=True)
    half, exact = by_precision["bfloat16"], by_precision["float32"]
    title = f"DSC of the small setting in bfloat16, with {ACCEPTED_LOSS} allowed for"
    return [
        larger_is_better("DSC after 500 default steps, hippocampus", RECORDED, default[0], THEIR_DSC, "DSC"),
        smaller_is_better("time of 500 default steps, hippocampus", RECORDED, default[1], THEIR_MINUTES, "min"),
        larger_is_better("DSC of the small setting, hippocampus", "own bound", small[0], WANTED_DSC, "DSC"),
        smaller_is_better("time of the small setting, hippocampus", RECORDED, small[1], THEIR_MINUTES, "min"),
        larger_is_better(title, "ours in float32", half + ACCEPTED_LOSS, exact, "DSC"),
    ]


def train(root: Path, study: dict, settings: Sequence[str]) -> None:
    """Runs the study in `root`, up to the scores of some of its settings on fold 0."""
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    scores = [f"results/{STUDY}/{name}/fold-0/scores.csv" for name in settings]
    options = ["--cores", 2, "--quiet", "--snakefile", REPOSITORY / "Snakefile", "--directory", root]
    call("snakemake", *scores, *options, "--configfile", path, "--config", f"mirror={data_folder()}")


def score(root: Path, setting: str) -> tuple[float, float]:
    """Mean DSC over labels and validation cases, and minutes of training with its validation patches."""
    fold = fold_folder(root, setting)
    scores = pandas.read_csv(fold / "scores.csv")
    seconds = pandas.read_csv(fold / "history.csv")["seconds"].sum()
    return scores.loc[scores["metric"] == "DSC", "value"].mean(), seconds / 60


def precision(root: Path, setting: str) -> str:
    """The precision that training chose: bfloat16 or float32."""
    manifest = json.loads((fold_folder(root, setting) / "manifest.json").read_text())
    return manifest["precision"]["name"]


def fold_folder(root: Path, setting: str) -> Path:
    """The folder of the trained fold."""
    return root / "results" / STUDY / setting / "fold-0"
