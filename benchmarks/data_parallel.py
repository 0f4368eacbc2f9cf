"""Two processes that share each batch, beside twice the samples per second of one process with half the batch.

Both run `megavoxel train` on hippocampus, fold 0, with one thread per process. Each process loads its own patches, so
that a single process gets no help from the second core. Validation is left out; the first epoch does not count.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas

from benchmarks.made import call, halving_network
from benchmarks.measure import Row, larger_is_better
from benchmarks.plans import planned, sound_cases
from megavoxel.config.setting import Parallel
from megavoxel.files import write_json
from megavoxel.planning.fingerprint import measure
from megavoxel.planning.plan import Plan, save_plan
from megavoxel.planning.splits import make_splits
from megavoxel.preprocessing.case import preprocess_case

DATASET = "hippocampus"
CASES, SHARE, ROUNDS = 20, 2, 3
"""Cases, samples of a process, and how often both take turns."""
EPOCHS, STEPS = 4, 8
FEATURES = (16, 32, 64, 128)


def run() -> list[Row]:
    """Samples per second of both."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plan = prepare(root)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(ROUNDS):
            for processes, found in rates.items():
                found.append(samples_per_second(root, plan, processes, turn))
    one, two = (statistics.median(found) for found in rates.values())
    size = f"{'x'.join(map(str, plan.patch))} x {2 * SHARE}, {len(FEATURES)} levels"
    title = f"data parallel, 2 processes of 1 thread, {size}"
    return [larger_is_better(title, "ideal: twice one process", two, 2 * one, "samples/s")]


def prepare(root: Path) -> Plan:
    """Some preprocessed cases with their splits, and a plan of a small network for one process."""
    cases = sound_cases(DATASET)
    kept = cases.of_split("training")[:CASES]
    cases = replace(cases, cases=kept)
    plan = planned(cases, measure(cases))
    for case in kept:
        preprocess_case(case, cases=cases, plan=plan.preprocessing, folder=root / "cases", patch=plan.patch)
    split = make_splits(cases, 5, 1).folds[0]
    write_json(root / "splits.json", {"folds": [{"training": split.training, "validation": split.validation}]})
    network = halving_network(plan.network.classes, FEATURES)
    keys = {"epochs": EPOCHS, "iterations_per_epoch": STEPS, "validation_iterations": 0, "workers": 0}
    return replace(plan, network=network, training=replace(plan.training, precision="float32", **keys))


def samples_per_second(root: Path, plan: Plan, processes: int, turn: int) -> float:
    """The rate of the median epoch of a run with `processes`."""
    output = root / f"{processes}-{turn}"
    save_plan(root / "plan.json", replace(plan, batch=SHARE * processes, parallel=Parallel(data=processes)))
    words = ["train", "--plan", root / "plan.json", "--splits", root / "splits.json", "--preprocessed", root / "cases"]
    words += ["--fold", 0, "--state", output / "state", "--output", output, "--device", "cpu", "--threads", processes]
    call("megavoxel", *words, environment=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = pandas.read_csv(output / "history.csv")["seconds"][1:].median()
    return STEPS * SHARE * processes / seconds
