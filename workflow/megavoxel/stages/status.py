"""Show how far the runs of a study are: waiting, queued, running with epoch and time left, done, interrupted, failed.

It reads files (results/, logs/, state/) and, where there is a Slurm, its queue; it writes nothing, and works while
Snakemake runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from megavoxel.errors import UserError, printable

if TYPE_CHECKING:
    from megavoxel.reporting.runs import Folders, RunProgress

CLEAR = "\x1b[2J\x1b[H"
"""Clears a terminal."""
ORDER = ("failed", "interrupted", "running", "starting", "queued", "waiting", "trained", "done")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument(
        "results", type=Path, nargs="*", help="results/STUDY: the runs that have begun; default: all of results/"
    )
    parser.add_argument("--study", type=Path, metavar="FILE", help="study file: all its runs, those to come as well")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="show it again every so many seconds (10 by default), until Ctrl-C",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints a table per study, and the last lines of what failed."""
    if arguments.study is not None and arguments.results:
        raise UserError("--study: it names the study already; leave the folder out")
    if arguments.watch is None:
        _show(arguments)
        return
    if not arguments.watch > 0:
        raise UserError(f"--watch: {arguments.watch:g} given; allowed: a number of seconds greater than 0")
    try:
        while True:
            print(CLEAR if sys.stdout.isatty() else "", end="")
            _show(arguments)
            print(f"\n{datetime.now():%H:%M:%S}, again in {arguments.watch:g} s; Ctrl-C ends it", flush=True)
            sleep(arguments.watch)
    except KeyboardInterrupt:
        print()


def _show(arguments: argparse.Namespace) -> None:
    if arguments.study is not None:
        _show_study(arguments.study)
        return
    for folder in arguments.results or sorted(Path("results").glob("*/")) or [Path("results")]:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; run this where results/ lies, or name results/STUDY")
        _show_begun(folder)


def _show_study(path: Path) -> None:
    from megavoxel.config.study_file import load_study
    from megavoxel.reporting.runs import Folders, look_at

    study = load_study(path)
    folders = Folders(study=study.name, root=Path())
    planned = [(setting.name, fold) for setting in study.settings for fold in study.networks_of(setting)]
    _print(folders, look_at(folders, planned))


def _show_begun(folder: Path) -> None:
    from megavoxel.reporting.runs import Folders, begun_runs, look_at

    folders = Folders(study=folder.resolve().name, root=folder.resolve().parents[1])
    _print(folders, look_at(folders, begun_runs(folders)))


def _print(folders: Folders, runs: list[RunProgress]) -> None:
    from tabulate import tabulate

    from megavoxel.progress import duration
    from megavoxel.reporting.runs import failed_logs

    counts = Counter(run.state for run in runs)
    summary = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    print(f"study {folders.study}: {len(runs)} runs{': ' if summary else ''}{summary}")
    rows = [
        [
            run.setting,
            run.fold,
            run.state,
            run.epoch,
            _number(run.watched),
            "" if run.seconds_left is None else duration(run.seconds_left),
            _number(run.score),
        ]
        for run in runs
    ]
    if rows:
        score = next((run.metric for run in runs if run.metric), "score")
        watched = next((run.watched_as for run in runs if run.watched_as), "pseudo-Dice")
        headers = ["setting", "fold", "state", "epoch", watched, "left", score]
        print(tabulate(rows, headers=headers, disable_numparse=True))
    if counts["interrupted"]:
        print("\ninterrupted: start Snakemake again, and training goes on from its last state")
    for run in runs:
        if run.state == "failed":
            _print_end(run.log, run.lines)
    for log, lines in failed_logs(folders):
        _print_end(log, lines)


def _print_end(log: Path, lines: tuple[str, ...]) -> None:
    print(f"\n{log} ends with:")
    for line in lines:
        print(f"  {printable(line)}")


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"
