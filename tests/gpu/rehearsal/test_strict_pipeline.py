"""Pipelines under NCCL's rules, where a wrong order of messages stands still: order, sizes, and gradients."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from strict_nccl import Meeting, StandstillError, StrictPeers, run_stages

import pipeline_worker
from megavoxel.distributed import group as groups
from megavoxel.distributed import pipeline as pipelines
from megavoxel.distributed.group import Group, joined_group
from megavoxel.distributed.pipeline import PipelineMember
from megavoxel.network.device import Precision
from megavoxel.network.partition import cut_into_stages, transfer_specs
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.pipeline import finest_logits, forward_and_backward
from megavoxel.training.run import Run
from megavoxel.training.step import _gradients

CPU = torch.device("cpu")
FLOAT32 = Precision(name="float32", reason="test")
BATCH = 4
WAYS = ("instance norm", "batch_dice", "accumulation", "checkpointing", "squeeze and excitation", "coarse first level")


def cuts_of(plan: Plan, stages: int) -> list[tuple[int, ...]]:
    """First blocks of the stages: even ones, and the two most uneven."""
    count = len(SegmentationNetwork(plan.network).program)
    even = [round(number * count / stages) for number in range(stages)]
    return [tuple(even), tuple(range(stages)), (0, *range(count - stages + 1, count))]


def run_of(plan: Plan, network: SegmentationNetwork, member: PipelineMember | None = None) -> Run:
    return Run(
        plan=plan, device=CPU, precision=FLOAT32, network=network,
        optimizer=build_optimizer(network.parameters(), plan.training), pipeline=member,
    )  # fmt: skip


def new_network(plan: Plan) -> SegmentationNetwork:
    keys = {"seed": pipeline_worker.SEED, "checkpointing": plan.parallel.checkpointing}
    return SegmentationNetwork(plan.network, **keys).to(memory_format=torch.channels_last_3d).train()


def batch_of(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(BATCH, plan.network.input_channels, *plan.patch, generator=generator)
    return image, torch.randint(0, plan.network.classes, (BATCH, *plan.patch), generator=generator)


def gradients_of_whole(plan: Plan) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a single process."""
    single = replace(plan, stages=(), parallel=replace(plan.parallel, pipeline=1, micro_batches=1))
    run = run_of(single, new_network(single))
    loss = _gradients(run, *batch_of(plan))
    return loss.item(), {name: weight.grad for name, weight in run.network.named_parameters()}


def member_of(plan: Plan, network: SegmentationNetwork, meeting: Meeting, stage: int) -> PipelineMember:
    stages = tuple(cut_into_stages(network.program, plan.stages))
    network.program = stages[stage].part_of(network.program)
    shape = (BATCH // plan.parallel.parts, plan.network.input_channels, *plan.patch)
    return PipelineMember(
        stage=stages[stage], stages=stages, specs=transfer_specs(plan.network, plan.stages, shape, FLOAT32, CPU),
        replicas=Group(), peers=StrictPeers(meeting, stage), parameter_names=(),
    )  # fmt: skip


def gradients_of_stages(plan: Plan, *, one_queue: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """The same of a pipeline, whose stages validate afterwards."""
    count, (image, target) = len(plan.stages), batch_of(plan)
    meeting, empty = Meeting(count, one_queue=one_queue), torch.empty(0)
    # One after the other: their weights are drawn by the generator of the process.
    networks = [new_network(plan) for _ in range(count)]

    def work(stage: int) -> tuple[float, dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        run = run_of(plan, networks[stage], member_of(plan, networks[stage], meeting, stage))
        pipelines._meet(run.pipeline)
        own = (image, target) if stage == 0 else (empty, empty)
        loss = forward_and_backward(run, *own)
        gradients = {name: weight.grad.clone() for name, weight in run.network.named_parameters()}
        run.network.eval()
        finest_logits(run, *own)
        return loss.item(), gradients

    found = run_stages(meeting, work, range(count))
    return sum(loss for loss, _ in found), {name: own for _, part in found for name, own in part.items()}


def planned(way: str, stages: int, micro_batches: int, cut: int) -> Plan:
    plan = pipeline_worker.plan_of(way)
    parallel = replace(plan.parallel, pipeline=stages, micro_batches=micro_batches)
    return replace(plan, parallel=parallel, stages=cuts_of(plan, stages)[cut])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_pipeline_moves_on_and_finds_the_gradients_of_one_process(way, stages):
    for cut, micro_batches in [(0, 1), (0, 2), (1, 2), (2, 2)]:
        plan = planned(way, stages, micro_batches, cut)
        loss, gradients = gradients_of_stages(plan)
        expected, reference = gradients_of_whole(plan)
        assert loss == pytest.approx(expected, rel=1e-5), plan.stages
        largest = max(float(own.abs().max()) for own in reference.values())
        for name, own in reference.items():
            torch.testing.assert_close(gradients[name], own, rtol=1e-4, atol=1e-5 * max(1.0, largest), msg=name)


@pytest.mark.parametrize("stages", [3, 4])
def test_with_one_queue_for_all_pairs_a_pipeline_stands_still(stages):
    """A skip that passes a stage by meets what that stage sends in another order."""
    with pytest.raises(StandstillError, match="circle of waits"):
        gradients_of_stages(planned("instance norm", stages, 2, 0), one_queue=True)


def test_a_group_is_not_bound_to_a_device_so_that_every_pair_has_a_queue_of_its_own(monkeypatch):
    """PyTorch sends everything through one communicator of all processes where `device_id` is given."""
    given = {}
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "here")
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **keys: given.update(keys, of=backend))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(groups, "_KEPT", [])
    monkeypatch.setattr(groups, "failures_told", nullcontext)
    with joined_group(torch.device("cuda:0")):
        assert given["of"] == "nccl"
        assert "device_id" not in given
