"""Seconds of labelling a folder of 20 small images on the CPU, against this program before it did so at once.

The whole process of `megavoxel predict`, from its start to its end: imports, weights, 20 compressed images of about
36 x 50 x 35 voxels, and their label maps. The network is that of hippocampus with random weights, with all mirrored
versions. Both in the precision that a training would choose here, and in float32, in turns. The commit that it is
compared with reads, predicts and writes one case after the other, with the plain layers of the network.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from benchmarks.made import call, made_plan
from benchmarks.measure import REPOSITORY, Row, seconds_of, smaller_is_better
from megavoxel.config.records import to_plain
from megavoxel.files import write_json
from megavoxel.network.device import choose_precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import Plan
from megavoxel.volumes.write import write_nifti

BEFORE = "e1a95e8"
"""The commit that the program is compared with."""
CASES, REPEATS = 20, 2
PATCH, FEATURES = (40, 56, 40), (32, 64, 128, 256)
LABELS = {"anterior": 1, "posterior": 2}


def run() -> list[Row]:
    """Rows for the whole process in both precisions."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_images(folder / "images")
        before = unpacked(folder / "before")
        return [row_of(folder, precision, before) for precision in dict.fromkeys((chosen_precision(), "float32"))]


def row_of(folder: Path, precision: str, before: Mapping[str, str]) -> Row:
    """The row of a precision."""
    write_network(folder, precision)
    turns = [
        (
            labelling_seconds(folder, f"ours-{precision}-{turn}"),
            labelling_seconds(folder, f"before-{precision}-{turn}", before),
        )
        for turn in range(REPEATS)
    ]
    ours, theirs = (statistics.median(own) for own in zip(*turns, strict=True))
    return smaller_is_better(
        f"predict of {CASES} small cases, {precision}, the whole process", f"commit {BEFORE}", ours, theirs, "s"
    )


def labelling_seconds(folder: Path, output: str, environment: Mapping[str, str] | None = None) -> float:
    """Seconds of one process that labels all images."""
    words = ("-m", "megavoxel", "predict", "--plan", folder / "plan.json", "--weights", folder / "model.pt")
    words += ("--input", folder / "images", "--output", folder / output, "--device", "cpu")
    return seconds_of(lambda: call("python", *words, environment=environment))


def chosen_precision() -> str:
    """The precision that a training would choose here."""
    return choose_precision(plan_of_network(), torch.device("cpu")).name


def plan_of_network() -> Plan:
    """A setting with the network of hippocampus."""
    return made_plan("small-cases", patch=PATCH, labels=LABELS, features=FEATURES, batch=2)


def write_network(folder: Path, precision: str) -> None:
    """Writes plan.json and model.pt."""
    plan = plan_of_network()
    write_json(folder / "plan.json", to_plain(plan))
    save_weights(folder / "model.pt", SegmentationNetwork(plan.network), plan_hash=plan.hash, precision=precision)


def write_images(folder: Path) -> None:
    """Writes smooth noise of 1 mm voxels, in sizes as those of hippocampus."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(CASES):
        shape = tuple(int(size) for size in random.integers((31, 40, 24), (43, 59, 47)))
        image = ndimage.gaussian_filter(random.normal(size=shape).astype(np.float32), 2)
        write_nifti(folder / f"case-{number:02}.nii.gz", (1000 * image).astype(np.int16), np.eye(4))


def unpacked(folder: Path) -> dict[str, str]:
    """Variables of a process that runs the package as it was before, unpacked to a folder."""
    archive = subprocess.run(
        ["git", "archive", BEFORE, "workflow"], cwd=REPOSITORY, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return os.environ | {"PYTHONPATH": str(folder / "workflow")}
