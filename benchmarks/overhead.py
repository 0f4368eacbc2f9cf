"""Overhead: Snakemake around the stages, states beside training, the start of a job.

- Snakemake: the demo runs on one core, so that its stages run one after the other. Their time, from the start of a
  process to its end, is in Snakemake's `benchmark:` files; the rest is overhead.
- States: training with one state after every few steps, beside training without; the difference per state is divided by
  the default time between two states.
- Start of a job: from the start of its process to the end of its first step, with imports, the check that it fits, and
  data.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import torch

from benchmarks.data_parallel import prepare
from benchmarks.made import call, halving_network
from benchmarks.measure import REPOSITORY, Row, seconds_of, smaller_is_better
from megavoxel.cli import main
from megavoxel.config.setting import Parallel
from megavoxel.config.training import Training
from megavoxel.planning.plan import Plan, save_plan
from megavoxel.planning.splits import load_splits
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run, training_batches
from megavoxel.training import memory
from megavoxel.training.run import Part, Run
from megavoxel.training.states.checkpoint import StateWriter, state_writer
from megavoxel.training.step import train_step

CHECKED_OUT = ("Snakefile", "workflow", "config", "profiles")
MOST_OVERHEAD, MOST_FOR_STATES, MOST_SECONDS = 15.0, 2.0, 6.0
"""The project's bounds: percent, percent and seconds."""
FEATURES = (32, 64, 128, 256, 320)
"""Channels of nnU-Net's network for patches of this size: 16.5 million weights, and as many values of the optimiser."""
STEPS, ROUNDS = 6, 7
"""Steps to a state, and how often both ways take turns."""


def run() -> list[Row]:
    """The three costs beside their bounds."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = [overhead_of_snakemake(root / "demo")]
        plan = prepare(root)
        rows.append(start_of_job(root, plan))
        rows.append(cost_of_states(root, plan))
    return rows


def overhead_of_snakemake(folder: Path) -> Row:
    """Percent of the stages' time by which the demo takes longer on one core."""
    folder.mkdir()
    for name in CHECKED_OUT:
        (folder / name).symlink_to(REPOSITORY / name)
    wall = seconds_of(lambda: call("snakemake", "--cores", 1, folder=folder))
    work = sum(pandas.read_csv(path, sep="\t")["s"].sum() for path in folder.glob("benchmarks/jobs/demo/**/*.tsv"))
    print(f"demo on one core: {wall:.0f} s, its stages {work:.0f} s", flush=True)
    title = "Snakemake's own time, demo on one core, of the stages' time"
    return smaller_is_better(title, "bound", 100 * (wall - work) / work, MOST_OVERHEAD, "%")


def start_of_job(root: Path, plan: Plan) -> Row:
    """Seconds from the start of a training job to the end of its first step, the median of five jobs."""
    training = replace(plan.training, epochs=1, iterations_per_epoch=1)
    save_plan(root / "plan.json", replace(plan, batch=1, parallel=Parallel(), training=training))
    seconds = []
    for turn in range(5):
        output = root / f"start-{turn}"
        words = ["--plan", root / "plan.json", "--splits", root / "splits.json", "--preprocessed", root / "cases"]
        words += ["--fold", 0, "--state", output / "state", "--output", output, "--device", "cpu"]
        said = call("python", "-m", "benchmarks.overhead", time.time(), "train", *words)
        seconds.append(float(re.search(r"first step after (\S+)", said)[1]))
    print("first steps after", *seconds, "s", flush=True)
    title = "start of a training job to the end of its first step"
    return smaller_is_better(title, "bound", statistics.median(seconds), MOST_SECONDS, "s")


def cost_of_states(root: Path, plan: Plan) -> Row:
    """Percent of the time of training that states take at the default interval, with nnU-Net's network."""
    network = halving_network(plan.network.classes, FEATURES)
    split = load_splits(root / "splits.json").folds[0]
    fold = VolumeData(number=0, preprocessed=root / "cases", training=split.training, validation=split.validation)
    started = start_run(replace(plan, batch=2, network=network), fold, torch.device("cpu"))
    batch = next(iter(training_batches(started, fold)))
    plain, saving = [], []
    with state_writer(root / "state") as writer:
        for turn in range(ROUNDS + 1):
            seconds = [seconds_of_steps(started, batch, None), seconds_of_steps(started, batch, writer)]
            if turn:  # the first steps allocate the values of the optimiser
                plain.append(seconds[0])
                saving.append(seconds[1])
    per_state = statistics.median(saving) - statistics.median(plain)
    size = (root / "state" / "checkpoint.pt").stat().st_size / 2**20
    print(f"a state of {size:.0f} MiB: {per_state:.2f} s longer than {statistics.median(plain):.2f} s", flush=True)
    percent = 100 * max(per_state, 0.01) / (60 * Training().checkpoint_minutes)
    return smaller_is_better(f"states of {size:.0f} MiB, of training time", "bound", percent, MOST_FOR_STATES, "%")


def seconds_of_steps(started: Run, batch: Part, writer: StateWriter | None) -> float:
    """Seconds of some steps; with a writer a state is written from the first one on, and waited for."""
    begin = time.perf_counter()
    for step in range(STEPS):
        train_step(started, *batch)
        if writer is not None and step == 0:
            writer.write({"key": "benchmark", **started.state_dict()})
    if writer is not None:
        writer.wait()
    return time.perf_counter() - begin


def announce_first_step(begin: float) -> None:
    """Has the first step of training, which every process on a CPU tracks, print the seconds since `begin`."""
    tracked_step = memory.tracked_step

    def announced(*arguments: Any) -> Any:
        result = tracked_step(*arguments)
        print(f"first step after {time.time() - begin:.2f}", flush=True)
        return result

    memory.tracked_step = announced


if __name__ == "__main__":  # the command line of megavoxel, after the time at which the process was started
    announce_first_step(float(sys.argv[1]))
    main(sys.argv[2:])
