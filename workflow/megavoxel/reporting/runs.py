"""How far the runs of a study are, read from the files that they leave and, where there is a Slurm, from its queue."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.tidy import read_scores
from megavoxel.reporting.run_files import read_manifest
from megavoxel.tasks.classification.metrics import METRICS as CLASSIFICATION_METRICS
from megavoxel.training.states.lock import is_alive

EPOCH = re.compile(
    r"epoch (?P<epoch>\d+)/(?P<epochs>\d+)  loss .*  (?P<word>pseudo-Dice|validation|accuracy) (?P<value>\S+)  "
    r"[\d.]+ s, (?P<minutes>[\d.]+) min left"
)
WATCHED = {
    "pseudo_dice": "pseudo-Dice",
    "validation_accuracy": "validation accuracy",
    "training_accuracy": "training accuracy",
}
"""Columns of history.csv that say how well a network does, the best one first, and how they are called."""
WORDS = dict(zip(("pseudo-Dice", "validation", "accuracy"), WATCHED.values(), strict=True))
"""How the log of training calls them."""
PHASE = re.compile(r"phase (\d+) of (\d+)")
FAULT = re.compile(r"megavoxel \S+: error: |Traceback \(most recent call last\)")
INTERRUPTED = re.compile(r"megavoxel \S+: (interrupted|error: ended by SIG)")
"""Ends of logs of processes that were told to end, and saved their state."""
STARTING_SECONDS = 30
"""Seconds from a new log to the first sign of life of the job that writes it: a container and Python start."""
LAST_LINES = 5
MOST_CHARACTERS = 400
QUEUE_SECONDS = 15
NAMES = re.compile(r"(?P<setting>.+)-(?P<fold>\d+|all)")


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """A setting on a fold."""

    setting: str
    fold: int | str
    """Its number, or `all`."""
    state: str
    """`waiting`, `queued`, `starting`, `running`, `interrupted` (told to end, or killed), `failed` (ended by an error),
    `trained` (not yet scored) or `done`."""
    epoch: str = ""
    """The last finished epoch of how many, with the phase where there are several."""
    watched: float | None = None
    """How well the network did after that epoch."""
    watched_as: str = ""
    """Name of that measure, such as pseudo-Dice."""
    seconds_left: float | None = None
    """Time left of training, or of its phase."""
    metric: str = ""
    """Head of the metric of `score`: the first one of its score file."""
    score: float | None = None
    """Mean over validation cases of the mean over labels, as in the report."""
    lines: tuple[str, ...] = ()
    """The end of the log of a run that failed or was interrupted."""
    log: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a study has its files."""

    study: str
    root: Path
    """The folder that results/, logs/ and state/ lie in."""

    @property
    def results(self) -> Path:
        return self.root / "results" / self.study

    @property
    def logs(self) -> Path:
        return self.root / "logs" / self.study

    def log(self, setting: str, fold: int | str) -> Path:
        """The log of a run's training."""
        return self.logs / "train" / f"{setting}-{fold}.log"

    def state(self, setting: str, fold: int | str) -> Path:
        """The folder of a run's states."""
        return self.root / "state" / self.study / setting / f"fold-{fold}"


def begun_runs(folders: Folders) -> list[tuple[str, int | str]]:
    """The runs that have left something, where no study file says which there are to be."""
    places = [*folders.results.glob("*/fold-*/"), *folders.root.glob(f"state/{folders.study}/*/fold-*/")]
    found = {(path.parent.name, path.name) for path in places}
    runs = {(setting, _fold(fold.removeprefix("fold-"))) for setting, fold in found}
    logs = filter(None, (NAMES.fullmatch(path.stem) for path in folders.logs.glob("train/*.log")))
    return sorted(
        runs | {(match["setting"], _fold(match["fold"])) for match in logs},
        key=lambda run: (run[0], str(run[1]).zfill(3)),
    )


def _fold(word: str) -> int | str:
    return int(word) if word.isdecimal() else word


def look_at(folders: Folders, runs: Iterable[tuple[str, int | str]]) -> list[RunProgress]:
    """The state of each run, in the same order."""
    queued = queued_runs(folders.root)
    return [_look(folders, setting, fold, f"{setting}_{fold}" in queued) for setting, fold in runs]


def failed_logs(folders: Folders) -> list[tuple[Path, tuple[str, ...]]]:
    """Logs of other stages that end with an error, with their last lines; a stage that runs again writes a new log."""
    found = []
    for path in sorted(folders.logs.rglob("*.log")):
        lines = last_lines(path)
        if path.parent.name != "train" and any(FAULT.match(line) for line in lines):
            found.append((path, lines))
    return found


def queued_runs(root: Path) -> set[str]:
    """Runs as `SETTING_FOLD` that wait in Slurm's queue, submitted from this folder; empty where there is no Slurm.

    The Slurm plugin of Snakemake names the rule and its wildcards in the comment of a job, but not the study.
    """
    if shutil.which("squeue") is None:
        return set()
    command = ["squeue", "--me", "--noheader", "--states=PENDING", "--format=%Z|%k"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUEUE_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return set()
    jobs = [line.partition("|") for line in done.stdout.splitlines()]
    own = [comment for folder, _, comment in jobs if os.path.realpath(folder) == os.path.realpath(root)]
    return {comment.removeprefix("rule_train_wildcards_") for comment in own if comment.startswith("rule_train_")}


def last_lines(path: Path) -> tuple[str, ...]:
    """The last lines of a log that say something; from the last error message on, where they have one."""
    with path.open(errors="replace") as log:
        lines = [line.rstrip()[:MOST_CHARACTERS] for line in deque(log, maxlen=10 * LAST_LINES)]
    lines = [line for line in lines if line]
    faults = [number for number, line in enumerate(lines) if FAULT.match(line) and "Traceback" not in line]
    return tuple(lines[faults[-1] :][:LAST_LINES] if faults else lines[-LAST_LINES:])


def _look(folders: Folders, setting: str, fold: int | str, is_queued: bool) -> RunProgress:
    outputs, log = folders.results / setting / f"fold-{fold}", folders.log(setting, fold)
    if (outputs / "model.pt").is_file():
        return _finished(outputs, setting, fold)
    progress = _progress(log) if log.is_file() else {}
    run = {"setting": setting, "fold": fold, "log": log, **progress}
    alive = is_alive(folders.state(setting, fold))
    if alive:
        return RunProgress(**run, state="running" if progress else "starting")
    run["seconds_left"] = None
    if is_queued:
        return RunProgress(**run, state="queued")
    if not log.is_file():
        return RunProgress(setting=setting, fold=fold, state="waiting" if alive is None else "interrupted")
    lines = last_lines(log)
    has_failed = any(FAULT.match(line) and not INTERRUPTED.match(line) for line in lines)
    if alive is None and not lines and time.time() - log.stat().st_mtime < STARTING_SECONDS:
        return RunProgress(**run, state="starting")
    state = "failed" if has_failed else "interrupted"
    return RunProgress(
        **run, state=state, lines=lines or ("the log is empty: the job was killed before it said anything",)
    )


def _finished(outputs: Path, setting: str, fold: int | str) -> RunProgress:
    last = pd.read_csv(outputs / "history.csv").iloc[-1] if (outputs / "history.csv").is_file() else None
    epoch = "" if last is None else f"{last['epoch']:.0f}"
    column = next((name for name in WATCHED if last is not None and name in last), None)
    watched = {} if column is None else {"watched": float(last[column]), "watched_as": WATCHED[column]}
    metric, score = _mean_score(outputs / "scores.csv")
    state = "trained" if score is None and _is_validated(outputs / "manifest.json") else "done"
    return RunProgress(setting=setting, fold=fold, state=state, epoch=epoch, metric=metric, score=score, **watched)


def _is_validated(manifest: Path) -> bool:
    """Whether a training left cases out to be scored."""
    return not manifest.is_file() or read_manifest(manifest).get("data", {}).get("validation") != []


def _mean_score(path: Path) -> tuple[str, float | None]:
    """Head of the first metric of a score file, and its mean; None where there is none."""
    try:
        table = read_scores(path)
    except UserError:  # not there yet
        return "", None
    metrics = (*METRICS.values(), *CLASSIFICATION_METRICS.values())
    for metric in [metric for metric in metrics if (table["metric"] == metric.name).any()][:1]:
        mean = table[table["metric"] == metric.name].groupby("case")["value"].mean().mean()
        return metric.head, None if pd.isna(mean) else float(mean)
    return "", None


def _progress(log: Path) -> dict[str, object]:
    """The last epoch in a log, and the time left since then."""
    phase, last = None, None
    with log.open(errors="replace") as lines:
        for line in lines:
            phase, last = PHASE.match(line) or phase, EPOCH.match(line) or last
    if last is None:
        return {}
    before = f"phase {phase[1]}/{phase[2]}, " if phase else ""
    left = 60 * float(last["minutes"]) - (time.time() - log.stat().st_mtime)
    return {
        "epoch": f"{before}{last['epoch']}/{last['epochs']}",
        "watched": float(last["value"]),
        "watched_as": WORDS[last["word"]],
        "seconds_left": max(left, 0.0),
    }
