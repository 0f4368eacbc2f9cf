"""Memory and FLOPs on fake tensors: hand-countable programs, and PyTorch's own counts of the real step."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from helpers import tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.forecast import pipeline
from megavoxel.forecast.pipeline import balanced_cuts, stage_costs
from megavoxel.forecast.pipeline_step import SilentPeers, fake_network, profile_of, run_of_stage
from megavoxel.forecast.step import StepCost, StepKey, cost_of_step, optimizer_bytes, training_step, window
from megavoxel.network.architectures import whole_program
from megavoxel.network.device import Precision
from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.network.segmentation import SegmentationNetwork, parameter_count
from megavoxel.planning.plan import NetworkPlan
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

MIB = 2**20


def unet(levels: int, features: int, *, size: int, batch: int = 2, **training):
    plan = tiny_plan(training=training)
    network = NetworkPlan(
        channels=1,
        classes=3,
        features=tuple(features * 2**level for level in range(levels)),
        kernels=((3, 3, 3),) * levels,
        strides=((1, 1, 1), *((2, 2, 2),) * (levels - 1)),
    )
    return replace(plan, patch=(size,) * 3, batch=batch, network=network)


def real_run(plan, precision: str) -> tuple[Run, torch.Tensor, torch.Tensor]:
    network = SegmentationNetwork(plan.network, checkpointing=plan.parallel.checkpointing)
    run = Run(
        plan=plan,
        device=torch.device("cpu"),
        precision=Precision(name=precision, reason="test"),
        network=network.to(memory_format=torch.channels_last_3d),
        optimizer=build_optimizer(network.parameters(), plan.training),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    image = torch.randn(plan.batch, 1, *plan.patch)
    target = torch.randint(0, 3, (plan.batch, *plan.patch))
    train_step(run, image, target)
    return run, image, target


def allocated_peak(run: Run, image: torch.Tensor, target: torch.Tensor) -> int:
    """Most bytes that PyTorch's allocator handed out during a step, beyond what it had handed out before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train_step(run, image, target)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("fake", [True, False])
def test_storages_are_counted_once_and_until_nothing_refers_to_them(fake):
    with FakeTensorMode() if fake else torch.no_grad(), MemoryTracker() as memory:
        first = torch.zeros(MIB // 4)
        second = first + 1
        view = second.view(2, -1)
        assert memory.live == 2 * MIB
        del first, second
        assert memory.live == MIB, "the view holds its storage"
        del view
        assert memory.live == 0
        assert memory.peak == 2 * MIB
        memory.reset_peak()
        assert memory.peak == 0


def test_a_convolution_counts_its_flops_and_the_floats_of_input_and_output():
    with FakeTensorMode(), MemoryTracker() as memory:
        torch.nn.functional.conv3d(torch.zeros(1, 2, 8, 8, 8), torch.zeros(5, 2, 3, 3, 3), padding=1)
    assert memory.flops == 2 * 5 * 2 * 27 * 8**3
    assert memory.largest_convolution == 4 * (2 + 5) * 8**3


def forecast_and_measured(plan, precision: str) -> tuple[float, float, float]:
    """Bytes beyond weights and batch, which the profiler does not see: forecast, its workspace, measured."""
    cost = training_step(plan, samples=plan.batch, parallel=plan.parallel, precision=precision)
    batch = math.prod(plan.patch) * plan.batch * (4 + 8)
    return (
        cost.peak_bytes - cost.resident_bytes - batch,
        cost.workspace_bytes,
        allocated_peak(*real_run(plan, precision)),
    )


SIZES = pytest.mark.parametrize(("levels", "features", "size"), [(3, 8, 48), (2, 16, 40)])


@SIZES
def test_the_forecast_peak_is_what_pytorch_allocates(levels, features, size):
    forecast, _, measured = forecast_and_measured(unet(levels, features, size=size), "float32")
    assert forecast / measured == pytest.approx(1, abs=0.05)


@SIZES
def test_with_checkpointing_the_temporaries_of_convolutions_are_covered_by_the_workspace(levels, features, size):
    """Little is kept there, so that what no operation returns shows at the peak."""
    plan = replace(unet(levels, features, size=size), parallel=Parallel(checkpointing="blocks"))
    forecast, workspace, measured = forecast_and_measured(plan, "float32")
    assert 0.85 * measured < forecast < 1.05 * measured
    assert forecast + 0.5 * workspace > 0.95 * measured


@SIZES
@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_in_bfloat16_the_cpus_temporaries_are_covered_by_the_workspace(levels, features, size, checkpointing):
    """Its backward convolution makes copies that no operation returns."""
    plan = replace(unet(levels, features, size=size), parallel=Parallel(checkpointing=checkpointing))
    forecast, workspace, measured = forecast_and_measured(plan, "bfloat16")
    assert forecast < 1.05 * measured
    assert forecast + workspace > 0.95 * measured


def test_flops_are_those_of_pytorchs_counter_on_the_real_step():
    plan = unet(3, 4, size=16)
    forecast = training_step(plan, samples=2, parallel=Parallel(), precision="float32")
    run, image, target = real_run(plan, "float32")
    with FlopCounterMode(display=False) as counter:
        train_step(run, image, target)
    assert forecast.flops == counter.get_total_flops()


def test_checkpointing_costs_the_operations_that_are_repeated_and_saves_memory():
    plan = unet(4, 16, size=48)
    plain, norms, blocks = (
        training_step(plan, samples=2, parallel=Parallel(checkpointing=checkpointing), precision="float32")
        for checkpointing in ("none", "norms", "blocks")
    )
    voxels = [2 * (48 // 2**level) ** 3 for level in range(4)]
    # A transposed convolution has one tap per voxel that it makes, the others have 27. From level to level the channels
    # double: 16, 32, 64, 128.
    upsampling = sum(2 * 32 * 16 * 4**level * voxels[level] for level in range(3))
    assert norms.flops - plain.flops == upsampling
    encoder = 2 * 27 * (1 * 16 * voxels[0] + sum(16 * 32 * 4**level * voxels[level + 1] for level in range(3)))
    decoder = 2 * 27 * sum(16 * 16 * 4**level * voxels[level] for level in range(3))
    assert blocks.flops - norms.flops == encoder + decoder
    assert blocks.peak_bytes < norms.peak_bytes < plain.peak_bytes


def test_accumulation_saves_activations_and_keeps_gradients():
    plan = unet(4, 16, size=32, batch=4)
    one = training_step(plan, samples=1, parallel=Parallel(), precision="float32")
    four = training_step(plan, samples=1, parallel=Parallel(accumulate=4), precision="float32")
    assert four.peak_bytes == one.peak_bytes + one.parameter_bytes
    assert four.flops == 4 * one.flops


def test_one_sample_foretells_many():
    plan = unet(3, 8, size=32)
    one, six = (training_step(plan, samples=n, parallel=Parallel(), precision="float32") for n in (1, 6))
    assert six.flops == 6 * one.flops
    grown = one.resident_bytes + 6 * (one.peak_bytes - one.resident_bytes)
    assert grown == pytest.approx(six.peak_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("keys", "copies"),
    [
        ({}, 1),
        ({"momentum": 0.0}, 0),
        ({"optimizer": "adamw"}, 2),
        ({"optimizer": "adam"}, 2),
        ({"optimizer": "rmsprop"}, 1),
    ],
)
def test_the_optimisers_state_stays_between_steps(keys, copies):
    plan = unet(2, 4, size=16, **keys)
    cost = training_step(plan, samples=1, parallel=Parallel(), precision="float32")
    weights = 4 * parameter_count(SegmentationNetwork(plan.network))
    assert cost.parameter_bytes == weights
    assert optimizer_bytes(plan, weights) == copies * weights
    # AdamW keeps a step count of four bytes per tensor beside its moments.
    assert cost.resident_bytes == pytest.approx((1 + copies) * weights, abs=4 * 100)


def test_prediction_keeps_the_weights_of_all_folds():
    plan = unet(3, 8, size=32)
    one, five = (window(plan, networks=count, precision="float32") for count in (1, 5))
    assert five.peak_bytes - one.peak_bytes == 4 * one.parameter_bytes
    assert five.flops == 5 * one.flops


@pytest.mark.parametrize(
    ("costs", "stages", "begins"),
    [([1, 1, 1, 1], 2, [0, 2]), ([5, 1, 1, 1], 2, [0, 1]), ([1, 9, 1], 3, [0, 1, 2]), ([2, 2, 3, 3, 2], 3, [0, 2, 3])],
)
def test_the_dearest_part_is_as_cheap_as_can_be(costs, stages, begins):
    def dearest(cut):
        return max(sum(costs[a:b]) for a, b in zip(cut, [*cut[1:], len(costs)], strict=True))

    found = balanced_cuts(costs, stages)
    assert found[0] == 0
    assert len(found) == stages
    assert dearest(found) == dearest(begins)


def test_one_stage_needs_what_the_plain_step_needs():
    plan = unet(3, 8, size=32)
    plain = training_step(plan, samples=2, parallel=Parallel(), precision="float32")
    (stage,) = stage_costs(replace(plan, batch=2), Parallel(), "float32")
    assert stage.flops == plain.flops
    assert stage.parameter_bytes == plain.parameter_bytes
    assert stage.peak_bytes == pytest.approx(plain.peak_bytes, rel=0.15)


def test_stages_of_a_pipeline_know_what_is_compiled_and_forget_it_again():
    plan, cut = unet(3, 8, size=32), Parallel(pipeline=2, micro_batches=2)
    plan = replace(plan, batch=2)
    compiled = replace(plan, training=replace(plan.training, compile=True))
    plain, own, again = (
        [stage.touched_bytes for stage in stage_costs(one, cut, precision)]
        for one, precision in ((plan, "float32"), (compiled, "float32"), (plan, "float32"))
    )
    assert all(mine < other for mine, other in zip(own, plain, strict=True))
    assert again == plain


def test_stages_share_the_work_and_the_memory():
    plan = unet(4, 16, size=48)
    plan = replace(plan, batch=2)
    (whole,), parts = (stage_costs(plan, Parallel(pipeline=count, micro_batches=2), "float32") for count in (1, 3))
    assert sum(part.flops for part in parts) == pytest.approx(whole.flops, rel=0.02)
    assert sum(part.parameter_bytes for part in parts) == whole.parameter_bytes
    assert max(part.peak_bytes for part in parts) < 0.7 * whole.peak_bytes


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "first"), [("none", 0), ("norms", 1), ("blocks", 2)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_what_is_foretold_of_a_stage_is_what_its_whole_step_takes(norm, checkpointing, first):
    """Of a third of the stages that there can be, others in each way: many micro-batches from two, the optimiser
    without its step.
    """
    plan = unet(2, 8, size=24, optimizer="adam")
    plan = replace(plan, network=replace(plan.network, norm=norm, squeeze_excitation=2))
    borders = range(first, len(whole_program(plan.network)) + 1, 3)
    for begin, end in itertools.combinations(borders, 2):
        for count in (1, 2, 5):
            key = key_of(plan, count, checkpointing)
            foretold, whole = pipeline._part_cost(key, begin, end), cost_of_whole_step(key, begin, end)
            # The optimiser counts its steps in four bytes per tensor.
            assert foretold.peak_bytes == pytest.approx(whole.peak_bytes, abs=4 * 100)
            assert (foretold.flops, foretold.workspace_bytes) == (whole.flops, whole.workspace_bytes)
            assert pipeline._least_bytes(key, profile_of(key), begin, end) <= whole.peak_bytes


@pytest.mark.parametrize("checkpointing", ["none", "norms", "blocks"])
def test_micro_batches_share_the_weights_that_they_cast(checkpointing):
    """27 · 64 · 128 and 27 · 128² weights in bfloat16 beside activations of 4³ voxels."""
    plan = unet(2, 64, size=8)
    names = [block.name for block in whole_program(plan.network)]
    begin, end = names.index("encoder1_convolution0"), names.index("decoder0_upsample")
    few, many = (pipeline._part_cost(key_of(plan, count, checkpointing), begin, end) for count in (2, 12))
    weights = 27 * (64 * 128 + 128 * 128) * 2
    assert 0 < many.peak_bytes - few.peak_bytes < weights


def key_of(plan, micro_batches: int, checkpointing: bool) -> StepKey:
    """A step in bfloat16 of so many micro-batches with one sample each."""
    parallel = Parallel(micro_batches=micro_batches, checkpointing=checkpointing)
    return pipeline._step_key(replace(plan, batch=micro_batches), parallel, "bfloat16")


def cost_of_whole_step(key, begin: int, end: int) -> StepCost:
    """With all micro-batches and the optimiser's step."""
    profile = profile_of(key)
    with fake_network(key.plan.network).mode:
        run = run_of_stage(key, profile, begin, end, SilentPeers(MemoryTracker()))
        return cost_of_step(run)
