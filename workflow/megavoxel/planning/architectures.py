"""Architectures by the name that a study gives, `network.architecture`: what the planner asks of each.

Their blocks are in `network/architectures.py`, because planning does without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import Topology, build_topology, convolution_elements


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The planner's half of an architecture."""

    topology: Callable[[Sequence[float], Sequence[float]], Topology]
    """Levels, kernels and strides of the deepest network for a spacing in mm and a patch in voxels, both per axis."""
    elements: Callable[[NetworkPlan, Sequence[int]], int]
    """Cost of one sample of a patch that is a multiple of the network's stride: output elements of all convolutions,
    which is nnU-Net's measure. The choice of patch and batch goes by it; forecasts run the network itself."""


ARCHITECTURES = {"unet": Architecture(topology=build_topology, elements=convolution_elements)}
