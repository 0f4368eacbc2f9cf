"""Measure a dataset: spacing, shape and nonzero box of every training case, and the intensities of the foreground."""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.datasets.cases import load_cases


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--cases", type=Path, required=True, help="cases.json of the dataset")
    parser.add_argument("--output", type=Path, required=True, help="where fingerprint.json goes")
    parser.add_argument("--processes", type=int, default=1, help="cases read at once; default: 1")


def run(arguments: argparse.Namespace) -> None:
    """Writes fingerprint.json."""
    from megavoxel.planning.fingerprint import measure, save_fingerprint

    cases = load_cases(arguments.cases)
    save_fingerprint(arguments.output, measure(cases, processes=arguments.processes))
