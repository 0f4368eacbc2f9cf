"""Training steps per second with data loading against nnU-Net's trainer: hippocampus, its plan, fold 0, the same cores.

Same network, patch, batch, optimiser, augmentation and loader processes. nnU-Net computes in float32 on a CPU; ours
measures and takes the faster precision, and a second row holds it to float32.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row, in_process, larger_is_better, peer
from benchmarks.nnunet import NAME, Peer, data_folder
from benchmarks.plans import planned, sound_cases
from megavoxel.planning.fingerprint import measure
from megavoxel.planning.plan import Plan
from megavoxel.planning.splits import make_splits
from megavoxel.preprocessing.case import preprocess_case
from megavoxel.tasks.segmentation.data import VolumeData

DATASET, CHANNEL = "hippocampus", "MRI"
LOADERS = 2
"""Processes that load and augment, for both."""
SKIPPED, STEPS, ROUNDS = 6, 6, 3
"""Steps before the clock starts (both loaders work ahead), steps on the clock, and how often all take turns."""
SEED = 12345


def run() -> list[Row]:
    """Two rows: ours in the precision that it chooses, and in float32."""
    with tempfile.TemporaryDirectory() as folder:
        home = Peer(home=Path(folder))
        home.link(data_folder() / DATASET, CHANNEL)
        home.plan()
        home.call(_preprocess_theirs)
        plan, fold = _prepare_ours(Path(folder) / "ours")
        precise = replace(plan, training=replace(plan.training, precision="float32"))
        seconds: dict[str, list[float]] = {"chosen": [], "float32": [], "theirs": []}
        for _ in range(ROUNDS):
            chosen, seconds_per_step = in_process(_our_seconds, plan, fold)
            seconds["chosen"].append(seconds_per_step)
            seconds["theirs"].append(home.call(_their_seconds))
            seconds["float32"].append(in_process(_our_seconds, precise, fold)[1])
    rate = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    size = " × ".join(map(str, (*plan.patch, plan.batch)))
    return [
        larger_is_better(
            f"training step with loading, hippocampus {size}, {name}",
            peer("nnunetv2"),
            rate[key],
            rate["theirs"],
            "steps/s",
        )
        for name, key in ((f"{chosen} as chosen", "chosen"), ("float32", "float32"))
    ]


def _prepare_ours(folder: Path) -> tuple[Plan, VolumeData]:
    """Our plan of the dataset with everything left to the planner, and fold 0 of its preprocessed cases."""
    cases = sound_cases(DATASET)
    plan = planned(cases, measure(cases))
    plan = replace(plan, training=replace(plan.training, workers=LOADERS))
    split = make_splits(cases, 5, SEED).folds[0]
    for case in cases.of_split("training"):
        preprocess_case(case, cases=cases, plan=plan.preprocessing, folder=folder, patch=plan.patch)
    fold = VolumeData(number=0, preprocessed=folder, training=split.training, validation=split.validation)
    return plan, fold


def _our_seconds(plan: Plan, fold: VolumeData) -> tuple[str, float]:
    from megavoxel.network.device import set_threads
    from megavoxel.network.host_memory import keep_freed_memory
    from megavoxel.tasks.segmentation.training import start_run, training_batches
    from megavoxel.training.step import train_step

    set_threads(None)
    keep_freed_memory()
    run = start_run(plan, fold, torch.device("cpu"))
    run.network.train()
    batches = iter(training_batches(run, fold))
    return run.precision.name, _seconds_per_step(lambda: train_step(run, *next(batches)))


def _preprocess_theirs(_home: str) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    DefaultPreprocessor(verbose=False).run(NAME, "3d_fullres", "nnUNetPlans", num_processes=1)


def _their_seconds(home: str) -> float:
    os.environ.update(nnUNet_n_proc_DA=str(LOADERS))
    trainer = _their_trainer(home)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    batches, _ = trainer.get_dataloaders()
    trainer.network.train()
    return _seconds_per_step(lambda: trainer.train_step(next(batches)))


def _their_trainer(home: str) -> Any:
    import json

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = Path(home) / "preprocessed" / NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    description = json.loads((folder / "dataset.json").read_text())
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, description, device=torch.device("cpu"))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    return trainer


def _seconds_per_step(step: Callable[[], Any]) -> float:
    for _ in range(SKIPPED):
        step()
    begin = time.perf_counter()
    for _ in itertools.repeat(None, STEPS):
        step()
    return (time.perf_counter() - begin) / STEPS
