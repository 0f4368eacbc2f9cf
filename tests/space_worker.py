"""What each process of a tiled patch does in tests/test_space.py: training steps, and samples, which it saves.

RANK=… WORLD_SIZE=… python tests/space_worker.py FOLDER SPACE DATA
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from helpers import RESIDUAL, tiny_plan, woken
from megavoxel.config.regions import Regions
from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group, joined_group
from megavoxel.distributed.space import join_space
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.planning.tiling import even_tiling
from megavoxel.planning.topology import shape_of
from megavoxel.training.annotation import annotation_table, encode_target, target_dtype, unannotated_classes
from megavoxel.training.memory import tracked_step
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.outputs import outputs_of
from megavoxel.training.patches import TRAINING, PatchDataset, Share, patch_loader
from megavoxel.training.run import Run
from megavoxel.training.tiles import TileLoader

CPU = torch.device("cpu")
BATCH = 2
FLAT = {
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
}
SPARSE = {"ignore_value": 9}
REGIONS = {"regions": Regions(values={"both": (1, 3), "cube": (3,)}, class_order=(1, 3))}
FEW = ("plain", "padded", "flat", "wide kernels", "excitation, norms again", "batch norm, blocks again", "residual")
"""Ways that eight processes take."""
WAYS = {
    "plain": {},
    "odd cells": {"patch": (20, 20, 28)},
    "padded": {"patch": (19, 21, 18)},
    "flat": {"patch": (7, 23, 20), "network": FLAT},
    "norms again": {"parallel": {"checkpointing": "norms"}},
    "blocks again": {"parallel": {"checkpointing": "blocks"}},
    "accumulation": {"parallel": {"accumulate": 2}},
    "batch dice": {"training": {"batch_dice": True}},
    "batch dice in parts": {"training": {"batch_dice": True}, "parallel": {"accumulate": 2}},
    "unannotated labels": {"training": {"batch_dice": True}, "unannotated": {"a case": ("cube",)}},
    "unannotated labels, each sample": {"unannotated": {"a case": ("cube",)}},
    "sparse annotation in parts": {"preprocessing": SPARSE, "parallel": {"accumulate": 2}},
    "sparse regions": {"preprocessing": SPARSE | REGIONS, "training": {"batch_dice": True}},
    "focal loss, class weights": {"training": {"loss": "dice_focal", "class_weights": (0.5, 1.0, 2.0)}},
    "Dice with background and weights": {
        "training": {"class_weights": (0.5, 1.0, 2.0), "dice_class_weights": True, "dice_background": True},
        "unannotated": {"a case": ("cube",)},
    },
    "top k": {"training": {"loss": "dice_topk", "topk_percent": 7.5}},
    "batch norm": {"network": {"norm": "batch"}},
    "batch norm, blocks again": {"network": {"norm": "batch"}, "parallel": {"checkpointing": "blocks"}},
    "excitation": {"network": {"squeeze_excitation": 2}},
    "excitation, norms again": {"network": {"squeeze_excitation": 2}, "parallel": {"checkpointing": "norms"}},
    "wide kernels": {
        "patch": (24, 32, 40),
        "network": {"kernels": ((5, 7, 9), (3, 5, 7), (3, 3, 5)), "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 3))},
    },
    "coarse first level": {
        "patch": (32, 32, 32),
        "network": {"strides": ((2, 2, 2), (2, 2, 2), (2, 1, 2))},
    },
    "nearest and max": {"network": {"upsampling": "nearest", "pooling": "max"}},
    "labels of a first stage": {"network": {"prior_channels": 2, "fusion": "post"}},
    "residual": {"network": RESIDUAL, "patch": (16, 23, 20)},
    "residual, blocks again": {
        "network": RESIDUAL | {"norm": "batch", "squeeze_excitation": 2},
        "parallel": {"checkpointing": "blocks"},
    },
    "residual, coarse first level": {"network": RESIDUAL | FLAT | {"strides": ((2, 2, 2), (1, 2, 2), (2, 2, 2))}},
}


HALF = {"patch": (24, 48, 32), "training": {"precision": "bfloat16"}}
"""At the bottleneck the tiles have three voxels and more: with fewer, a CPU without AMX computes wrong gradients."""
FULL = HALF | {"training": {}}
WAYS_OF_16_BITS = {"bfloat16": HALF, "bfloat16, norms again": HALF | {"parallel": {"checkpointing": "norms"}}}


def plan_of(way: str, *, space: tuple[int, ...] = (1, 1, 1), data: int = 1) -> Plan:
    """Three levels with two heads."""
    changes = (WAYS | WAYS_OF_16_BITS | {"of bfloat16 in float32": FULL})[way]
    training = {"gradient_clip": 1e6, "precision": "float32", **changes.get("training", {})}
    plan = tiny_plan(batch=BATCH, training=training)
    levels = {"features": (4, 6, 8), "kernels": ((3, 3, 3),) * 3, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))}
    network = replace(plan.network, **levels | changes.get("network", {}))
    parallel = Parallel(**{"space": space, "data": data, **changes.get("parallel", {})})
    rules = replace(plan.preprocessing, **changes.get("preprocessing", {}))
    return replace(
        plan, patch=changes.get("patch", (16, 24, 16)), network=replace(network, classes=rules.outputs),
        parallel=parallel, preprocessing=rules, unannotated=changes.get("unannotated", {}),
    )  # fmt: skip


def batch_of(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles differ in their means; every second sample is of a case without some annotation, where there are such."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(BATCH, plan.network.input_channels, *plan.patch, generator=generator, dtype=torch.float64)
    image += torch.linspace(0, 4, plan.patch[0], dtype=torch.float64)[:, None, None]
    target = (image[:, 0] > 2).long() + (torch.rand(BATCH, *plan.patch, generator=generator) > 0.7).long()
    if plan.unannotated:
        target[::2] = encode_target(target[::2], unannotated_classes(plan, "a case"), plan)
    if plan.preprocessing.ignored_class:
        target[0, : plan.patch[0] // 2] = plan.preprocessing.ignored_class
        target[1, :, ::3] = plan.preprocessing.ignored_class
    return image, target.to(target_dtype(plan))


def started(plan: Plan, group: Group, kind: torch.dtype) -> Run:
    network = SegmentationNetwork(plan.network, seed=1, checkpointing=plan.parallel.checkpointing)
    network = woken(network).to(kind).to(memory_format=torch.channels_last_3d).train()
    weights = plan.training.class_weights
    return Run(
        plan=plan, device=CPU, precision=Precision(name=plan.training.precision, reason="test"), network=network,
        optimizer=build_optimizer(network.parameters(), plan.training), group=group,
        space=join_space(network, plan, group), annotated=annotation_table(plan), outputs=outputs_of(plan),
        class_weights=None if isinstance(weights, str) else torch.tensor(weights, dtype=kind),
    )  # fmt: skip


def own_part(run: Run, tensor: torch.Tensor) -> torch.Tensor:
    """This process's samples, and its tile of each."""
    share = BATCH // run.sharers.size
    own = tensor[run.sharers.rank * share : (run.sharers.rank + 1) * share]
    return own.clone() if run.space is None else own[(..., *run.space.exchange.tiling.tile)].clone()


def step_of(plan: Plan, group: Group, kind: torch.dtype = torch.float64) -> dict[str, object]:
    """Loss, finest logits of the process's tile, gradients, and the running statistics of batch norm."""
    run = started(plan, group, kind)
    image, target = (own_part(run, tensor) for tensor in batch_of(plan))
    seen: list[torch.Tensor] = []
    run.network.register_forward_hook(lambda _, __, logits: seen.append(logits[0].detach()))
    loss, peak = tracked_step(run, image.to(kind), target)
    return {
        "loss": run.mean_loss(loss.item()),
        "logits": torch.cat(seen[-plan.parallel.accumulate :]),
        "gradients": {name: parameter.grad for name, parameter in run.network.named_parameters()},
        "statistics": dict(run.network.named_buffers()),
        "sent": 0 if run.space is None else run.space.exchange.sent_bytes,
        "peak": peak,
    }


def loader_of(plan: Plan, cases: Path, group: Group | None = None) -> TileLoader | DataLoader:
    """Batches of augmented patches: this process's tiles of them, or without a group the patches themselves."""
    data = PatchDataset(plan, cases, ("case0", "case1"), fold=0, stream=TRAINING, count=5 * BATCH)
    if group is None:
        return patch_loader(data, Share(first_iteration=1, batch=BATCH), workers=0, pin=False)
    space = join_space(torch.nn.Identity(), plan, group)
    share = Share(first_iteration=1, batch=BATCH, rank=space.sharers.rank, ranks=space.sharers.size)
    return TileLoader(data, share, space, workers=0, pin=False)


def tile_of(plan: Plan, rank: int) -> tuple[slice, ...]:
    """The part of a patch that a process holds."""
    stride = shape_of(plan.network).divisor
    return even_tiling(plan.patch, stride, plan.parallel.space, rank % plan.parallel.tiles).tile


def main() -> None:
    """Joins the group, takes a step in all ways, and saves them."""
    torch.set_num_threads(1)
    folder, space, data = Path(sys.argv[1]), tuple(map(int, sys.argv[2].split(","))), int(sys.argv[3])
    with joined_group(CPU) as group:
        ways = WAYS if group.size < 8 else FEW
        results = {way: step_of(plan_of(way, space=space, data=data), group) for way in ways}
        for way in WAYS_OF_16_BITS:
            results[way] = step_of(plan_of(way, space=space, data=data), group, torch.float32)
        results["float32"] = step_of(plan_of("plain", space=space, data=data), group, torch.float32)
        results["samples"] = list(loader_of(plan_of("padded", space=space, data=data), folder / "cases", group))
        torch.save(results, folder / f"{group.rank}.pt")


if __name__ == "__main__":
    main()
