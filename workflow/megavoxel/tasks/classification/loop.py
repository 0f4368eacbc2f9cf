"""The training loop of a classifier."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from megavoxel.config.classification import PRIVATE
from megavoxel.distributed.group import Group, require_same
from megavoxel.errors import UserError
from megavoxel.files import content_hash
from megavoxel.network.device import Precision
from megavoxel.planning.splits import Fold
from megavoxel.tasks.classification.bar import bar_foreign_files
from megavoxel.tasks.classification.cases import ImageCase, ImageCases
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.plan import ClassifierPlan
from megavoxel.tasks.classification.pretrained import give_published, load_published
from megavoxel.tasks.classification.samples import Place, PlainImages, TrainingImages, plain_loader, training_batches
from megavoxel.tasks.classification.shares import Assignment, assign
from megavoxel.tasks.classification.splits import draw_images
from megavoxel.tasks.classification.step import ClassifierRun, measured_step, note_allocated
from megavoxel.training.checkpoint import StateWriter, load_state, state_writer
from megavoxel.training.lock import Lock
from megavoxel.training.loop import peak_memory_mib
from megavoxel.training.optimizer import build_optimizer, learning_rate
from megavoxel.training.saving import Saving, saving

NOTHING = Assignment(partition=PRIVATE, shares=())
DROPOUT = 3
"""Stream of random numbers."""


@dataclass(frozen=True, kw_only=True)
class ClassifierFold:
    """What a run trains on."""

    number: int
    cases: ImageCases
    training: tuple[ImageCase, ...]
    """The drawn images, in order of their ids."""
    validation: tuple[ImageCase, ...]
    shares: Assignment
    """Of the training images."""
    validation_shares: Assignment
    """Of the validation images; none where there are none."""
    data: str | None = None
    """SHA-256 that stands for the dataset's files; None: not known."""
    weights: Path | None = None
    """Published weights that training begins with, for a plan with `pretrained`."""
    weights_data: str | None = None
    """SHA-256 of that file."""

    def key(self, plan: ClassifierPlan) -> str:
        """Short hash of all that the trained weights depend on: the plan, the fold's images, shares and data."""
        names = [[case.id for case in part] for part in (self.training, self.validation)]
        divided = self.shares.shares if self.shares.partition == PRIVATE and plan.workers > 1 else ()
        return content_hash([plan.hash, self.number, *names, self.data, self.weights_data, *divided])


def fold_of(plan: ClassifierPlan, cases: ImageCases, fold: Fold, number: int, **facts: Any) -> ClassifierFold:
    """Draws a fold's images and deals them to the workers.

    Args:
        plan: the setting.
        cases: of the dataset.
        fold: ids of its cases.
        number: of the fold.
        facts: further fields of the result.

    Raises:
        UserError: a class has too few images, or a share would be empty.
    """
    where = f"setting {plan.setting}, fold {number}"
    training = draw_images(
        cases.select(fold.training), plan.images_per_class, plan.seed, classes=plan.classes, where=where
    )
    validation = cases.select(fold.validation)
    deal = partial(
        assign,
        workers=plan.workers,
        partition=plan.data_partition,
        seed=plan.seed,
        pool=cases.of_split("training"),
        setting=plan.setting,
    )
    return ClassifierFold(
        number=number,
        cases=cases,
        training=training,
        validation=validation,
        shares=deal(training),
        validation_shares=deal(validation, allow_empty=True) if validation else NOTHING,
        **facts,
    )


def train_classifier(
    plan: ClassifierPlan,
    fold: ClassifierFold,
    state_folder: Path,
    device: torch.device,
    group: Group | None = None,
    lock: Lock | None = None,
) -> ClassifierRun:
    """Trains a setting on a fold, going on from the run's state below `state_folder` if there is one.

    With private data, each worker is barred from all of the dataset but its own files before it opens the first one.

    Args:
        plan: the setting.
        fold: its images.
        state_folder: where states are kept.
        device: of this process.
        group: the workers; None: this process alone.
        lock: of the run's states, which the leading process checks before it writes them.

    Raises:
        UserError: the loss is no longer finite, the weights to begin with are of another network, or the job was told
            to end.
    """
    group = group or Group(device=device)
    if plan.data_partition == PRIVATE and plan.workers > 1:
        bar_foreign_files(Path(fold.cases.root), own_files(fold, group.rank), map(fold.cases.path, fold.cases.cases))
    key = fold.key(plan)
    folder = state_folder / key
    run = start_run(plan, fold, device, group, load_state(folder, key=key))
    require_same(group, run.epoch, f"epoch in {folder}")
    if run.epoch < plan.training.epochs:
        with state_writer(folder) as writer:
            save = partial(_save, run, writer, key, lock)
            with saving(group, save, minutes=plan.training.checkpoint_minutes) as keeper:
                _train_to_the_end(run, fold, keeper)
    group.all(0.0)  # none goes on before the leading one has written the state
    return run


def own_files(fold: ClassifierFold, rank: int) -> list[Path]:
    """All that a worker with private data opens below the dataset's folder."""
    parts = [(fold.training, fold.shares)] + ([(fold.validation, fold.validation_shares)] if fold.validation else [])
    images = [fold.cases.path(cases[number]) for cases, shares in parts for number in shares.shares[rank]]
    return images + ([fold.weights] if fold.weights else [])


def start_run(
    plan: ClassifierPlan, fold: ClassifierFold, device: torch.device, group: Group, state: dict[str, Any] | None = None
) -> ClassifierRun:
    """A new run, or the one that `state` was taken of.

    Raises:
        UserError: the published weights are of another network.
    """
    network = build_network(plan.network, len(plan.classes), seed=plan.seed)
    if fold.weights is not None and state is None:
        give_published(network, plan.network, load_published(fold.weights), source=fold.weights)
    network = network.to(device, memory_format=torch.channels_last)
    run = ClassifierRun(
        plan=plan,
        device=device,
        precision=Precision(**state["precision"]) if state else precision_on(plan, device),
        network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
        group=group,
    )
    if state:
        network.load_state_dict(state["network"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.epoch, run.history, run.peak_memory = state["epoch"], state["history"], state["peak_memory"]
        if state["sums"] is not None:  # sums over all workers: the leading one goes on with them
            run.sums = list(state["sums"].to(device) if group.leads else torch.zeros_like(state["sums"], device=device))
        if group.leads:
            print(f"going on after {run.progress} of {plan.training.epochs}", flush=True)
    return run


def precision_on(plan: ClassifierPlan, device: torch.device) -> Precision:
    """The precision that the plan asks for; for `auto`, bfloat16 where a GPU has it, else float32."""
    wanted = plan.training.precision
    if wanted != "auto":
        return Precision(name=wanted, reason="as the study says")
    has_half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(name="bfloat16" if has_half else "float32", reason=f"what 'auto' means on {device.type}")


def validate(run: ClassifierRun, fold: ClassifierFold) -> dict[str, float]:
    """Mean cross-entropy and accuracy of the validation images, each worker on its own share; nothing without any."""
    if not fold.validation:
        return {}
    numbers = _validated_here(run, fold)
    files = [fold.cases.path(fold.validation[number]) for number in numbers]
    targets = torch.tensor([fold.cases.target(fold.validation[number]) for number in numbers], dtype=torch.int64)
    sums = torch.zeros(3, dtype=torch.float64)
    if files:
        logits = logits_of(run.network, files, run.plan, run.precision, run.device)
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        correct = (logits.argmax(dim=1) == targets).sum()
        sums = torch.stack([loss.double(), correct.double(), torch.tensor(float(len(files)), dtype=torch.float64)])
    loss, correct, count = run.group.sum(sums.to(run.device)).tolist()
    return {"validation_loss": loss / count, "validation_accuracy": correct / count}


@torch.no_grad()
def logits_of(
    network: nn.Module, files: Iterable[Path], plan: ClassifierPlan, precision: Precision, device: torch.device
) -> Tensor:
    """float32 logits (images, classes) on the CPU, without augmentation."""
    network.eval()
    found = []
    for image in plain_loader(PlainImages(list(files), plan.resolution), batch=plan.batch, loaders=0):
        with precision.autocast(device):
            logits = network(image.to(device, memory_format=torch.channels_last))
        found.append(logits.float().cpu())
    return torch.cat(found)


def _validated_here(run: ClassifierRun, fold: ClassifierFold) -> tuple[int, ...]:
    own = fold.validation_shares.shares[run.group.rank]
    return own if run.plan.data_partition == PRIVATE else own[run.group.rank :: run.group.size]


def _train_to_the_end(run: ClassifierRun, fold: ClassifierFold, keeper: Saving) -> None:
    """All epochs that are left; `keeper` writes states."""
    training, steps = run.plan.training, fold.shares.steps_per_epoch(run.plan.batch)
    batches = _training_batches(run, fold, steps)
    together = run.plan.batch * run.plan.workers
    while run.epoch < training.epochs:
        begin = time.monotonic()
        rate = learning_rate(run.epoch, training, together)
        row = {"epoch": run.epoch + 1, "learning_rate": rate, **_train_epoch(run, fold, batches, steps, rate, keeper)}
        run.epoch, run.sums = run.epoch + 1, []
        row |= validate(run, fold)
        row |= {"seconds": time.monotonic() - begin, "peak_memory_mib": max(run.group.all(peak_memory_mib(run.device)))}
        run.history.append(row)
        note_allocated(run)
        if run.group.leads:
            _report(row, training.epochs)
        keeper.after_epoch(run.progress, is_last=run.epoch == training.epochs)


def _train_epoch(
    run: ClassifierRun, fold: ClassifierFold, batches: Iterator, steps: int, rate: float, keeper: Saving
) -> dict[str, float]:
    """The steps of an epoch that are left; loss and accuracy of all workers over all of its images."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.network.train()
    while len(run.sums) < steps:
        image, target = next(batches)
        _seed_dropout(run, fold, run.epoch * steps + len(run.sums))
        image = image.to(run.device, non_blocking=True, memory_format=torch.channels_last)
        run.sums.append(measured_step(run, image, target.to(run.device, non_blocking=True)))
        if len(run.sums) < steps:
            keeper.after_step(run.progress)
    loss, correct, count = run.group.sum(torch.stack(run.sums).sum(dim=0)).tolist()
    if not np.isfinite(loss):
        raise UserError(
            f"setting {run.plan.setting}: the loss is {loss} in epoch {run.epoch + 1}; lower training.learning_rate"
        )
    return {"training_loss": loss / count, "training_accuracy": correct / count}


def _seed_dropout(run: ClassifierRun, fold: ClassifierFold, step: int) -> None:
    """Dropout is a function of the step's number and the worker: a resumed run needs no generator's state."""
    seed = np.random.SeedSequence((run.plan.seed, fold.number, DROPOUT, run.group.rank, step))
    torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))


def _training_batches(run: ClassifierRun, fold: ClassifierFold, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    dataset = TrainingImages(run.plan, fold.cases, fold.training, fold=fold.number)
    place = Place(rank=run.group.rank, first_step=run.epoch * steps + len(run.sums))
    return training_batches(dataset, fold.shares, place, fold=fold.number, pin=run.device.type == "cuda")


def _save(run: ClassifierRun, writer: StateWriter, key: str, lock: Lock | None, *, wait: bool) -> None:
    """The leading process writes the state of all, while training goes on unless it is to `wait`."""
    state = run.state_dict()
    if run.group.leads:
        if lock is not None:
            lock.check()
        writer.write({"key": key, **state})
        if wait:
            writer.wait()


def _report(row: dict[str, float], epochs: int) -> None:
    validation = f"  validation {row['validation_accuracy']:.3f}" if "validation_accuracy" in row else ""
    print(
        f"epoch {row['epoch']}/{epochs}  loss {row['training_loss']:.4f}  accuracy {row['training_accuracy']:.3f}"
        f"{validation}  {row['seconds']:.1f} s",
        flush=True,
    )
