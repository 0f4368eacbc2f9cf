"""What is wrong with an opened volume: the same checks wherever one comes in, for a dataset or to be labelled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas

from megavoxel.errors import UserError
from megavoxel.volumes.grid import compare_grids
from megavoxel.volumes.volume import Volume

Fault = tuple[str, str]
"""Name of the check, as in checks.csv, and message for the reader."""
LISTED_VALUES = 10


class Intensities:
    """Gathers what `faults` needs to know of an image's voxels, part by part.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        self.bad = 0
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, channel: int, voxels: np.ndarray) -> None:
        """Looks at some float32 voxels of a channel."""
        self.bad += voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
        self.low[channel] = min(self.low[channel], voxels.min(initial=np.inf))
        self.high[channel] = max(self.high[channel], voxels.max(initial=-np.inf))

    def faults(self, name: str) -> Iterator[Fault]:
        """Voxels that are not finite, or else channels with the same value in every voxel.

        Args:
            name: of the image, for the messages.
        """
        if self.bad:
            yield "finite", f"{name} has {self.bad} voxels that are NaN or infinite"
            return
        for number in np.flatnonzero(self.low == self.high):
            which = f"channel {number} of {name}" if len(self.low) > 1 else name
            yield "empty", f"{which} has the value {self.low[number]:g} in every voxel"


def intensity_faults(volume: Volume, name: str) -> tuple[list[Fault], str]:
    """Faults of an image's voxels, which are read slab by slab, and a checksum that equal voxels in one order share.

    Args:
        name: what it is called in messages.

    Raises:
        UserError: the file is truncated or damaged.
    """
    if 0 in volume.shape:
        return [("empty", f"{name} has no voxels")], ""
    seen, content = Intensities(volume.channels), hashlib.sha256(repr(volume.shape).encode())
    for slab in volume.image_slabs():
        seen.add(slab.channel, slab.voxels)
        content.update(slab.voxels.tobytes())
    return list(seen.faults(name)), content.hexdigest()


def undeclared_faults(values: set[int], name: str, labels: dict[str, int], background: set[int]) -> list[Fault]:
    """The values of a label map that are neither a label's nor background.

    Args:
        name: what the map is called in messages.
        labels: values by name, background left out.
        background: values that count as background.
    """
    undeclared = sorted(values - background - set(labels.values()))
    if not undeclared:
        return []
    meanings = dict.fromkeys(sorted(background), "background") | {value: label for label, value in labels.items()}
    declared = ", ".join(f"{value} {meaning}" for value, meaning in meanings.items())
    more = ", ..." if len(undeclared) > LISTED_VALUES else ""
    listing = ", ".join(map(str, undeclared[:LISTED_VALUES])) + more
    return [("label-values", f"{name} has the undeclared value {listing}; declared are {declared}")]


def values_of(volume: Volume) -> set[int]:
    """The values that a label map holds, read slab by slab.

    Raises:
        UserError: the file is damaged, has several channels, or holds values that are not whole numbers from 0 to
            65535.
    """
    return set().union(*(values_in(slab.voxels) for slab in volume.label_slabs()))


def values_in(labels: np.ndarray) -> set[int]:
    """The values of an array of whole numbers."""
    return {int(value) for value in pandas.unique(labels.ravel(order="K"))}


def channel_faults(volumes: Sequence[Volume], channels: Sequence[str]) -> list[Fault]:
    """What is wrong with the number of channels that some files have together.

    Args:
        volumes: the files of an image.
        channels: names of the channels that it should have.
    """
    count = sum(volume.channels for volume in volumes)
    if count == len(channels):
        return []
    return [("channels", f"{count} channels, declared are {len(channels)}: {', '.join(channels)}")]


def grid_faults(volumes: dict[str, Volume]) -> list[Fault]:
    """How the grids of a case's files differ from that of the first, beyond the tolerances of `compare_grids`.

    Args:
        volumes: opened files by what they are called in messages.
    """
    names = list(volumes)
    return [
        (check, f"{names[0]} and {name}: {message}")
        for name in names[1:]
        for check, message in compare_grids(volumes[names[0]].geometry, volumes[name].geometry)
    ]


def require_sound(faults: Iterator[Fault] | Sequence[Fault], remedy: str) -> None:
    """Refuses a volume that has faults.

    Args:
        remedy: what the user can do.

    Raises:
        UserError: there are some; names all of them.
    """
    messages = [message for _, message in faults]
    if messages:
        raise UserError(f"{'; '.join(messages)}; {remedy}")
