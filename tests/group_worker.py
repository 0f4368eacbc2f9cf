"""What each process of a group does in tests/test_group.py: a few training steps, whose results the first one saves.

RANK=… WORLD_SIZE=… python tests/group_worker.py OUTPUT
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch

from helpers import tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group, joined_group
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.annotation import annotation_table, encode_target, unannotated_classes
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Run
from megavoxel.training.step import replicated, train_step

CPU = torch.device("cpu")
BATCH, STEPS = 8, 2
LOSSES = ("dice_ce", "dice_topk")
UNANNOTATED = {"a": ("cube",), "b": ("ball", "cube"), "c": ("ball",)}


def steps_of(plan: Plan, group: Group) -> dict[str, object]:
    """Mean loss of the last step, all gradients of the first, and the weights after all."""
    network = SegmentationNetwork(plan.network, seed=1).to(memory_format=torch.channels_last_3d).train()
    run = Run(
        plan=plan, device=CPU, precision=Precision(name="float32", reason="test"), network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
        scaler=torch.amp.GradScaler("cpu", enabled=False), group=group, replica=replicated(network, group),
        annotated=annotation_table(plan),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    gradients = None
    for _ in range(STEPS):
        image = torch.randn(BATCH, 1, *plan.sampled_patch, generator=generator)
        # Labels that are not spread evenly: shares whose Dice sums differ.
        target = (
            torch.rand(BATCH, *plan.sampled_patch, generator=generator) * torch.arange(BATCH).view(-1, 1, 1, 1) / 2.4
        ).long()
        target = with_annotations(target.clamp(max=2), plan)
        share = slice(group.rank * BATCH // group.size, (group.rank + 1) * BATCH // group.size)
        loss = train_step(run, image[share], target[share])
        gradients = gradients or [parameter.grad.clone() for parameter in network.parameters()]
    return {"loss": run.mean_loss(loss.item()), "gradients": gradients, "weights": list(network.state_dict().values())}


def with_annotations(classes: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Targets of samples whose cases lack annotations in turn."""
    cases = itertools.cycle(["complete", *UNANNOTATED])
    pairs = zip(classes, cases, strict=False)
    return torch.stack([encode_target(own, unannotated_classes(plan, case), plan) for own, case in pairs])


def ways(processes: int) -> dict[str, Plan]:
    """Losses, expansion, kinds of Dice, accumulation and checkpointing that a batch of 8 allows among the processes."""
    plans = {}
    for loss, batch_dice, accumulate in itertools.product(LOSSES, (False, True), (1, 2, 4)):
        if BATCH // processes % accumulate == 0:
            keys = {"loss": loss, "batch_dice": batch_dice, "gradient_clip": 0.5}
            parallel = Parallel(
                data=processes, accumulate=accumulate, checkpointing="blocks" if accumulate == 2 else "none"
            )
            name = f"{loss}, batch_dice {batch_dice}, accumulate {accumulate}"
            plans[name] = replace(tiny_plan(batch=BATCH, training=keys), parallel=parallel)
            if loss == "dice_ce":
                plans[f"expanded patch, {name}"] = with_expanded_patch(plans[name])
                plans[f"unannotated, {name}"] = replace(plans[name], unannotated=UNANNOTATED)
    return plans


def with_expanded_patch(plan: Plan) -> Plan:
    """The plan with a second patch in each step."""
    return replace(plan, expanded_patch=(12, 16, 16), network=replace(plan.network, expanded_head=True))


def main() -> None:
    """Joins the group, takes the steps of all ways, and saves them."""
    torch.set_num_threads(1)
    with joined_group(CPU) as group:
        results = {name: steps_of(plan, group) for name, plan in ways(group.size).items()}
    if group.leads:
        torch.save(results, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
