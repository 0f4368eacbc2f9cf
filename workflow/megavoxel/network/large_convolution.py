"""A convolution in slabs along z, for activations so large that the workspace of one call would not fit.

A convolution's workspace is of the size of its input and output. In slabs it is that of a slab; nothing else changes.
Convolutions of tiles go in slabs, and all that keep nothing for a gradient: in prediction, validation and the first
level of an expanded patch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.network.recomputation import memory_format_of

LARGEST_CALL = 2**30
"""Voxels of channels that input and output of one call have together at most; in float32 they are 4 GiB."""
OF_A_SLAB = 1 / 4
"""Share of it that a slab may have: beside the whole there are copies of a slab."""
convolution, convolution_backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
ONES, ZEROS = [1, 1, 1], [0, 0, 0]


@dataclass(frozen=True, kw_only=True)
class _Slab:
    """Some outputs along z, and the inputs that they are worked out from."""

    outputs: slice
    inputs: slice
    padding: tuple[int, int]
    """Zeros before and behind the inputs."""

    def of_input(self, x: Tensor) -> Tensor:
        part = x[:, :, self.inputs]
        if any(self.padding):
            return F.pad(part, (0, 0, 0, 0, *self.padding))
        # Of several samples a slab is no dense tensor: the copy that a convolution would make is made where it is seen.
        return part.contiguous(memory_format=memory_format_of(x))

    def without_padding(self, of_part: Tensor) -> Tensor:
        before, behind = self.padding
        return of_part[:, :, before : of_part.shape[2] - behind]


def is_large(shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether input and output of a convolution are too large for one call.

    Args:
        shape: of the input (batch, channels, z, y, x).
        kernel: shape of the weights.
    """
    return _elements(shape, kernel, stride, padding)[0] > LARGEST_CALL


def as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias of a convolution in the numbers that autocast would give it."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    kind = torch.get_autocast_dtype(x.device.type)
    return x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The convolution of x (batch, channels, z, y, x) with zeros around it."""
    slabs = list(_slabs(x.shape, weight.shape, stride, padding))
    if len(slabs) == 1:
        return convolution(x, weight, bias, stride, padding, ONES, False, ZEROS, 1)
    result = None
    for slab in slabs:
        part = convolution(slab.of_input(x), weight, bias, stride, [0, *padding[1:]], ONES, False, ZEROS, 1)
        if result is None:
            shape = (*part.shape[:2], slabs[-1].outputs.stop, *part.shape[3:])
            result = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=memory_format_of(part))
        result[:, :, slab.outputs] = part
    return result


def gradients_of_convolution(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, those that are wanted, from that of the result."""
    slabs, sizes = list(_slabs(x.shape, weight.shape, stride, padding)), [weight.shape[0]] if wanted[2] else None
    if len(slabs) == 1:
        return convolution_backward(gradient, x, weight, sizes, stride, padding, ONES, False, ZEROS, 1, list(wanted))
    of_x = torch.zeros_like(x) if wanted[0] else None
    sums = [None, None]
    for slab in slabs:
        part, *others = convolution_backward(
            gradient[:, :, slab.outputs], slab.of_input(x), weight, sizes, stride, [0, *padding[1:]],
            ONES, False, ZEROS, 1, list(wanted),
        )  # fmt: skip
        if of_x is not None:
            of_x[:, :, slab.inputs] += slab.without_padding(part)
        sums = [_added(total, other) for total, other in zip(sums, others, strict=True)]
    return of_x, *(None if total is None else total.to(weight.dtype) for total in sums)


def _added(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """A sum that is kept in float32 at least."""
    if part is None:
        return total
    exact = part.to(torch.promote_types(part.dtype, torch.float32))
    return exact if total is None else total.add_(exact)


def _slabs(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Iterator[_Slab]:
    """Slabs of as many outputs along z as a call may have; one if all fit."""
    elements, depth = _elements(shape, kernel, stride, padding)
    slabs = 1 if elements <= LARGEST_CALL else math.ceil(elements / (LARGEST_CALL * OF_A_SLAB))
    thickness = max(1, depth // slabs)
    for begin in range(0, depth, thickness):
        end = min(begin + thickness, depth)
        first, last = begin * stride[0] - padding[0], (end - 1) * stride[0] - padding[0] + kernel[2]
        yield _Slab(
            outputs=slice(begin, end),
            inputs=slice(max(0, first), min(last, shape[2])),
            padding=(max(0, -first), max(0, last - shape[2])),
        )


def _elements(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Numbers that input and output have together, and the output's voxels along z."""
    sides = zip(shape[2:], kernel[2:], stride, padding, strict=True)
    outputs = [(size + 2 * around - extent) // step + 1 for size, extent, step, around in sides]
    return math.prod(shape) + shape[0] * kernel[0] * math.prod(outputs), outputs[0]
