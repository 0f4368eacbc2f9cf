"""What a run trains on, and what changes while it trains: the same records for every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from megavoxel.config.setting import ALL
from megavoxel.distributed.group import Group
from megavoxel.distributed.pipeline import PipelineMember
from megavoxel.distributed.space import SpaceMember
from megavoxel.files import content_hash
from megavoxel.network.device import Precision
from megavoxel.network.kernels import Kernels
from megavoxel.training.loss import build_loss
from megavoxel.training.outputs import CLASSES, Outputs
from megavoxel.training.soft_dice import Completion
from megavoxel.training.sum_loss import TiledPatch
from megavoxel.training.supervision import Loss

Part = tuple[Tensor, Tensor]
"""Image and target of some samples."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run trains on; each task adds its own fields."""

    number: int
    """The fold, counted from 0; of all cases, the number behind that of the last fold."""
    is_of_all: bool = False
    """Whether all cases train, and none validates."""
    training: tuple[Any, ...]
    """The training cases, or their ids."""
    validation: tuple[Any, ...]
    """The validation cases, or their ids."""
    data: str | None = None
    """SHA-256 that stands for the dataset's files; None: not known."""
    start: Path | None = None
    """File of the weights that training begins with; None: random weights."""
    start_data: str | None = None
    """SHA-256 of that file."""

    @property
    def fold(self) -> int | str:
        """The fold's number, or `all`."""
        return ALL if self.is_of_all else self.number

    def key(self, plan: Any) -> str:
        """Short hash of everything that the trained weights depend on: the plan, the cases and the data."""
        ids = [[getattr(case, "id", case) for case in part] for part in (self.training, self.validation)]
        return content_hash([plan.hash, self.number, *ids, self.data, *self.hashed])

    @property
    def hashed(self) -> tuple[Any, ...]:
        """What else of the task's own fields the trained weights depend on."""
        raise NotImplementedError

    def facts(self, run: Run) -> dict[str, Any]:
        """What the task adds to `manifest.json`: `data`, the cases and their checksums, and keys of its own."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Run:
    """Everything that changes while a network is trained; `state_dict` holds it all."""

    plan: Any
    """The setting: a segmentation `Plan` or a `ClassifierPlan`."""
    device: torch.device
    precision: Precision
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    """Scales losses in float16; does nothing in other precisions."""
    kernels: Kernels = field(default_factory=lambda: Kernels(reason="the default"))
    group: Group = field(default_factory=Group)
    replica: DistributedDataParallel | None = None
    """The network where it is one of several, whose gradients it averages."""
    pipeline: PipelineMember | None = None
    """The process's place in a pipeline, of whose network it holds a stage; None: it holds the whole network."""
    space: SpaceMember | None = None
    """The process's tile of each patch; None: it holds whole patches."""
    class_weights: Tensor | None = None
    """float32 (classes), of cross-entropy or focal loss (`training.class_weights`), on the run's device; None: all
    are 1."""
    annotated: Tensor | None = None
    """bool (sets, classes - 1), on the run's device: by which targets say what is annotated (`training/annotation.py`);
    None: everything is, and targets are plain classes."""
    outputs: Outputs = CLASSES
    """What the outputs of the network stand for."""
    epoch: int = 0
    """Epochs done."""
    losses: list[Tensor] = field(default_factory=list)
    """What each step of the epoch in progress returned on this process, in float64: the loss, a scalar; of a classifier
    the summed loss, the correct images and the images (3)."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch."""
    searched: list[dict[str, float]] = field(default_factory=list)
    """What each learning rate of a search came to, in its order; empty where there was none."""
    peak_memory: dict[str, Any] | None = None
    """`gib`, the peak memory of a step, and `how` it was measured (`training/memory.py`); None: no step was taken."""

    @property
    def replicas(self) -> Group:
        """The processes that hold the same weights, whose gradients are averaged."""
        return self.group if self.pipeline is None else self.pipeline.replicas

    @property
    def sharers(self) -> Group:
        """The processes that share each batch: of those that hold tiles of a patch together, one."""
        return self.replicas if self.space is None else self.space.sharers

    def loss(
        self,
        complete: Completion | None = None,
        *,
        counted: Tensor | None = None,
        stride: Sequence[int] | None = None,
    ) -> Loss:
        """The loss that the plan names, with the run's class weights and annotations.

        Args:
            complete: as for `dice`.
            counted: as for `build_loss`.
            stride: of the level, where the run holds tiles.
        """
        return build_loss(
            self.plan.training,
            complete,
            class_weights=self.class_weights,
            annotated=self.annotated,
            outputs=self.outputs,
            counted=counted,
            tiled=None if self.space is None else self._level(stride),
        )

    def _level(self, stride: Sequence[int]) -> TiledPatch:
        exchange = self.space.exchange
        tiling = exchange.tiling
        return TiledPatch(total=exchange.sum, tiles=tiling.count, voxels=tiling.voxels(stride), rank=tiling.rank)

    def mean_loss(self, own: float) -> float:
        """Loss of the whole batch: the heads of a pipeline add up, replicas are averaged."""
        return sum(self.group.all(own)) / self.replicas.size

    @property
    def progress(self) -> str:
        """How far the run is."""
        steps = len(self.losses)
        return f"epoch {self.epoch}" + (f" and {steps} step{'s' * (steps > 1)}" if steps else "")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; samples need no state, being functions of their number.

        All processes of the group call it together.
        """
        return {
            "epoch": self.epoch,
            "losses": self.group.sum(torch.stack(self.losses)).cpu() if self.losses else None,
            "replicas": self.replicas.size,
            "history": self.history,
            "peak_memory": self.peak_memory,
            "precision": {"name": self.precision.name, "reason": self.precision.reason},
            "kernels": self.kernels.plain(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
