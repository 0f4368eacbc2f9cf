"""A network in the stages of a pipeline, for images that one device does not hold as a whole.

The process with the first stage has the images, and calls the network as if it held all of it. The others serve: told
the size of a window, they run their blocks on what the stages before them send. The last one sends logits to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group
from megavoxel.distributed.pipeline import join_pipeline
from megavoxel.network.device import Precision
from megavoxel.network.partition import ACTIVATION, TensorSpec, Transfer, tensor_of, transfer_specs
from megavoxel.network.program import RunState
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan

NO_MORE = -1
"""Sent in place of a network's number when there are no more windows."""


class StagedNetwork:
    """A network of which this process holds one stage; in evaluation mode.

    Args:
        network: the whole of it, on the CPU; the blocks of other stages are given up.
        number: of this network among those that predict together.
        plan: with a pipeline.
        group: as many processes as stages; all of them make their networks in the same order.
        precision: of the forward pass.
        memory_format: of weights and activations.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        number: int,
        *,
        plan: Plan,
        group: Group,
        precision: Precision,
        memory_format: torch.memory_format,
    ) -> None:
        alone = replace(plan, batch=1, parallel=Parallel(pipeline=group.size))
        self.member = join_pipeline(network, alone, group, precision)
        self.network = network.to(group.device, memory_format=memory_format).eval()
        self.number, self.plan, self.group, self.precision = number, plan, group, precision
        self._specs: dict[tuple[int, ...], dict[Transfer, TensorSpec]] = {}

    def __call__(self, window: Tensor) -> list[Tensor]:
        """Called by the first process: float32 logits (1, classes, z, y, x) of a window (1, channels, z, y, x)."""
        shape = tuple(window.shape[2:])
        self.group.from_leader([self.number, *shape])
        self.run(shape, window)
        source = self.member.head_stages[-1]
        logits = self.member.peers.receive((1, self.plan.network.classes, *shape), torch.float32, source).wait()
        self.member.peers.finish()
        return [logits]

    def run(self, shape: tuple[int, ...], window: Tensor | None = None) -> None:
        """This stage's part of a window of this shape (z, y, x); the first stage is given the window."""
        member, specs = self.member, self._specs_of(shape)
        if window is not None:
            state = self.network.enter(window)
        else:
            arriving = {way.name: member.peers.expect(specs[way], way.source) for way in member.stage.receives}
            tensors = {name: arrival.wait() for name, arrival in arriving.items()}
            state = RunState(activation=tensors.pop(ACTIVATION), stashed=tensors)
            del arriving, tensors  # else skips that have been used would be kept
        with self.precision.autocast(self.group.device):
            state = self.network.program.run(state)
        for way in member.stage.sends:
            member.peers.send(tensor_of(state, way.name), way.target, channels_last=specs[way].channels_last)
        if member.stage.number == member.head_stages[-1]:
            member.peers.send(self.network.logits_by_level(state, shape)[0].float(), 0)
        if member.stage.number > 0:
            member.peers.finish()

    def _specs_of(self, shape: tuple[int, ...]) -> dict[Transfer, TensorSpec]:
        if shape not in self._specs:
            image = (1, self.plan.network.input_channels, *shape)
            self._specs[shape] = transfer_specs(
                self.plan.network, self.plan.stages, image, self.precision, self.group.device
            )
        return self._specs[shape]


@torch.inference_mode()
def serve(networks: Sequence[StagedNetwork], group: Group) -> None:
    """Runs this process's stages until there are no more windows; called in all processes but the first."""
    while (told := group.from_leader([0, 0, 0, 0]))[0] != NO_MORE:
        networks[told[0]].run(tuple(told[1:]))


def dismiss(group: Group) -> None:
    """Tells the other processes that there are no more windows; called in the first one."""
    group.from_leader([NO_MORE, 0, 0, 0])
