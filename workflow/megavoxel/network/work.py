"""How much operations compute, read and write, and what of it a processor does for nothing.

Instructions of a processor work on several channels of a voxel at once, with AVX-512 on 16 in float32. A convolution
that makes 24 channels therefore takes the time of one that makes 32. Of norms PyTorch works out the channels that are
left over one by one, in about twice the time that a full group of them takes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

ANY = 0
"""In place of a number of channels: the time does not depend on it."""
LEFT_OVER = 2
"""Full groups of channels in whose time a norm works out those that fill none: 2.0 to 2.4 on an AMD EPYC."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What some operations do, each by the channels that it makes."""

    flops: Mapping[int, float] = field(default_factory=Counter)
    """Floating-point operations of convolutions; a multiplication and an addition count as two."""
    touched: Mapping[int, float] = field(default_factory=Counter)
    """Bytes that all other operations read and write; of norms by channels."""

    def __add__(self, other: Work) -> Work:
        return Work(flops=_sum(self.flops, other.flops, 1), touched=_sum(self.touched, other.touched, 1))

    def __sub__(self, other: Work) -> Work:
        return Work(flops=_sum(self.flops, other.flops, -1), touched=_sum(self.touched, other.touched, -1))

    def __mul__(self, factor: float) -> Work:
        return Work(flops=_times(self.flops, factor), touched=_times(self.touched, factor))

    __rmul__ = __mul__

    def __round__(self) -> Work:
        return Work(flops=_rounded(self.flops), touched=_rounded(self.touched))

    def flops_in_groups(self, lanes: int) -> float:
        """Operations, those of empty places in groups of `lanes` channels included."""
        return sum(count * math.ceil(made / lanes) * lanes / made for made, count in self.flops.items())

    def touched_in_groups(self, lanes: int) -> float:
        """Bytes, in whose time as many would be read and written if all channels filled groups of `lanes`."""
        return sum(count * _norm_factor(channels, lanes) for channels, count in self.touched.items())


def _norm_factor(channels: int, lanes: int) -> float:
    if channels == ANY:
        return 1.0
    full, left = divmod(channels, lanes)
    return (full + (LEFT_OVER if left else 0)) * lanes / channels


def _sum(one: Mapping[int, float], other: Mapping[int, float], sign: int) -> Counter[int]:
    return Counter({key: one.get(key, 0) + sign * other.get(key, 0) for key in one.keys() | other.keys()})


def _times(amounts: Mapping[int, float], factor: float) -> Counter[int]:
    return Counter({key: factor * amount for key, amount in amounts.items()})


def _rounded(amounts: Mapping[int, float]) -> Counter[int]:
    return Counter({key: round(amount) for key, amount in amounts.items()})
