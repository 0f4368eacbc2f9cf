"""Peak memory of preprocessing and prediction in blocks, for three sizes of one volume, beside bounds.

The volume is a phantom as `megavoxel phantom` writes it, int16 in a .nii.gz file, without noise; sizes are means, which
phantoms vary by up to 5 %. Of its four organs one is labelled, the others count as background. It is preprocessed
without resampling by `megavoxel preprocess` and predicted from the store by `megavoxel predict`: windows of 64 voxels
along each axis, side by side, no mirroring, and a network of one level with two features and random weights. Each stage
has a process of its own, whose peak counts with all its imports. The largest volume has 64 times the voxels of the
smallest; peaks that stay below one bound did not grow with them.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.made import made_plan
from benchmarks.measure import Row, in_process, peak_mib, smaller_is_better
from megavoxel.cli import main
from megavoxel.config.setting import Inference
from megavoxel.config.source import Phantom
from megavoxel.datasets import anatomy
from megavoxel.datasets.cases import Case, Cases, save_cases
from megavoxel.datasets.phantom import write_large_case
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import Plan, load_plan, save_plan
from megavoxel.planning.splits import Splits, save_splits
from megavoxel.volumes.grid import rounded_spacing
from megavoxel.volumes.open import read_geometry

SIZES = (256, 512, 1024)
"""Mean voxels per axis."""
PATCH = (64, 64, 64)
LABELS = {"liver": anatomy.LABELS["liver"]}
OTHERS = tuple(value for name, value in anatomy.LABELS.items() if name not in LABELS)
ACCEPTED_MIB = {"phantom": 768.0, "preprocess": 512.0, "predict": 1152.0}
"""Peak of a stage, whatever the size: float32 voxels of the largest volume alone are 4096 MiB."""


def run() -> list[Row]:
    """One row per size and stage."""
    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            peaks = {"phantom": in_process(write_volume, root, size)}
            write_plans(root)
            peaks["preprocess"] = in_process(stage, preprocessing(root))
            peaks["predict"] = in_process(stage, prediction(root))
        for name, peak in peaks.items():
            title = f"{name} of one volume of {size} x {size} x {size} voxels, peak memory"
            rows.append(smaller_is_better(title, "own bound", peak, ACCEPTED_MIB[name], "MiB"))
            print(f"{title}: {peak:.0f} MiB", flush=True)
    return rows


def write_volume(root: Path, size: int) -> float:
    """Writes the volume and its label map; returns the peak memory of this process in MiB."""
    phantom = Phantom(training_cases=1, shape=(size,) * 3, spacing=(1.0,) * 3, noise=0.0)
    write_large_case(phantom, 0, root / "images" / "volume.nii.gz", root / "labels" / "volume.nii.gz")
    return peak_mib()


def write_plans(root: Path) -> None:
    """Writes the other inputs of the two stages: case, plan, split and weights."""
    spacing = rounded_spacing(read_geometry(root / "images" / "volume.nii.gz").spacing)
    plan = replace(make_plan(), preprocessing=replace(make_plan().preprocessing, spacing=spacing))
    case = Case(id="volume", images=("images/volume.nii.gz",), label="labels/volume.nii.gz", split="test")
    tolerances = dict.fromkeys(LABELS, 1.0)
    save_cases(
        root / "cases.json",
        Cases(
            dataset="phantom", root=str(root), channels=("CT",), labels=LABELS, nsd_tolerance_mm=tolerances,
            cases=(case,), background_values=OTHERS,
        ),
    )  # fmt: skip
    save_plan(root / "preprocessing.json", plan.preprocessing)
    save_plan(root / "plan.json", plan)
    save_splits(root / "splits.json", Splits(folds=(), test=("volume",)))
    torch.manual_seed(0)
    save_weights(
        root / "model.pt",
        SegmentationNetwork(plan.network),
        plan_hash=load_plan(root / "plan.json").hash,
        precision="float32",
    )


def make_plan() -> Plan:
    """The setting, with voxels of 1 mm until there is a volume."""
    return made_plan(
        "large", patch=PATCH, labels=LABELS, features=(2,), preprocessing={"background_values": OTHERS},
        inference=Inference(step=1.0, mirror=False),
    )  # fmt: skip


def preprocessing(root: Path) -> list[str]:
    """Arguments of `megavoxel preprocess`, which also processes the smallest volume in blocks."""
    paths = {"--cases": "cases.json", "--plan": "preprocessing.json", "--folder": "stored", "--output": "marker.json"}
    return ["preprocess", "--large-voxels", "1", *_written(root, paths)]


def prediction(root: Path) -> list[str]:
    """Arguments of `megavoxel predict`."""
    paths = {
        "--plan": "plan.json", "--weights": "model.pt", "--preprocessed": "stored", "--splits": "splits.json",
        "--output": "predicted",
    }  # fmt: skip
    return ["predict", "--split", "test", "--device", "cpu", *_written(root, paths)]


def stage(arguments: list[str]) -> float:
    """Runs a stage; returns the peak memory of this process in MiB."""
    status = main(arguments)
    if status:
        raise RuntimeError(f"megavoxel {arguments[0]} ended with exit status {status}")
    return peak_mib()


def _written(root: Path, paths: dict[str, str]) -> list[str]:
    return [text for option, path in paths.items() for text in (option, str(root / path))]
