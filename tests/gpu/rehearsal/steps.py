"""Training steps of all variants, on a pretended GPU and on the CPU: run by `rehearsal.py` in a process of its own.

python steps.py FOLDER [NAME…] prints a line of JSON for each variant.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pretended_cuda import card
from pretended_tensor import PretendedTensor, memory, waits
from variants import VARIANTS, plan_of, stored_fold

from megavoxel.distributed.group import Group
from megavoxel.inference.kernels import kernels_of_windows
from megavoxel.network import large_convolution
from megavoxel.network.device import Precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import Plan
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.forecast import forecast_gib
from megavoxel.tasks.segmentation.training import start_run, training_batches, validate
from megavoxel.training.kernels import choose_kernels
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

STEPS = 3
CHOICE = "the choice of kernels"
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
OVERFLOWING = {"init_scale": 2.0**32, "backoff_factor": 2.0**-20}
"""Of the scaler in float16: the first step overflows and is left out, those that follow are taken."""


def stepped(plan: Plan, data: VolumeData, device: torch.device) -> tuple[Run, list[float], dict[str, Any]]:
    """A run after some steps, its losses, and what the last step needed of the device."""
    run, needed = start_run(plan, data, device), {}
    if run.scaler.is_enabled():
        run.scaler = torch.amp.GradScaler(device.type, **OVERFLOWING)
    run.network.train()
    losses, weights = [], [parameter.detach().clone() for parameter in run.network.parameters()]
    batches = iter(training_batches(run, data))
    for number in range(1, STEPS + 1):
        if device.type == "cuda":
            memory.reset_peak(0)
        waits.clear()
        losses.append(train_step(run, *next(batches)))
        needed |= {"waits": dict(waits), "bytes": memory.peak[0]}
        if number == 1:
            needed["first_step_left_out"] = all(map(torch.equal, run.network.parameters(), weights))
            del weights
    return run, [loss.item() for loss in losses], needed


def walk(changes: dict[str, Any], data: VolumeData) -> dict[str, Any]:
    """What a variant does on the GPU, beside the CPU."""
    plan = plan_of(changes)
    data = data if plan.stage1 else replace(data, first_stage=())
    run, losses, needed = stepped(plan, data, CUDA)
    found = [value.cpu() for value in run.network.state_dict().values()]
    told = {"precision": run.precision.name, "losses": losses, "forecast_bytes": round(forecast_gib(run) * 2**30)}
    if run.scaler.is_enabled():
        told["scale"] = run.scaler.get_scale()
    waits.clear()
    scores = validate(run, training_batches(run, data), ("ball", "cube"))
    told["validation_waits"] = dict(waits)
    told |= needed | {"on_gpu": all(isinstance(value, PretendedTensor) for value in run.network.parameters())}
    del run
    if plan.training.precision in ("float32", "bfloat16"):
        other, expected, _ = stepped(plan, data, CPU)
        pairs = list(zip(found, other.network.state_dict().values(), strict=True))
        told["equal"] = losses == expected and all(torch.equal(one, two) for one, two in pairs)
        told["apart"] = max(float((one - two).abs().max()) for one, two in pairs)
        told["expected"] = expected
        theirs = validate(other, training_batches(other, data), ("ball", "cube"))
        told["scores_apart"] = max(abs(scores[key] - theirs[key]) for key in scores if not math.isnan(scores[key]))
    return told


def tell(names: Iterable[str], data: VolumeData) -> None:
    """Prints what each variant does."""
    for name in names:
        card.has_bfloat16, begin = name != "V100", time.monotonic()
        large_convolution.LARGEST_CALL = 2**18 if name.endswith("in slabs") else 2**30
        try:
            told = walk(VARIANTS[name], data)
        except Exception:
            told = {"error": traceback.format_exc(limit=-8)}
        print(json.dumps({"name": name, **told, "seconds": time.monotonic() - begin}), flush=True)


def choice() -> dict[str, Any]:
    """The kernels that are chosen where a GPU's convolutions can be timed, and bytes that are left on it."""
    plan, before = plan_of({"training": {"precision": "float32"}}), memory.live[0]
    torch.backends.cudnn.is_available = lambda: True
    precision = Precision(name="float32", reason="rehearsal")
    training = choose_kernels(plan, CUDA, precision, Group(device=CUDA))
    prediction = kernels_of_windows(plan, SegmentationNetwork(plan.network), CUDA, precision, alone=True)
    left = memory.live[0] - before
    return {"name": CHOICE, "training": training.reason, "prediction": prediction.reason, "left": left}


if __name__ == "__main__":
    torch.set_num_threads(1)
    tell(sys.argv[2:] or VARIANTS, stored_fold(Path(sys.argv[1])))
    print(json.dumps(choice()), flush=True)
