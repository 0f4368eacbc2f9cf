"""PyTorch's own pipeline (`PipelineStage`, static, with `ScheduleGPipe`) on a network of ours, as a peer.

PyTorch's stages send to the next one only: skips are carried along.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from megavoxel.distributed.group import Group
from megavoxel.network.program import Program, RunState
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.loss import build_loss

CPU = torch.device("cpu")


def with_contiguous_gradient(tensor: Tensor) -> Tensor:
    """The same tensor; its gradient, which PyTorch's pipeline sends as it is, lies in one piece."""
    same = tensor.view_as(tensor)
    if same.requires_grad:
        same.register_hook(Tensor.contiguous)
    return same


class Carrying(nn.Module):
    """Some blocks of a program that hand on, beside the activation, every skip that is still waiting."""

    def __init__(self, program: Program, entering: tuple[str, ...], leaving: tuple[str, ...]) -> None:
        super().__init__()
        self.program = program
        self.entering, self.leaving = entering, leaving

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Activation and skips of the next stage, or the logits."""
        activation, *skips = map(with_contiguous_gradient, tensors) if self.entering else tensors
        state = RunState(activation=activation, stashed=dict(zip(self.entering[1:], skips, strict=True)))
        state = self.program.run(state)
        if state.logits:
            return state.logits["level0"]
        return tuple(
            tensor.contiguous() for tensor in (state.activation, *(state.stashed[name] for name in self.leaving[1:]))
        )


def carrying_stages(network: SegmentationNetwork, begins: tuple[int, ...]) -> list[Carrying]:
    """The stages of a network; what enters one is the activation ('') and all skips that are waiting."""
    blocks, waiting, stages = list(network.program), [], []
    for begin, end in zip(begins, (*begins[1:], len(blocks)), strict=True):
        entering = ("", *waiting) if begin else ()
        for block in blocks[begin:end]:
            waiting = [name for name in waiting if name not in block.pops] + ([block.stash] if block.stash else [])
        program = Program(blocks[begin:end], inputs=entering[1:], outputs=waiting)
        stages.append(Carrying(program, entering, ("", *waiting)))
    return stages


class PyTorchPipeline:
    """One process's stage of a network with a single head.

    Args:
        network: the whole of it; the process's own blocks get gradients.
        plan: with the stages, the batch and the number of micro-batches.
        group: a process per stage.
    """

    def __init__(self, network: SegmentationNetwork, plan: Plan, group: Group) -> None:
        self.network, self.group = network, group
        stages, count = carrying_stages(network, plan.stages), plan.parallel.micro_batches
        shape = (plan.batch // count, plan.network.input_channels, *plan.patch)
        entering: tuple[Tensor, ...] = (network.pad(torch.zeros(shape)),)
        for stage in stages[: group.rank]:
            entering = tuple(tensor.detach().requires_grad_() for tensor in stage(*entering))
        own = stages[group.rank]
        self.parameters = list(own.parameters())
        leaving, loss = own(*entering), build_loss(plan.training)
        stage = PipelineStage(own, group.rank, group.size, CPU, input_args=entering, output_args=leaving)
        self.schedule = ScheduleGPipe(
            stage, count, loss_fn=lambda logits, own: loss(network.cropped(logits, 0, plan.patch).float(), own)
        )

    def forward_and_backward(self, image: Tensor, target: Tensor) -> float:
        """Adds the gradients of a batch; returns its loss in the last stage, 0 in others."""
        losses: list[Tensor] = []
        if self.group.rank == 0:
            self.schedule.step(self.network.pad(image))
        elif self.group.rank == self.group.size - 1:
            self.schedule.step(target=target, losses=losses)
        else:
            self.schedule.step()
        return torch.stack(losses).mean().item() if losses else 0.0
