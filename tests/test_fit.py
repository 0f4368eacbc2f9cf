"""What training and prediction say of memory: before they begin, and when it ran out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from forecast_plan import WORKLOAD, device, plan_of_some_size
from helpers import store_case, three_cases, tiny_plan
from megavoxel.cli import main
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Inference, Parallel
from megavoxel.errors import UserError
from megavoxel.files import write_json
from megavoxel.forecast import memory
from megavoxel.forecast.memory import explained_out_of_memory
from megavoxel.forecast.setting import forecast_setting
from megavoxel.forecast.step import gib
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import save_plan


@pytest.fixture(scope="module")
def plan():
    return plan_of_some_size()


def at_hand(gibibytes: float = 16, **changes) -> Device:
    """This machine, as if it had so much memory."""
    return replace(memory.device_at_hand(torch.device("cpu"), **changes), memory_gib=gibibytes)


@pytest.mark.slow
def test_training_refuses_what_cannot_fit(plan):
    with pytest.raises(UserError, match=r"setting tiny: training needs .* GiB more than this machine has"):
        memory.check_fits(plan, at_hand(0.05), WORKLOAD)


def test_training_refuses_what_its_process_alone_leaves_no_room_for(plan):
    certain = forecast_setting(plan, Parallel(), device(), WORKLOAD).certain_gib
    with pytest.raises(UserError, match="training needs"):
        memory.check_fits(plan, at_hand(certain + 0.9), WORKLOAD)
    calibrated = Device(name="cpu", kind="cpu", overhead_gib=0.3, workspace=0.0)
    memory.check_fits(plan, at_hand(certain + 0.9, described=calibrated), WORKLOAD)


def test_training_warns_of_what_may_not_fit(plan, capsys):
    certain = forecast_setting(plan, Parallel(), device(), WORKLOAD).certain_gib
    memory.check_fits(plan, at_hand(certain + 1.01), WORKLOAD)
    assert "for training is above" in (printed := capsys.readouterr().out)
    assert "should memory run out: parallel.accumulate: 2" in printed


def test_training_warns_of_a_prediction_that_may_not_fit(plan, capsys):
    # So long that the sums of one line of windows take much, however narrow strips are.
    wide = replace(plan, batch=1, preprocessing=replace(plan.preprocessing, median_shape=(48, 2000, 10_000)))
    forecast = forecast_setting(wide, Parallel(), at_hand(), WORKLOAD)
    assert forecast.prediction_gib > forecast.training_gib + 0.1
    memory.check_fits(wide, at_hand(forecast.training_gib + 0.05), WORKLOAD)
    assert f"{gib(forecast.prediction_gib)} for prediction of the largest case" in (out := capsys.readouterr().out)
    assert out.count("warning") == 1


def test_what_is_described_of_the_device_counts_but_its_memory_is_what_is_found():
    described = Device(name="big", kind="cpu", memory_gib=9999, overhead_gib=0.3, most_devices=4)
    found = memory.device_at_hand(torch.device("cpu"), described=described)
    assert (found.overhead_gib, found.most_devices, found.name) == (0.3, 4, "this machine")
    assert 0 < found.memory_gib < 9999
    gpu = memory.device_at_hand(torch.device("cpu"), described=device(overhead_gib=7.0))
    assert (gpu.kind, gpu.overhead_gib) == ("cpu", 1.0)


def explained(plan):
    forecast = memory.check_fits(plan, at_hand(), WORKLOAD)
    return explained_out_of_memory(plan.setting, lambda: memory.advice_for_training(plan, forecast))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        torch.distributed.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL version 2.29.7\n"
            "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
        ),
        torch.distributed.DistBackendError(
            "ncclUnhandledCudaError\nLast error:\nFailed to CUDA calloc 536870912 bytes"
        ),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_names_setting_forecast_and_next_option(plan, error):
    message = r"setting tiny: out of memory .* forecast was .* in float32; .* parallel\.accumulate: 2"
    with pytest.raises(UserError, match=message), explained(plan):
        raise error


def test_an_error_of_nccl_that_is_no_matter_of_memory_stays_what_it_is(plan):
    with pytest.raises(torch.distributed.DistBackendError, match="Duplicate GPU"), explained(plan):
        raise torch.distributed.DistBackendError("ncclInvalidUsage\nLast error:\nDuplicate GPU detected")


def test_a_loader_that_the_system_ended_is_a_matter_of_host_memory(plan):
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    message = r"ended a process that loads data.* more host memory"
    with pytest.raises(UserError, match=message), explained(plan):
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly") from killed


@pytest.mark.parametrize(
    "said",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_a_small_dev_shm_is_named_with_what_to_do(plan, said):
    message = r"/dev/shm is too small .* --shm-size 2g, or set training\.workers to 0"
    with pytest.raises(UserError, match=message), explained(plan):
        raise RuntimeError(said)


def test_the_real_allocators_complaint_is_understood(plan):
    """What PyTorch really says on this machine, and not only what the test above makes it say."""
    with pytest.raises(UserError, match="out of memory"), explained(plan):
        torch.empty(2**55, dtype=torch.uint8)


def test_other_errors_pass_unchanged(plan):
    with pytest.raises(RuntimeError, match="shapes"), explained(plan):
        raise RuntimeError("shapes do not match")
    with pytest.raises(FileNotFoundError), explained(plan):
        Path("/nowhere").read_text()


def test_out_of_memory_in_prediction_says_what_would_help(plan):
    found = memory.advice_for_prediction(plan, 5, torch.device("cpu"))
    assert found.startswith("on this machine (")
    assert found.endswith(
        "in float32; what would help: the weights of fewer folds at once or a device with more memory"
    )
    whole = replace(plan, inference=Inference(window="whole"))
    advice = memory.advice_for_prediction(whole, 1, torch.device("cpu"))
    assert "what would help: a smaller inference.window, such as that of the patch, [48, 48, 48] or a device" in advice


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Options of stages that predict a case with random weights, in the working folder."""
    plan = tiny_plan()
    save_plan(tmp_path / "plan.json", plan)
    save_weights(tmp_path / "model.pt", SegmentationNetwork(plan.network), plan_hash=plan.hash, precision="float32")
    store_case(tmp_path / "cases", "case0", seed=0)
    write_json(tmp_path / "splits.json", {"folds": [{"training": ["case1"], "validation": ["case0"]}]})
    monkeypatch.chdir(tmp_path)
    words = ["--plan", "plan.json", "--weights", "model.pt", "--preprocessed", "cases", "--splits", "splits.json"]
    return [*words, "--split", "validation", "--fold", "0", "--device", "cpu", "--output", "out"]


@pytest.mark.parametrize("stage", ["predict", "time"])
def test_a_stage_that_predicts_ends_in_one_line_where_memory_runs_out(trained, stage, monkeypatch, capsys):
    forward = SegmentationNetwork.forward

    def too_large(network: SegmentationNetwork, image: torch.Tensor) -> object:
        # A forecast, which is kept for other tests, is that of the network as it is.
        return forward(network, image) if isinstance(image, FakeTensor) else torch.empty(2**55, dtype=torch.uint8)

    monkeypatch.setattr(SegmentationNetwork, "forward", too_large)
    assert main([stage, *trained]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"megavoxel {stage}: error: setting tiny: out of memory on this machine (")
    assert "what would help: a device with more memory" in message
    assert not Path("out").exists()


@pytest.mark.slow
def test_training_is_told_by_the_hardware_file_what_its_device_takes(tmp_path, monkeypatch, capsys):
    """With an overhead that no machine has room for, to see that it counts."""
    fold = three_cases(tmp_path)
    save_plan(tmp_path / "plan.json", tiny_plan(training={"epochs": 1}))
    split = {"training": list(fold.training), "validation": list(fold.validation)}
    write_json(tmp_path / "splits.json", {"folds": [split]})
    devices = {"roomy": {"kind": "cpu", "overhead_gib": 0.1}, "full": {"kind": "cpu", "overhead_gib": 1000}}
    write_json(tmp_path / "hardware.yaml", {"devices": devices})
    monkeypatch.chdir(tmp_path)
    words = ["train", "--plan", "plan.json", "--splits", "splits.json", "--preprocessed", "cases", "--fold", "0"]
    words += ["--state", "state", "--output", "out", "--device", "cpu", "--hardware", "hardware.yaml"]
    assert main([*words, "full"]) == 1
    assert re.search(r"setting tiny: \w+ needs 1000.* more than this machine has", capsys.readouterr().err)
    assert main([*words, "roomy"]) == 0
    assert Path("out/model.pt").is_file()
