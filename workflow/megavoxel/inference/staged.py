"""Prediction through a pipeline: each process holds consecutive blocks of a network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megavoxel.config.setting import Parallel
from megavoxel.distributed.pipeline import join_pipeline
from megavoxel.inference.joint import JointNetwork
from megavoxel.network.partition import ACTIVATION, TensorSpec, Transfer, tensor_of, transfer_specs
from megavoxel.network.program import RunState
from megavoxel.network.segmentation import SegmentationNetwork


class StagedNetwork(JointNetwork):
    """A network of which this process holds one stage; the blocks of other stages are given up."""

    def __init__(self, network: SegmentationNetwork, number: int, **keys: Any) -> None:
        super().__init__(network, number, **keys)
        alone = replace(self.plan, batch=1, parallel=Parallel(pipeline=self.group.size))
        self.member = join_pipeline(network, alone, self.group, self.precision)
        self._specs: dict[tuple[int, ...], dict[Transfer, TensorSpec]] = {}

    def lead(self, window: Tensor) -> Tensor:
        """The first stage; the logits come from the stage that has the last head."""
        shape = tuple(window.shape[2:])
        self._run(self.network.enter(window), shape)
        source = self.member.head_stages[-1]
        logits = self.member.peers.receive((1, self.plan.network.classes, *shape), torch.float32, source).wait()
        self.member.peers.finish()
        return logits

    def follow(self, shape: tuple[int, ...]) -> None:
        """A later stage."""
        member, specs = self.member, self._specs_of(shape)
        arriving = {way.name: member.peers.expect(specs[way], way.source) for way in member.stage.receives}
        tensors = {name: arrival.wait() for name, arrival in arriving.items()}
        state = RunState(activation=tensors.pop(ACTIVATION), stashed=tensors)
        del arriving, tensors  # else skips that have been used would be kept
        self._run(state, shape)
        member.peers.finish()

    def _run(self, state: RunState, shape: tuple[int, ...]) -> None:
        member, specs = self.member, self._specs_of(shape)
        with self.precision.autocast(self.group.device):
            state = self.network.program.run(state)
        for way in member.stage.sends:
            member.peers.send(tensor_of(state, way.name), way.target, channels_last=specs[way].channels_last)
        if member.stage.number == member.head_stages[-1]:
            member.peers.send(self.network.logits_by_level(state, shape)[0].float(), 0)

    def _specs_of(self, shape: tuple[int, ...]) -> dict[Transfer, TensorSpec]:
        if shape not in self._specs:
            image = (1, self.plan.network.input_channels, *shape)
            self._specs[shape] = transfer_specs(
                self.plan.network, self.plan.stages, image, self.precision, self.group.device
            )
        return self._specs[shape]
