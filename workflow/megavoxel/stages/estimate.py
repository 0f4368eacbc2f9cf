"""Say of each setting of a study, before anything runs, what it needs and whether it fits: writes plan.tsv, and
partitions.tsv where the study asks for it.

No GPU is needed, and no data where the dataset file declares shape and spacing.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megavoxel.config.dataset import dataset_path, load_dataset
from megavoxel.config.hardware import load_device
from megavoxel.config.study import Study
from megavoxel.config.study_file import load_study, parse_study
from megavoxel.files import parse_json

CONFIG = Path("config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--study", type=Path, help="study file")
    source.add_argument("--definition", help="the study as JSON")
    parser.add_argument("--hardware", type=Path, default=CONFIG / "hardware.yaml", help="default: %(default)s")
    parser.add_argument(
        "--datasets", type=Path, default=CONFIG / "datasets", help="folder of the dataset files; default: %(default)s"
    )
    parser.add_argument("--one-node", action="store_true", help="a job takes no more devices than a node has")
    parser.add_argument("--cases", type=Path, help="cases.json of the dataset; default: what its file declares")
    parser.add_argument("--fingerprint", type=Path, help="fingerprint.json of the dataset, with --cases")
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="settings of label maps at once; default: all cores",
    )
    parser.add_argument("--output", type=Path, help="where plan.tsv goes; default: it is printed only")
    parser.add_argument(
        "--explain", action="store_true", help="also why each setting is run as it is, and what the numbers leave out"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the table and writes it."""
    from megavoxel.tasks import TASKS

    study, source = _study(arguments)
    device = load_device(arguments.hardware, study.hardware, source=source)
    device = device.on_one_node() if arguments.one_node else device
    dataset = load_dataset(dataset_path(study.dataset, arguments.datasets, source=source))
    with _nothing_collected():
        TASKS[study.task].forecast(arguments, study, device, dataset)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Leaves objects that refer to one another in memory, also when the process ends.

    Imports and traces make millions of objects: going through them again and again would take a quarter of the time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _study(arguments: argparse.Namespace) -> tuple[Study, str]:
    """The study, and what errors call it."""
    if arguments.study is not None:
        return load_study(arguments.study), str(arguments.study)
    return parse_study(parse_json(arguments.definition, option="--definition"), source="--definition"), "--definition"
