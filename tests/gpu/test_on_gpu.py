"""A real GPU: agreement with the CPU, waits of the host, memory, one-line errors, resuming, prediction, NCCL, speed.

`make test-gpu` runs these; without a GPU they are skipped. The table of speeds is written to the folder that the
variable GPU_RESULTS names, and printed.
"""

from __future__ import annotations

import datetime
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from made_jobs import failure, made, predict, stage, told_to_end, train
from variants import ON_DEVICE, VARIANTS, plan_of, stored_fold

from helpers import store_case, tiny_plan
from megavoxel.config.hardware import Device
from megavoxel.config.setting import Inference
from megavoxel.files import write_json
from megavoxel.forecast.calibration import Probe
from megavoxel.forecast.calibration import plan_of as plan_of_probe
from megavoxel.forecast.setting import counted_gib, step_costs
from megavoxel.network.compiled import compile_norms
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run, training_batches
from megavoxel.training.on_device import DeviceAugmenter
from megavoxel.training.patches import TRAINING, PatchDataset, Share, patch_loader
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
STEPS = 3
MEASURED = Probe(patch=(48, 64, 64), batch=2, levels=4, base_features=16)
"""A step in whose memory the allocator's rounding does not count."""
TIMED = Probe(patch=(128, 128, 128), batch=2, levels=6, base_features=32)
REPEATS = 5
SAMPLES = 8
WARM_STEPS, FED_STEPS = 15, 30
"""Loaders work some batches ahead, which are used up before the clock starts."""


@pytest.fixture(scope="module")
def fold(tmp_path_factory) -> VolumeData:
    return stored_fold(tmp_path_factory.mktemp("fold"))


@contextmanager
def free_host(device: torch.device) -> Iterator[None]:
    """Makes it an error to let the host wait for the GPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def stepped(plan: Plan, data: VolumeData, device: torch.device) -> tuple[Run, list[float]]:
    """A run after some steps, and its losses; in the last one the host waits for nothing but float16's scaler."""
    run = start_run(plan, data if plan.stage1 else replace(data, first_stage=()), device)
    run.network.train()
    losses, batches = [], iter(training_batches(run, data))
    for number in range(1, STEPS + 1):
        with free_host(device if number == STEPS and not run.scaler.is_enabled() else CPU):
            losses.append(train_step(run, *next(batches)))
    return run, [loss.item() for loss in losses]


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_agree_with_those_of_the_cpu_and_leave_the_host_free(exact, fold, name):
    plan = plan_of(VARIANTS[name])
    is_half = plan.training.precision != "float32"
    run, losses = stepped(plan, fold, exact)
    on_cpu = replace(plan, training=replace(plan.training, precision="float32"))
    expected, reference = stepped(on_cpu, fold, CPU)
    assert losses == pytest.approx(reference, rel=0.02 if is_half else 1e-4)
    if not is_half:
        for key, weight in expected.network.state_dict().items():
            torch.testing.assert_close(run.network.state_dict()[key].cpu(), weight, atol=1e-3, rtol=0, msg=key)


@pytest.mark.parametrize("patch", [(16, 32, 32), (8, 32, 32)])
def test_patches_that_the_gpu_augments_are_those_of_a_loader(exact, fold, patch):
    plan = plan_of({**ON_DEVICE, "patch": patch, "batch": SAMPLES})
    cases, batches = replace(fold, first_stage=()), []
    for on_device in (False, True):
        own = replace(plan, augmentation=replace(plan.augmentation, on_device=on_device))
        dataset = PatchDataset(own, cases.preprocessed, cases.training, fold=0, stream=TRAINING, count=SAMPLES)
        batches += patch_loader(dataset, Share(batch=SAMPLES), workers=0, pin=on_device)
    (image, target), raw = batches
    with free_host(exact):
        own, labels = DeviceAugmenter(plan, exact).batch(raw)
    torch.testing.assert_close(own.cpu(), image, atol=1e-4, rtol=0)
    others = int((labels.cpu() != target).sum())
    print(f"\n{others} of {target.numel()} voxels have the label of another voxel around them that is as near")
    assert others <= 1e-4 * target.numel()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_cudnn", [False, True])
def test_memory_is_what_was_foretold(exact, precision, with_cudnn):
    plan = plan_of_probe(MEASURED)
    plan = replace(plan, training=replace(plan.training, precision=precision))
    (cost,) = step_costs(plan, plan.parallel, precision)
    with torch.backends.cudnn.flags(enabled=with_cudnn, allow_tf32=False):
        allocated = peak_of_step(plan, exact) / 2**30
    assert allocated > 0.98 * counted_gib(cost, None)
    if with_cudnn:  # without it, convolutions lay out their input 27 times
        # What cuDNN takes is an assumption here, which `calibrate` replaces by a measurement.
        assert allocated < 1.1 * counted_gib(cost, Device(name="any", kind="gpu"))


def peak_of_step(plan: Plan, device: torch.device) -> int:
    """Most bytes that PyTorch's allocator gives out in a second step."""
    network = SegmentationNetwork(plan.network).to(device, memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.99, nesterov=True)
    precision = Precision(name=plan.training.precision, reason="test")
    run = Run(plan=plan, device=device, precision=precision, network=network, optimizer=optimizer)
    image, target = batch_of(plan)
    train_step(run, image, target)
    torch.cuda.reset_peak_memory_stats(device)
    train_step(run, image, target)
    return torch.cuda.max_memory_allocated(device)


def batch_of(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.randn(plan.batch, plan.network.input_channels, *plan.patch)
    return image, torch.randint(0, plan.network.classes, (plan.batch, *plan.patch))


@contextmanager
def full_card() -> Iterator[None]:
    """PyTorch is given no more memory of the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-9)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def calibrated(folder: Path) -> str:
    write_json(folder / "hardware.yaml", {"devices": {"card": {"kind": "gpu", "memory_gib": 80}}})
    return stage("calibrate", "card", "--hardware", folder / "hardware.yaml", "--device", "cuda", "--dry-run")


def test_too_little_memory_is_one_line(gpu, tmp_path):
    made(tmp_path, replace(tiny_plan(), inference=Inference(window="whole")))
    train(tmp_path, "cuda")
    with full_card():
        said = {
            "train": failure(partial(train, tmp_path, "cuda", state="full")),
            "predict": failure(partial(predict, tmp_path, "cuda", "full", [tmp_path / "cuda/model.pt"])),
            "calibrate": failure(partial(calibrated, tmp_path)),
        }
    for name, line in said.items():
        assert line.startswith(f"megavoxel {name}: error: ")
        assert "out of memory" in line


def test_a_run_that_is_told_to_end_within_an_epoch_goes_on(exact, tmp_path):
    made(tmp_path, tiny_plan())
    with told_to_end(after_samples=3):
        said = failure(partial(train, tmp_path, "cuda", state="interrupted"))
    assert "ended by SIGUSR1 after epoch 0 and 2 steps; the state is saved" in said
    resumed, whole = (train(tmp_path, "cuda", state=state) for state in ("interrupted", "whole"))
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, atol=1e-3, rtol=0, msg=name)


def test_predictions_are_those_of_the_cpu(exact, tmp_path):
    made(tmp_path, tiny_plan())
    train(tmp_path, "cuda")
    weights = [tmp_path / "cuda/model.pt"]
    maps = [predict(tmp_path, device, f"on-{device}", weights) for device in ("cuda", "cpu")]
    assert np.mean(maps[0] == maps[1]) >= 0.999


def test_nccl_joins_a_group_of_one_process(gpu, tmp_path):
    lines = [
        "import torch",
        "from datetime import timedelta",
        "from megavoxel.distributed.group import joined_group",
        "with joined_group(torch.device('cuda:0'), timedelta(minutes=1)) as group:",
        "    ones = torch.ones(3, device=group.device)",
        "    torch.distributed.all_reduce(ones)",
        "    assert ones.tolist() == [1.0, 1.0, 1.0]",
        "    assert group.from_leader([7]) == [7]",
    ]
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=os.environ | group | {"TORCHELASTIC_RUN_ID": "none"},
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_speed_of_a_step_by_layout_precision_and_choice_of_kernels(gpu, tmp_path):
    """A table to read, and no bound: which of them is fastest is a matter of the card."""
    plan, rows = plan_of_probe(TIMED), []
    for precision, tf32 in (("float32", False), ("float32", True), ("bfloat16", False)):
        for layout in ("channels first", "channels last"):
            for benchmark, compiled in ((False, False), (True, False), (True, True)):
                with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=tf32):
                    seconds = seconds_of_pass(plan, gpu, precision, layout, compiled=compiled)
                rows.append((precision, tf32, layout, benchmark, compiled, f"{1000 * seconds:.1f}"))
    card, today = torch.cuda.get_device_name(gpu), datetime.datetime.now(datetime.UTC).date()
    head = f"# {today}, {card}, torch {torch.__version__}, batch {TIMED.batch}, patch {TIMED.patch}"
    table = [
        head,
        "precision\ttf32\tlayout\tbenchmark\tcompiled\tmilliseconds",
        *("\t".join(map(str, r)) for r in rows),
    ]
    file = Path(os.environ.get("GPU_RESULTS", tmp_path)) / "gpu-step.tsv"
    file.write_text("\n".join(table) + "\n")
    print(f"\n{file}:", *table, sep="\n")
    assert len(rows) == 18


def test_share_of_the_time_in_which_a_fed_gpu_computes(gpu, tmp_path):
    """A table to read, and no bound: seconds of a step on a batch that lies there, over those with loading."""
    plan, rows = plan_of_probe(TIMED), []
    shape = tuple(3 * size // 2 for size in plan.patch)
    store_case(tmp_path / "cases", "case0", seed=0, shape=shape)
    data = VolumeData(number=0, preprocessed=tmp_path / "cases", training=("case0",), validation=("case0",))
    for on_device in (False, True):
        augmentation = replace(plan.augmentation, on_device=on_device)
        for workers in (2, 6, 12):
            keys = replace(plan.training, workers=workers, precision="bfloat16")
            own = replace(plan, augmentation=augmentation, training=keys)
            alone, fed = seconds_of_fed_steps(own, data, gpu)
            rows.append((on_device, workers, f"{1000 * alone:.1f}", f"{1000 * fed:.1f}", f"{alone / fed:.3f}"))
    head = f"# {torch.cuda.get_device_name(gpu)}, {os.cpu_count()} processors, batch {TIMED.batch}, patch {TIMED.patch}"
    table = [head, "on_device\tworkers\tms_alone\tms_fed\tbusy", *("\t".join(map(str, row)) for row in rows)]
    file = Path(os.environ.get("GPU_RESULTS", tmp_path)) / "gpu-feeding.tsv"
    file.write_text("\n".join(table) + "\n")
    print(f"\n{file}:", *table, sep="\n")
    assert len(rows) == 6


def seconds_of_fed_steps(plan: Plan, data: VolumeData, device: torch.device) -> tuple[float, float]:
    """Mean time of a step on the same batch again and again, and with a new batch each."""
    run = start_run(plan, data, device)
    run.network.train()
    batches = iter(training_batches(run, data))
    first = [tensor.to(device) for tensor in next(batches)]
    times = []
    for batch in (lambda: first, lambda: next(batches)):
        for number in range(FED_STEPS + WARM_STEPS):
            if number == WARM_STEPS:
                torch.cuda.synchronize(device)
                begin = time.perf_counter()
            train_step(run, *batch())
        torch.cuda.synchronize(device)
        times.append((time.perf_counter() - begin) / FED_STEPS)
    return times[0], times[1]


def seconds_of_pass(plan: Plan, device: torch.device, precision: str, layout: str, *, compiled: bool) -> float:
    """Median time of a forward and a backward pass, once everything is warm."""
    memory_format = torch.channels_last_3d if layout == "channels last" else torch.contiguous_format
    network = SegmentationNetwork(plan.network).to(device, memory_format=memory_format).train()
    compile_norms(network, compiled=compiled)
    image = batch_of(plan)[0].to(device).contiguous(memory_format=memory_format)
    seconds = []
    for _ in range(REPEATS + 2):
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        with Precision(name=precision, reason="test").autocast(device):
            logits = network(image)
        torch.stack([level.float().square().mean() for level in logits]).sum().backward()
        network.zero_grad(set_to_none=True)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])
