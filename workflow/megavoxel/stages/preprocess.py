"""Crop, normalise and resample cases, and store them so that training reads patches without reading the case.

One of several shards takes every Nth case. The marker file is written last: it lists the cases of the shard.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.files import write_json

TYPICAL_PATCH = (128, 128, 128)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--cases", type=Path, required=True, help="cases.json of the dataset")
    parser.add_argument("--plan", type=Path, required=True, help="preprocessing plan")
    parser.add_argument("--folder", type=Path, required=True, help="folder of the preprocessed cases")
    parser.add_argument("--shard", type=int, default=0, help="which share of the cases, counted from 0; default: 0")
    parser.add_argument("--shards", type=int, default=1, help="number of shares; default: 1")
    parser.add_argument("--output", type=Path, required=True, help="marker file, written when all cases are done")
    parser.add_argument(
        "--patch",
        type=int,
        nargs=3,
        default=TYPICAL_PATCH,
        metavar=("Z", "Y", "X"),
        help="typical patch, for the chunks on disk; default: 128 128 128",
    )
    parser.add_argument("--processes", type=int, default=1, help="cases worked on at once; default: 1")
    parser.add_argument(
        "--large-voxels",
        type=int,
        metavar="N",
        help="cases of N voxels and more go block by block, whatever the memory; default: 134217728 (512 x 512 x 512)",
    )
    parser.add_argument("--resume", action="store_true", help="keep cases that were made under the same plan")


def run(arguments: argparse.Namespace) -> None:
    """Preprocesses the cases of a shard, then writes the marker."""
    from megavoxel.planning.plan import load_preprocessing_plan
    from megavoxel.preprocessing.case import preprocess_cases
    from megavoxel.volumes.slabs import LARGE_VOXELS

    if not 0 <= arguments.shard < arguments.shards:
        raise UserError(
            f"--shard {arguments.shard}: with --shards {arguments.shards} it must be 0 to {arguments.shards - 1}"
        )
    cases, plan = load_cases(arguments.cases), load_preprocessing_plan(arguments.plan)
    shard = sorted(cases.cases, key=lambda case: case.id)[arguments.shard :: arguments.shards]
    preprocess_cases(
        shard,
        cases=cases,
        plan=plan,
        folder=arguments.folder,
        patch=arguments.patch,
        processes=arguments.processes,
        resume=arguments.resume,
        large_voxels=LARGE_VOXELS if arguments.large_voxels is None else arguments.large_voxels,
    )
    marker = {
        "plan": plan.hash,
        "shard": arguments.shard,
        "shards": arguments.shards,
        "cases": [case.id for case in shard],
    }
    write_json(arguments.output, marker)
