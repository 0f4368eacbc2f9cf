"""Training of a classifier: its run, its samples, a step over the images of all workers together, validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from megavoxel.config.classification import PRIVATE
from megavoxel.distributed.group import Group
from megavoxel.files import content_hash
from megavoxel.network.device import Precision
from megavoxel.progress import say
from megavoxel.tasks.classification.audit_hook import refuse_foreign_files
from megavoxel.tasks.classification.data import ImageData, best_of
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.plan import ClassifierPlan
from megavoxel.tasks.classification.pretrained import give_published, load_published
from megavoxel.tasks.classification.samples import Place, PlainImages, TrainingImages, plain_loader, training_batches
from megavoxel.training.loop import Samples, TrainingFunctions, train_plan
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Part, Run
from megavoxel.training.states.lock import Lock
from megavoxel.training.states.resuming import precision_of, take_up

DROPOUT = 3
"""Stream of random numbers."""
Validated = tuple[list[Path], Tensor]
"""Validation images of this worker, and the numbers of their classes."""


def train(
    plan: ClassifierPlan,
    data: ImageData,
    state_folder: Path,
    device: torch.device,
    group: Group | None = None,
    lock: Lock | None = None,
) -> Run:
    """Trains a setting on a fold, going on from the run's state below `state_folder` if there is one.

    With private data, each worker is kept from all files of the dataset but its own before it opens the first one.

    Args:
        group: the workers; None: this process alone.
        lock: of the run's states, which the leading process checks before it writes them.

    Raises:
        UserError: as `train_plan`.
    """
    group = group or Group(device=device)
    if plan.data_partition == PRIVATE and plan.workers > 1:
        images = map(data.cases.path, data.cases.cases)
        refuse_foreign_files(Path(data.cases.root), data.files_of(group.rank), images)
    key = data.key(plan)
    if plan.training.search:
        return _searched(plan, data, state_folder, key, group, lock)
    return train_plan(FUNCTIONS, plan, data, state_folder / key, key, group, lock)


def _searched(
    plan: ClassifierPlan, data: ImageData, state_folder: Path, key: str, group: Group, lock: Lock | None
) -> Run:
    """The best of one training with each learning rate of the search, by the validation images of its last epoch."""
    best, tried = None, []
    for number, rate in enumerate(plan.training.search, start=1):
        if group.leads:
            say(f"learning rate {rate:g}: {number} of {len(plan.training.search)}")
        own, one = content_hash([key, number]), replace(plan.training, learning_rate=rate, search=())
        run = train_plan(FUNCTIONS, replace(plan, training=one), data, state_folder / own, own, group, lock)
        scores = {name: run.history[-1][name] for name in ("validation_accuracy", "validation_loss")}
        tried.append({"learning_rate": rate, "seconds": sum(row["seconds"] for row in run.history), **scores})
        if best_of(tried) is tried[-1]:
            best = run
        del run  # the next network needs its memory
    best.plan, best.searched = plan, tried
    return best


def start_run(
    plan: ClassifierPlan,
    data: ImageData,
    device: torch.device,
    state: dict[str, Any] | None = None,
    group: Group | None = None,
) -> Run:
    """A new run, from the published weights of `data` if there are any, or the one that `state` was taken of.

    Raises:
        UserError: the published weights are of another network, or the state is damaged.
    """
    network = build_network(plan.network, len(plan.classes), seed=plan.seed)
    if data.start is not None and state is None:
        give_published(network, plan.network, load_published(data.start), source=data.start)
    network = network.to(device, memory_format=torch.channels_last)
    run = Run(
        plan=plan,
        device=device,
        precision=precision_of(state, plan) if state else precision_on(plan, device),
        network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
        group=group or Group(device=device),
    )
    if state:
        take_up(run, state)
    return run


def precision_on(plan: ClassifierPlan, device: torch.device) -> Precision:
    """The precision that the plan asks for; for `auto`, bfloat16 where a GPU has it, else float32."""
    wanted = plan.training.precision
    if wanted != "auto":
        return Precision(name=wanted, reason="as the study says")
    has_half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(name="bfloat16" if has_half else "float32", reason=f"what 'auto' means on {device.type}")


def validate(run: Run, own: Validated) -> dict[str, float]:
    """Mean cross-entropy and accuracy of the validation images, each worker on its own share; nothing without any."""
    files, targets = own
    sums = torch.zeros(3, dtype=torch.float64)
    if files:
        logits = logits_of(run.network, files, run.plan, run.precision, run.device)
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        correct = (logits.argmax(dim=1) == targets).sum()
        sums = torch.stack([loss.double(), correct.double(), torch.tensor(float(len(files)), dtype=torch.float64)])
    loss, correct, count = run.group.sum(sums.to(run.device)).tolist()
    return {"validation_loss": loss / count, "validation_accuracy": correct / count} if count else {}


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


def _samples(run: Run, data: ImageData) -> Samples:
    plan = run.plan
    return Samples(
        batches=_batches(run, data),
        steps=data.shares.steps_per_epoch(plan.batch),
        batch=plan.batch * plan.workers,
        validation=_validated_here(run, data),
    )


def _batches(run: Run, data: ImageData) -> Iterator[Part]:
    """This worker's batches to the end of the run, on its device, with the dropout of each step seeded.

    Dropout is a function of the step's number and the worker: a resumed run needs no generator's state.
    """
    first = run.epoch * data.shares.steps_per_epoch(run.plan.batch) + len(run.losses)
    dataset = TrainingImages(run.plan, data.cases, data.training, fold=data.number)
    place, pin = Place(rank=run.group.rank, first_step=first), run.device.type == "cuda"
    batches = training_batches(dataset, data.shares, place, fold=data.number, pin=pin)
    for step, (images, targets) in enumerate(batches, start=first):
        seed = np.random.SeedSequence((run.plan.seed, data.number, DROPOUT, run.group.rank, step))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        there = images.to(run.device, non_blocking=True, memory_format=torch.channels_last)
        yield there, targets.to(run.device, non_blocking=True)


def _validated_here(run: Run, data: ImageData) -> Validated:
    numbers: tuple[int, ...] = ()
    if data.validation:
        own, group = data.validation_shares.shares[run.group.rank], run.group
        numbers = own if run.plan.data_partition == PRIVATE else own[group.rank :: group.size]
    cases = [data.validation[number] for number in numbers]
    targets = torch.tensor([data.cases.target(case) for case in cases], dtype=torch.int64)
    return [data.cases.path(case) for case in cases], targets


def _means(run: Run) -> dict[str, float]:
    """Loss and accuracy over all images of the epoch, of all workers."""
    loss, correct, count = run.group.sum(torch.stack(run.losses).sum(dim=0)).tolist()
    return {"training_loss": loss / count, "training_accuracy": correct / count}


def train_step(run: Run, image: Tensor, target: Tensor) -> Tensor:
    """Forward, backward, sum over the group, step; returns this worker's sums as in `Run.losses`.

    The loss is the mean cross-entropy over the images of all workers, so that a worker with fewer images in a step
    counts for less, and one without any for nothing. Running statistics of batch norms, which each worker takes of its
    own images, are averaged with the same weights: all workers hold the same network after every step.

    Args:
        run: with a group whose processes all take this step.
        image: float32 (images, 3, height, width), of this worker.
        target: int64 classes (images).
    """
    sums = gradients(run, image, target)
    run.optimizer.step()
    return sums


def gradients(run: Run, image: Tensor, target: Tensor) -> Tensor:
    """A step up to that of the optimiser; arguments and result as for `train_step`."""
    run.optimizer.zero_grad(set_to_none=True)
    total = run.group.sum(torch.tensor(float(len(target)), device=run.device))
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    if len(target):
        with run.precision.autocast(run.device):
            logits = run.network(image)
        loss = functional.cross_entropy(logits.float(), target, reduction="sum")
        (loss / total).backward()
        correct = (logits.argmax(dim=1) == target).sum()
        sums = torch.stack([loss.detach().double(), correct.double(), torch.full_like(sums[0], len(target))])
    pool(run, share=len(target) / total)
    return sums


def pool(run: Run, share: Tensor) -> None:
    """Gradients become the sums over all workers, and running statistics their means with the weight `share` each.

    This is all that workers tell one another of their images.
    """
    if run.group.size == 1:
        return
    parameters = [parameter for parameter in run.network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    statistics = [buffer for buffer in run.network.buffers() if buffer.is_floating_point()]
    for buffer in statistics:
        buffer.mul_(share)
    tensors = [*(parameter.grad for parameter in parameters), *statistics]
    sizes = [tensor.numel() for tensor in tensors]
    # Copied part by part: joining them would first copy each that lies with its channels last.
    own = torch.empty(sum(sizes), device=run.device)
    for part, tensor in zip(own.split(sizes), tensors, strict=True):
        part.view(tensor.shape).copy_(tensor)
    for part, tensor in zip(run.group.sum(own).split(sizes), tensors, strict=True):
        tensor.copy_(part.view(tensor.shape))


FUNCTIONS = TrainingFunctions(
    start=start_run,
    samples=_samples,
    step=train_step,
    means=_means,
    validate=validate,
    shown=(
        ("training_loss", "loss", 4),
        ("training_accuracy", "accuracy", 3),
        ("validation_accuracy", "validation", 3),
    ),
)
"""What the training loop is given."""
