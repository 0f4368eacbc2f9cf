"""Memory of a window that goes through the stages of a pipeline in prediction (`inference/staged.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from megavoxel.forecast.step import CPU, autocast, float32_bytes
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.program import RunState
from megavoxel.network.stages import ACTIVATION, Form, Stage, Transfer, cut_into_stages, forms_of_transfers
from megavoxel.network.unet import entering_state, program_inputs, unet_blocks
from megavoxel.planning.plan import NetworkPlan


@dataclass(frozen=True, kw_only=True)
class StageOfWindow:
    """What a stage needs while a window goes through."""

    peak_bytes: int
    """The weights of all networks included."""
    workspace_bytes: int
    """Input and output of its largest convolution in float32."""


def staged_window(
    plan: NetworkPlan, begins: Sequence[int], size: Sequence[int], *, networks: int, precision: str
) -> list[StageOfWindow]:
    """Of each stage what it needs while a window goes through.

    Args:
        plan: the network.
        begins: first block of each stage.
        size: voxels per axis of the window.
        networks: that are held, and go one after the other.
        precision: of the forward pass.
    """
    image = (1, plan.input_channels, *size)
    forms = forms_of_transfers(plan, begins, image, Precision(name=precision, reason="forecast"), CPU)
    needs = []
    with FakeTensorMode(), torch.no_grad():
        blocks = unet_blocks(plan)
        for stage in cut_into_stages(blocks, program_inputs(plan), begins):
            program = stage.program(blocks)
            with MemoryTracker() as memory, autocast(precision):
                program.run(_entering(plan, stage, forms, image))
            peak = memory.peak + networks * float32_bytes(program)
            needs.append(StageOfWindow(peak_bytes=peak, workspace_bytes=memory.largest_convolution))
    return needs


def _entering(plan: NetworkPlan, stage: Stage, forms: dict[Transfer, Form], image: Sequence[int]) -> RunState:
    """What a stage is given, in memory of its own."""
    if stage.number == 0:
        return entering_state(plan, torch.empty(image))
    arrived = {way.name: torch.empty(forms[way].shape, dtype=forms[way].dtype) for way in stage.receives}
    return RunState(activation=arrived.pop(ACTIVATION), stashed=arrived)
