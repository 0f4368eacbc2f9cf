"""Cases per second of preprocessing, from the files of a case to its stored arrays, against nnU-Net's preprocessor."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import Row, larger_is_better, paired_seconds, peer
from benchmarks.nnunet import Peer, data_folder, preprocessor
from benchmarks.plans import CASES_COMPARED, planned, sound_cases
from megavoxel.datasets.cases import Cases
from megavoxel.planning.fingerprint import measure
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.case import preprocess_case

DATASETS = {"openkbp_headneck": "CT", "chaos_mr_t2": "MRI"}
"""Folders of real data, and the name of their channel."""
REPEATS = 3


def run() -> list[Row]:
    """One row per dataset; both work on the first cases in one process with one thread, in turns."""
    rows = []
    for name, channel in DATASETS.items():
        with tempfile.TemporaryDirectory() as folder:
            home = Peer(home=Path(folder))
            home.link(data_folder() / name, channel)
            home.plan()
            cases = sound_cases(name)
            ours, theirs = home.call(_seconds, cases, planned(cases, measure(cases)), REPEATS)
        title = f"preprocessing of {CASES_COMPARED} cases of {name}"
        rate = [CASES_COMPARED / seconds for seconds in (ours, theirs)]
        rows.append(larger_is_better(title, peer("nnunetv2"), *rate, "cases/s"))
    return rows


def _seconds(home: str, cases: Cases, plan: Plan, repeats: int) -> tuple[float, float]:
    """Seconds for the first cases: ours, nnU-Net's; both on one core, whatever threads they start."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    few = replace(cases, cases=cases.of_split("training")[:CASES_COMPARED])
    return paired_seconds(_our_work(home, few, plan), _their_work(home, few), repeats=repeats)


def _our_work(home: str, cases: Cases, plan: Plan) -> Callable[[], None]:
    def work() -> None:
        folder = Path(tempfile.mkdtemp(dir=home))
        for case in cases.cases:
            preprocess_case(case, cases=cases, plan=plan.preprocessing, folder=folder, patch=plan.patch)

    return work


def _their_work(home: str, cases: Cases) -> Callable[[], None]:
    files = Peer(home=Path(home))
    preprocessing, context = preprocessor(home, "3d_fullres")

    def work() -> None:
        folder = Path(tempfile.mkdtemp(dir=home))  # a new one each time: it does not replace arrays
        for case in cases.cases:
            image, labels = files.images(case.id)
            preprocessing.run_case_save(str(folder / case.id), [image], labels, *context)

    return work
