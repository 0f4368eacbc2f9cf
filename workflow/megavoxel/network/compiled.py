"""Instance norms with the activation function behind them, compiled by `torch.compile`.

Convolutions are calls of a library, compiled or not: what a compiler can join in our networks lies between them. Each
norm is one operation of PyTorch's dispatcher forward, and one backward. So checkpointing, pipelines, autocast and the
memory tracker take it for one of PyTorch's own: its result is the same to the bit where it is computed again, and the
forecast sees the tensors that there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from megavoxel.network.blocks import SLOPE, ConvolutionNormActivation, InstanceNorm
from megavoxel.network.recomputation import remembered

VOXELS = (2, 3, 4)
BACKEND = "inductor"
"""PyTorch's name of its compiler."""
MOST_SHAPES = 256
"""Shapes that one operation is compiled for; PyTorch's own limit, 8, is fewer than a network has."""
_OPERATIONS = torch.library.Library("megavoxel", "DEF")
_OPERATIONS.define("norm(Tensor x, Tensor weight, Tensor bias, float eps, float slope) -> (Tensor, Tensor)")
_OPERATIONS.define(
    "norm_backward(Tensor gradient, Tensor x, Tensor weight, Tensor bias, Tensor moments, float slope)"
    " -> (Tensor, Tensor, Tensor)"
)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, Tensor]:
    """The result, and means and inverse deviations (2, batch, channels, 1, 1, 1)."""
    wide = x.to(weight.dtype)
    variance, mean = torch.var_mean(wide, dim=VOXELS, correction=0, keepdim=True)
    moments = torch.stack([mean, torch.rsqrt(variance + eps)])
    normed = (wide - mean) * moments[1] * _of_channels(weight) + _of_channels(bias)
    return torch.where(normed > 0, normed, slope * normed).to(x.dtype), moments


def _norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the activation, the weights and the biases."""
    mean, inverse = moments
    factor, wide = _of_channels(weight), gradient.to(weight.dtype)
    standard = (x.to(weight.dtype) - mean) * inverse
    wide = torch.where(standard * factor + _of_channels(bias) > 0, wide, slope * wide)
    of_bias, of_weight = (term.mean(dim=VOXELS, keepdim=True) for term in (wide, wide * standard))
    result = inverse * factor * (wide - of_bias - standard * of_weight)
    voxels = x[0, 0].numel()
    return result.to(x.dtype), *(voxels * found.sum(dim=(0, *VOXELS)) for found in (of_weight, of_bias))


def _of_channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    return torch.compile(function, dynamic=False, fullgraph=True, backend=BACKEND)


def _lazily(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any) -> Any:
        return _compiled(function)(*given)

    return run


def _fake_norm(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), weight.new_empty(2, *x.shape[:2], 1, 1, 1)


def _fake_norm_backward(_: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *__: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


for _name, _function, _fake in (("norm", _norm, _fake_norm), ("norm_backward", _norm_backward, _fake_norm_backward)):
    _OPERATIONS.impl(_name, _lazily(_function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"megavoxel::{_name}", _fake, lib=_OPERATIONS)


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        result, moments = torch.ops.megavoxel.norm(x, weight, bias, eps, slope)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.slope = slope
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        return *torch.ops.megavoxel.norm_backward(gradient, *ctx.saved_tensors, ctx.slope), None, None


class CompiledNorm(InstanceNorm):
    """Instance norm."""

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to the same."""
        return _NormActivation.apply(activation, self.weight, self.bias, self.eps, 1.0)


class CompiledConvolutionNormActivation(ConvolutionNormActivation):
    """Convolution, and compiled instance norm with leaky ReLU."""

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to `channels_out` channels."""
        return remembered(self._activated, self.convolved(activation), relaid=self.relaid)

    def _activated(self, convolved: Tensor) -> Tensor:
        norm = self[1]
        return _NormActivation.apply(convolved, norm.weight, norm.bias, norm.eps, SLOPE)


PLAIN = {InstanceNorm: CompiledNorm, ConvolutionNormActivation: CompiledConvolutionNormActivation}
COMPILED = {compiled: plain for plain, compiled in PLAIN.items()}


def compile_norms(network: nn.Module, *, compiled: bool = True) -> None:
    """Has a network compute its instance norms by compiled code, or by PyTorch's own again; weights stay as they are.

    Norms of other kinds, such as those of tiles, stay what they are, with the activation functions behind them.
    """
    for module in list(network.modules()):
        if isinstance(module, ConvolutionNormActivation) and not isinstance(module[1], InstanceNorm):
            continue
        module.__class__ = (PLAIN if compiled else COMPILED).get(type(module), type(module))
