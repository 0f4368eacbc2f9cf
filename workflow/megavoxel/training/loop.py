"""The training loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavoxel.distributed.group import Group, require_same
from megavoxel.distributed.pipeline import join_pipeline
from megavoxel.errors import UserError
from megavoxel.files import content_hash
from megavoxel.network.device import TYPES, Precision, choose_precision
from megavoxel.network.host_memory import peak_resident_bytes
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.annotation import annotation_table
from megavoxel.training.checkpoint import StateWriter, load_state, state_writer
from megavoxel.training.class_weights import class_weights
from megavoxel.training.lock import Lock
from megavoxel.training.memory import measured_step, note_allocated
from megavoxel.training.optimizer import build_optimizer, learning_rate
from megavoxel.training.patches import TRAINING, VALIDATION, PatchDataset, Share, patch_loader
from megavoxel.training.pipeline_state import whole_network, whole_state
from megavoxel.training.resuming import precision_of, take_up
from megavoxel.training.run import Part, Run
from megavoxel.training.saving import Saving, saving
from megavoxel.training.start import load_start, starting_weights
from megavoxel.training.step import replicated
from megavoxel.training.stopping import has_ended, has_stalled, stop_reason
from megavoxel.training.validation import validate


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What a run trains on."""

    number: int
    preprocessed: Path
    """Folder of the preprocessed cases."""
    training: tuple[str, ...]
    """Ids of the training cases."""
    validation: tuple[str, ...]
    """Ids of the validation cases."""
    first_stage: tuple[Path, ...] = ()
    """Folders with a first stage's labels of these cases, for a plan with `stage1`."""
    data: str | None = None
    """SHA-256 that stands for the dataset's files; None: not known."""
    first_stage_data: str | None = None
    """Hash of the first stage's labels; None: there is no first stage."""
    start: Path | None = None
    """`model.pt` whose weights training begins with, for a plan with `start`; None: random weights."""
    start_data: str | None = None
    """SHA-256 of that file."""

    def key(self, plan: Plan) -> str:
        """Short hash of all that the trained weights depend on: the plan, the fold's cases and the data."""
        parts = [plan.hash, self.number, self.training, self.validation, self.data]
        return content_hash([*parts, *filter(None, (self.first_stage_data, self.start_data))])


def train(
    plan: Plan,
    fold: Fold,
    state_folder: Path,
    device: torch.device,
    group: Group | None = None,
    lock: Lock | None = None,
) -> Run:
    """Trains a setting on a fold, going on from the run's states below `state_folder` if there are any.

    The phases of a curriculum are runs of their own, each with a state of its own. On the CPU an interrupted and
    resumed run gives bit for bit the weights of an uninterrupted one. With `training.patience` it may end before the
    last epoch; the learning rate falls as if it would not.

    Args:
        plan: the setting.
        fold: its cases.
        state_folder: where states are kept.
        device: of this process.
        group: the processes that share each batch; None: this one alone.
        lock: of the run's states, which the leading process checks before it writes them.

    Raises:
        UserError: the loss is no longer finite, the state belongs to another plan, the processes of the group do not
            see the same state, the weights to begin with are of another network, or the job was told to end.
    """
    group = group or Group(device=device)
    weights, key = starting_weights(fold.start), fold.key(plan)
    if not plan.phases:
        return _finished(_train_phase(plan, fold, state_folder / key, key, weights, group, lock))
    history: list[dict[str, float]] = []
    peak: dict[str, Any] | None = None
    for number, phase in enumerate(plan.by_phase(), start=1):
        key = content_hash([key, number])
        if group.leads:
            print(f"phase {number} of {len(plan.phases)}", flush=True)
        run = _train_phase(phase, fold, state_folder / key, key, weights, group, lock)
        history += [{"phase": number, **row, "epoch": len(history) + row["epoch"]} for row in run.history]
        peak = max(filter(None, (peak, run.peak_memory)), key=lambda found: found["gib"], default=None)
        if number < len(plan.phases):
            del run  # the next network needs its memory
            weights = load_state(state_folder / key, key=key)["network"]
    run.plan, run.history, run.epoch, run.peak_memory = plan, history, len(history), peak
    return _finished(run)


def _finished(run: Run) -> Run:
    """With the whole network, wherever its stages were."""
    run.network = whole_network(run)
    return run


def _train_phase(
    plan: Plan,
    fold: Fold,
    state_folder: Path,
    key: str,
    weights: dict[str, Tensor] | None,
    group: Group,
    lock: Lock | None,
) -> Run:
    """Trains a plan without phases to its end; its state lies in `state_folder` afterwards, for all processes."""
    run = start_run(plan, fold, group.device, load_state(state_folder, key=key), group, weights)
    require_same(group, run.epoch, f"epoch in {state_folder}")
    if not has_ended(run.history, plan.training):
        with state_writer(state_folder) as writer:
            save = partial(_save, run, writer, key, lock)
            with saving(run.group, save, minutes=plan.training.checkpoint_minutes) as keeper:
                _train_to_the_end(run, fold, keeper)
    if group.leads and has_stalled(run.history, plan.training):
        print(stop_reason(run.history, plan.training), flush=True)
    group.all(0.0)  # none goes on before the leading one has written the state
    return run


def start_run(
    plan: Plan,
    fold: Fold,
    device: torch.device,
    state: dict[str, Any] | None = None,
    group: Group | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Run:
    """A new run, from `weights` of the whole network if there are any, or the one that `state` was taken of.

    Raises:
        UserError: the weights are of another network, or the state is damaged.
    """
    group = group or Group(device=device)
    precision = precision_of(state, plan) if state else _common_precision(plan, device, group)
    seed = plan.seed + fold.number
    network = SegmentationNetwork(plan.network, seed=seed, checkpointing=plan.parallel.checkpointing)
    if weights is not None and state is None:
        load_start(network, weights, plan)
    member = join_pipeline(network, plan, group, precision)
    network = network.to(device, memory_format=torch.channels_last_3d)
    run = Run(
        plan=plan,
        device=device,
        precision=precision,
        network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.name == "float16"),
        group=group,
        replica=replicated(network, group) if member is None else None,
        pipeline=member,
        class_weights=_class_weights(plan, fold, device),
        annotated=annotation_table(plan, device),
    )
    if state:
        take_up(run, state)
        print(f"going on after {run.progress} of {plan.training.epochs}", flush=True)
    return run


def _train_to_the_end(run: Run, fold: Fold, keeper: Saving) -> None:
    """All epochs that are left, each scored; `keeper` writes states."""
    training = run.plan.training
    batches = iter(training_batches(run, fold))
    validation = _loader(run, fold, VALIDATION, training.validation_iterations * run.plan.batch)
    while not has_ended(run.history, training):
        begin = time.monotonic()
        rate = learning_rate(run.epoch, training, run.plan.batch)
        left = training.iterations_per_epoch - len(run.losses)
        loss = train_epoch(run, itertools.islice(batches, left), rate, keeper)
        scores = validate(run, validation, tuple(run.plan.preprocessing.labels))
        run.epoch, run.losses = run.epoch + 1, []
        seconds = time.monotonic() - begin
        row = {"epoch": run.epoch, "learning_rate": rate, "training_loss": loss, **scores, "seconds": seconds}
        run.history.append({**row, "peak_memory_mib": max(run.group.all(peak_memory_mib(run.device)))})
        note_allocated(run)
        if run.group.leads:
            _report(run)
        keeper.after_epoch(run.progress, is_last=has_ended(run.history, training))


def _save(run: Run, writer: StateWriter, key: str, lock: Lock | None, *, wait: bool) -> None:
    """The leading process writes the state of all, while training goes on unless it is to `wait`."""
    state = whole_state(run)
    if run.group.leads:
        if lock is not None:
            lock.check()
        writer.write({"key": key, **state})
        if wait:
            writer.wait()


def training_batches(run: Run, fold: Fold) -> Iterable[Part]:
    """This process's share of all batches that the run has still to see.

    Images are (batch / processes, channels, z, y, x), targets (batch / processes, z, y, x).
    """
    training = run.plan.training
    count = training.epochs * training.iterations_per_epoch * run.plan.batch
    first = run.epoch * training.iterations_per_epoch + len(run.losses)
    return _loader(run, fold, TRAINING, count, first_iteration=first)


def train_epoch(run: Run, batches: Iterable[Part], rate: float, keeper: Saving | None = None) -> float:
    """One optimiser step per batch at learning rate `rate`; returns the mean loss of the epoch, of all processes.

    Args:
        run: what is trained; steps of this epoch that were done before are in its `losses`.
        batches: those that are left.
        rate: learning rate.
        keeper: is asked after each step whether a state is due.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.network.train()
    for image, target in batches:
        # In float64 sums of float32 losses are exact, so that the mean does not depend on where a run was interrupted.
        run.losses.append(measured_step(run, image, target).double())
        if keeper is not None:
            keeper.after_step(run.progress)
    mean = run.mean_loss(torch.stack(run.losses).sum().item()) / len(run.losses)
    if not torch.isfinite(torch.tensor(mean)):
        raise UserError(
            f"setting {run.plan.setting}: the loss is {mean} in epoch {run.epoch + 1}; lower training.learning_rate "
            "or set training.precision to float32"
        )
    return mean


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: what PyTorch allocated on a GPU, or what the process held on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_bytes() / 2**20


def _common_precision(plan: Plan, device: torch.device, group: Group) -> Precision:
    """The precision that the first process chooses: what each measures may differ."""
    chosen, names = choose_precision(plan, device), list(TYPES)
    return replace(chosen, name=names[round(group.all(names.index(chosen.name))[0])])


def _class_weights(plan: Plan, fold: Fold, device: torch.device) -> Tensor | None:
    weights = class_weights(plan, fold.preprocessed, fold.training)
    return None if weights is None else weights.to(device)


def _loader(run: Run, fold: Fold, stream: int, count: int, first_iteration: int = 0) -> Iterable[Part]:
    """This process's samples; of a pipeline only the first stage reads them, the others go through the motions."""
    if run.pipeline is not None and run.pipeline.stage.number > 0:
        return [(torch.empty(0), torch.empty(0))] * (count // run.plan.batch - first_iteration)
    cases = fold.training if stream == TRAINING else fold.validation
    dataset = PatchDataset(
        run.plan,
        fold.preprocessed,
        cases,
        fold=fold.number,
        stream=stream,
        count=count,
        first_stage=fold.first_stage,
    )
    share = Share(
        first_iteration=first_iteration, batch=run.plan.batch, rank=run.replicas.rank, ranks=run.replicas.size
    )
    workers = run.plan.training.workers if stream == TRAINING else 0
    return patch_loader(dataset, share, workers=workers, pin=run.device.type == "cuda")


def _report(run: Run) -> None:
    row = run.history[-1]
    epochs = run.plan.training.epochs
    left = (epochs - run.epoch) * row["seconds"] / 60
    print(
        f"epoch {run.epoch}/{epochs}  loss {row['training_loss']:.4f}  validation loss {row['validation_loss']:.4f}  "
        f"pseudo-Dice {row['pseudo_dice']:.4f}  {row['seconds']:.1f} s, {left:.1f} min left",
        flush=True,
    )
