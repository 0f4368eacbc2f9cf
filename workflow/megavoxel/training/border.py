"""What crosses the border of a pipeline's stage, and how gradients get in and out there.

Autograd keeps the storage of every leaf and of every root for as long as its graph lives. But a skip that was received
is needed only until it is joined to an activation, and what is sent only until it has arrived. So neither is a leaf or
a root here: its memory is given up as soon as no block's backward pass needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megavoxel.network.stages import Transfer

GivenGradient = Callable[[], Tensor]
"""Gives the gradient that has come back for a tensor, called once. It may be overwritten."""


def entered(tensor: Tensor, transfer: Transfer, gradients: dict[Transfer, Tensor]) -> Tensor:
    """The same tensor, no leaf; the backward pass puts its gradient into `gradients`."""
    if not torch.is_grad_enabled():
        return tensor
    return _Entered.apply(tensor, torch.empty(0, requires_grad=True), transfer, gradients)


def left(tensor: Tensor, gradient: GivenGradient) -> Tensor:
    """A scalar from which a backward pass begins with `gradient`; it does not keep the tensor's memory."""
    return _Left.apply(tensor, gradient)


def join_gradient(tensor: Tensor, gradient: GivenGradient) -> None:
    """Adds `gradient` to what the backward pass finds for a tensor that the stage goes on to use itself.

    In the memory of the one that came, where autograd would make a third tensor of their size.
    """
    tensor.register_hook(lambda own: gradient().add_(own))


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, _: Tensor, transfer: Transfer, gradients: dict[Transfer, Tensor]) -> Tensor:
        ctx.transfer, ctx.gradients = transfer, gradients
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        ctx.gradients[ctx.transfer] = gradient
        return None, None, None, None


class _Left(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: GivenGradient) -> Tensor:
        ctx.gradient = gradient
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient(), None
