"""Say of each setting of a study, before anything runs, what it needs and whether it fits: writes plan.tsv, and
partitions.tsv where the study asks for it.

No GPU is needed, and no data where the dataset file declares shape and spacing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from megavoxel.config.dataset import Dataset, dataset_path, load_dataset
from megavoxel.config.hardware import load_device
from megavoxel.config.study import Study
from megavoxel.config.study_file import load_study, parse_study, with_memory
from megavoxel.errors import UserError
from megavoxel.stages.plan_preprocessing import parse_definition

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
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="settings at once; default: all cores"
    )
    parser.add_argument("--output", type=Path, help="where plan.tsv goes; default: it is printed only")


def run(arguments: argparse.Namespace) -> None:
    """Prints the table and writes it."""
    from megavoxel.datasets.cases import load_cases
    from megavoxel.forecast.step import gib
    from megavoxel.forecast.table import BLIND_SPOTS, describe, partition_table, plan_study, save_table, table
    from megavoxel.planning.declared import declared_dataset
    from megavoxel.planning.fingerprint import load_fingerprint

    study, source = _study(arguments)
    device = load_device(arguments.hardware, study.hardware, source=source)
    device = device.on_one_node() if arguments.one_node else device
    if study.task == "classification":
        from megavoxel.stages.classification.estimate import run_estimate

        run_estimate(arguments, study, device, _dataset(study, arguments.datasets, source))
        return
    if (arguments.cases is None) != (arguments.fingerprint is None):
        raise UserError("--cases and --fingerprint: give both or neither")
    if arguments.cases is None:
        cases, fingerprint = declared_dataset(_dataset(study, arguments.datasets, source))
    else:
        cases, fingerprint = load_cases(arguments.cases), load_fingerprint(arguments.fingerprint)
    study = with_memory(study, device.memory_gib)
    planned = plan_study(study, cases, fingerprint, device, processes=arguments.processes)
    rows = table(planned)
    cuts = partition_table([partition for setting in planned for partition in setting.partitions])
    if arguments.output is not None:
        save_table(arguments.output, rows)
        if study.partitions:
            save_table(arguments.output.with_name("partitions.tsv"), cuts)
    memory = gib(device.limit_gib) if device.limit_gib else "no memory stated"
    print(f"{study.name} on {device.name} ({memory}); {len(cases.of_split('training'))} training cases")
    print(rows.drop(columns="reason").astype(object).fillna("").to_string(index=False))
    print("\n".join(map(describe, planned)))
    if study.partitions:
        print("pipelines: tensors of each stage in GiB, fullest over mean, peak with overheads, memories that will do")
        print(cuts.drop(columns="first_blocks").to_string(index=False))
    print(BLIND_SPOTS)


def _study(arguments: argparse.Namespace) -> tuple[Study, str]:
    """The study, and what errors call it."""
    if arguments.study is not None:
        return load_study(arguments.study), str(arguments.study)
    return parse_study(parse_definition(arguments.definition), source="--definition"), "--definition"


def _dataset(study: Study, folder: Path, source: str) -> Dataset:
    return load_dataset(dataset_path(study.dataset, folder, source=source))
