"""DSC of whole trainings beside nnU-Net's, with the same cases, splits, patch, batch, network and steps, in float32.

Both read one folder in nnU-Net's raw layout. Ours goes the way of a user: `megavoxel init`, then `snakemake` up to the
scores of fold 0. nnU-Net plans and preprocesses for itself, takes patch, batch and network of our plan, trains with its
default trainer, and predicts the validation cases of fold 0. One program scores both. Its table is
`results/studies/nnunet-trainings.csv`.

python -m benchmarks.trainings [NAME …] --folder DIR

Trainings that the folder already has are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from benchmarks.made import call
from benchmarks.measure import REPOSITORY, RESULTS, Row, commit, larger_is_better, machine, peer, replace_rows, today
from benchmarks.nnunet import NAME, Peer, data_folder
from megavoxel.planning.plan import Plan, load_plan
from megavoxel.reporting.statistics import mean_interval

TABLE = RESULTS / "studies" / "nnunet-trainings.csv"
STUDY = "peer"
CONFIGURATION = "3d_fullres"
VALIDATION = 5
"""Validation steps of an epoch. Both only report them."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How both train."""

    batch: int
    epochs: int
    iterations: int
    """Steps of an epoch, within which the learning rate stays the same."""
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of our setting, without its seed."""
        return f"batch-{self.batch}-steps-{self.epochs}x{self.iterations}"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A dataset of the data folder, and what is trained on it."""

    channel: str
    """`MRI` or `CT`."""
    patch: tuple[int, int, int]
    """Voxels, in the order of the network's axes."""
    levels: int
    features: int
    """Channels of the first level."""
    schedules: tuple[Schedule, ...]


COMPARED = {
    "hippocampus": Compared(
        channel="MRI", patch=(40, 56, 40), levels=4, features=8,
        schedules=(
            Schedule(batch=4, epochs=10, iterations=50, seeds=(1, 2, 3)),
            Schedule(batch=2, epochs=40, iterations=50, seeds=(1, 2, 3)),
        ),
    ),
    "chaos_mr_t2": Compared(
        channel="MRI", patch=(16, 112, 112), levels=5, features=8,
        schedules=(Schedule(batch=2, epochs=20, iterations=50, seeds=(1,)),),
    ),
    "openkbp_headneck": Compared(
        channel="CT", patch=(64, 48, 80), levels=4, features=8,
        schedules=(Schedule(batch=2, epochs=20, iterations=50, seeds=(1,)),),
    ),
}  # fmt: skip


def run() -> list[Row]:
    """A row for each dataset and schedule: mean DSC, ours and nnU-Net's."""
    with tempfile.TemporaryDirectory() as folder:
        table = compare(Path(folder), tuple(COMPARED))
    return [
        larger_is_better(
            f"DSC of the validation cases of fold 0, {row['dataset']}, batch {row['batch']}, {row['epochs']} epochs of "
            f"{row['iterations']} steps, {row['seeds']} seeds",
            peer("nnunetv2"), row["ours"], row["theirs"], "DSC",
        )
        for row in table
    ]  # fmt: skip


def compare(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Trains what `folder` lacks of the datasets called `names`; writes and returns their lines of the table."""
    lines = []
    for name in names:
        compared = COMPARED[name]
        home = folder / name
        if not (home / "study.yaml").is_file():
            prepare(home, name, compared)
        train_ours(home, compared)
        for schedule, seed in trainings(compared):
            train_theirs(home, schedule, seed)
        lines += [line(home, name, schedule) for schedule in compared.schedules]
        write(lines)
    return lines


def trainings(compared: Compared) -> Iterator[tuple[Schedule, int]]:
    """Every schedule with every seed."""
    for schedule in compared.schedules:
        for seed in schedule.seeds:
            yield schedule, seed


def prepare(home: Path, name: str, compared: Compared) -> None:
    """Links the raw dataset, lets nnU-Net plan and draw its splits, and writes our dataset file and study with them."""
    theirs = Peer(home=home)
    theirs.link(data_folder() / name, compared.channel)
    theirs.plan()
    theirs.call(_split)
    call("megavoxel", "init", theirs.raw, "--name", STUDY, "--to", home / "config", folder=home)
    study = yaml.safe_load((home / f"config/studies/{STUDY}.yaml").read_text())
    study["defaults"] = {
        "folds": [0], "patch": list(compared.patch), "postprocess": False,
        "network": {"levels": compared.levels, "base_features": compared.features},
    }  # fmt: skip
    study["settings"] = {
        schedule.name: {"seeds": list(schedule.seeds), "batch": schedule.batch, "training": {
            "epochs": schedule.epochs, "iterations_per_epoch": schedule.iterations,
            "validation_iterations": VALIDATION, "precision": "float32",
        }}
        for schedule in compared.schedules
    }  # fmt: skip
    study["baseline"] = f"{compared.schedules[0].name}-seed{compared.schedules[0].seeds[0]}"
    (home / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def train_ours(home: Path, compared: Compared) -> None:
    """Runs our study up to the scores of its settings."""
    scores = [our_folder(home, schedule, seed) / "scores.csv" for schedule, seed in trainings(compared)]
    options = ["--cores", 2, "--quiet", "--snakefile", REPOSITORY / "Snakefile", "--directory", home]
    call("snakemake", *(path.relative_to(home) for path in scores), *options, "--configfile", home / "study.yaml")


def our_folder(home: Path, schedule: Schedule, seed: int) -> Path:
    """Our fold 0 of a schedule with a seed."""
    return home / "results" / STUDY / f"{schedule.name}-seed{seed}" / "fold-0"


def train_theirs(home: Path, schedule: Schedule, seed: int) -> None:
    """Trains nnU-Net by the network of our plan, and scores its validation cases, unless that was done."""
    scores = their_scores(home, schedule, seed)
    if scores.is_file():
        return
    theirs = Peer(home=home)
    predicted = theirs.call(_train, load_plan(our_folder(home, schedule, seed).parent / "plan.json"), schedule, seed)
    scores.parent.mkdir(parents=True, exist_ok=True)
    options = ["--existing", "--metrics", "dsc", "--output", scores]
    call("megavoxel", "evaluate", predicted, theirs.raw / "labelsTr", *options)


def their_scores(home: Path, schedule: Schedule, seed: int) -> Path:
    """The scores of nnU-Net's validation cases."""
    return home / "theirs" / f"{schedule.name}-seed{seed}.csv"


def line(home: Path, name: str, schedule: Schedule) -> dict[str, Any]:
    """The line of the table: means over cases and seeds, and the interval of their difference, in pairs of cases."""
    ours, theirs = (
        pandas.concat([by_case(path(home, schedule, seed)) for seed in schedule.seeds], axis=1)
        for path in (lambda *which: our_folder(*which) / "scores.csv", their_scores)
    )
    if set(ours.index) != set(theirs.index):
        raise RuntimeError(f"{home}: ours and nnU-Net's scores are of different cases")
    difference = (ours.mean(axis=1) - theirs.mean(axis=1)).to_numpy()
    low, high = mean_interval(difference)
    return {
        "dataset": name, "batch": schedule.batch, "epochs": schedule.epochs, "iterations": schedule.iterations,
        "seeds": len(schedule.seeds), "cases": len(difference),
        "ours": ours.to_numpy().mean(), "theirs": theirs.to_numpy().mean(),
        "ours_sd_of_seeds": ours.mean().std(), "theirs_sd_of_seeds": theirs.mean().std(),
        "difference": difference.mean(), "low": low, "high": high,
    }  # fmt: skip


def by_case(scores: Path) -> pandas.Series:
    """Mean DSC over labels of each case of a score file."""
    table = pandas.read_csv(scores)
    return table[table["metric"] == "DSC"].groupby("case")["value"].mean()


def write(lines: Sequence[dict[str, Any]]) -> None:
    """Writes lines to the table, in place of older ones of the same datasets."""
    origin = {"date": today(), "machine": machine(), "commit": commit(), "note": ""}
    rounded = [{key: _written(value) for key, value in line.items()} | origin for line in lines]
    replace_rows(TABLE, rounded, ["dataset", "batch", "epochs", "iterations"])


def _written(value: Any) -> Any:
    """A number with four decimals; nothing for one that there is not, as the deviation of a single seed."""
    return value if not isinstance(value, float) else "" if math.isnan(value) else f"{value:.4f}"


def _split(home: str) -> None:
    """Writes nnU-Net's own five folds where it looks for them, and beside dataset.json, where `init` does."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    theirs = Peer(home=Path(home))
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (theirs.raw / "labelsTr").iterdir())
    content = json.dumps(generate_crossval_split(cases, seed=12345, n_splits=5))
    for folder in (theirs.raw, theirs.home / "preprocessed" / NAME):
        (folder / "splits_final.json").write_text(content)


def _train(home: str, plan: Plan, schedule: Schedule, seed: int) -> str:
    """Trains fold 0, unless that was done, and predicts its validation cases; the folder of these label maps."""
    import torch

    os.environ.update(nnUNet_n_proc_DA="0", nnUNet_compile="f", nnUNet_def_n_proc="1")
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = Path(home) / "preprocessed" / NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    name = f"nnUNetPlans_{schedule.name}-seed{seed}"
    plans["plans_name"] = name
    configuration = plans["configurations"][CONFIGURATION]
    network = plan.network
    configuration |= {"patch_size": list(plan.patch), "batch_size": plan.batch}
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": len(network.features), "features_per_stage": network.features,
        "kernel_sizes": network.kernels, "strides": network.strides,
        "n_conv_per_stage": [2] * len(network.features), "n_conv_per_stage_decoder": [2] * (len(network.features) - 1),
    }  # fmt: skip
    plans = json.loads(json.dumps(plans))
    (folder / f"{name}.json").write_text(json.dumps(plans))
    references = folder / "gt_segmentations"  # which its validation looks for
    if not references.is_symlink():
        references.symlink_to(Peer(home=Path(home)).raw / "labelsTr")
    if not (folder / f"nnUNetPlans_{CONFIGURATION}").is_dir():
        DefaultPreprocessor(verbose=False).run(NAME, CONFIGURATION, "nnUNetPlans", num_processes=1)
    torch.manual_seed(seed)
    trainer = nnUNetTrainer(
        plans, CONFIGURATION, 0, json.loads((folder / "dataset.json").read_text()), device=torch.device("cpu")
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch = schedule.epochs, schedule.iterations
    trainer.num_val_iterations_per_epoch = VALIDATION
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    if final.is_file():  # an earlier run ended behind it
        trainer.load_checkpoint(str(final))
    else:
        trainer.run_training()
    trainer.perform_actual_validation(False)
    return str(Path(trainer.output_folder) / "validation")


def main() -> int:
    """Compares the named datasets, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainings", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*COMPARED, []], default=[], help="default: all")
    parser.add_argument("--folder", type=Path, required=True, help="keeps all files of both")
    arguments = parser.parse_args()
    print(pandas.DataFrame(compare(arguments.folder.resolve(), arguments.names or tuple(COMPARED))).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
