"""Layers of a network that predicts on a CPU: the same numbers as the plain ones to rounding, in less time and memory.

Activations are laid with channels last, as oneDNN's convolutions want them, so that none is copied to another layout. A
norm is worked out in the memory of its input. An upsampled activation and a skip are convolved apart, and the results
added, in place of a copy of both. So all tensors of a level have one size, and each fits where another was. oneDNN also
gets the small convolutions for which PyTorch takes its own, which are several times as slow.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavoxel.network.blocks import Convolution, ConvolutionNormActivation, UpsampleAndJoin
from megavoxel.network.program import Program

LAST = torch.channels_last_3d
LANES = 1024
"""Numbers that a norm takes side by side: whole registers of a processor, and short sums, which keep their digits."""
SLAB_VOXELS = 2**15
"""Voxels of an activation that are upsampled at once."""


def has_cpu_layers() -> bool:
    """Whether this build of PyTorch has oneDNN."""
    return torch.backends.mkldnn.is_available()


def predict_on_cpu(network: nn.Module, dtype: torch.dtype) -> None:
    """Gives layers of a network in evaluation mode the classes of this module, for good; weights stay as they are.

    Args:
        network: on the CPU. Layers that have no class here work as before.
        dtype: float32 or bfloat16: of convolutions, and of activations between them.
    """
    for module in list(network.modules()):
        _change(module, LAYERS, dtype)
    for program in [module for module in network.modules() if isinstance(module, Program)]:
        for block, following in itertools.pairwise(program):
            if isinstance(following.module, CPUConvolutionNormActivation):
                _change(block.module, JOINS, dtype)


def _change(module: nn.Module, classes: Mapping[type, type], dtype: torch.dtype) -> None:
    kind = classes.get(type(module))
    if kind is not None:
        module.__class__ = kind
        module.dtype = dtype


def laid(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor (batch, channels, z, y, x) of a type with channels last, by its strides as well.

    A single channel lies the same in both layouts, and a convolution goes by the strides.
    """
    if tensor.dtype == dtype and tensor.stride(1) == 1 and tensor.is_contiguous(memory_format=LAST):
        return tensor
    return torch.empty(tensor.shape, dtype=dtype, memory_format=LAST).copy_(tensor)


class CPUConvolution(nn.Conv3d):
    """A convolution by oneDNN, whatever its size."""

    dtype: torch.dtype

    def forward(self, activation: Tensor | list[Tensor]) -> Tensor:
        """(batch, channels, z, y, x) to the same with other channels, with channels last.

        Args:
            activation: or parts of its channels, which are taken from the list and let go one by one. A convolution is
                the sum of those of the parts, so that they need not be copied side by side.
        """
        parts = [activation] if isinstance(activation, Tensor) else activation
        del activation
        weights, bias = self.weight.split([part.shape[1] for part in parts], dim=1), self.bias
        result = self._convolved(parts.pop(0), weights[0], bias)
        for weight in weights[1:]:
            result.add_(self._convolved(parts.pop(0), weight, None))
        return result

    def _convolved(self, part: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        part, weight = laid(part, self.dtype), laid(weight, self.dtype)
        bias = None if bias is None else bias.to(self.dtype)
        keys = (self.padding, self.stride, self.dilation, self.groups)
        return laid(torch.ops.aten.mkldnn_convolution(part, weight, bias, *keys), self.dtype)


class CPUConvolutionNormActivation(ConvolutionNormActivation):
    """Convolution, instance norm and leaky ReLU, with one tensor for all three."""

    dtype: torch.dtype

    def forward(self, activation: Tensor | list[Tensor]) -> Tensor:
        """(batch, channels, z, y, x), or parts of it, to `channels_out` channels."""
        convolution, norm, function = self
        convolved = convolution(activation)
        if not isinstance(norm, nn.InstanceNorm3d):
            return function(norm(convolved))
        for sample in convolved.split(1):
            normalise_(sample, norm)
        return F.leaky_relu_(convolved, function.negative_slope)


class CPUUpsampleAndJoin(UpsampleAndJoin):
    """Upsampling, by a product of matrices where it is learned; the tensors are not joined."""

    dtype: torch.dtype

    def forward(self, activation: Tensor, *joined: Tensor) -> list[Tensor]:
        """The tensors whose channels are to be convolved together."""
        upsample = self.upsample
        if not isinstance(upsample, nn.ConvTranspose3d):
            return [upsample(activation), *joined]
        result = torch.empty(
            (len(activation), upsample.out_channels, *joined[0].shape[2:]), dtype=self.dtype, memory_format=LAST
        )
        for place, sample in zip(result, laid(activation, self.dtype), strict=True):
            upsample_into(place, sample, upsample)
        return [result, *joined]


LAYERS = {Convolution: CPUConvolution, ConvolutionNormActivation: CPUConvolutionNormActivation}
JOINS = {UpsampleAndJoin: CPUUpsampleAndJoin}
"""Only where a convolution follows that takes parts."""


def normalise_(sample: Tensor, norm: nn.InstanceNorm3d) -> None:
    """Instance norm of a sample (1, channels, z, y, x) with channels last, in place.

    PyTorch's kernels for channels last take a voxel at a time: where it has few channels, most of a register is empty.
    So several voxels are taken for one with as many times the channels, and their moments are put together.
    """
    channels, voxels = sample.shape[1], sample[0, 0].numel()
    side = math.gcd(voxels, max(1, LANES // channels))
    rows = sample.permute(0, 2, 3, 4, 1).view(voxels // side, side * channels)
    running = torch.zeros(2, side * channels)  # moments have the type of these
    means, variances = (moment.view(side, channels) for moment in torch.batch_norm_update_stats(rows, *running, 0.0))
    mean = means.mean(dim=0)
    variance = variances.mean(dim=0) + (means - mean).square_().mean(dim=0)
    torch.ops.aten.native_batch_norm.out(
        rows, *(values.repeat(side) for values in (norm.weight, norm.bias, mean, variance)), False, 0.0, norm.eps,
        out=rows, save_mean=mean.new_empty(0), save_invstd=mean.new_empty(0),
    )  # fmt: skip


def upsample_into(result: Tensor, sample: Tensor, upsample: nn.ConvTranspose3d) -> None:
    """Writes a transposed convolution whose kernel is its stride: each voxel becomes a box of its own.

    Args:
        result: (channels, z, y, x), with channels last.
        sample: (channels below, …), with channels last and of the type of the result.
        upsample: the layer.
    """
    strides, kind = upsample.stride, sample.dtype
    below, depth, height, width = sample.shape
    matrix = upsample.weight.to(kind).permute(0, 2, 3, 4, 1).reshape(below, -1)
    bias = None if upsample.bias is None else upsample.bias.to(kind).repeat(math.prod(strides))
    product = torch.mm if bias is None else partial(torch.addmm, bias)
    boxes = result.view(-1, *(part for sides in zip(sample.shape[1:], strides, strict=True) for part in sides))
    boxes = boxes.permute(1, 3, 5, 2, 4, 6, 0)
    voxels = sample.permute(1, 2, 3, 0)
    step = max(1, SLAB_VOXELS // (height * width))
    for first in range(0, depth, step):
        rows = voxels[first : first + step].reshape(-1, below)
        boxes[first : first + step] = product(rows, matrix).view(-1, height, width, *strides, upsample.out_channels)
