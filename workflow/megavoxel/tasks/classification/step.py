"""One optimiser step over the images of all workers together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from megavoxel.training.run import Run


def train_step(run: Run, image: Tensor, target: Tensor) -> Tensor:
    """Forward, backward, sum over the group, step; returns this worker's sums as in `Run.losses`.

    The loss is the mean cross-entropy over the images of all workers, so that a worker with fewer images in a step
    counts for less, and one without any for nothing. Running statistics of batch norms, which each worker takes of its
    own images, are averaged with the same weights: all workers hold the same network after every step.

    Args:
        run: with a group whose processes all take this step.
        image: float32 (images, 3, height, width), of this worker.
        target: int64 classes (images).
    """
    run.optimizer.zero_grad(set_to_none=True)
    total = run.group.sum(torch.tensor(float(len(target)), device=run.device))
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    if len(target):
        with run.precision.autocast(run.device):
            logits = run.network(image)
        loss = functional.cross_entropy(logits.float(), target, reduction="sum")
        (loss / total).backward()
        correct = (logits.argmax(dim=1) == target).sum()
        sums = torch.stack([loss.detach().double(), correct.double(), torch.full_like(sums[0], len(target))])
    pool(run, share=len(target) / total)
    run.optimizer.step()
    return sums


def pool(run: Run, share: Tensor) -> None:
    """Gradients become the sums over all workers, and running statistics their means with the weight `share` each.

    This is all that workers tell one another of their images.
    """
    if run.group.size == 1:
        return
    parameters = [parameter for parameter in run.network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    statistics = [buffer for buffer in run.network.buffers() if buffer.is_floating_point()]
    for buffer in statistics:
        buffer.mul_(share)
    tensors = [*(parameter.grad for parameter in parameters), *statistics]
    sizes = [tensor.numel() for tensor in tensors]
    # Copied part by part: joining them would first copy each that lies with its channels last.
    own = torch.empty(sum(sizes), device=run.device)
    for part, tensor in zip(own.split(sizes), tensors, strict=True):
        part.view(tensor.shape).copy_(tensor)
    for part, tensor in zip(run.group.sum(own).split(sizes), tensors, strict=True):
        tensor.copy_(part.view(tensor.shape))
