"""What each process of a tiled prediction does in tests/test_space_prediction.py; the first one saves what it finds.

RANK=… WORLD_SIZE=… python tests/space_prediction_worker.py FILE SPACE
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from helpers import woken
from megavoxel.config.setting import Inference
from megavoxel.distributed.group import Group, joined_group
from megavoxel.distributed.launch import lost_peer
from megavoxel.inference.joint import dismiss, serve
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.tiled import TiledNetwork
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.planning.topology import shape_of
from space_worker import CPU, plan_of

LARGER = {
    "plain": (0, 0, 0), "odd cells": (4, 0, 8), "padded": (3, 5, 6), "flat": (1, 2, 3), "batch norm": (3, 1, 5),
    "excitation": (3, 0, 2), "wide kernels": (4, 4, 12), "coarse first level": (8, 1, 16), "nearest and max": (0, 4, 1),
    "labels of a first stage": (1, 4, 3), "residual": (3, 2, 5), "residual, coarse first level": (1, 8, 16),
}  # fmt: skip
"""Voxels that a window has more than the patch of each kind of network; most windows are padded by the network."""
OF_MANY_TILES = ("padded", "excitation", "wide kernels", "residual")
"""Windows that are tried with more than two processes."""
CASES = {
    "folds and mirrors": ("plain", Inference(window=(16, 24, 24), step=0.5), 2, (16, 27, 30)),
    "whole image": ("excitation", Inference(window="whole", mirror=False), 1, (17, 26, 19)),
    "cascade": ("labels of a first stage", Inference(window="whole", mirror=False), 1, (17, 20, 23)),
}
"""Network, windows, number of folds and the image's shape."""


def network_of(plan: Plan, seed: int = 1) -> SegmentationNetwork:
    """One whose running statistics are not those of the start."""
    network = woken(SegmentationNetwork(plan.network, seed=seed))
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return network


def image_of(plan: Plan, shape: tuple[int, ...]) -> torch.Tensor:
    """Float64 (channels, z, y, x); tiles differ in their means."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(plan.network.input_channels, *shape, generator=generator, dtype=torch.float64)
    return image + torch.linspace(0, 4, shape[2], dtype=torch.float64)


def window_of(way: str) -> torch.Tensor:
    """A window (1, channels, z, y, x) for a kind of network."""
    plan = plan_of(way)
    return image_of(plan, tuple(size + more for size, more in zip(plan.patch, LARGER[way], strict=True)))[None]


def logits_of(way: str, space: tuple[int, ...], group: Group) -> torch.Tensor | None:
    """Float64 logits of a window; None in all processes but the first."""
    plan = plan_of(way, space=space)
    network = network_of(plan).double().eval()
    if group.size == 1:
        with torch.inference_mode():
            return network(window_of(way))[0]
    precision = Precision(name="float32", reason="test")
    tiled = TiledNetwork(
        network, 0, plan=plan, group=group, precision=precision, memory_format=torch.contiguous_format
    )  # fmt: skip
    if not group.leads:
        serve([tiled], group)
        return None
    with torch.inference_mode():
        logits = tiled(window_of(way))[0]
    dismiss(group)
    return logits


def slabs_of(case: str, space: tuple[int, ...], group: Group) -> torch.Tensor | None:
    """Mean logits (classes, z, y, x) of an image; None in all processes but the first."""
    way, inference, folds, shape = CASES[case]
    plan = replace(plan_of(way, space=space), inference=inference)
    networks = [network_of(plan, seed) for seed in range(folds)]
    predictor = CasePredictor(plan, networks, "float32", CPU, group if group.size > 1 else None)
    if not group.leads:
        serve(predictor.networks, group)
        return None
    image = image_of(plan, shape).float().numpy()
    logits = torch.cat([slab.logits.clone() for slab in predictor.slabs(image)], dim=1)
    if group.size > 1:
        dismiss(group)
    return logits


def tracked_peaks(space: tuple[int, ...], group: Group) -> list[float]:
    """Most bytes of tensors that each process holds while a window goes through, with its weights."""
    plan = plan_of("plain", space=space)
    network, precision = network_of(plan).eval(), Precision(name="float32", reason="test")
    tiled = TiledNetwork(
        network, 0, plan=plan, group=group, precision=precision, memory_format=torch.contiguous_format
    )  # fmt: skip
    with MemoryTracker() as memory, torch.no_grad():
        memory.include(network.state_dict().values())
        if group.leads:
            tiled.lead(window_of("plain").float())
        else:
            tiled.follow(tuple(window_of("plain").shape[2:]))
        return group.all(memory.peak)


class _Dying(nn.Module):
    def forward(self, *_: torch.Tensor) -> None:
        os._exit(0)


def what_is_said_of_a_lost_process(space: tuple[int, ...], group: Group) -> bool | None:
    """Whether the first process sees that the last one died within a window; the last one does not return."""
    plan = replace(plan_of("plain", space=space), inference=Inference(window="whole", mirror=False))
    predictor = CasePredictor(plan, [network_of(plan)], "float32", CPU, group)
    if group.rank == group.size - 1:
        predictor.networks[0].network.program.blocks["decoder0_upsample"].module = _Dying()
    try:
        if not group.leads:
            serve(predictor.networks, group)
        list(predictor.slabs(image_of(plan, shape_of(plan.network).padded(plan.patch)).float().numpy()))
    except RuntimeError as error:
        return lost_peer(error)
    return False


def main() -> None:
    """Joins the group and predicts; the first process saves what it found."""
    torch.set_num_threads(1)
    file, space = Path(sys.argv[1]), tuple(map(int, sys.argv[2].split(",")))
    with joined_group(CPU) as group:
        of_two = group.size == 2
        windows = {way: logits_of(way, space, group) for way in (LARGER if of_two else OF_MANY_TILES)}
        cases = {case: slabs_of(case, space, group) for case in (CASES if of_two else ())}
        peaks = tracked_peaks(space, group)
        lost = what_is_said_of_a_lost_process(space, group)
        if group.leads:
            torch.save({"windows": windows, "cases": cases, "peaks": peaks, "lost": lost}, file)
        os._exit(0)  # a group that has lost a process has no proper end


if __name__ == "__main__":
    main()
