"""Crop, normalise and resample cases, and store them so that training reads patches without reading the case.

One of several shards takes every Nth case. The marker file is written last: it lists the cases of the shard.
When all shards are done, their markers become that of the whole folder:
  megavoxel preprocess --collect shard-0.json shard-1.json --cases cases.json --output done.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError, expect
from megavoxel.files import read_json, write_json

TYPICAL_PATCHES = {2: (1, 512, 512), 3: (128, 128, 128)}
"""By the dimensions of what networks see."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--cases", type=Path, required=True, help="cases.json of the dataset")
    parser.add_argument("--plan", type=Path, help="preprocessing plan")
    parser.add_argument("--folder", type=Path, help="folder of the preprocessed cases")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="JSON", help="markers of all shards, to be one")
    parser.add_argument("--shard", type=int, default=0, help="which share of the cases, counted from 0; default: 0")
    parser.add_argument("--shards", type=int, default=1, help="number of shares; default: 1")
    parser.add_argument("--output", type=Path, required=True, help="marker file, written when all cases are done")
    parser.add_argument(
        "--patch",
        type=int,
        nargs=3,
        metavar=("Z", "Y", "X"),
        help="typical patch, for the chunks on disk; default: 128 128 128, or 1 512 512 of slices",
    )
    parser.add_argument("--processes", type=int, default=1, help="cases worked on at once; default: 1")
    parser.add_argument(
        "--large-voxels",
        type=int,
        metavar="N",
        help="cases of N voxels and more go block by block, whatever the memory; default: 134217728 (512 x 512 x 512)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep cases that were made under the same plan, of the same files"
    )
    parser.add_argument(
        "--checksums", type=Path, help="checksums.tsv of the dataset, by which --resume knows that files are the same"
    )


def run(arguments: argparse.Namespace) -> None:
    """Preprocesses the cases of a shard, then writes the marker; or joins markers."""
    if arguments.collect:
        _collect(arguments)
        return
    if arguments.plan is None or arguments.folder is None:
        raise UserError("give --plan and --folder, or --collect")
    _preprocess(arguments)


def _preprocess(arguments: argparse.Namespace) -> None:
    from megavoxel.datasets.folder import read_checksums
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
        patch=arguments.patch or TYPICAL_PATCHES[plan.dimensions],
        processes=arguments.processes,
        resume=arguments.resume,
        checksums=None if arguments.checksums is None else read_checksums(arguments.checksums),
        large_voxels=LARGE_VOXELS if arguments.large_voxels is None else arguments.large_voxels,
    )
    marker = {
        "plan": plan.hash,
        "shard": arguments.shard,
        "shards": arguments.shards,
        "cases": [case.id for case in shard],
    }
    write_json(arguments.output, marker)


def _collect(arguments: argparse.Namespace) -> None:
    """Writes one marker for all shards.

    Raises:
        UserError: a marker is damaged, or together they are not what one preprocessing of all cases leaves.
    """
    markers = [read_json(path, what="marker of a shard") for path in arguments.collect]
    for path, marker in zip(arguments.collect, markers, strict=True):
        sound = isinstance(marker, dict) and {"plan", "shard", "shards", "cases"} <= marker.keys()
        expect(sound, str(path), "plan, shard, shards and cases, as 'megavoxel preprocess' writes them")
    done = sorted(case for marker in markers for case in marker["cases"])
    wanted = sorted(case.id for case in load_cases(arguments.cases).cases)
    if done != wanted or len({(marker["plan"], marker["shards"]) for marker in markers}) > 1:
        raise UserError(
            f"{', '.join(map(str, arguments.collect))}: these are not all shards of one preprocessing of the "
            f"{len(wanted)} cases in {arguments.cases}; remove them and run 'megavoxel preprocess' again"
        )
    write_json(arguments.output, {"plan": markers[0]["plan"], "shards": markers[0]["shards"], "cases": wanted})
    print(f"{len(wanted)} cases in {len(markers)} shards")
