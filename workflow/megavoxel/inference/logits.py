"""Logits of a case, and their way back to the image's grid, slab by slab.

Those of a large image are on disk: classes × volume are never in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import blosc2
import numpy as np
import torch
from torch import Tensor

from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.regions import Regions
from megavoxel.errors import UserError
from megavoxel.files import atomic_path, read_json, write_json, writing
from megavoxel.inference.decision import Decision
from megavoxel.inference.sliding_window import SLAB_BYTES, Slab
from megavoxel.planning.plan import PreprocessingPlan
from megavoxel.preprocessing.store import CaseProperties, check_properties, open_array
from megavoxel.volumes.grid import separate_axis
from megavoxel.volumes.volume import label_type
from megavoxel.volumes.write import write_label_slabs

CHUNK_COLUMNS = 512
"""Most voxels of a chunk along the second axis."""
SMALL_BYTES = 2**26
"""Logits of a case up to which they may stay in memory."""


@dataclass(frozen=True, kw_only=True)
class LogitsHeader:
    """What is needed to bring the logits of a case to its image's grid."""

    properties: CaseProperties
    labels: dict[str, int]
    """Values in label files by name; without regions, their position plus one is the class."""
    regions: Regions | None = None
    """What the outputs are in place of classes."""
    transpose: tuple[int, ...]
    """Network axis n is canonical axis transpose[n]."""
    spacing: tuple[float, ...]
    """Spacing of the logits in mm, network order."""
    order: int = 1
    """Interpolation on the image's grid: 0, the nearest voxel, or 1, linear."""

    @property
    def decision(self) -> Decision:
        """How they become labels."""
        return Decision(labels=self.labels, regions=self.regions)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits (outputs, network grid)."""
        return self.decision.outputs, *self.properties.shape

    @property
    def is_small(self) -> bool:
        """Whether the logits may stay in memory."""
        return np.dtype(np.float16).itemsize * math.prod(self.shape) <= SMALL_BYTES


@dataclass(frozen=True, kw_only=True)
class OnNetworkGrid:
    """Values of a case on the network's grid, and their way to the image's."""

    header: LogitsHeader
    array: blosc2.NDArray | np.ndarray
    """float16 (values, network grid)."""

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Voxels of the image per axis (z, y, x)."""
        return self.header.properties.geometry.canonical_shape

    def outside(self, *shape: int) -> Tensor:
        """The values (values, *shape) where the network did not look, outside of the cropped box."""
        return torch.zeros(self.array.shape[0], *shape)

    def slabs(self) -> Iterator[Slab]:
        """Values on the image's whole grid in canonical order, resampled, in slabs along z."""
        depth, height, width = self.canonical_shape
        rows = max(1, SLAB_BYTES // (4 * self.array.shape[0] * height * width))
        for start in range(0, depth, rows):
            stop = min(depth, start + rows)
            yield Slab(start=start, stop=stop, logits=self.slab(start, stop))

    def slab(self, start: int, stop: int) -> Tensor:
        """Resampled values (values, stop - start, y, x) of canonical rows."""
        header, properties = self.header, self.header.properties
        axis = header.transpose.index(0)
        shape = list(properties.full_shape)
        shape[axis] = stop - start
        slab = self.outside(*shape)
        low, high = properties.box[axis]
        first, last = max(start, low), min(stop, high)
        if first < last:
            rows = [(0, size) for size in properties.cropped_shape]
            rows[axis] = (first - low, last - low)
            target = [slice(*side) for side in properties.box]
            target[axis] = slice(first - start, last - start)
            slab[(slice(None), *target)] = self._resample(rows)
        return slab.permute(0, *(1 + header.transpose.index(canonical) for canonical in range(3)))

    def _resample(self, rows: Sequence[tuple[int, int]]) -> Tensor:
        """The box `rows` of the cropped grid, network order."""
        properties = self.header.properties
        coarse, nearest = separate_axis(self.header.spacing, properties.spacing), self.header.order == 0
        weights = [
            linear_weights(old, new, *span, nearest=nearest or axis == coarse)
            for axis, (old, new, span) in enumerate(zip(properties.shape, properties.cropped_shape, rows, strict=True))
        ]
        spans = [slice(int(low.min()), int(high.max()) + 1) for low, high, _ in weights]
        values = torch.from_numpy(self.array[(slice(None), *spans)].astype(np.float32))
        for axis, ((low, high, share), span) in enumerate(zip(weights, spans, strict=True)):
            values = _interpolate(values, axis + 1, low - span.start, high - span.start, share)
        return values


@dataclass(frozen=True, kw_only=True)
class Logits(OnNetworkGrid):
    """Logits of a case, (outputs, network grid)."""

    disagreement: OnNetworkGrid | None = None
    """How far the networks disagree, one value per voxel (`inference/disagreement.py`); None: nobody asked."""

    def outside(self, *shape: int) -> Tensor:
        """Logits of background."""
        return self.header.decision.background(*shape)

    def probabilities(self, temperature: float = 1.0) -> Iterator[Slab]:
        """Probabilities of the outputs, in the slabs of `slabs`; the logits are divided by `temperature` first."""
        for slab in self.slabs():
            yield replace(slab, logits=self.header.decision.probabilities(slab.logits / temperature))


def linear_weights(
    old_size: int, new_size: int, start: int, stop: int, *, nearest: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours and weights of linear interpolation along an axis, for the new voxels from `start` to `stop`.

    Voxel centres lie at (i + 1/2) / size, as in `torch.nn.functional.interpolate(align_corners=False)`; values beyond
    the outermost centres are those of the outermost voxels.

    Returns:
        lower neighbour, upper neighbour, and the weight of the upper one.
    """
    centres = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * old_size / new_size - 0.5
    centres = centres.clamp(0, old_size - 1)
    low = (centres + 0.5 if nearest else centres).floor().long().clamp(max=old_size - 1)
    high = low if nearest else (low + 1).clamp(max=old_size - 1)
    share = torch.zeros_like(centres) if nearest else centres - low
    return low, high, share.float()


def header_of(properties: CaseProperties, plan: PreprocessingPlan, order: int = 1) -> LogitsHeader:
    """The header for logits of a case that was preprocessed under `plan`; `order` as in `inference.logits_order`."""
    return LogitsHeader(
        properties=properties,
        labels=plan.labels,
        regions=plan.regions,
        transpose=plan.transpose,
        spacing=plan.spacing_for(properties.spacing),
        order=order,
    )


def write_logits(folder: Path, header: LogitsHeader, slabs: Iterable[Slab]) -> Logits:
    """Writes slabs (network order) as they come to `CASE.logits.b2nd` and `CASE.json`, and opens the result."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    case, shape = header.properties.case, header.properties.shape
    path = folder / f"{case}.logits.b2nd"
    with atomic_path(path) as partial:
        array = blosc2.zeros(
            header.shape,
            dtype=np.float16,
            urlpath=str(partial),
            mode="w",
            # One row: slabs of any height neither read nor write a chunk twice. Parts of a row: strips seldom do.
            chunks=(1, 1, min(shape[1], CHUNK_COLUMNS), shape[2]),
            cparams=blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=1),
        )
        for rows, place in _placed(slabs):
            with writing(path):
                array[place] = rows
        del array
    write_json(folder / f"{case}.json", to_plain(header))
    return open_logits(folder, case)


def hold_logits(header: LogitsHeader, slabs: Iterable[Slab]) -> Logits:
    """Slabs (network order) as they come, in memory: the numbers that `write_logits` writes."""
    array = np.zeros(header.shape, dtype=np.float16)
    for rows, place in _placed(slabs):
        array[place] = rows
    return Logits(header=header, array=array)


def _placed(slabs: Iterable[Slab]) -> Iterator[tuple[np.ndarray, tuple[slice, ...]]]:
    """The logits of each slab as float16, and where they belong."""
    for slab in slabs:
        yield slab.logits.clamp(-6e4, 6e4).half().cpu().numpy(), slab.place


def open_logits(folder: Path, case: str) -> Logits:
    """Opens logits without reading them.

    Raises:
        UserError: they are missing or damaged.
    """
    where = Path(folder) / f"{case}.json"
    header = from_plain(LogitsHeader, read_json(where, what="header of logits"), where=str(where))
    check_properties(header.properties, case, str(where))
    array = open_array(Path(folder) / f"{case}.logits.b2nd")
    if array.shape != header.shape:
        raise UserError(
            f"{folder}: the logits of case {case} have shape {array.shape}, which is not that of their header"
        )
    return Logits(header=header, array=array)


def label_map(shape: Sequence[int], decision: Decision, slabs: Iterable[Slab], *, probable: bool = False) -> np.ndarray:
    """The label values of logits or probabilities, (z, y, x), uint8 or uint16.

    Args:
        shape: voxels of the image.
        decision: how they become labels.
        slabs: along z, covering the image.
        probable: whether they hold probabilities.
    """
    result = np.zeros(tuple(shape), dtype=label_type(decision.largest))
    for start, rows in label_slabs(decision, slabs, probable=probable):
        result[start : start + len(rows)] = rows
    return result


def label_slabs(decision: Decision, slabs: Iterable[Slab], *, probable: bool) -> Iterator[tuple[int, np.ndarray]]:
    """First row and label values (rows, y, x) of each slab, as `label_map` has them."""
    values = decision.values if probable else decision.values_of_logits
    for slab in slabs:
        yield slab.start, values(slab.logits)


def write_label_map(output: Path, header: LogitsHeader, slabs: Iterable[Slab], *, probable: bool = False) -> None:
    """Writes `output/CASE.nii.gz`, the label values of each voxel of the image's own grid.

    Args:
        header: of the case.
        slabs: along z, from the first row to the last; they are written as they come.
        probable: whether they hold probabilities, and not logits.
    """
    properties, decision = header.properties, header.decision
    write_label_slabs(
        output / f"{properties.case}.nii.gz",
        label_slabs(decision, slabs, probable=probable),
        properties.geometry,
        largest=decision.largest,
    )


def _interpolate(values: Tensor, axis: int, low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    shape = [1] * values.ndim
    shape[axis] = len(share)
    lower = values.index_select(axis, low)
    if not share.any():
        return lower
    return torch.lerp(lower, values.index_select(axis, high), share.view(shape))
