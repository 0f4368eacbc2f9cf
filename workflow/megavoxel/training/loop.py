"""The training loop of every task: epochs, validation, states and early stopping."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavoxel.config.training import Training
from megavoxel.distributed.group import Group, require_same
from megavoxel.errors import UserError
from megavoxel.network.host_memory import peak_resident_bytes
from megavoxel.progress import say
from megavoxel.training.memory import begin_peak, measured_step, note_allocated
from megavoxel.training.optimizer import learning_rate, set_rate
from megavoxel.training.pace import Pace
from megavoxel.training.pipeline import whole_state
from megavoxel.training.run import Part, Run, RunData
from megavoxel.training.states.checkpoint import StateWriter, load_state, state_writer
from megavoxel.training.states.lock import Lock
from megavoxel.training.states.saving import Saving, saving

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a process trains and validates on."""

    batches: Iterator[Part]
    """This process's share of all batches that the run has still to see."""
    steps: int
    """Optimiser steps of an epoch."""
    batch: int
    """Samples of a step, of all processes together, by which the learning rate goes."""
    validation: Any
    """What the task's `validate` is given."""


@dataclass(frozen=True, kw_only=True)
class TrainingFunctions:
    """What a task brings to the training loop."""

    start: Callable[..., Run]
    """A new run, or the one that a state was taken of: of plan, data, device, state and group."""
    samples: Callable[[Run, Any], Samples]
    """Samples of the run's data."""
    step: Callable[[Run, Tensor, Tensor], Tensor]
    """An optimiser step on this process's share of a batch; gives an entry of `Run.losses`."""
    means: Callable[[Run], Row]
    """Columns of the history that the steps of an epoch give, over all processes: `training_loss` and others."""
    validate: Callable[[Run, Any], Row]
    """Columns of the history that validation gives."""
    shown: tuple[tuple[str, str, int], ...]
    """Columns that the line of an epoch shows: name of the column, words before its value, decimals."""


def train_plan(
    functions: TrainingFunctions,
    plan: Any,
    data: RunData,
    states: Path,
    key: str,
    group: Group,
    lock: Lock | None = None,
) -> Run:
    """Trains a plan without phases to its end; its state lies in `states` afterwards, for all processes.

    Args:
        states: folder of the run's states, from which it goes on where there are any.
        key: of the run, which a state has to have.
        group: the processes that share each batch.
        lock: of the states, which the leading process checks before it writes them.

    Raises:
        UserError: the loss is no longer finite, a state is of another run, the processes of the group do not see the
            same state, the weights to begin with are of another network, or the job was told to end.
    """
    begin_peak(group.device)
    run = functions.start(plan, data, group.device, load_state(states, key=key), group)
    require_same(group, run.epoch, f"epoch in {states}")
    require_same(group, len(run.losses), f"step of the epoch in {states}")
    if not has_ended(run.history, plan.training):
        with state_writer(states) as writer:
            save = partial(_save, run, writer, key, lock)
            with saving(group, save, minutes=plan.training.checkpoint_minutes) as keeper:
                _train_to_the_end(functions, run, data, keeper)
    if group.leads and has_stalled(run.history, plan.training):
        say(stop_reason(run.history, plan.training))
    group.all(0.0)  # none goes on before the leading one has written the state
    return run


def _train_to_the_end(functions: TrainingFunctions, run: Run, data: RunData, keeper: Saving) -> None:
    """All epochs that are left, each validated; `keeper` writes states."""
    training, samples = run.plan.training, functions.samples(run, data)
    if run.group.leads:
        say(_first_line(run, samples))
    while not has_ended(run.history, training):
        begin = time.monotonic()
        rate = learning_rate(run.epoch, training, samples.batch)
        means = train_epoch(functions, run, samples, rate, keeper)
        scores = functions.validate(run, samples.validation)
        run.epoch, run.losses = run.epoch + 1, []
        seconds = time.monotonic() - begin
        row = {"epoch": run.epoch, "learning_rate": rate, **means, **scores, "seconds": seconds}
        run.history.append({**row, "peak_memory_mib": max(run.group.all(peak_memory_mib(run.device)))})
        note_allocated(run)
        if run.group.leads:
            _report(run, functions.shown)
        keeper.after_epoch(run.progress, is_last=has_ended(run.history, training))


def train_epoch(functions: TrainingFunctions, run: Run, samples: Samples, rate: float, keeper: Saving) -> Row:
    """Takes the steps of an epoch that are left, at learning rate `rate`; returns the means over all its steps.

    Raises:
        UserError: the mean loss is not finite.
    """
    set_rate(run.optimizer, rate)
    run.network.train()
    pace = Pace(run, samples.steps)
    for image, target in itertools.islice(samples.batches, samples.steps - len(run.losses)):
        # In float64 sums of float32 losses are exact, so that the mean does not depend on where a run was interrupted.
        run.losses.append(measured_step(run, functions.step, image, target).double())
        if keeper.after_step(run.progress) and pace.is_due():
            pace.say(functions.means(run)["training_loss"])
    means = functions.means(run)
    if not math.isfinite(loss := means["training_loss"]):
        raise UserError(
            f"setting {run.plan.setting}: the loss is {loss} in epoch {run.epoch + 1}; lower training.learning_rate "
            "or set training.precision to float32"
        )
    return means


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: what PyTorch allocated on a GPU, or what the process held on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_bytes() / 2**20


def best_epoch(history: Sequence[Row]) -> int:
    """The epoch with the highest pseudo-Dice, counted from 1; of equal ones the first; 0 where none has a score.

    Args:
        history: one row per epoch with `pseudo_dice`, NaN where no validation patch has a label.
    """
    scores = [-math.inf if math.isnan(row["pseudo_dice"]) else row["pseudo_dice"] for row in history]
    return 1 + scores.index(max(scores)) if max(scores, default=-math.inf) > -math.inf else 0


def has_stalled(history: Sequence[Row], training: Training) -> bool:
    """Whether the pseudo-Dice has not risen for `training.patience` epochs; never without that key."""
    return training.patience is not None and len(history) - best_epoch(history) >= training.patience


def has_ended(history: Sequence[Row], training: Training) -> bool:
    """Whether a run with this history is finished: all epochs are done, or it has stalled."""
    return len(history) >= training.epochs or has_stalled(history, training)


def stop_reason(history: Sequence[Row], training: Training) -> str:
    """Why a stalled run stopped, for the log."""
    best = best_epoch(history)
    why = "no epoch has a pseudo-Dice: no validation patch has a label"
    if best:
        why = f"the pseudo-Dice has not risen above the {history[best - 1]['pseudo_dice']:.4f} of epoch {best} since"
    return (
        f"stopped after epoch {len(history)} of {training.epochs} (training.patience: {training.patience}): {why}; the "
        "weights are those of the last epoch"
    )


def _save(run: Run, writer: StateWriter, key: str, lock: Lock | None, *, wait: bool) -> None:
    """The leading process writes the state of all, while training goes on unless it is to `wait`."""
    state = whole_state(run)
    if run.group.leads:
        if lock is not None:
            lock.check()
        writer.write({"key": key, **state})
        if wait:
            writer.wait()


def _first_line(run: Run, samples: Samples) -> str:
    plan, others = run.plan, f" and {run.group.size - 1} more" if run.group.size > 1 else ""
    where = f"on {run.device}{others} in {run.precision.name}"
    return (
        f"setting {plan.setting}: {plan.training.epochs} epochs of {samples.steps} steps, batch {plan.batch}, {where}"
    )


def _report(run: Run, shown: Sequence[tuple[str, str, int]]) -> None:
    row, epochs = run.history[-1], run.plan.training.epochs
    values = [f"{words} {row[column]:.{decimals}f}" for column, words, decimals in shown if column in row]
    left = (epochs - run.epoch) * row["seconds"] / 60
    say(f"epoch {run.epoch}/{epochs}  {'  '.join(values)}  {row['seconds']:.1f} s, {left:.1f} min left")
