"""Who is where in a pipeline: each process's stage, and the processes that hold the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megavoxel.distributed.group import Group, subgroups
from megavoxel.distributed.wire import Wire
from megavoxel.network.device import Precision
from megavoxel.network.stages import (
    Form,
    Stage,
    Transfer,
    cut_into_stages,
    forms_of_transfers,
    stages_with_heads,
)
from megavoxel.network.unet import SegmentationNetwork, program_inputs
from megavoxel.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Line:
    """One process's place in a pipeline."""

    stage: Stage
    stages: int
    head_stages: tuple[int, ...]
    """Stages that hold a head."""
    forms: dict[Transfer, Form]
    """What a micro-batch's transfers look like."""
    replicas: Group
    """The processes that hold this stage, one of each pipeline."""
    wire: Wire
    parameter_names: tuple[str, ...]
    """Of the whole network, in the order of its optimiser."""


def join_line(network: SegmentationNetwork, plan: Plan, group: Group, precision: Precision) -> Line | None:
    """This process's place; the network keeps the blocks of its stage alone. None where the plan has no pipeline."""
    if plan.parallel.pipeline == 1:
        return None
    count, names = plan.parallel.pipeline, tuple(name for name, _ in network.named_parameters())
    blocks = list(network.program)
    stages = cut_into_stages(blocks, program_inputs(plan.network), plan.stages)
    own = stages[group.rank % count]
    shape = (plan.batch // plan.parallel.parts, plan.network.input_channels, *plan.patch)
    network.program = own.program(blocks)
    replicas = subgroups(group, [range(stage, group.size, count) for stage in range(count)])
    line = Line(
        stage=own,
        stages=count,
        head_stages=stages_with_heads(blocks, stages),
        forms=forms_of_transfers(plan.network, plan.stages, shape, precision, group.device),
        replicas=replicas,
        wire=Wire(group.rank - group.rank % count, group.device),
        parameter_names=names,
    )
    _meet(line, stages)
    return line


def _meet(line: Line, stages: Sequence[Stage]) -> None:
    """Every pair that will talk does so once, in the same order everywhere.

    NCCL makes a connection when two processes first talk, and both wait for it: in another order they could wait in a
    circle.
    """
    pairs = {(transfer.source, transfer.target) for stage in stages for transfer in stage.sends}
    pairs |= {(0, head) for head in line.head_stages if head > 0}
    for source, target in sorted(pairs):
        if line.stage.number == source:
            line.wire.send(torch.zeros(1, device=line.wire.device), target)
        elif line.stage.number == target:
            line.wire.receive((1,), torch.float32, source).wait()
    line.wire.finish()
