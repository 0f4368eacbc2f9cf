"""Seconds of predicting one image on the CPU by ONNX Runtime and by OpenVINO, against PyTorch with the same weights.

The network and its window of 64 x 96 x 96 voxels are those of `prediction`; the image is one window, which goes through
the network in its eight mirrored versions. PyTorch runs the layers that it has for CPUs, in float32 as the other two,
and in the precision that it would choose for training here. In turns, each in a process of its own, of which the second
prediction counts.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, in_process, peer, seconds_of, smaller_is_better
from benchmarks.prediction import CPU, make_plan, precision_name
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.run_times import RUN_TIMES
from megavoxel.models.network_files import FORMATS
from megavoxel.network.host_memory import return_large_tensors
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights

SHAPE = (64, 96, 96)
REPEATS = 2


def run() -> list[Row]:
    """A row for each program that runs exported models and each precision of PyTorch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        precisions = dict.fromkeys(("float32", in_process(precision_name)))
        in_process(write_files, folder, tuple(precisions))
        files = [path for path in sorted(folder.iterdir()) if path.suffix in (".pt", *RUN_TIMES)]
        turns = [[in_process(seconds, path) for path in files] for _ in range(REPEATS)]
    medians = dict(zip(files, map(statistics.median, zip(*turns, strict=True)), strict=True))
    return [
        smaller_is_better(
            f"prediction of {' × '.join(map(str, SHAPE))} voxels by {peer(RUN_TIMES[path.suffix].package)}",
            f"{peer('torch')}, {other.stem}", own, theirs, "s",
        )
        for path, own in medians.items() if path.suffix in RUN_TIMES
        for other, theirs in medians.items() if other.suffix == ".pt"
    ]  # fmt: skip


def write_files(folder: Path, precisions: tuple[str, ...]) -> None:
    """Writes the network in all formats; weights of PyTorch once for each precision, by which they are named."""
    plan = make_plan()
    network = SegmentationNetwork(plan.network)
    for precision in precisions:
        save_weights(folder / f"{precision}.pt", network, plan_hash=plan.hash, precision=precision)
    for name, kept in FORMATS.items():
        if kept.suffix in RUN_TIMES:
            kept.write(plan, folder / "float32.pt", folder / f"{name}{kept.suffix}")


def seconds(weights: Path) -> float:
    """Seconds of the second of two predictions, in this process."""
    return_large_tensors()  # as the stage does
    predictor = CasePredictor.from_files(make_plan(), [weights], CPU)
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)

    def predict() -> None:
        for slab in predictor.slabs(image):
            del slab

    predict()
    return seconds_of(predict)
