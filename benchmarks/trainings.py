"""DSC of whole trainings beside nnU-Net's, with the same cases, splits, patch, batch, network and steps, in float32.

Both read one folder in nnU-Net's raw layout. Ours goes the way of a user: `megavoxel init`, then `snakemake` up to the
scores of fold 0. nnU-Net plans and preprocesses for itself, takes patch, batch and network of our plan, trains with its
default trainer, and predicts the validation cases of fold 0. One program scores both. Its table is
`results/studies/nnunet-trainings.csv`; `results/studies/residual-trainings.csv` has our residual encoders beside our
plain networks, trained in the same way.

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
RESIDUAL_TABLE = RESULTS / "studies" / "residual-trainings.csv"
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
    residual: bool = False
    """Whether a residual encoder of the same width is trained too, beside our plain network."""

    @property
    def name(self) -> str:
        """Name of our setting, without its seed."""
        return f"batch-{self.batch}-steps-{self.epochs}x{self.iterations}"

    @property
    def residual_name(self) -> str:
        """Name of our setting with a residual encoder, without its seed."""
        return f"{self.name}-residual"


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
            Schedule(batch=2, epochs=40, iterations=50, seeds=(1, 2, 3), residual=True),
        ),
    ),
    "chaos_mr_t2": Compared(
        channel="MRI", patch=(16, 112, 112), levels=5, features=8,
        schedules=(Schedule(batch=2, epochs=40, iterations=50, seeds=(1,)),),
    ),
    "openkbp_headneck": Compared(
        channel="CT", patch=(64, 48, 80), levels=4, features=8,
        schedules=(Schedule(batch=2, epochs=40, iterations=50, seeds=(1,)),),
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
    """Trains what `folder` lacks of the datasets called `names`; writes both tables, returns that beside nnU-Net."""
    lines, residual = [], []
    for name in names:
        compared = COMPARED[name]
        home = folder / name
        if not (home / "study.yaml").is_file():
            prepare(home, name, compared)
        train_ours(home, compared)
        for schedule, seed in trainings(compared):
            train_theirs(home, schedule, seed)
        lines += [line(home, name, schedule) for schedule in compared.schedules]
        residual += [residual_line(home, name, schedule) for schedule in compared.schedules if schedule.residual]
        write(TABLE, lines)
        if residual:
            write(RESIDUAL_TABLE, residual)
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
    study["settings"] = {}
    for schedule in compared.schedules:
        study["settings"][schedule.name] = {"seeds": list(schedule.seeds), "batch": schedule.batch, "training": {
            "epochs": schedule.epochs, "iterations_per_epoch": schedule.iterations,
            "validation_iterations": VALIDATION, "precision": "float32",
        }}  # fmt: skip
        if schedule.residual:
            study["settings"][schedule.residual_name] = {
                "inherits": schedule.name, "seeds": list(schedule.seeds), "network": {"architecture": "residual"}
            }  # fmt: skip
    study["baseline"] = f"{compared.schedules[0].name}-seed{compared.schedules[0].seeds[0]}"
    (home / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def train_ours(home: Path, compared: Compared) -> None:
    """Runs our study up to the scores of its settings."""
    settings = [name for one in compared.schedules for name in our_settings(one)]
    scores = [our_scores(home, setting) for setting in settings]
    options = ["--cores", 2, "--quiet", "--snakefile", REPOSITORY / "Snakefile", "--directory", home]
    call("snakemake", *(path.relative_to(home) for path in scores), *options, "--configfile", home / "study.yaml")


def our_settings(schedule: Schedule) -> list[str]:
    """Names of our settings with a schedule, each with its seed."""
    names = (schedule.name, schedule.residual_name) if schedule.residual else (schedule.name,)
    return [f"{name}-seed{seed}" for name in names for seed in schedule.seeds]


def our_scores(home: Path, setting: str) -> Path:
    """The scores of the validation cases of fold 0 of our setting."""
    return home / "results" / STUDY / setting / "fold-0" / "scores.csv"


def train_theirs(home: Path, schedule: Schedule, seed: int) -> None:
    """Trains nnU-Net by the network of our plan, and scores its validation cases, unless that was done."""
    scores = their_scores(home, schedule, seed)
    if scores.is_file():
        return
    theirs = Peer(home=home)
    predicted = theirs.call(
        _train, load_plan(home / "results" / STUDY / f"{schedule.name}-seed{seed}" / "plan.json"), schedule, seed
    )
    scores.parent.mkdir(parents=True, exist_ok=True)
    options = ["--existing", "--metrics", "dsc", "--output", scores]
    call("megavoxel", "evaluate", predicted, theirs.raw / "labelsTr", *options)


def their_scores(home: Path, schedule: Schedule, seed: int) -> Path:
    """The scores of nnU-Net's validation cases."""
    return home / "theirs" / f"{schedule.name}-seed{seed}.csv"


def line(home: Path, name: str, schedule: Schedule) -> dict[str, Any]:
    """The line of the table beside nnU-Net: means over cases and seeds, and the interval of their difference."""
    ours = [our_scores(home, f"{schedule.name}-seed{seed}") for seed in schedule.seeds]
    theirs = [their_scores(home, schedule, seed) for seed in schedule.seeds]
    return schedule_keys(name, schedule) | difference({"ours": ours, "theirs": theirs})


def residual_line(home: Path, name: str, schedule: Schedule) -> dict[str, Any]:
    """The line of the table of a residual encoder beside a plain one, as `line`."""
    names = {"residual": schedule.residual_name, "plain": schedule.name}
    scores = {key: [our_scores(home, f"{one}-seed{seed}") for seed in schedule.seeds] for key, one in names.items()}
    return schedule_keys(name, schedule) | difference(scores)


def schedule_keys(name: str, schedule: Schedule) -> dict[str, Any]:
    """What tells lines of a table apart, and the number of seeds."""
    numbers = {"batch": schedule.batch, "epochs": schedule.epochs, "iterations": schedule.iterations}
    return {"dataset": name, **numbers, "seeds": len(schedule.seeds)}


def difference(scores: dict[str, list[Path]]) -> dict[str, Any]:
    """Means of two trainings and their deviations over seeds, and the difference in pairs of cases with its interval.

    Args:
        scores: name of each of the two and its score files, one per seed.
    """
    tables = {name: pandas.concat([by_case(path) for path in paths], axis=1) for name, paths in scores.items()}
    first, second = tables.values()
    if set(first.index) != set(second.index):
        raise RuntimeError(f"{next(iter(scores.values()))[0]}: the two are scored on different cases")
    by_pair = (first.mean(axis=1) - second.mean(axis=1)).to_numpy()
    low, high = mean_interval(by_pair)
    means = {name: table.to_numpy().mean() for name, table in tables.items()}
    deviations = {f"{name}_sd_of_seeds": table.mean().std() for name, table in tables.items()}
    return {
        "cases": len(by_pair), **means, **deviations, "difference": by_pair.mean(), "low": low, "high": high
    }  # fmt: skip


def by_case(scores: Path) -> pandas.Series:
    """Mean DSC over labels of each case of a score file."""
    table = pandas.read_csv(scores)
    return table[table["metric"] == "DSC"].groupby("case")["value"].mean()


def write(table: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Writes lines to a table, in place of older ones of the same dataset, batch and steps."""
    origin = {"date": today(), "machine": machine(), "commit": commit(), "note": ""}
    rounded = [{key: _written(value) for key, value in line.items()} | origin for line in lines]
    replace_rows(table, rounded, ["dataset", "batch", "epochs", "iterations"])


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
