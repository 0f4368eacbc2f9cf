"""Training steps of all variants on a pretended GPU: what they compute, whether the host waits, and their memory."""

from __future__ import annotations

import pytest
from rehearsal import told_by
from variants import VARIANTS, plan_of

pytestmark = pytest.mark.slow
HALF = ("float16", "V100", "accumulation in float16")


@pytest.fixture(scope="module")
def told(guard_cache, tmp_path_factory) -> dict[str, dict]:
    """What each variant did."""
    return told_by("steps.py", tmp_path_factory.mktemp("steps"), guard_cache)


def batch_bytes(name: str) -> int:
    """Bytes of the images and targets that go to the device together."""
    plan = plan_of(VARIANTS[name])
    voxels = plan.batch // plan.parallel.accumulate
    for size in plan.sampled_patch:
        voxels *= size
    return voxels * (4 * plan.network.input_channels + 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_stays_on_the_gpu_and_leaves_the_host_free(told, name):
    assert "error" not in told[name], told[name]["error"]
    assert told[name]["on_gpu"]
    waits = told[name]["waits"]
    # In float16 the scaler asks whether the step overflowed.
    assert sum(waits.values()) <= (1 if name in HALF else 0), waits


@pytest.mark.parametrize("name", VARIANTS)
def test_validation_lets_the_host_wait_once(told, name):
    assert sum(told[name]["validation_waits"].values()) == 1, told[name]["validation_waits"]


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in HALF])
def test_losses_weights_and_scores_are_those_of_the_cpu_bit_for_bit(told, name):
    found = told[name]
    assert found["equal"], (found["losses"], found["expected"], found["apart"])
    assert found["scores_apart"] == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_memory_is_what_was_foretold(told, name):
    counted, foretold = told[name]["bytes"], told[name]["forecast_bytes"]
    assert counted <= 1.02 * foretold
    # A forecast holds the batch as it comes from the host beside the copy that the network reads.
    assert counted >= 0.98 * foretold - batch_bytes(name)


@pytest.mark.parametrize("name", HALF)
def test_a_step_that_overflows_in_float16_is_left_out_and_the_scale_falls(told, name):
    assert told[name]["precision"] == "float16"
    assert told[name]["first_step_left_out"]
    assert told[name]["scale"] == 2.0**12
    first, second, third = told[name]["losses"]
    assert third < second < 1.05 * first


def test_a_step_in_float32_is_not_left_out(told):
    assert not told["float32"]["first_step_left_out"]


def test_layout_search_and_optimiser_are_timed_on_the_gpu_which_is_left_as_it_was(told):
    chosen = told["the choice of kernels"]
    for name in ("channels_last", "channels_last with cudnn_benchmark", "channels_first", "compiled", "fused"):
        assert f"{name} " in chosen["training"]
    assert "compiled would not pay" in chosen["training"]
    assert chosen["prediction"].startswith("measured: channels_last ")
    assert chosen["left"] == 0
