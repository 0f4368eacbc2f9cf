"""Finished runs in programs that track experiments: MLflow, and Weights & Biases offline.

A run is a setting and a fold. It is known there by these and by the content of its history.csv: one that is there
already is left alone, and one of another training takes the place of the older.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from megavoxel.errors import UserError
from megavoxel.files import content_hash, file_sha256, read_json
from megavoxel.reporting.curves import Point, points_of
from megavoxel.reporting.provenance import flattened
from megavoxel.reporting.run_files import read_manifest

SECTIONS = ("seed", "patch", "batch", "resolution", "network", "training", "augmentation", "inference", "parallel")
"""Parts of plan.json that are told: how a network was trained, and nothing of cases."""
MOST_CHARACTERS, MOST_PARAMETERS, MOST_METRICS = 500, 100, 1000
"""What MLflow takes of a parameter, and in one call."""
RUN, CONTENT = "megavoxel.run", "megavoxel.history"
"""Tags by which a run is known."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as it is told."""

    study: str
    name: str
    """`SETTING/fold-K`."""
    content: str
    """SHA-256 of its history.csv."""
    plan_hash: str
    parameters: dict[str, str]
    points: tuple[Point, ...]


def tracked_run(history: Path) -> TrackedRun:
    """The run of a history.csv, with the plan and the manifest beside it.

    Raises:
        UserError: one of them is missing or damaged.
    """
    folder = history.parent
    plan = read_json(folder.parent / "plan.json", what="plan")
    manifest = read_manifest(folder / "manifest.json", ("plan_hash",))
    try:
        told = {name: plan[name] for name in SECTIONS if name in plan}
        return TrackedRun(
            study=plan["study"],
            name=f"{plan['setting']}/{folder.name}",
            content=file_sha256(history),
            plan_hash=manifest["plan_hash"],
            parameters={key: _text(value) for key, value in flattened(told)},
            points=tuple(points_of(history)),
        )
    except (KeyError, TypeError) as fault:
        raise UserError(f"{folder.parent / 'plan.json'}: it lacks {fault}; train this setting again") from None


def to_mlflow(runs: Sequence[TrackedRun], address: str) -> Iterator[str]:
    """Brings runs to an MLflow server or database, a line about each; experiments are named after studies.

    Raises:
        UserError: MLflow is not installed, or refuses.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise UserError("MLflow is not installed: pip install 'megavoxel[mlflow]', or pip install mlflow") from None
    try:
        client = MlflowClient(tracking_uri=address)
        for run in runs:
            yield f"{run.name}: {_to_mlflow(client, run)}"
    except (MlflowException, OSError) as fault:
        raise UserError(f"MLflow: {str(fault).splitlines()[0]}") from None


def _to_mlflow(client: Any, run: TrackedRun) -> str:
    from mlflow.entities import Metric, Param

    known = client.get_experiment_by_name(run.study)
    experiment = client.create_experiment(run.study) if known is None else known.experiment_id
    older = client.search_runs([experiment], filter_string=f"tags.`{RUN}` = '{run.name}'")
    if any(one.data.tags.get(CONTENT) == run.content and one.info.status == "FINISHED" for one in older):
        return "there already"
    begin, end = (_milliseconds(point.time) for point in (run.points[0], run.points[-1]))
    tags = {"mlflow.runName": run.name, RUN: run.name, CONTENT: run.content, "megavoxel.plan_hash": run.plan_hash}
    made = client.create_run(experiment, start_time=begin, tags=tags).info.run_id
    parameters = [Param(_key(key), value) for key, value in run.parameters.items()]
    for start in range(0, len(parameters), MOST_PARAMETERS):
        client.log_batch(made, params=parameters[start : start + MOST_PARAMETERS])
    metrics = [Metric(_key(one.name), one.value, _milliseconds(one.time), one.epoch) for one in run.points]
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(made, metrics=metrics[start : start + MOST_METRICS])
    client.set_terminated(made, "FINISHED", end_time=end)
    for one in older:
        client.delete_run(one.info.run_id)
    return "replaced" if older else "new"


def to_wandb(runs: Sequence[TrackedRun], folder: Path) -> Iterator[str]:
    """Writes runs as offline runs of Weights & Biases below a folder, a line about each; `wandb sync` sends them.

    Raises:
        UserError: the package is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise UserError("wandb is not installed: pip install 'megavoxel[wandb]', or pip install wandb") from None
    quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True)
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        own = content_hash([run.study, run.name])
        older = list(folder.glob(f"wandb/offline-run-*-{own}-*"))
        identity = f"{own}-{run.content[:12]}"
        if any(one.name.endswith(identity) and any(one.glob("*.wandb")) for one in older):
            yield f"{run.name}: there already"
            continue
        with wandb.init(
            mode="offline", project=run.study, id=identity, name=run.name, dir=folder, config=run.parameters,
            settings=quiet,
        ) as made:  # fmt: skip
            for epoch, points in groupby(run.points, key=lambda point: point.epoch):
                made.log({point.name: point.value for point in points}, step=epoch)
        for one in older:
            shutil.rmtree(one)
        yield f"{run.name}: {'replaced' if older else 'new'}"


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _key(name: str) -> str:
    """What MLflow takes as a name."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:MOST_CHARACTERS]
