"""What changes while a network is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from megavoxel.distributed.group import Group
from megavoxel.distributed.pipeline import PipelineMember
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.loss import Completion, Loss, build_loss

Part = tuple[Tensor, Tensor]
"""Image and target of some samples."""


@dataclass(kw_only=True)
class Run:
    """Everything that changes while a network is trained; `state_dict` holds it all."""

    plan: Plan
    device: torch.device
    precision: Precision
    network: SegmentationNetwork
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    group: Group = field(default_factory=Group)
    replica: DistributedDataParallel | None = None
    """The network where it is one of several, whose gradients it averages."""
    pipeline: PipelineMember | None = None
    """The process's place in a pipeline, of whose network it holds a stage; None: it holds the whole network."""
    class_weights: Tensor | None = None
    """float32 (classes), of cross-entropy or focal loss (`training.class_weights`), on the run's device; None: all
    are 1."""
    annotated: Tensor | None = None
    """bool (sets, classes - 1), on the run's device: by which targets say what is annotated (`training/annotation.py`);
    None: everything is, and targets are plain classes."""
    epoch: int = 0
    """Epochs done."""
    losses: list[Tensor] = field(default_factory=list)
    """Of this process's steps in the epoch that is on: scalars."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row per epoch."""
    peak_memory: dict[str, Any] | None = None
    """`gib`, the peak memory of a step, and `how` it was measured (`training/memory.py`); None: no step was taken."""

    @property
    def replicas(self) -> Group:
        """The processes that hold the same weights, and share each batch."""
        return self.group if self.pipeline is None else self.pipeline.replicas

    def loss(self, complete: Completion | None = None) -> Loss:
        """The loss that the plan names, with the run's class weights and annotations; `complete` as for `dice_loss`."""
        return build_loss(self.plan.training, complete, class_weights=self.class_weights, annotated=self.annotated)

    def mean_loss(self, own: float) -> float:
        """Loss of the whole batch: the heads of a pipeline add up, replicas are averaged."""
        return sum(self.group.all(own)) / self.replicas.size

    @property
    def progress(self) -> str:
        """How far the run is."""
        steps = len(self.losses)
        return f"epoch {self.epoch}" + (f" and {steps} step{'s' * (steps > 1)}" if steps else "")

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values; patches need no state, being functions of their number.

        All processes of the group call it together.
        """
        return {
            "epoch": self.epoch,
            "losses": self.group.sum(torch.stack(self.losses)).cpu() if self.losses else None,
            "history": self.history,
            "peak_memory": self.peak_memory,
            "precision": {"name": self.precision.name, "reason": self.precision.reason},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
