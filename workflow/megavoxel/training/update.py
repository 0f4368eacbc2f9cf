"""From the gradients of each process to a step of the optimiser that is the same everywhere."""

from __future__ import annotations

import math

import torch
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from megavoxel.training.run import Run


def update_weights(run: Run) -> None:
    """Averages the gradients over the replicas, clips them by the norm over all weights, and takes the step.

    Of batch norm every replica has the running statistics of the first one afterwards.
    """
    if run.replica is None:
        _average_gradients(run)
    if run.pipeline is not None and run.scaler.is_enabled():
        _share_overflow(run)
    run.scaler.unscale_(run.optimizer)
    _clip(run)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.replica is None:
        _share_statistics(run)


def _average_gradients(run: Run) -> None:
    """What the wrapper does where there is one: every gradient becomes the mean over the replicas."""
    if run.replicas.size == 1:
        return
    gradients = [parameter.grad for parameter in run.network.parameters()]
    mean = run.replicas.sum(torch.cat([gradient.flatten() for gradient in gradients])) / run.replicas.size
    for gradient, own in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(own.view(gradient.shape))


def _share_statistics(run: Run) -> None:
    """All replicas take the running statistics of the first one, as with the wrapper: its state is kept."""
    statistics = [buffer for buffer in run.network.buffers() if buffer.is_floating_point()]
    if run.replicas.size == 1 or not statistics:
        return
    own = torch.cat([buffer.flatten() for buffer in statistics])
    shared = run.replicas.sum(own if run.replicas.leads else torch.zeros_like(own))
    for buffer, first in zip(statistics, shared.split([buffer.numel() for buffer in statistics]), strict=True):
        buffer.copy_(first.view(buffer.shape))


def _clip(run: Run) -> None:
    """By the norm over the weights of all stages, which every replica has alike."""
    parameters, limit = list(run.network.parameters()), run.plan.training.gradient_clip
    if run.pipeline is None:
        clip_grad_norm_(parameters, limit)
        return
    own = get_total_norm([parameter.grad for parameter in parameters]).double().square()
    clip_grads_with_norm_(parameters, limit, (run.group.sum(own) / run.replicas.size).sqrt().float())


def _share_overflow(run: Run) -> None:
    """Where the gradients of one stage overflow in float16, every stage has to leave the step out.

    A scaler looks at its own gradients alone, so that each of them is shown the overflow.
    """
    gradients = [parameter.grad for parameter in run.network.parameters()]
    finite = torch.isfinite(get_total_norm(gradients)).float()
    if run.group.sum(finite).item() < run.group.size:
        gradients[0].fill_(math.inf)
