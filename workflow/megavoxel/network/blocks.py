"""The modules that blocks are made of. Tensors are (batch, channels, z, y, x)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavoxel.network.large_convolution import as_autocast, convolved, is_large
from megavoxel.network.recomputation import has_channels_last, memory_format_of, remembered, runs_again


class BatchNorm(nn.BatchNorm3d):
    """Batch norm whose running statistics take in a batch once, also where it is computed again."""

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to the same."""
        if not (self.training and runs_again()):
            return super().forward(activation)
        return F.batch_norm(activation, None, None, self.weight, self.bias, training=True, eps=self.eps)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm that leaves the layout of its input as it is.

    PyTorch's own copies a tensor with channels last to channels first, and the convolutions around it copy that back.
    """

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to the same."""
        if not has_channels_last(activation):
            return super().forward(activation)
        return _NormOfSamples.apply(activation, self.weight, self.bias, self.eps)


class _NormOfSamples(torch.autograd.Function):
    """PyTorch's batch norm of the voxels of each sample, which are a matrix (voxels, channels) with channels last."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        result = torch.empty_like(activation)
        kind = torch.promote_types(activation.dtype, torch.float32)
        moments = activation.new_empty(2, *activation.shape[:2], dtype=kind)
        for own, out, mean, deviation in zip(_voxels(activation), _voxels(result), *moments, strict=True):
            given = (own, weight, bias, None, None, True, 0.0, eps)
            torch.ops.aten.native_batch_norm.out(*given, out=out, save_mean=mean, save_invstd=deviation)
        ctx.save_for_backward(activation, weight, moments)
        ctx.eps = eps
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        activation, weight, moments = ctx.saved_tensors
        result, of_weights = torch.empty_like(activation), []
        samples = zip(*map(_voxels, (gradient, activation, result)), *moments, strict=True)
        for slope, own, out, mean, deviation in samples:
            given = (slope, own, weight, None, None, mean, deviation, True, ctx.eps, [True] * 3)
            found, *others = torch.ops.aten.native_batch_norm_backward(*given)
            out.copy_(found)
            of_weights.append(torch.stack(others))
        return result, *torch.stack(of_weights).sum(dim=0), None


def _voxels(tensor: Tensor) -> Iterator[Tensor]:
    """The samples of a tensor, each as a matrix (voxels, channels): a view where channels lie last."""
    return (sample.movedim(0, -1).flatten(0, 2) for sample in tensor)


SLOPE = 0.01
"""Slope of leaky ReLUs for negative numbers."""
NORMS = {"instance": InstanceNorm, "batch": BatchNorm}


class Convolution(nn.Conv3d):
    """3D convolution; where it is large and keeps nothing for a gradient, it goes slab by slab along z."""

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to the same with other channels."""
        sizes = (self.weight.shape, self.stride, self.padding)
        if torch.is_grad_enabled() or not is_large(activation.shape, *sizes):
            return super().forward(activation)
        activation, weight, bias = as_autocast(activation, self.weight, self.bias)
        return convolved(activation, weight, bias, self.stride, self.padding)


class ConvolutionNorm(nn.Sequential):
    """3D convolution, normalisation (eps 1e-5, affine)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] = (1, 1, 1),
        norm: str = "instance",
        *,
        bias: bool = True,
    ) -> None:
        padding = tuple((size - 1) // 2 for size in kernel)
        super().__init__(
            Convolution(channels_in, channels_out, kernel, stride, padding, bias=bias),
            NORMS[norm](channels_out, eps=1e-5, affine=True),
        )

    @property
    def relaid(self) -> bool:
        """Whether what the norm makes may lie with channels last where it did not."""
        return isinstance(self[1], nn.InstanceNorm3d)

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to `channels_out` channels."""
        return remembered(self[1], self.convolved(activation), relaid=self.relaid)

    def convolved(self, activation: Tensor) -> Tensor:
        """The convolution alone."""
        return remembered(self._convolved, activation, convolution=True)

    def _convolved(self, activation: Tensor) -> Tensor:
        convolved = self[0](activation)
        # The instance norm of tiles reads channels first. Made here, that is the only copy that is kept.
        return convolved if isinstance(self[1], InstanceNorm | nn.BatchNorm3d) else _ChannelsFirst.apply(convolved)


class ConvolutionNormActivation(ConvolutionNorm):
    """3D convolution with bias, normalisation, leaky ReLU (0.01); with `instance` as in nnU-Net."""

    def __init__(self, *sizes: Any, **keys: Any) -> None:
        super().__init__(*sizes, **keys)
        self.append(InPlaceLeakyReLU(SLOPE))

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to `channels_out` channels."""
        _, norm, function = self
        # The activation function works in place, so that it is part of what is computed again.
        made = remembered(norm, self.convolved(activation), again=self._activated, relaid=self.relaid)
        return function(made)

    def _activated(self, convolved: Tensor) -> Tensor:
        return self[2](self[1](convolved))


class ResidualSum(ConvolutionNorm):
    """The end of a residual block: convolution with bias, normalisation, the sum with a shortcut, leaky ReLU (0.01).

    Args:
        channels: in and out.
        kernel: extent per axis.
        shortcut: brings the input of the residual block to the shape of the sum.
        norm: the kind of normalisation.
    """

    def __init__(self, channels: int, kernel: tuple[int, ...], shortcut: nn.Module, norm: str = "instance") -> None:
        super().__init__(channels, channels, kernel, norm=norm)
        self.shortcut = shortcut

    def forward(self, activation: Tensor, given: Tensor) -> Tensor:
        """The activation (batch, channels, z, y, x) to the same; `given` is what the residual block was given."""
        shortcut = self.shortcut(given)
        convolved = self.convolved(activation)
        normed = remembered(self._normed, convolved, shortcut, again=self._summed, relaid=self.relaid)
        return _SumLeakyReLU.apply(normed, shortcut, SLOPE)

    def _normed(self, convolved: Tensor, _: Tensor) -> Tensor:
        return self[1](convolved)

    def _summed(self, convolved: Tensor, shortcut: Tensor) -> Tensor:
        return F.leaky_relu_(self[1](convolved).add_(shortcut), SLOPE)


class MaxOfCells(nn.MaxPool3d):
    """Max pooling in the precision of its input, which autocast on a CPU, other than on a GPU, copies to float32."""

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to one voxel for each cell."""
        with torch.autocast(activation.device.type, enabled=False):
            return super().forward(activation)


class MeanOfCells(nn.Module):
    """Average pooling by cells of `stride` voxels, in the precision of its input. Nothing is kept for the gradient."""

    def __init__(self, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x), a multiple of the stride, to one voxel for each cell."""
        return _MeanOfCells.apply(activation, self.stride)


class _MeanOfCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, stride: tuple[int, ...]) -> Tensor:
        ctx.stride = stride
        if activation.is_cuda or activation.dtype in (torch.float32, torch.float64):
            return F.avg_pool3d(activation, stride)
        # PyTorch's own has no kernel for 16 bits on a CPU, where autocast copies its input to float32.
        sides = zip(activation.shape[2:], stride, strict=True)
        cells = [part for size, step in sides for part in (size // step, step)]
        return activation.reshape(*activation.shape[:2], *cells).mean(dim=(3, 5, 7))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        share = gradient / math.prod(ctx.stride)
        sides = [part for size, step in zip(share.shape[2:], ctx.stride, strict=True) for part in (size, step)]
        cells = share[:, :, :, None, :, None, :, None].expand(*share.shape[:2], *sides)
        sizes = [size * step for size, step in zip(share.shape[2:], ctx.stride, strict=True)]
        return cells.reshape(*share.shape[:2], *sizes), None


class _ChannelsFirst(torch.autograd.Function):
    """Lays a tensor with channels first, and its gradient as the tensor was."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.memory_format = memory_format_of(tensor)
        return tensor.contiguous() if has_channels_last(tensor) else tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=ctx.memory_format)


class InPlaceLeakyReLU(nn.Module):
    """Leaky ReLU in the memory of its input, which must not be used again.

    What instance norm returns is a view, and for in-place operations on views PyTorch's backward pass copies the
    gradient twice: two more tensors of the activation's size at the peak of a step. Here it is one gradient in, one
    out. Values and gradients are those of `torch.nn.LeakyReLU`.
    """

    def __init__(self, negative_slope: float) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, …) to the same."""
        return _LeakyReLU.apply(activation, self.negative_slope)

    def extra_repr(self) -> str:
        """The slope, as PyTorch prints it."""
        return f"negative_slope={self.negative_slope}"


class _LeakyReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, slope: float) -> Tensor:
        # The detached tensor counts changes together with its source: whoever kept that for the backward pass fails.
        result = F.leaky_relu_(activation.detach(), slope)
        ctx.save_for_backward(result)
        ctx.slope, ctx.memory_format = slope, memory_format_of(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        # Laid as the norm left its result: on a CPU, PyTorch 2.13.0 works out a wrong gradient of its instance norm for
        # a single sample whose own gradient has channels last.
        found = torch.empty_like(gradient, memory_format=ctx.memory_format)
        torch.ops.aten.leaky_relu_backward.grad_input(gradient, result, ctx.slope, True, grad_input=found)
        return found, None


class _SumLeakyReLU(torch.autograd.Function):
    """Leaky ReLU of a sum in the memory of its first summand, which must not be used again."""

    @staticmethod
    def forward(ctx: Any, summand: Tensor, other: Tensor, slope: float) -> Tensor:
        return _LeakyReLU.forward(ctx, summand.detach().add_(other), slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        found, _ = _LeakyReLU.backward(ctx, gradient)
        return found, found, None


class UpsampleAndJoin(nn.Module):
    """Makes an activation finer and joins skips, and other tensors of that resolution, as further channels."""

    def __init__(self, upsample: nn.Module) -> None:
        super().__init__()
        self.upsample = upsample

    def forward(self, activation: Tensor, *joined: Tensor) -> Tensor:
        """One tensor with the channels of all; `joined` are finer than the activation by the stride of `upsample`."""
        return torch.cat([self.upsample(activation), *joined], dim=1)


class MeanOverVoxels(nn.Module):
    """Mean over voxels, (batch, channels, 1, 1, 1), in the precision of the input."""

    def forward(self, activation: Tensor) -> Tensor:
        """The mean of every channel of every sample."""
        return activation.mean(dim=(2, 3, 4), keepdim=True)


def squeeze_excitation(channels: int, reduction: int) -> nn.Module:
    """Weighs each channel of a sample by a number from 0 to 1 that is worked out from the means of all its channels.

    The means, over all voxels that go through together, are brought by a linear layer and a leaky ReLU (0.01) to
    channels // reduction numbers, at least one, and from there by another one and a sigmoid to one weight per channel
    (Hu et al., CVPR 2018, section 3; leaky as in the code that was published with AnatomyNet, Zhu et al., Med. Phys.
    46:576, 2019).

    Args:
        channels: of the activation.
        reduction: from 1; 1 keeps the inner layer as wide as the activation.
    """
    # Here, because importing any part of MONAI takes longer than all else that a job starts with.
    from monai.networks.blocks import ChannelSELayer

    leaky = ("leakyrelu", {"negative_slope": 0.01, "inplace": True})
    layer = ChannelSELayer(3, channels, r=min(reduction, channels), acti_type_1=leaky)
    # MONAI's pooling is one of the operations for which autocast on the CPU, other than on a GPU, copies its input to
    # float32: the whole level, which a forecast would count.
    layer.avg_pool = MeanOverVoxels()
    return layer


def initialise(module: nn.Module) -> None:
    """Kaiming-normal weights for leaky ReLU (0.01) and zero biases, as in nnU-Net; to be used with `Module.apply`.

    The last norm of a residual block makes 0, so that the block begins as its shortcut. All other modules keep what
    PyTorch gives them. So do those on the device `meta`, which hold nothing: PyTorch would load its compiler for them.
    """
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ResidualSum):
        nn.init.zeros_(module[1].weight)
        nn.init.zeros_(module[1].bias)
