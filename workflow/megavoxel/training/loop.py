"""The training loop."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavoxel.errors import UserError
from megavoxel.files import content_hash
from megavoxel.network.device import Precision, choose_precision, to_device
from megavoxel.network.unet import SegmentationNetwork, cumulative_strides
from megavoxel.planning.plan import Plan
from megavoxel.training.checkpoint import load_state, save_state
from megavoxel.training.loss import build_loss, supervised_loss
from megavoxel.training.optimizer import build_optimizer, learning_rate
from megavoxel.training.patches import TRAINING, VALIDATION, PatchDataset, patch_loader


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
    data: str | None = None
    """SHA-256 that stands for the dataset's files; None: not known."""

    def key(self, plan: Plan) -> str:
        """Short hash of all that the trained weights depend on: the plan, the fold's cases and the data."""
        return content_hash([plan.hash, self.number, self.training, self.validation, self.data])


@dataclass(kw_only=True)
class Run:
    """Everything that changes while a network is trained; `state_dict` holds it all."""

    plan: Plan
    device: torch.device
    precision: Precision
    network: SegmentationNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """Epochs done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; patches need no state, being functions of their number."""
        return {
            "epoch": self.epoch,
            "history": self.history,
            "precision": {"name": self.precision.name, "reason": self.precision.reason},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }


def train(plan: Plan, fold: Fold, state_folder: Path, device: torch.device) -> Run:
    """Trains a setting on a fold, going on from the run's state below `state_folder` if there is one.

    On the CPU an interrupted and resumed run gives bit for bit the weights of an uninterrupted one.

    Raises:
        UserError: the loss is no longer finite, or the state belongs to another plan.
    """
    key = fold.key(plan)
    state_folder = state_folder / key
    run = start_run(plan, fold, device, load_state(state_folder, key=key))
    training = plan.training
    batches = iter(training_batches(run, fold))
    validation = _loader(run, fold, VALIDATION, training.validation_iterations * plan.batch)
    saved = time.monotonic()
    while run.epoch < training.epochs:
        begin = time.monotonic()
        rate = learning_rate(run.epoch, training)
        loss = train_epoch(run, itertools.islice(batches, training.iterations_per_epoch), rate)
        scores = validate(run, validation, tuple(plan.preprocessing.labels))
        run.epoch += 1
        seconds = time.monotonic() - begin
        row = {"epoch": run.epoch, "learning_rate": rate, "training_loss": loss, **scores, "seconds": seconds}
        run.history.append({**row, "peak_memory_mib": peak_memory_mib(device)})
        _report(run)
        last = run.epoch == training.epochs
        if last or time.monotonic() - saved >= 60 * training.checkpoint_minutes:
            save_state(state_folder, {"key": key, **run.state_dict()})
            saved = time.monotonic()
    return run


def start_run(plan: Plan, fold: Fold, device: torch.device, state: dict[str, Any] | None = None) -> Run:
    """A new run, or the one that `state` was taken of."""
    precision = Precision(**state["precision"]) if state else choose_precision(plan, device)
    seed = plan.seed + fold.number
    network = SegmentationNetwork(plan.network, seed=seed, checkpointing=plan.parallel.checkpointing)
    network = network.to(device, memory_format=torch.channels_last_3d)
    run = Run(
        plan=plan,
        device=device,
        precision=precision,
        network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.name == "float16"),
    )
    if state:
        network.load_state_dict(state["network"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scaler.load_state_dict(state["scaler"])
        run.epoch, run.history = state["epoch"], state["history"]
        print(f"going on after epoch {run.epoch} of {plan.training.epochs}", flush=True)
    return run


def training_batches(run: Run, fold: Fold) -> Iterable[tuple[Tensor, Tensor]]:
    """All batches that the run has still to see: image (batch, channels, z, y, x), target (batch, z, y, x)."""
    training = run.plan.training
    count = training.epochs * training.iterations_per_epoch * run.plan.batch
    return _loader(run, fold, TRAINING, count, first_iteration=run.epoch * training.iterations_per_epoch)


def train_epoch(run: Run, batches: Iterable[tuple[Tensor, Tensor]], rate: float) -> float:
    """One optimiser step per batch at learning rate `rate`; returns the mean loss."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.network.train()
    losses = [train_step(run, image, target) for image, target in batches]
    mean = torch.stack(losses).mean().item()
    if not torch.isfinite(torch.tensor(mean)):
        raise UserError(
            f"setting {run.plan.setting}: the loss is {mean} in epoch {run.epoch + 1}; lower training.learning_rate "
            "or set training.precision to float32"
        )
    return mean


def train_step(run: Run, image: Tensor, target: Tensor) -> Tensor:
    """Forward, backward, clip, step; returns the loss, detached.

    The batch goes through in `parallel.accumulate` equal parts; gradients and loss are those of the whole batch.

    Args:
        image: float32 (batch, channels, z, y, x).
        target: int64 classes (batch, z, y, x).
    """
    run.optimizer.zero_grad(set_to_none=True)
    losses = []
    for image_part, target_part in _parts(run, image, target):
        loss = _loss(run, image_part, target_part)[0] / run.plan.parallel.accumulate
        run.scaler.scale(loss).backward()
        losses.append(loss.detach())
    run.scaler.unscale_(run.optimizer)
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), run.plan.training.gradient_clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    return torch.stack(losses).sum()


@torch.no_grad()
def validate(run: Run, batches: Iterable[tuple[Tensor, Tensor]], labels: Sequence[str]) -> dict[str, float]:
    """Mean loss and pseudo-Dice on validation patches.

    The pseudo-Dice of a label is the DSC of all patches laid together; NaN where none of them has the label.
    """
    run.network.eval()
    losses, counts = [], torch.zeros(3, len(labels), dtype=torch.float64)
    parts = (part for image, target in batches for part in _parts(run, image, target))
    for image, target in parts:
        loss, logits = _loss(run, image, target)
        losses.append(loss)
        counts += _overlap(logits.argmax(dim=1).cpu(), target, len(labels))
    both, predicted, reference = counts
    dice = (2 * both / (predicted + reference)).tolist()
    scores = {
        "validation_loss": torch.stack(losses).mean().item() if losses else float("nan"),
        "pseudo_dice": torch.tensor(dice).nanmean().item(),
    }
    return scores | {f"pseudo_dice_{label}": value for label, value in zip(labels, dice, strict=True)}


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: what PyTorch allocated on a GPU, or what the process held on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _parts(run: Run, image: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What of a batch goes through the network together."""
    parts = run.plan.parallel.accumulate
    return zip(image.chunk(parts), target.chunk(parts), strict=True)


def _loss(run: Run, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    with run.precision.autocast(run.device):
        logits = run.network(to_device(image, run.device))
    target = target.to(run.device, non_blocking=True)
    loss = build_loss(run.plan.training.loss, batch_dice=run.plan.training.batch_dice)
    return supervised_loss(loss, logits, target, cumulative_strides(run.plan.network)), logits[0]


def _overlap(predicted: Tensor, target: Tensor, labels: int) -> Tensor:
    pairs = torch.bincount((target * (labels + 1) + predicted).flatten(), minlength=(labels + 1) ** 2)
    table = pairs.view(labels + 1, labels + 1).double()
    return torch.stack([table.diagonal(), table.sum(dim=0), table.sum(dim=1)])[:, 1:]


def _loader(run: Run, fold: Fold, stream: int, count: int, first_iteration: int = 0):
    cases = fold.training if stream == TRAINING else fold.validation
    dataset = PatchDataset(run.plan, fold.preprocessed, cases, fold=fold.number, stream=stream, count=count)
    workers = run.plan.training.workers if stream == TRAINING else 0
    pin = run.device.type == "cuda"
    return patch_loader(dataset, first_iteration=first_iteration, batch=run.plan.batch, workers=workers, pin=pin)


def _report(run: Run) -> None:
    row = run.history[-1]
    epochs = run.plan.training.epochs
    left = (epochs - run.epoch) * row["seconds"] / 60
    print(
        f"epoch {run.epoch}/{epochs}  loss {row['training_loss']:.4f}  validation loss {row['validation_loss']:.4f}  "
        f"pseudo-Dice {row['pseudo_dice']:.4f}  {row['seconds']:.1f} s, {left:.1f} min left",
        flush=True,
    )
