"""The choice of kernels of a training: what a study's keys leave open is measured on a GPU when it starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch

from megavoxel.distributed.group import Group
from megavoxel.errors import UserError
from megavoxel.network.compiled import compile_norms
from megavoxel.network.device import Precision, pass_seconds
from megavoxel.network.kernels import (
    Kernels,
    Timed,
    Way,
    measured,
    rounds_to_tf32,
    tried,
    ways_of_convolutions,
    why_not_measured,
)
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.timed import shortest
from megavoxel.planning.plan import Plan
from megavoxel.training.optimizer import build_optimizer, trained_weights

COMPILERS = {"cpu": (("g++",), "processor"), "cuda": (("gcc", "clang"), "GPU")}
"""What PyTorch compiles with by itself, by type of device."""
COMPILED_SINCE = 1800.0
"""Seconds of a training up to which a compiler's minute cannot pay."""
TimeOf = Callable[[Kernels], Timed]


def choose_kernels(plan: Plan, device: torch.device, precision: Precision, group: Group) -> Kernels:
    """The choice that the plan asks for; what it leaves open, the first process of the group measures for all.

    Convolutions come first, then compiled norms with the convolutions that were chosen, then the optimiser.

    Raises:
        UserError: the network is to be compiled, and cannot be.
    """
    training = plan.training
    if training.compile:
        require_compilable(plan, device)
    questions = _questions(plan, device, precision)
    chosen = Kernels(tf32=rounds_to_tf32(device, precision, allowed=training.tf32), reason="as the study says")
    for ways, _ in questions:
        chosen = replace(chosen, **ways[0].fields)
    if all(len(ways) == 1 for ways, _ in questions):
        return chosen
    whole = plan.parallel.pipeline == plan.parallel.tiles == 1
    if unmeasured := why_not_measured(device, whole=whole):
        return replace(chosen, reason=f"the default {unmeasured}")
    reasons = []
    for ways, time_of in questions:
        if len(ways) > 1:
            number, told = measured(chosen, ways, time_of) if group.leads else (0, "by the first process")
            (number,) = group.from_leader([number])
            chosen = replace(chosen, **ways[number].fields)
            reasons.append(told)
    return replace(chosen, reason=f"measured: {'; '.join(reasons)}")


def require_compilable(plan: Plan, device: torch.device) -> None:
    """Refuses to compile where there is nothing to compile, or nothing to compile with.

    Raises:
        UserError: with the key, or what is missing on the machine.
    """
    if found := _replaces_norms(plan):
        raise UserError(
            f"setting {plan.setting}: training.compile compiles instance norms, which {found} replaces by others; set "
            f"compile to false, or remove {found}"
        )
    compilers, where = COMPILERS[device.type]
    if not _has_compiler(device):
        raise UserError(
            f"setting {plan.setting}: training.compile needs {' or '.join(compilers)} on a {where}, and there is none; "
            "install it, or set compile to false"
        )


def _replaces_norms(plan: Plan) -> str | None:
    """The key that leaves a network no instance norms to compile."""
    others = {"parallel.space": plan.parallel.tiles > 1, "network.norm": plan.network.norm != "instance"}
    return next((key for key, has in others.items() if has), None)


def _has_compiler(device: torch.device) -> bool:
    compilers, _ = COMPILERS[device.type]
    return any(map(shutil.which, compilers))


def _questions(plan: Plan, device: torch.device, precision: Precision) -> list[tuple[list[Way], TimeOf]]:
    """What is to be chosen, in this order: the ways that the keys leave open, the default first, and their times."""
    training = plan.training
    step = cache(partial(_time_of_step, plan, device, precision))  # that of the convolutions is asked for again
    return [
        (ways_of_convolutions(training.memory_layout, training.cudnn_benchmark), step),
        (_ways_of_norms(plan, device), partial(_time_with_norms, plan, step)),
        (_ways_of_optimizer(plan, device), partial(_time_of_update, plan, device)),
    ]


def _ways_of_norms(plan: Plan, device: torch.device) -> list[Way]:
    plain, compiled = (Way(name=name, fields={"compile": name == "compiled"}) for name in ("plain norms", "compiled"))
    if plan.training.compile is not None:
        return [compiled if plan.training.compile else plain]
    # On a processor nothing is gained (docs/performance.md), so that its compiler is not asked for.
    open_to_choice = device.type == "cuda" and not _replaces_norms(plan) and _has_compiler(device)
    return [plain, compiled] if open_to_choice else [plain]


def _ways_of_optimizer(plan: Plan, device: torch.device) -> list[Way]:
    wanted = plan.training.optimizer_kernels
    if wanted == "auto":
        fused = ["fused"] if plan.training.optimizer != "rmsprop" else []
        names = ["foreach", *fused] if device.type == "cuda" else ["loop"]
    else:
        names = [wanted]
    return [Way(name=name, fields={"optimizer": name}) for name in names]


def _time_of_step(plan: Plan, device: torch.device, precision: Precision, kernels: Kernels) -> Timed:
    """Time of a forward and a backward pass of a part of the batch."""
    shape = (plan.batch // plan.parallel.parts, plan.network.input_channels, *plan.patch)

    def seconds() -> float:
        network = SegmentationNetwork(plan.network, checkpointing=plan.parallel.checkpointing)
        compile_norms(network, compiled=kernels.compile)
        return pass_seconds(network, shape, precision, device, kernels.memory_format, trains=True)

    return tried(device, kernels, seconds)


def _time_with_norms(plan: Plan, time_of_step: TimeOf, kernels: Kernels) -> Timed:
    """Time of a step with plain or compiled norms; the latter are only tried where the training is long enough."""
    plain = time_of_step(replace(kernels, compile=False))
    if not kernels.compile or isinstance(plain, str):
        return plain
    if plan.training.epochs * plan.training.iterations_per_epoch * plain < COMPILED_SINCE:
        return "would not pay"
    try:
        return time_of_step(kernels)
    except Exception as error:  # whatever its compiler lacks, plain norms are there
        return f"cannot be compiled here ({type(error).__name__})"


def _time_of_update(plan: Plan, device: torch.device, kernels: Kernels) -> Timed:
    """Time of the optimiser's step, with gradients of zero."""

    def seconds() -> float:
        network = SegmentationNetwork(plan.network).to(device, memory_format=kernels.memory_format)
        optimizer = build_optimizer(trained_weights(network, plan.training), plan.training, kernels.optimizer)
        for weights in network.parameters():
            weights.grad = torch.zeros_like(weights) if weights.requires_grad else None
        return shortest(optimizer.step, device)

    return tried(device, kernels, seconds)
