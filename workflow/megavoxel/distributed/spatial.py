"""Layers of a network that see beyond the tile of a patch that a process holds.

A convolution is linear. That of a tile, with zeros around, is right but for a rim. What the neighbours' voxels add to
the rim is a convolution of each thin piece of theirs (faces, edges and corners) with the part of the kernel that
reaches them. So no padded copy of an activation is made, forward or backward, and the large convolution waits for
nobody: the pieces are on their way while it runs.

In the backward pass every process has gradients whose *mean* over the processes is that of the patch: a loss of a tile
is the patch's loss with the gradient of its own voxels times the number of tiles (`training.loss.TiledPatch`). Weights
are then averaged as they are between replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megavoxel.distributed.exchange import Exchange, Pending
from megavoxel.network.blocks import BatchNorm, Convolution, InstanceNorm, MeanOverVoxels
from megavoxel.network.large_convolution import (
    ONES,
    ZEROS,
    as_autocast,
    convolution,
    convolution_backward,
    convolved,
    gradients_of_convolution,
)
from megavoxel.network.recomputation import noted
from megavoxel.planning.tiling import Offset

ALL = slice(None)
EXACT = (torch.float32, torch.float64)
CHUNK = 2**20
"""Voxels of channels that are brought to float32 at a time, where an activation has 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far a convolution sees beyond a tile: one entry per axis. Tiles begin at multiples of its stride."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    @property
    def below(self) -> tuple[int, ...]:
        """Voxels of the neighbour before a tile that its first outputs read."""
        return self.padding

    @property
    def above(self) -> tuple[int, ...]:
        """Voxels of the neighbour behind a tile that its last outputs read."""
        sides = zip(self.kernel, self.stride, self.padding, strict=True)
        return tuple(max(0, extent - step - before) for extent, step, before in sides)

    def needs(self, offset: Offset) -> bool:
        """Whether a tile needs something of its neighbour there."""
        return all(thickness > 0 for way, thickness in zip(offset, self._thickness(offset), strict=True) if way)

    def _thickness(self, offset: Offset) -> tuple[int, ...]:
        sides = zip(offset, self.below, self.above, strict=True)
        return tuple(below if way < 0 else above if way > 0 else 0 for way, below, above in sides)

    def given(self, offset: Offset) -> tuple[slice, ...]:
        """The part of a tile's input that its neighbour there needs."""
        thickness = self._thickness(opposite(offset))
        sides = zip(offset, thickness, strict=True)
        return (ALL, ALL, *(edge(way, voxels) for way, voxels in sides))

    def piece_shape(self, offset: Offset, shape: torch.Size) -> tuple[int, ...]:
        """Shape of what comes from the neighbour there, for a tile's input (batch, channels, z, y, x)."""
        sides = zip(shape[2:], offset, self._thickness(offset), strict=True)
        return (*shape[:2], *(voxels if way else extent for extent, way, voxels in sides))

    def rim(self, offset: Offset) -> tuple[slice, ...]:
        """The outputs that see the neighbour there."""
        return (ALL, ALL, *(edge(way, voxels) for way, voxels in zip(offset, self._outputs(offset), strict=True)))

    def _outputs(self, offset: Offset) -> tuple[int, ...]:
        sides = zip(offset, self.kernel, self.stride, self.padding, strict=True)
        return tuple(
            math.ceil(before / step) if way < 0 else (extent - 1 - before) // step if way > 0 else 0
            for way, extent, step, before in sides
        )

    def taps(self, offset: Offset) -> tuple[slice, ...]:
        """The part of the kernel (out, in, z, y, x) that meets the neighbour's voxels."""
        return (ALL, ALL, *(edge(way, voxels) for way, voxels in zip(offset, self._thickness(offset), strict=True)))

    def padded(self, piece: Tensor, offset: Offset) -> Tensor:
        """A neighbour's piece with zeros where the outputs of the rim read this tile, if they are several."""
        extra = [
            step * (outputs - 1) if way else 0
            for way, step, outputs in zip(offset, self.stride, self._outputs(offset), strict=True)
        ]
        if not any(extra):
            return piece
        sides = [(0, zeros) if way < 0 else (zeros, 0) for way, zeros in zip(offset, extra, strict=True)]
        return F.pad(piece, [amount for side in reversed(sides) for amount in side])

    def of_piece(self, padded: Tensor, offset: Offset, shape: tuple[int, ...]) -> Tensor:
        """The part of something as large as a padded piece that belongs to the piece."""
        sides = zip(offset, shape[2:], strict=True)
        return padded[(ALL, ALL, *(ALL if not way else edge(way, extent) for way, extent in sides))].contiguous()

    def along(self, offset: Offset) -> list[int]:
        """Padding of a piece's convolution: the layer's own, along the axes that both tiles share."""
        return [0 if way else before for way, before in zip(offset, self.padding, strict=True)]


def edge(way: int, voxels: int) -> slice:
    """The first (-1) or last (1) voxels of an axis; all of it (0)."""
    if not way:
        return ALL
    return slice(0, voxels) if way < 0 else slice(-voxels, None)


def opposite(offset: Offset) -> Offset:
    """The way back."""
    return tuple(-way for way in offset)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, reach: Reach, exchange: Exchange, pending: Pending
    ) -> Tensor:
        out = convolved(x, weight, bias, reach.stride, reach.padding)
        pieces = pending.wait()
        for offset, piece in pieces.items():
            padded, taps = reach.padded(piece, offset), weight[reach.taps(offset)]
            out[reach.rim(offset)] += convolution(
                padded, taps, None, reach.stride, reach.along(offset), ONES, False, ZEROS, 1
            )
        ctx.reach, ctx.exchange, ctx.has_bias, ctx.offsets = reach, exchange, bias is not None, tuple(pieces)
        ctx.save_for_backward(x, weight, *pieces.values())
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *pieces = ctx.saved_tensors
        reach, wanted = ctx.reach, ctx.needs_input_grad[0]
        back, of_taps = {}, []
        for offset, piece in zip(ctx.offsets, pieces, strict=True):
            own = gradient[reach.rim(offset)].contiguous()
            of_piece, of_tap = _of_piece(own, piece, weight, offset, reach, wanted=wanted)
            of_taps.append((offset, of_tap))
            if wanted:
                back[offset] = of_piece
        pending = _begin_back(ctx.exchange, reach, x, back) if wanted else None
        whole, of_weight, of_bias = gradients_of_convolution(
            gradient, x, weight, reach.stride, reach.padding, (wanted, True, ctx.has_bias)
        )
        for offset, of_tap in of_taps:
            of_weight[reach.taps(offset)] += of_tap
        if pending is not None:
            for offset, piece in pending.wait().items():
                whole[reach.given(offset)] += piece
        return whole, of_weight, of_bias, None, None, None


def _of_piece(
    gradient: Tensor, piece: Tensor, weight: Tensor, offset: Offset, reach: Reach, *, wanted: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradients of a neighbour's piece and of the taps that meet it, from that of the rim."""
    given = (gradient, reach.padded(piece, offset), weight[reach.taps(offset)])
    if not piece.is_cuda:
        # oneDNN's gradients of weights in bfloat16 are wrong where an axis has one or two voxels.
        given = tuple(tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in given)
    padded, of_taps, _ = convolution_backward(
        *given, None, reach.stride, reach.along(offset), ONES, False, ZEROS, 1, [wanted, True, False]
    )
    return reach.of_piece(padded.to(piece.dtype), offset, piece.shape) if wanted else None, of_taps


def _begin(exchange: Exchange, reach: Reach, x: Tensor) -> Pending:
    """Asks the neighbours for what a convolution of a tile reads of theirs, and gives them what they ask for."""
    around = exchange.tiling.neighbours
    sends = {offset: x[reach.given(offset)].detach().contiguous() for offset in around if reach.needs(opposite(offset))}
    receives = {offset: x.new_empty(reach.piece_shape(offset, x.shape)) for offset in around if reach.needs(offset)}
    return exchange.begin(sends, receives)


def _begin_back(exchange: Exchange, reach: Reach, x: Tensor, back: dict[Offset, Tensor]) -> Pending:
    """Gives neighbours the gradients of their pieces, and asks for those of the pieces that they were given."""
    around = [offset for offset in exchange.tiling.neighbours if reach.needs(opposite(offset))]
    return exchange.begin(back, {offset: x.new_empty(x[reach.given(offset)].shape) for offset in around})


class TiledConvolution(nn.Conv3d):
    """A convolution of a patch of which this process holds a tile."""

    exchange: Exchange

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) of the tile to the tile of the result."""
        activation, weight, bias = as_autocast(activation, self.weight, self.bias)
        reach = Reach(kernel=self.kernel_size, stride=self.stride, padding=tuple(self.padding))
        pending = noted(lambda: _begin(self.exchange, reach, activation))
        return _Convolution.apply(activation, weight, bias, reach, self.exchange, pending)


class _Normalisation(torch.autograd.Function):
    """(n, channels, z, y, x) by known moments per channel, which depend on the tiles of all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, eps: float, exchange: Exchange
    ) -> Tensor:
        mean, variance = moments
        ctx.exchange, ctx.eps = exchange, eps
        ctx.save_for_backward(x, weight, mean, variance)
        return torch.ops.aten.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        gradient = gradient.contiguous()
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        values = _values_of_all(x, ctx.exchange)
        along, flat = ctx.exchange.sum(torch.stack([of_weight, of_bias])) / values
        scale = (variance + ctx.eps).rsqrt()
        of_gradient = weight * scale
        of_x = -of_gradient * scale * along
        rest = -of_gradient * flat - of_x * mean
        return _affine(gradient, of_gradient, x, of_x, rest), of_weight, of_bias, None, None, None


def _affine(g: Tensor, a: Tensor, x: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a g + b x + c, with a, b and c per channel of (n, channels, z, y, x), worked out in float32 at least."""
    a, b, c = (factor.view(1, -1, 1, 1, 1) for factor in (a, b, c))
    if g.dtype in EXACT:
        return torch.addcmul(c, g, a).addcmul_(x, b)
    result = torch.empty_like(g)
    for part in _channel_chunks(g):
        result[part] = torch.addcmul(c[part], g[part].float(), a[part]).addcmul_(x[part].float(), b[part])
    return result


def _channel_chunks(x: Tensor) -> list[tuple[slice, slice]]:
    count = max(1, CHUNK // max(1, x[:, 0].numel()))
    return [(ALL, slice(begin, begin + count)) for begin in range(0, x.shape[1], count)]


def _moments(x: Tensor, exchange: Exchange) -> Tensor:
    """Mean and variance (2, channels) of (n, channels, z, y, x) over the tiles of all, float32 at least.

    Moments are put together and not sums of squares: nothing cancels where the mean is large.
    """
    own = torch.stack(torch.batch_norm_update_stats(x, None, None, 0.0)) if x.is_cuda else _by_plane(x)
    means, variances = exchange.gather(own).unbind(dim=1)
    shares = own.new_tensor(exchange.tiling.shares)[:, None]
    mean = (shares * means).sum(dim=0)
    return torch.stack([mean, (shares * (variances + (means - mean).square())).sum(dim=0)])


def _values_of_all(x: Tensor, exchange: Exchange) -> float:
    """Values of a channel of (n, channels, z, y, x) over the tiles of all."""
    return x.shape[0] * x[0, 0].numel() / exchange.tiling.share


def _by_plane(x: Tensor) -> Tensor:
    """Mean and variance (2, channels) of the tile on a CPU, float32 at least.

    A CPU adds up one number after the other, so that planes are taken first: a sum of millions of them would lose
    digits. The type of what it gives is that of the running statistics.
    """
    samples, channels, depth, *plane = x.shape
    running = x.new_zeros(2, channels * depth, dtype=torch.promote_types(x.dtype, torch.float32))
    planes = x.contiguous().view(samples, channels * depth, *plane)
    mean, variance = torch.stack(torch.batch_norm_update_stats(planes, *running, 0.0)).view(2, channels, depth)
    scatter = torch.var(mean, dim=1, correction=0)
    return torch.stack([mean.mean(dim=1), variance.mean(dim=1) + scatter])


class TiledInstanceNorm(nn.InstanceNorm3d):
    """Instance norm of a patch of which this process holds a tile."""

    exchange: Exchange

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to the same."""
        samples, channels = activation.shape[:2]
        flat = activation.contiguous().view(1, samples * channels, *activation.shape[2:])
        moments = noted(lambda: _moments(flat.detach(), self.exchange))
        weight, bias = self.weight.repeat(samples), self.bias.repeat(samples)
        normed = _Normalisation.apply(flat, weight, bias, moments, self.eps, self.exchange)
        return normed.view(activation.shape)


class TiledBatchNorm(BatchNorm):
    """Batch norm of patches of which this process holds a tile each."""

    exchange: Exchange

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to the same."""
        if not self.training:
            return super().forward(activation)
        moments = noted(lambda: self._noticed(activation.detach()))
        return _Normalisation.apply(activation, self.weight, self.bias, moments, self.eps, self.exchange)

    def _noticed(self, activation: Tensor) -> Tensor:
        """The moments of this batch, which the running statistics take in."""
        mean, variance = moments = _moments(activation, self.exchange)
        values = _values_of_all(activation, self.exchange)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * values / (values - 1), self.momentum)
        self.num_batches_tracked += 1
        return moments


class _MeanOfAll(torch.autograd.Function):
    """From the mean over a tile that over the patch."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, whole: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return whole.to(own.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.exchange.sum(gradient) * ctx.exchange.tiling.share, None, None


class TiledMeanOverVoxels(MeanOverVoxels):
    """Mean over the voxels of a patch of which this process holds a tile."""

    exchange: Exchange

    def forward(self, activation: Tensor) -> Tensor:
        """(batch, channels, z, y, x) to (batch, channels, 1, 1, 1)."""
        own = super().forward(activation)
        whole = noted(lambda: self.exchange.weighted_mean(own.to(torch.promote_types(own.dtype, torch.float32))))
        return _MeanOfAll.apply(own, whole, self.exchange)


TILED = {
    nn.Conv3d: TiledConvolution,
    Convolution: TiledConvolution,
    InstanceNorm: TiledInstanceNorm,
    BatchNorm: TiledBatchNorm,
    MeanOverVoxels: TiledMeanOverVoxels,
}
"""Layers that take the place of a module; all others of our networks work by voxel, or by cell of their stride."""


def in_tiles(network: nn.Module, exchange: Exchange) -> nn.Module:
    """Changes a network into one that works on a tile of each patch; its weights and their names stay."""
    for module in network.modules():
        tiled = TILED.get(type(module))
        if tiled is not None and not (tiled is TiledConvolution and max(module.kernel_size) == 1):
            module.__class__ = tiled
            module.exchange = exchange
    return network
