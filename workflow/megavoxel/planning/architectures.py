"""Architectures by the name that a study gives, `network.architecture`: what the planner asks of each.

Their blocks are in `network/architectures.py`, because planning does without PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import Topology, build_topology, convolution_elements, residual_elements

MOST_LEVELS = 16


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What patch and batch are planned by; the numbers are nnU-Net's."""

    elements: float
    """Cost of one sample that fits, at a batch of `batch`, …"""
    memory_gib: float
    """… into this memory; both grow alike. It is what is planned for where nothing else is said."""
    batch: int = 2
    """Samples at which `elements` fit."""
    planned_batch: int = 2
    """Samples that a patch leaves room for where the study gives no batch."""
    most_of_dataset: float = 0.05
    """Largest share of the dataset's voxels in one batch."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The planner's half of an architecture."""

    topology: Callable[[Sequence[float], Sequence[float]], Topology]
    """Levels, kernels and strides of the deepest network for a spacing in mm and a patch in voxels, both per axis."""
    elements: Callable[[NetworkPlan, Sequence[int]], int]
    """Cost of one sample of a patch that is a multiple of the network's stride: output elements of all convolutions,
    which is nnU-Net's measure. The choice of patch and batch goes by it; forecasts run the network itself."""
    references: Mapping[str | None, Reference]
    """By `network.preset`; None: without one."""
    references_of_slices: Mapping[str | None, Reference]
    """References of networks that see slices, by the same names."""
    convolutions_per_level: int
    """Where the study does not say."""
    blocks: tuple[int, ...] = ()
    """Residual blocks per level, the finest first, where the study does not say; further levels are left out."""


def _of_slices(elements: float, memory_gib: float, most_of_dataset: float = 1.0) -> Reference:
    """nnU-Net shrinks slices for residual encoders until the batch of the reference fits, and not just the smallest."""
    return Reference(
        elements=elements, memory_gib=memory_gib, most_of_dataset=most_of_dataset, batch=12, planned_batch=12
    )


ARCHITECTURES = {
    "unet": Architecture(
        topology=build_topology,
        elements=convolution_elements,
        references={None: Reference(elements=560e6, memory_gib=8.0)},
        references_of_slices={None: Reference(elements=85e6, memory_gib=8.0, batch=12)},
        convolutions_per_level=2,
    ),
    "residual": Architecture(
        topology=build_topology,
        elements=residual_elements,
        references={
            None: Reference(elements=680e6, memory_gib=8.0),
            "M": Reference(elements=680e6, memory_gib=8.0, most_of_dataset=1.0),
            "L": Reference(elements=2.1e9, memory_gib=24.0, most_of_dataset=1.0),
            "XL": Reference(elements=3.6e9, memory_gib=40.0, most_of_dataset=1.0),
        },
        references_of_slices={
            None: _of_slices(135e6, 8.0, most_of_dataset=0.05),
            "M": _of_slices(135e6, 8.0),
            "L": _of_slices(380e6, 24.0),
            "XL": _of_slices(560e6, 40.0),
        },
        convolutions_per_level=1,
        blocks=(1, 3, 4, *(6,) * (MOST_LEVELS - 3)),
    ),
}
