"""What each process does in tests/test_pipeline_peer.py: a step of PyTorch's own pipeline, and one of ours.

RANK=… WORLD_SIZE=… python tests/pipeline_peer_worker.py FOLDER
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch

from megavoxel.distributed.group import Group, joined_group
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.pipeline import forward_and_backward
from pipeline_worker import CPU, SEED, batches, plan_of, started
from pytorch_pipeline import PyTorchPipeline

WAYS = ("one head", "squeeze and excitation")


def main() -> None:
    """One step of both for each number of micro-batches; every process saves its gradients and loss."""
    torch.set_num_threads(1)
    folder, results = Path(sys.argv[1]), {}
    with joined_group(CPU) as group:
        for way, micro_batches in itertools.product(WAYS, (1, 2, 4)):
            plan = plan_of(way, stages=group.size, micro_batches=micro_batches)
            plan = replace(plan, network=replace(plan.network, deep_supervision=False))
            results[f"{way}, {micro_batches}"] = {
                "theirs": step_of_pytorch(plan, group),
                "ours": step_of_ours(plan, group),
            }
        torch.save(results, folder / f"{group.rank}.pt")


def step_of_pytorch(plan: Plan, group: Group) -> dict[str, object]:
    """Loss and gradients of a step by `ScheduleGPipe`."""
    network = SegmentationNetwork(plan.network, seed=SEED).train()
    loss = PyTorchPipeline(network, plan, group).forward_and_backward(*batches(plan)[0])
    gradients = {name: found.grad for name, found in network.named_parameters() if found.grad is not None}
    return {"gradients": gradients, "loss": loss}


def step_of_ours(plan: Plan, group: Group) -> dict[str, object]:
    """The same, by `forward_and_backward`."""
    run = started(plan, group)
    loss = forward_and_backward(run, *batches(plan)[0]).item()
    return {"gradients": {name: found.grad for name, found in run.network.named_parameters()}, "loss": loss}


if __name__ == "__main__":
    main()
