"""What each process of a pipeline does in tests/test_pipeline.py: training steps, whose results every process saves.

RANK=… WORLD_SIZE=… python tests/pipeline_worker.py FOLDER REPLICAS
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import torch

from helpers import RESIDUAL, tiny_plan, woken
from megavoxel.config.regions import Regions
from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group, joined_group
from megavoxel.distributed.pipeline import join_pipeline
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.annotation import annotation_table, encode_target, target_dtype, unannotated_classes
from megavoxel.training.memory import tracked_step
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.outputs import outputs_of
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

CPU = torch.device("cpu")
BATCH, STEPS = 4, 3
SEED = 4
"""Of the weights: no activation comes so near to the kink of the leaky ReLU that sums in another order move it across.
With other seeds a single process itself differs by up to 9e-5 between one and two threads."""
OVERFLOWS = {"init_scale": 2.0**24, "backoff_factor": 2.0**-14}
"""Of the scaler in float16: the first step overflows and is left out, those that follow are taken."""
CUTS = {1: (), 2: (0, 7), 3: (0, 4, 12), 4: (0, 3, 8, 13)}
"""First blocks of the stages; with 3 and 4 of them a skip passes a stage by."""
SPARSE = {"ignore_value": 9}
REGIONS = {"regions": Regions(values={"both": (1, 3), "cube": (3,)}, class_order=(1, 3))}
WAYS = {
    "instance norm": {},
    "one head": {"network": {"deep_supervision": False}},
    "checkpointing": {"parallel": {"checkpointing": "blocks"}},
    "batch norm": {"network": {"norm": "batch"}},
    "nearest and max": {"network": {"upsampling": "nearest", "pooling": "max"}},
    "batch_dice": {"training": {"batch_dice": True}},
    "accumulation": {"parallel": {"accumulate": 2}},
    "squeeze and excitation": {"network": {"squeeze_excitation": 2}},
    "bfloat16": {
        "training": {"precision": "bfloat16"},
        # Three voxels and more along every axis of every level: with fewer a CPU without AMX computes wrong gradients.
        "network": {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 1))},
    },
    "float16": {"training": {"precision": "float16"}},
    "dice and focal loss": {"training": {"loss": "dice_focal", "class_weights": (0.5, 1.0, 2.0)}},
    "rmsprop": {"training": {"optimizer": "rmsprop", "learning_rate": 1e-5}, "network": {"norm": "batch"}},
    "unannotated labels": {"training": {"batch_dice": True}, "unannotated": {"a case": ("cube",)}},
    "sparse regions": {"preprocessing": SPARSE | REGIONS, "training": {"batch_dice": True, "learning_rate": 1e-3}},
    "labels of a first stage": {"network": {"prior_channels": 2, "fusion": "post"}},
    "coarse first level": {"network": {"strides": ((2, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1))}},
    "residual, checkpointing": {"network": RESIDUAL, "parallel": {"checkpointing": "blocks"}},
}


FORETOLD = (
    "instance norm",
    "one head",
    "checkpointing",
    "batch_dice",
    "labels of a first stage",
    "coarse first level",
    "bfloat16",
    "residual, checkpointing",
)
"""Ways whose memory is compared with the forecast as well."""


def plan_of(way: str, *, stages: int = 1, micro_batches: int = 1, data: int = 1) -> Plan:
    """Sixteen blocks or more, most of four levels and two heads; patches that are no multiple of the stride."""
    changes = WAYS[way]
    plan = tiny_plan(batch=BATCH, training={"gradient_clip": 0.5, **changes.get("training", {})})
    levels = {
        "features": (4, 8, 8, 8), "kernels": ((3, 3, 3),) * 4,
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    }  # fmt: skip
    network = replace(plan.network, **levels | changes.get("network", {}))
    parallel = Parallel(pipeline=stages, micro_batches=micro_batches, data=data, **changes.get("parallel", {}))
    missing = changes.get("unannotated", {})
    rules = replace(plan.preprocessing, **changes.get("preprocessing", {}))
    network = replace(network, classes=rules.outputs)
    keys = {"preprocessing": rules, "unannotated": missing}
    return replace(plan, network=network, parallel=parallel, stages=CUTS[stages], **keys)


def started(plan: Plan, group: Group) -> Run:
    """A new run; with a pipeline it holds a stage."""
    network = woken(SegmentationNetwork(plan.network, seed=SEED, checkpointing=plan.parallel.checkpointing))
    precision = Precision(name=plan.training.precision, reason="test")
    weights = plan.training.class_weights
    member = join_pipeline(network, plan, group, precision)
    network.to(memory_format=torch.channels_last_3d).train()
    return Run(
        plan=plan, device=CPU, precision=precision, network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
        scaler=torch.amp.GradScaler("cpu", **OVERFLOWS, enabled=precision.name == "float16"),
        group=group, pipeline=member, annotated=annotation_table(plan), outputs=outputs_of(plan),
        class_weights=None if isinstance(weights, str) else torch.tensor(weights),
    )  # fmt: skip


def batches(plan: Plan) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same for every way; every second sample is of a case without some annotation, where there are such."""
    generator, pairs = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        image = torch.randn(BATCH, plan.network.input_channels, *plan.patch, generator=generator)
        target = torch.randint(0, 3, (BATCH, *plan.patch), generator=generator)
        if plan.unannotated:
            target[::2] = encode_target(target[::2], unannotated_classes(plan, "a case"), plan)
        if plan.preprocessing.ignored_class:
            for sample, rows in enumerate(target):
                rows[: 2 * sample] = plan.preprocessing.ignored_class
        pairs.append((image, target.to(target_dtype(plan))))
    return pairs


def steps_of(plan: Plan, group: Group, *, tracked: bool = False) -> dict[str, object]:
    """Loss and gradients of the first step, and the weights after all, of what this process holds; `tracked`: and the
    peak bytes of the first step.
    """
    run = started(plan, group)
    if run.scaler.is_enabled():
        step_of(run, batches(plan)[0])
        assert run.scaler.get_scale() == 2.0**10
    first: dict[str, object] = {}
    for batch in batches(plan):
        if first:
            step_of(run, batch)
            continue
        loss, peak = tracked_step(run, *share_of(run, batch)) if tracked else (step_of(run, batch), None)
        gradients = {name: parameter.grad.clone() for name, parameter in run.network.named_parameters()}
        first = {"loss": run.mean_loss(loss.item()), "peak": peak, "gradients": gradients}
    return first | {"weights": run.network.state_dict()}


def step_of(run: Run, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The loss of a training step with this process's share of a batch."""
    return train_step(run, *share_of(run, batch))


def share_of(run: Run, batch: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    """What this process reads of a batch."""
    rank, size = run.replicas.rank, run.replicas.size
    reads = run.pipeline is None or run.pipeline.stage.number == 0
    return [tensor[rank * BATCH // size : (rank + 1) * BATCH // size] if reads else torch.empty(0) for tensor in batch]


def main() -> None:
    """Joins the group, takes the steps of all ways, and saves them."""
    torch.set_num_threads(1)
    folder, replicas = Path(sys.argv[1]), int(sys.argv[2])
    results = {}
    with joined_group(CPU) as group:
        stages = group.size // replicas
        for way, micro_batches in itertools.product(WAYS, (1, 2, 4)):
            plan = plan_of(way, stages=stages, micro_batches=micro_batches, data=replicas)
            if BATCH % plan.parallel.parts == 0:
                results[f"{way}, {micro_batches}"] = steps_of(plan, group, tracked=way in FORETOLD)
        torch.save(results, folder / f"{group.rank}.pt")


if __name__ == "__main__":
    main()
