"""Strides and kernels worked out by hand, and the cost against convolutions that are really run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import NetworkPlan
from megavoxel.planning.topology import build_topology, convolution_elements, padded_patch


def test_an_isotropic_patch_of_128_has_six_levels():
    topology = build_topology((1.0, 1.0, 1.0), (128, 128, 128))
    assert topology.strides == ((1, 1, 1), *[(2, 2, 2)] * 5)
    assert topology.kernels == ((3, 3, 3),) * 6
    assert topology.divisor == (32, 32, 32)


def test_an_anisotropic_patch_halves_the_fine_axes_first():
    # Spacing 2.0, 0.688, 0.688: z is 2.9 times coarser. One halving in-plane gives 1.376, and 2.0/1.376 is below 2.
    # Sizes: (64, 288, 288), (64, 144, 144), (32, 72, 72), (16, 36, 36), (8, 18, 18), (4, 9, 9): z is spent, the plane
    # goes on (9 is 8 or more) to (4, 5, 5).
    topology = build_topology((2.0, 0.688, 0.688), (64, 288, 288))
    assert topology.strides == ((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4, (1, 2, 2))
    assert topology.kernels == ((1, 3, 3), *[(3, 3, 3)] * 6)
    assert topology.divisor == (16, 64, 64)
    assert padded_patch((64, 288, 288), topology.divisor) == (64, 320, 320)


def test_odd_sizes_are_halved_upwards():
    # (20, 33, 47) → (10, 17, 24) → (5, 9, 12), z is below 8 → (5, 5, 6): nothing is 8 or more.
    topology = build_topology((1.0, 1.0, 1.0), (20, 33, 47))
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert topology.divisor == (4, 8, 8)
    assert padded_patch((20, 33, 47), topology.divisor) == (20, 40, 48)


def test_a_last_single_axis_needs_twelve_voxels():
    assert build_topology((1.0, 1.0, 1.0), (4, 4, 11)).strides == ((1, 1, 1),)
    assert build_topology((1.0, 1.0, 1.0), (4, 4, 12)).strides == ((1, 1, 1), (1, 1, 2))


def test_a_very_coarse_axis_waits_and_its_kernel_becomes_three_for_good():
    # Ratio 8: three halvings of the plane until 8/8; after each the ratio is 4, 2 (still not below 2), 1.
    topology = build_topology((8.0, 1.0, 1.0), (32, 256, 256))
    assert topology.strides[:5] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert topology.kernels[:4] == ((1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert topology.kernels[-1] == (3, 3, 3)


def test_the_bottleneck_has_kernels_of_three_whatever_the_spacing():
    assert build_topology((8.0, 1.0, 1.0), (4, 16, 16)).kernels == ((1, 3, 3), (1, 3, 3), (3, 3, 3))


PATCHES = np.random.default_rng(0).integers(4, 400, size=(200, 3)).tolist()
SPACINGS = np.exp(np.random.default_rng(1).uniform(-1, 2, size=(200, 3))).round(3).tolist()
LARGE = [[64, 160, 160], [64, 288, 288], [64, 354, 354], [64, 384, 384]]


def test_networks_are_those_of_nnunet():
    name = "nnunetv2.experiment_planning.experiment_planners.network_topology"
    peer = pytest.importorskip(name, reason="the peer is not installed")
    spacings = [*SPACINGS, *[[2.0, 0.688, 0.688]] * len(LARGE)]
    for patch, spacing in zip([*PATCHES, *LARGE], spacings, strict=True):
        ours = build_topology(spacing, patch)
        _, strides, kernels, padded, divisor = peer.get_pool_and_conv_props(spacing, patch, 4, 999999)
        assert (ours.strides, ours.kernels, ours.divisor) == (strides, kernels, tuple(divisor)), (patch, spacing)
        assert padded_patch(patch, ours.divisor) == padded


def test_truncation_makes_a_bottleneck_of_the_last_level():
    topology = build_topology((8.0, 1.0, 1.0), (32, 256, 256)).truncated(2)
    assert topology.strides == ((1, 1, 1), (1, 2, 2))
    assert topology.kernels == ((1, 3, 3), (3, 3, 3))
    assert topology.truncated(7) is topology
    assert topology.truncated(1).strides == ((1, 1, 1),)


def test_cost_by_hand():
    # 8 voxels at level 0 with 5 convolutions of 2 channels, 1 voxel at level 1 with 2 of 4, a head of 3 classes.
    network = NetworkPlan(
        channels=1, classes=3, features=(2, 4), kernels=((3, 3, 3),) * 2, strides=((1, 1, 1), (2, 2, 2))
    )
    assert convolution_elements(network, (2, 2, 2)) == 5 * 2 * 8 + 2 * 4 + 3 * 8


@pytest.mark.parametrize("first", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("convolutions", [1, 2])
def test_cost_is_what_the_convolutions_of_the_network_put_out(convolutions, first):
    network = NetworkPlan(
        channels=2,
        classes=3,
        features=(4, 8, 8),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=(first, (1, 2, 2), (2, 2, 2)),
        convolutions_per_level=convolutions,
        deep_supervision=False,
    )
    patch = (4, 8, 24)
    elements = []
    model = SegmentationNetwork(network)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            module.register_forward_hook(lambda _module, _input, output: elements.append(math.prod(output.shape)))
    with torch.no_grad():
        model(torch.zeros(1, 2, *patch))
    assert convolution_elements(network, patch) == sum(elements)
