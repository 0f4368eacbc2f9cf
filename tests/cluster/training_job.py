"""Jobs that all train the same plan, each under the name of a setting of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from site_of_user import BIN, finish, start_snakemake, study
from slurm_cluster import Cluster

from megavoxel.network.tensor_files import load_tensors

UNDISTURBED = "undisturbed"
SETTINGS = (UNDISTURBED, "cancelled", "timed", "tight", "orphan", "requeued", "daemon", "restarted")
TIGHT_GIB = 0.46
"""What the plan of one of them says of its memory, which is too little."""
EPOCHS = 8
STUDY = study("faults", {name: {"folds": [0]} for name in SETTINGS}, epochs=EPOCHS, iterations_per_epoch=60)


def until(true: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def run_here(folder: Path, *targets: str) -> None:
    """Snakemake in a checkout, on this machine and not on the cluster."""
    (folder / "faults.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [BIN / "snakemake", *targets, "--configfile", "faults.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Job:
    """The training job of a setting."""

    def __init__(self, cluster: Cluster, folder: Path, setting: str) -> None:
        self.cluster, self.folder, self.setting = cluster, folder, setting
        self.target = f"results/faults/{setting}/fold-0/model.pt"
        self.log = folder / f"logs/faults/train/{setting}-0.log"

    def start(self, *arguments: str) -> subprocess.Popen:
        """Snakemake for this job alone, whose words go to SETTING.log."""
        return start_snakemake(self.cluster, self.folder, STUDY, self.target, *arguments, name=self.setting)

    def finish(self, process: subprocess.Popen) -> str:
        """Waits for Snakemake's success and returns what it said."""
        return finish(process, self.folder / f"{self.setting}.log")

    def words(self) -> str:
        """What training said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def pause(self) -> int:
        """Stops the training process after an epoch, so that it does not end before its fault comes; its number."""
        until(lambda: "epoch 1/" in self.words(), f"{self.setting} does not train")
        (lock,) = self.folder.glob(f"state/faults/{self.setting}/fold-0/*/lock.json")
        process = int(re.search(r'"process": (\d+)', lock.read_text())[1])
        os.kill(process, signal.SIGSTOP)
        return process

    def number(self) -> str:
        """Slurm's number of the job."""
        jobs = self.cluster.run("squeue", "--noheader", "--format=%A %k").splitlines()
        return next(line.split()[0] for line in jobs if f"rule_train_wildcards_{self.setting}_0" in line)

    def is_undisturbed(self) -> bool:
        """Whether the weights are those of the job that met no fault."""
        expected, found = Job(self.cluster, self.folder, UNDISTURBED).weights(), self.weights()
        return all(torch.equal(found[name], expected[name]) for name in expected)

    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained."""
        return load_tensors(self.folder / self.target)["weights"]
