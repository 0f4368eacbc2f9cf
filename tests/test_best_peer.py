"""The best model by cross-validation beside nnU-Net's own `find_best_configuration`, on the same probabilities."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch

from helpers import preprocessing_plan, properties
from megavoxel.cli import main
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.postprocessing import Postprocessing
from megavoxel.inference.ensemble import Member, write_ensemble
from megavoxel.inference.logits import header_of, open_logits, write_label_map, write_logits
from megavoxel.inference.sliding_window import Slab
from megavoxel.reporting.best import best_table

SHAPE, FOLDS, CASES = (8, 9, 10), (0, 1), tuple("abcdef")
LABELS = {"organ": 1, "lesion": 2}
NAME = "Dataset001_made"
ASKED = f"""
import json
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
if __name__ == "__main__":
    shared = {{"plans": "nnUNetPlans", "trainer": "nnUNetTrainer"}}
    models = [{{**shared, "configuration": name}} for name in ("2d", "3d_fullres")]
    found = find_best_configuration("{NAME}", models, num_processes=1, folds={FOLDS})
    print("FOUND" + json.dumps(found["all_results"]))
"""
"""What nnU-Net is asked, in a process of its own: it reads its folders' variables when it is imported."""


def folders(root: Path) -> dict[str, Path]:
    """nnU-Net's three folders of the dataset by kind."""
    return {kind: root / kind / NAME for kind in ("raw", "preprocessed", "results")}


def noisy_logits(random: np.random.Generator, truth: np.ndarray, sureness: float) -> torch.Tensor:
    """Noise around a label map, float32 (classes, z, y, x), of numbers that float16 can hold, as logits are stored."""
    logits = random.normal(size=(3, *SHAPE)) + sureness * np.eye(3)[truth].transpose(3, 0, 1, 2)
    return torch.from_numpy(logits).half().float()


def write_theirs(root: Path, configuration: str, case: str, logits: torch.Tensor) -> None:
    """What nnU-Net keeps of a validation case that was predicted with `--npz`."""
    index = CASES.index(case)
    folder = folders(root)["results"] / f"nnUNetTrainer__nnUNetPlans__{configuration}/fold_{index % 2}/validation"
    folder.mkdir(parents=True, exist_ok=True)
    found = torch.softmax(logits, dim=0).numpy()
    np.savez_compressed(folder / f"{case}.npz", probabilities=found)
    affine = np.eye(4)
    details = {"spacing": [1, 1, 1], "nibabel_stuff": {"original_affine": affine, "reoriented_affine": affine}}
    (folder / f"{case}.pkl").write_bytes(pickle.dumps(details))
    nibabel.save(nibabel.Nifti1Image(found.argmax(0).astype(np.uint8).transpose(), affine), folder / f"{case}.nii.gz")


def describe_theirs(root: Path) -> None:
    """nnU-Net's dataset.json and plans.json wherever it looks for them."""
    description = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0} | LABELS, "numTraining": len(CASES),
        "file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO",
    }  # fmt: skip
    plans = {
        "dataset_name": NAME, "plans_name": "nnUNetPlans", "image_reader_writer": "NibabelIO",
        "label_manager": "LabelManager", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {"2d": {"architecture": {}}, "3d_fullres": {"architecture": {}}},
    }  # fmt: skip
    places = folders(root)
    for folder in (places["raw"], *places["results"].iterdir()):
        (folder / "dataset.json").write_text(json.dumps(description))
        (folder / "plans.json").write_text(json.dumps(plans))
    (places["preprocessed"] / "nnUNetPlans.json").write_text(json.dumps(plans))


def write_ours(root: Path, model: str, case: str, logits: torch.Tensor) -> Member:
    """The logits and the label map of a case, by our own code."""
    folder = root / "ours" / model
    member = Member(
        name=model, logits=folder / "logits", predictions=folder / "predictions", postprocessing=Postprocessing()
    )
    header = header_of(properties(case, SHAPE), preprocessing_plan(labels=LABELS))
    write_logits(member.logits, header, [Slab(start=0, stop=SHAPE[0], logits=logits)])
    member.predictions.mkdir(parents=True, exist_ok=True)
    write_label_map(member.predictions, header, open_logits(member.logits, case).slabs())
    return member


@pytest.mark.slow
def test_the_best_model_and_all_means_are_those_of_nnunet(tmp_path):
    pytest.importorskip("nnunetv2", reason="the peer is not installed")
    random = np.random.default_rng(5)
    places = folders(tmp_path)
    truths = places["raw"] / "labelsTr", places["preprocessed"] / "gt_segmentations"
    for folder in truths:
        folder.mkdir(parents=True)
    for number, case in enumerate(CASES):
        truth = random.integers(0, 3, size=SHAPE)
        if number < 2:
            truth[truth == 2] = 0  # no lesion: one of the maps has none either
        for folder in truths:
            nibabel.save(nibabel.Nifti1Image(truth.astype(np.uint8).transpose(), np.eye(4)), folder / f"{case}.nii.gz")
        members = []
        for configuration, sureness in (("2d", 1.2), ("3d_fullres", 1.4)):
            logits = noisy_logits(random, truth, sureness)
            if number == 0:
                logits[2] = -9
            write_theirs(tmp_path, configuration, case, logits)
            members.append(write_ours(tmp_path, configuration, case, logits))
        both = tmp_path / "ours/both/predictions"
        both.mkdir(parents=True, exist_ok=True)
        write_ensemble(members, case, both)
    describe_theirs(tmp_path)
    asked = tmp_path / "asked.py"
    asked.write_text(ASKED)
    environment = os.environ | {f"nnUNet_{kind}": str(folder.parent) for kind, folder in places.items()}
    done = subprocess.run([sys.executable, asked], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.split("FOUND")[1])

    models = ("2d", "3d_fullres", "both")
    tables = []
    for model in models:
        scores = tmp_path / f"{model}.csv"
        words = ["--output", str(scores), "--metrics", "dsc", "--labels", "organ=1", "lesion=2", "--setting", model]
        assert main(["evaluate", str(tmp_path / "ours" / model / "predictions"), str(truths[0]), *words]) == 0
        tables.append(pd.read_csv(scores).assign(split="validation"))
    stored = SimpleNamespace(
        scores=pd.concat(tables), metrics=(METRICS["dsc"],), labels=tuple(LABELS), groups={},
        definition=SimpleNamespace(models=models, ensembles={"both": models[:2]}),
    )  # fmt: skip
    ours = best_table(stored).set_index("model")["mean"]
    named = dict(zip(models, theirs.values(), strict=True))
    assert list(theirs)[2].startswith("ensemble")
    assert ours.to_dict() == pytest.approx(named, abs=1e-6)
    assert ours.index[0] == max(named, key=named.get)
