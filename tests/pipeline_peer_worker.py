"""What each process does in tests/test_pipeline_peer.py: a step of PyTorch's own pipeline, and one of ours.

PyTorch's stages send to the next one only: skips are carried along.

torchrun … tests/pipeline_peer_worker.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from megavoxel.network.program import Program, RunState
from megavoxel.network.unet import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.group import Group, joined_group
from megavoxel.training.loss import build_loss
from megavoxel.training.pipeline import forward_and_backward
from pipeline_worker import BATCH, CPU, SEED, batches, plan_of, started

WAY = "one head"


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


def main() -> None:
    """One step of both for each number of micro-batches; every process saves its gradients and loss."""
    torch.set_num_threads(1)
    folder, results = Path(sys.argv[1]), {}
    with joined_group(CPU) as group:
        for micro_batches in (1, 2, 4):
            plan = plan_of(WAY, stages=group.size, micro_batches=micro_batches)
            results[micro_batches] = {"theirs": step_of_pytorch(plan, group), "ours": step_of_ours(plan, group)}
        torch.save(results, folder / f"{group.rank}.pt")


def step_of_pytorch(plan: Plan, group: Group) -> dict[str, object]:
    """Loss and gradients of a step by `ScheduleGPipe`, whose tensors have the forms that one micro-batch has."""
    network = SegmentationNetwork(plan.network, seed=SEED).train()
    image, target = batches(plan)[0]
    stages, count = carrying_stages(network, plan.stages), plan.parallel.micro_batches
    entering: tuple[Tensor, ...] = (network.pad(image[: BATCH // count]),)
    for stage in stages[: group.rank]:
        entering = tuple(tensor.detach().requires_grad_() for tensor in stage(*entering))
    leaving = stages[group.rank](*entering)
    form = leaving if isinstance(leaving, Tensor) else tuple(leaving)
    stage = PipelineStage(stages[group.rank], group.rank, group.size, CPU, input_args=entering, output_args=form)
    loss, losses = build_loss(plan.training), []
    schedule = ScheduleGPipe(
        stage, count, loss_fn=lambda logits, own: loss(network.cropped(logits, 0, plan.patch).float(), own)
    )
    if group.rank == 0:
        schedule.step(network.pad(image))
    elif group.rank == group.size - 1:
        schedule.step(target=target, losses=losses)
    else:
        schedule.step()
    gradients = {name: found.grad for name, found in network.named_parameters() if found.grad is not None}
    return {"gradients": gradients, "loss": torch.stack(losses).mean().item() if losses else 0.0}


def step_of_ours(plan: Plan, group: Group) -> dict[str, object]:
    """The same, by `forward_and_backward`."""
    run = started(plan, group)
    loss = forward_and_backward(run, *batches(plan)[0]).item()
    return {"gradients": {name: found.grad for name, found in run.network.named_parameters()}, "loss": loss}


if __name__ == "__main__":
    main()
