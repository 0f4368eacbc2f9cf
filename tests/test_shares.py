"""Scans that several devices share: the label maps of one device, and every fault by its name."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from helpers import preprocessing_plan, tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.errors import UserError
from megavoxel.inference.predict import CasePredictor
from megavoxel.models import shares
from megavoxel.models.label import Labelling, label_scans, unfinished
from megavoxel.models.prepare import Reading
from megavoxel.models.scans import Scan, find_scans
from megavoxel.models.shares import label_by_devices, sharing_devices
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import Plan

SHAPE = (12, 14, 9)
PLAN = tiny_plan(preprocessing=preprocessing_plan(channels=("MR",), spacing=(1.0, 1.0, 1.0)))


@pytest.fixture
def weights(tmp_path) -> Path:
    torch.manual_seed(0)
    save_weights(tmp_path / "model.pt", SegmentationNetwork(PLAN.network), plan_hash=PLAN.hash, precision="float32")
    return tmp_path / "model.pt"


def write_scans(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for number in range(count):
        voxels = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"scan{number}.nii.gz")
    return sorted(folder.iterdir())


def labelling(output: Path) -> Labelling:
    return Labelling(output=output, model={"model": "tiny"}, postprocessing=None, reading=Reading())


def label(scans: list[Scan], weights: Path, output: Path, devices: list[str]) -> None:
    label_by_devices(scans, PLAN, [weights], labelling(output), devices, None)


def content(folder: Path) -> dict[str, bytes | list]:
    """The files of a folder by name, label maps as voxels."""
    return {
        path.name: np.asarray(nibabel.load(path).dataobj).tolist() if path.suffix == ".gz" else path.read_bytes()
        for path in sorted(folder.iterdir())
    }


@pytest.mark.slow
def test_two_devices_write_what_one_does_and_name_each_fault(tmp_path, weights, capfd):
    paths = write_scans(tmp_path / "in", 5)
    for broken in (paths[1], paths[4]):  # one in each share
        broken.write_bytes(b"no image")
    scans = find_scans(paths)
    found = []
    for output, work in {
        "two": partial(label, weights=weights, devices=["cpu", "cpu"]),
        "one": partial(label_on_one, weights=weights),
    }.items():
        with pytest.raises(UserError, match=r"2 of 5 cases were not labelled:\n  .*scan1.*\n  .*scan4") as told:
            work(scans, output=tmp_path / output)
        found.append((content(tmp_path / output), str(told.value)))
    assert found[0] == found[1]
    assert {f"scan{number}.nii.gz" for number in (0, 2, 3)} <= found[0][0].keys()
    assert len({str(found[0][0][f"scan{number}.nii.gz"]) for number in (0, 2, 3)}) == 3
    said = capfd.readouterr().out
    assert "2 GPUs share 5 cases; to use one of them: --device cpu\n" in said
    assert "5 of 5" in said
    assert json.loads((tmp_path / "two/prediction.json").read_text())["scans"].keys() == {"scan0", "scan2", "scan3"}
    assert [scan.case for scan in unfinished(scans, labelling(tmp_path / "two"))] == ["scan1", "scan4"]


def label_on_one(scans: list[Scan], weights: Path, output: Path) -> None:
    label_scans(scans, CasePredictor.from_files(PLAN, [weights], torch.device("cpu")), labelling(output))


def test_a_refused_model_leaves_nothing(tmp_path, weights):
    scans = find_scans(write_scans(tmp_path / "in", 2))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pt"):
        label(scans, weights, tmp_path / "out", ["cpu", "cpu"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "gpus", "scans", "expected"),
    [
        ("auto", 4, 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 2, 9, ["cuda:0", "cuda:1"]),
        ("cuda:1", 4, 9, []),  # named by the user
        ("auto", 1, 9, []),
        ("auto", 4, 1, []),
        ("auto", None, 9, []),  # no GPU
    ],
)
def test_all_gpus_share_the_scans_unless_one_is_named(monkeypatch, device, gpus, scans, expected):
    monkeypatch.setattr(shares, "gpus_here", lambda _: gpus)
    assert sharing_devices(PLAN, device, scans) == expected


def test_a_network_that_needs_several_gpus_for_one_scan_keeps_them(monkeypatch):
    monkeypatch.setattr(shares, "gpus_here", lambda _: 4)
    inference = replace(PLAN.inference, window="whole")
    plan: Plan = replace(PLAN, parallel=Parallel(pipeline=2), stages=(0, 4), inference=inference)
    assert sharing_devices(plan, "auto", 9) == []
