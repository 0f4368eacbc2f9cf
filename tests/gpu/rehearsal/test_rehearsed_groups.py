"""Jobs of two processes with a pretended GPU each: data parallel, a pipeline, and its prediction of a whole image."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from rehearsal import environment

from helpers import store_case, tiny_plan
from megavoxel.config.setting import Inference, Parallel
from megavoxel.files import write_json
from megavoxel.planning.plan import Plan, save_plan

pytestmark = pytest.mark.slow
WAYS = {
    "one": (Parallel(), ()),
    "data": (Parallel(data=2), ()),
    "pipeline": (Parallel(pipeline=2, micro_batches=2), (0, 4)),
}


def plan_of(way: str) -> Plan:
    parallel, stages = WAYS[way]
    plan = tiny_plan(batch=2, training={"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1})
    return replace(plan, parallel=parallel, stages=stages, inference=Inference(window="whole"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Cases, folds and a plan for each way."""
    folder = tmp_path_factory.mktemp("groups")
    for number in range(3):
        store_case(folder / "cases", f"case{number}", seed=number)
    split = {"training": ["case0", "case1"], "validation": ["case2"]}
    write_json(folder / "splits.json", {"folds": [split], "test": ["case2"]})
    for way in WAYS:
        save_plan(folder / f"{way}.json", plan_of(way))
    return folder


def megavoxel(study: Path, cache: Path, stage: str, way: str, *words: object) -> str:
    """A stage for the cases of the study, with two GPUs; what it says."""
    common = ["--plan", f"{way}.json", "--preprocessed", "cases", "--splits", "splits.json", "--device", "cuda"]
    return run(study, cache, stage, *common, *words)


def run(study: Path, cache: Path, *words: object) -> str:
    """A command with two GPUs; what it says."""
    command = [sys.executable, "-m", "megavoxel", *words]
    variables = environment(cache, DEVICES=2)
    done = subprocess.run(
        list(map(str, command)), cwd=study, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(study, guard_cache) -> Path:
    """The same network, trained in each way."""
    for way in WAYS:
        megavoxel(study, guard_cache, "train", way, "--fold", 0, "--state", f"state-{way}", "--output", way)
    return study


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["weights"]


@pytest.mark.parametrize("way", ["data", "pipeline"])
def test_two_gpus_train_the_network_of_one(trained, way):
    manifest = json.loads((trained / way / "manifest.json").read_text())
    assert (manifest["device"], manifest["devices"]) == ("cuda:0", 2)
    for name, expected in weights_of(trained / "one").items():
        torch.testing.assert_close(weights_of(trained / way)[name], expected, atol=1e-5, rtol=1e-3, msg=name)


def test_a_pipeline_predicts_a_whole_image_as_one_gpu_does(trained, guard_cache):
    maps = []
    for way in ("one", "pipeline"):
        megavoxel(trained, guard_cache, "predict", way, "--split", "test", "--weights", f"{way}/model.pt", "--output",
                  f"predicted-{way}")  # fmt: skip
        maps.append(np.asarray(nibabel.load(trained / f"predicted-{way}/case2.nii.gz").dataobj))
    assert np.mean(maps[0] != maps[1]) < 1e-3


def test_two_gpus_share_the_scans_of_a_folder(trained, guard_cache):
    (trained / "scans").mkdir()
    for number in range(3):
        voxels = np.random.default_rng(number).normal(size=(16, 16, 12)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), trained / f"scans/scan{number}.nii.gz")
    maps = {}
    for name, device in {"two": "cuda", "one": "cuda:1"}.items():
        command = ["predict", "--plan", "one.json", "--weights", "one/model.pt", "--input", "scans", "--device", device]
        said = run(trained, guard_cache, *command, "--output", f"labelled-{name}")
        assert ("2 GPUs share 3 cases" in said) == (name == "two")
        paths = sorted((trained / f"labelled-{name}").glob("*.nii.gz"))
        maps[name] = {path.name: np.asarray(nibabel.load(path).dataobj).tolist() for path in paths}
    assert maps["two"] == maps["one"]
    assert len(maps["two"]) == 3
