"""Peak memory of training as PyTorch counts it: weights, gradients, optimiser, activations and the batch.

It is what the forecast's `certain_gib` foretells. What libraries take for themselves is in neither.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megavoxel.network.memory_tracker import MemoryTracker
from megavoxel.training.run import Run
from megavoxel.training.step import train_step

TRACKED = "tracked tensors of the first step"
ALLOCATED = "CUDA peak of PyTorch's allocator"
GIB = 2**30
Step = Callable[[Run, Tensor, Tensor], Tensor]
"""An optimiser step of a task, of the run, a batch's images and its targets."""


def measured_step(run: Run, step: Step, image: Tensor, target: Tensor) -> Tensor:
    """The task's `step`; on a CPU the first one of a run is tracked, which leaves its result as it is.

    Its peak goes to `run.peak_memory`, and with that into the run's state: a resumed run does not track another one.
    """
    if run.device.type != "cpu" or (run.peak_memory or {}).get("how") == TRACKED:
        return step(run, image, target)
    loss, peak_bytes = tracked_step(run, image, target, step)
    _note(run, peak_bytes, TRACKED)
    return loss


def begin_peak(device: torch.device) -> None:
    """Forgets the peak of what ran in this process before, such as another phase; without effect on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def note_allocated(run: Run) -> None:
    """Brings `run.peak_memory` up to the most that PyTorch has allocated on the GPU; without effect on a CPU."""
    if run.device.type == "cuda":
        _note(run, torch.cuda.max_memory_allocated(run.device), ALLOCATED)


def tracked_step(run: Run, image: Tensor, target: Tensor, step: Step = train_step) -> tuple[Tensor, int]:
    """What a step returns, and the most bytes of tensors that it or a later step holds.

    The first step of a run makes the optimiser's state at its end, from which all later ones begin: it is counted as if
    it had been there. Of a batch in several parts, one counts, as on a GPU, where the others wait outside. The
    buffer that gradients are sent from is there all the time, but is seen once the first of them is copied into it.
    """
    weights, passes = [weight for weight in run.network.parameters() if weight.requires_grad], []

    def gradients_are_copied(_: Tensor) -> None:
        if not passes and run.replica.require_backward_grad_sync:
            passes.append(memory.peak + _bytes(weights))
            memory.reset_peak()

    def passes_are_done(*_: object) -> None:
        passes.append(memory.peak)
        memory.reset_peak()

    before = optimizer_tensors(run)
    hooks = [run.optimizer.register_step_pre_hook(passes_are_done)]
    if run.replica is not None:
        hooks += [weight.register_post_accumulate_grad_hook(gradients_are_copied) for weight in weights]
    with MemoryTracker() as memory:
        memory.include([image, target, *run.network.state_dict().values(), *before])
        loss = step(run, image, target)
    for hook in hooks:
        hook.remove()
    made = _bytes(optimizer_tensors(run)) - _bytes(before)
    parts = run.plan.parallel.accumulate
    waiting = (image.nbytes + target.nbytes) * (parts - 1) // parts
    return loss, max(max(passes) + made, memory.peak) - waiting


def optimizer_tensors(run: Run) -> list[Tensor]:
    """The optimiser's state."""
    return [value for state in run.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _note(run: Run, peak_bytes: int, how: str) -> None:
    """Keeps the largest peak of all processes and since the run began, if it was measured in the same way."""
    known = run.peak_memory or {}
    earlier = known["gib"] if known.get("how") == how else 0.0
    run.peak_memory = {"gib": max(earlier, *run.group.all(peak_bytes / GIB)), "how": how}
