"""Augmentations of one patch, by default nnU-Net's (Isensee et al. 2021): `config.training.Augmentation`.

All random numbers are drawn first; a transform that nnU-Net does not have draws none where its probability is 0. The
spatial transform reads just the box that it needs, does nothing where it was not drawn, and otherwise costs one grid
for image and labels together. Shifts, quarter turns and mirroring move voxels and interpolate nothing. Patches with one
coarse axis (longest side / first side > 3), and slices, are turned, sheared, scaled and deformed in-plane only, unless
`in_plane` says otherwise.

List, order, probabilities and ranges are those of nnU-Net 2.8.1 with batchgeneratorsv2 0.3.6. What differs:

- A rotated or enlarged patch sees all that the case holds. nnU-Net cuts out a box of fixed size first, and patches that
  reach beyond it are filled with zeros.
- Outside of the case is background. nnU-Net has a label of its own there while it interpolates.
- Interpolated labels are compared in float32; nnU-Net rounds them to 1/2000, which decides near ties otherwise.
- Blur is never wider than the patch. nnU-Net's reflection fails on patches of one to three voxels.
- Voxels outside of the nonzero mask of a z-scored image are augmented like all others. nnU-Net sets them to zero again.
- The binary operations on the previous stage's segmentation in a cascade are in `first_stage_augmentation.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.config.training import Augmentation
from megavoxel.preprocessing.store import Box
from megavoxel.training import intensity
from megavoxel.training.elastic import displacement, largest_displacement
from megavoxel.training.intensity import Intensity

POINTS_AT_ONCE = 2**20
"""Points at which `labels_at_all_voxels` works together, so that it needs no more than about 200 MiB."""
TIE = 1e-5
"""Shares of two labels that differ by less than this are equal but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The spatial part of one sample's augmentation."""

    matrix: np.ndarray | None
    """3 x 3, offsets from the patch's centre to offsets in the source, in voxels; None: no change."""
    mirrored: tuple[int, ...]
    """Axes to flip."""
    displacement: Tensor | None = None
    """Elastic displacements in voxels, added to the offsets before the matrix, beside which alone they are: float32
    (axes, patch before quarter turns), without the first axis where patches turn in-plane."""
    most_displaced: float = 0.0
    """Voxels by which they move any voxel along an axis at most."""
    shift: tuple[int, ...] = (0, 0, 0)
    """Voxels by which the source lies farther along each axis."""
    quarter_turns: int = 0
    """Turns by 90 degrees in the plane of the last two axes, as by `torch.rot90`."""

    def with_displacement(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """These draws with the displacements changed, if there are any."""
        return self if self.displacement is None else replace(self, displacement=change(self.displacement))


class Augmenter:
    """Augments patches of one shape.

    Args:
        settings: probabilities and ranges.
        patch: voxels per axis.
        at_all_voxels: whether labels are interpolated by `labels_at_all_voxels`.
    """

    def __init__(self, settings: Augmentation, patch: Sequence[int], *, at_all_voxels: bool = False) -> None:
        self.settings = settings
        self.labels_at = labels_at_all_voxels if at_all_voxels else sample_labels
        self.patch = tuple(patch)
        flat = patch[0] == 1 or max(patch) / patch[0] > 3
        self.in_plane = flat if settings.in_plane is None else settings.in_plane

    def draw(self, random: np.random.Generator) -> Draws:
        """Draws all that moves voxels."""
        keys = self.settings
        is_rotated, is_scaled = random.random() < keys.rotation, random.random() < keys.scaling
        turned = rotation_matrix(self._angles(random)) if is_rotated else np.eye(3)
        zoomed = self._zoom(random) if is_scaled else np.eye(3)
        is_sheared, is_deformed = _is_drawn(keys.shear, random), _is_drawn(keys.elastic, random)
        sheared = self._shear(random) if is_sheared else np.eye(3)
        quarters = int(random.integers(1, 4)) if _is_drawn(keys.quarter_turn, random) else 0
        moved = self._displacement(quarters, random) if is_deformed else None
        return Draws(
            matrix=turned @ sheared @ zoomed if is_rotated or is_scaled or is_sheared or is_deformed else None,
            displacement=moved,
            most_displaced=0.0 if moved is None else float(moved.abs().max()),
            shift=self._shift(random) if _is_drawn(keys.shift, random) else (0, 0, 0),
            quarter_turns=quarters,
            mirrored=tuple(axis for axis in keys.mirror_axes if random.random() < keys.mirror_probability),
        )

    def largest(self) -> Draws:
        """The spatial draws with the largest source box."""
        keys = self.settings
        turned = min(self._largest_angle(), math.pi / 4) if keys.rotation else 0.0
        zoom = max(1.0, *keys.scaling_range) if keys.scaling else 1.0
        # A product of matrices reaches no farther than that of their absolute values.
        matrix = np.abs(rotation_matrix((turned, 0.0, 0.0) if self.in_plane else (turned,) * 3))
        matrix = matrix @ self._sheared(np.full((3, 3), keys.shear_limit if keys.shear else 0.0))
        changes = keys.rotation or keys.scaling or keys.shear or keys.elastic
        shape = self._moved_axes(self.patch)
        most = largest_displacement(len(shape), keys.elastic_sigma[0], keys.elastic_magnitude[1])
        return Draws(
            matrix=matrix @ self._zoomed((zoom,) * 3) if changes else None,
            displacement=torch.full((len(shape), *shape), most) if keys.elastic else None,
            most_displaced=most if keys.elastic else 0.0,
            mirrored=keys.mirror_axes,
        )

    def source_box(self, start: Sequence[int], draws: Draws) -> Box:
        """The voxels that the patch beginning at `start` is made of."""
        shape, moved = np.array(self._shape(draws.quarter_turns)), np.add(start, draws.shift)
        if draws.matrix is None:
            first = moved + (np.array(self.patch) - shape) // 2
            return Box(start=tuple(int(x) for x in first), shape=tuple(int(x) for x in shape))
        half = (shape - 1) / 2 + draws.most_displaced * np.array([not self.in_plane, 1, 1])
        # Rounding outwards keeps the box centred on the patch: both ends lie on .0 or .5.
        reach = np.abs(draws.matrix) @ half
        centre = moved + (np.array(self.patch) - 1) / 2
        first = np.floor(centre - reach).astype(int)
        last = np.ceil(centre + reach).astype(int)
        return Box(start=tuple(int(x) for x in first), shape=tuple(int(x) for x in last - first + 1))

    def apply(self, image: Tensor, labels: Tensor, draws: Draws, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augments what was read from the source box.

        Args:
            image: float32 (channels, box).
            labels: uint8 or int32 classes: one map (box) or several (maps, box).

        Returns:
            image (channels, patch) and labels ([maps,] patch) of the type that they came in.
        """
        return self.change(image, labels, draws, intensity.draw(self.settings, len(image), random))

    def change(
        self, image: Tensor, labels: Tensor, draws: Draws, drawn: Intensity, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`apply` with intensities that were drawn before; `noise` as for `intensity.change`. On any device."""
        image, labels = self.turn(image, labels, draws)
        image = intensity.change(image, drawn, in_plane=self.in_plane, noise=noise)
        return self.mirror(image, draws).contiguous(), self.mirror(labels, draws).contiguous()

    def turn(self, image: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Rotates, shears, scales, deforms and takes quarter turns: from the source box to the patch."""
        if draws.matrix is not None:
            grid, shape = self._grid(image, draws), self._shape(draws.quarter_turns)
            flat = image.flatten(0, 1) if self.in_plane else image
            turned = F.grid_sample(flat[None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]
            image, labels = turned.view(len(image), *shape), self._labels_at(labels, grid)
        return _in_quarters(image, draws), _in_quarters(labels, draws)

    def turn_labels(self, labels: Tensor, draws: Draws) -> Tensor:
        """`turn` of label maps alone, (maps, box)."""
        if draws.matrix is not None:
            labels = self._labels_at(labels, self._grid(labels, draws))
        return _in_quarters(labels, draws)

    @staticmethod
    def mirror(voxels: Tensor, draws: Draws) -> Tensor:
        """Flips voxels (…, patch)."""
        return voxels.flip([axis - 3 for axis in draws.mirrored]) if draws.mirrored else voxels

    def _largest_angle(self) -> float:
        degrees = self.settings.rotation_degrees
        if degrees is None:
            degrees = 180.0 if self.in_plane else 30.0
        return math.radians(degrees)

    def _angles(self, random: np.random.Generator) -> tuple[float, float, float]:
        limit = self._largest_angle()
        if self.in_plane:
            return (random.uniform(-limit, limit), 0.0, 0.0)
        first, second, third = (random.uniform(-limit, limit) for _ in range(3))
        return (first, second, third)

    def _zoom(self, random: np.random.Generator) -> np.ndarray:
        limits = self.settings.scaling_range
        if self.settings.scaling_per_axis:
            return self._zoomed([random.uniform(*limits) for _ in range(3)])
        return self._zoomed((random.uniform(*limits),) * 3)

    def _zoomed(self, zooms: Sequence[float]) -> np.ndarray:
        return np.diag([1.0 if self.in_plane else zooms[0], *zooms[1:]])

    def _shear(self, random: np.random.Generator) -> np.ndarray:
        limit = self.settings.shear_limit
        return self._sheared(random.uniform(-limit, limit, (3, 3)))

    def _sheared(self, shears: np.ndarray) -> np.ndarray:
        """The matrix with numbers (3, 3) beside its diagonal of ones."""
        matrix = np.where(np.eye(3, dtype=bool), 1.0, shears)
        if self.in_plane:
            matrix[0, 1:] = matrix[1:, 0] = 0
        return matrix

    def _displacement(self, quarters: int, random: np.random.Generator) -> Tensor:
        sigma, magnitude = (
            random.uniform(*self.settings.elastic_sigma),
            random.uniform(*self.settings.elastic_magnitude),
        )
        return displacement(self._moved_axes(self._shape(quarters)), sigma, magnitude, random)

    def _shift(self, random: np.random.Generator) -> tuple[int, ...]:
        most = [round(self.settings.shift_limit * size) for size in self.patch]
        return tuple(int(random.integers(-limit, limit + 1)) for limit in most)

    def _moved_axes(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape[1:] if self.in_plane else shape)

    def _shape(self, quarters: int) -> tuple[int, ...]:
        """The patch as it is before so many quarter turns."""
        first, second, third = self.patch
        return (first, third, second) if quarters % 2 else self.patch

    def _grid(self, voxels: Tensor, draws: Draws) -> Tensor:
        """The grid of the patch in voxels (…, source box); of a slice where patches turn in-plane."""
        first, shape = 1 if self.in_plane else 0, self._shape(draws.quarter_turns)
        matrix = draws.matrix[first:, first:]
        grid = _grid(matrix, voxels.shape[first - 3 :], shape[first:], voxels.device)
        return grid if draws.displacement is None else _displaced(grid, matrix, voxels.shape[first - 3 :], draws)

    def _labels_at(self, labels: Tensor, grid: Tensor) -> Tensor:
        """Labels ([maps,] source box) at the points of a grid."""
        axes = grid.shape[-1]
        found = self.labels_at(labels.reshape(-1, *labels.shape[-axes:]), grid)
        return found.view(*labels.shape[:-axes], *found.shape[1:])


def _is_drawn(probability: float, random: np.random.Generator) -> bool:
    return probability > 0 and random.random() < probability


def _in_quarters(voxels: Tensor, draws: Draws) -> Tensor:
    """Takes quarter turns of voxels (…, patch)."""
    return voxels.rot90(draws.quarter_turns, (-2, -1)) if draws.quarter_turns else voxels


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Rotation about axes 0, 1 and 2, one after the other, by angles in radians; 3 x 3 on offsets in axis order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[first, second], [first, second]] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def _grid(matrix: np.ndarray, source: Sequence[int], patch: Sequence[int], device: torch.device) -> Tensor:
    """Sampling grid of a patch in a source box with the same centre, for `grid_sample` with align_corners."""
    # grid_sample counts from -1 at the first to 1 at the last voxel, and takes its coordinates in the order x, y, z.
    to_unit = np.diag(2 / np.maximum(np.array(source) - 1, 1))
    from_unit = np.diag((np.array(patch) - 1) / 2)
    linear = (to_unit @ matrix @ from_unit)[::-1, ::-1]
    # Unlike `affine_grid`, without a product of matrices, for which a GPU may take fewer digits.
    axes = [torch.linspace(-1, 1, size, device=device) if size > 1 else torch.zeros(1, device=device) for size in patch]
    steps = [axis.view([-1, *[1] * (len(patch) - number)]) for number, axis in enumerate(axes, start=1)]
    grid = torch.empty(1, *patch, len(patch), device=device)
    for place, factors in enumerate(linear.tolist()):
        grid[0, ..., place] = sum(factor * step for factor, step in zip(factors, reversed(steps), strict=True))
    return grid


def _displaced(grid: Tensor, matrix: np.ndarray, source: Sequence[int], draws: Draws) -> Tensor:
    """A grid as `_grid` gives it, with the displacements of its points; it is changed."""
    linear = np.diag(2 / np.maximum(np.array(source) - 1, 1)) @ matrix
    for place, factors in enumerate(linear[::-1].tolist()):
        for factor, moved in zip(factors, draws.displacement, strict=True):
            grid[0, ..., place].add_(moved, alpha=factor)
    return grid


def sample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Interpolates the 0/1 mask of every label linearly and takes the largest; the nearest voxel's where two are equal.

    That is the nearest voxel's label wherever all voxels around it have the same one; only the others are worked out.

    Args:
        labels: uint8 or int32 (channels, source), two or three axes.
        grid: (1, patch, axes), as for `grid_sample` with align_corners; between -1 and 1.

    Returns:
        (channels, patch) of the same type.
    """
    labels = labels.contiguous()
    marked = labels.float().masked_fill_(_has_other_neighbours(labels), -1)
    sampled = F.grid_sample(marked[None], grid, mode="nearest", padding_mode="border", align_corners=True)[0]
    result = sampled.to(labels.dtype)
    mixed = (sampled < 0).flatten().nonzero()[:, 0]
    points = grid.view(-1, grid.shape[-1])
    corners, shares = _corners(labels, mixed // len(points), points[mixed % len(points)])
    result.view(-1)[mixed] = _largest_share(corners, shares)
    return result


def labels_at_all_voxels(labels: Tensor, grid: Tensor) -> Tensor:
    """What `sample_labels` gives, worked out at all voxels: on a GPU, the host need not wait to learn at which."""
    labels, channels = labels.contiguous(), torch.arange(len(labels), device=labels.device)[:, None]
    points = grid.view(-1, grid.shape[-1])
    parts = points.split(max(1, POINTS_AT_ONCE // len(labels)))
    found = [_elected(*_corners(labels, channels, part)) for part in parts]
    return torch.cat(found, dim=1).view(len(labels), *grid.shape[1:-1])


def _has_other_neighbours(labels: Tensor) -> Tensor:
    """Whether the 3 x 3 (x 3) voxels around each one have different labels, bool (channels, source)."""
    low = high = labels
    for axis in (axis for axis in range(1, labels.ndim) if labels.shape[axis] > 1):
        low = torch.minimum(low.narrow(axis, 0, low.shape[axis] - 1), low.narrow(axis, 1, low.shape[axis] - 1))
        high = torch.maximum(high.narrow(axis, 0, high.shape[axis] - 1), high.narrow(axis, 1, high.shape[axis] - 1))
    cells = low != high
    mixed = torch.zeros_like(labels, dtype=torch.bool)
    sides = (range(size - cell + 1) for size, cell in zip(labels.shape[1:], cells.shape[1:], strict=True))
    for corner in itertools.product(*sides):
        part = tuple(slice(first, first + size) for first, size in zip(corner, cells.shape[1:], strict=True))
        mixed[(slice(None), *part)] |= cells
    return mixed


def _corners(labels: Tensor, channel: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of the voxels around points and their linear weights.

    Args:
        labels: (channels, source), contiguous.
        channel: int64, of each point (points), or of all points (channels, 1).
        points: (points, axes), as for `grid_sample` with align_corners.

    Returns:
        (corners, points) or (corners, channels, points), and (corners, points).
    """
    index, shares = (channel * labels.stride(0))[None], torch.ones(1, 1, device=points.device)
    for axis in range(1, labels.ndim):
        size, stride = labels.shape[axis], labels.stride(axis)
        position = (points[:, -axis] + 1) / 2 * (size - 1)  # points are in the order x, y, z
        low = position.floor().clamp(0, max(0, size - 2))
        index = index + low.long() * stride
        index = torch.cat([index, index + (stride if size > 1 else 0)])
        shares = torch.cat([shares * (1 - (position - low)), shares * (position - low)])
    return labels.view(-1)[index], shares


def _largest_share(corners: Tensor, shares: Tensor) -> Tensor:
    """The label with the largest sum of weights per point; of equal ones that of the nearest corner, if it is one."""
    nearest = shares.max(dim=0, keepdim=True).indices  # argmax takes five times as long
    result = corners.gather(0, nearest)[0]
    own = ((corners == result) * shares).sum(dim=0)
    undecided = (own < 0.5 - TIE).nonzero()[:, 0]
    corners, shares = corners[:, undecided], shares[:, undecided]
    most, which = ((corners[:, None] == corners) * shares).sum(dim=1).max(dim=0)
    winner = corners.gather(0, which[None])[0]
    result[undecided] = torch.where(own[undecided] < most - TIE, winner, result[undecided])
    return result


def _elected(corners: Tensor, shares: Tensor) -> Tensor:
    """`_largest_share` without a choice of points: of labels (corners, channels, points), weights (corners, points)."""
    shares = shares[:, None]
    nearest = shares.max(dim=0, keepdim=True).indices.expand(1, *corners.shape[1:])
    result = corners.gather(0, nearest)[0]
    own = ((corners == result) * shares).sum(dim=0)
    winner, most = result, torch.zeros_like(own)
    for corner in corners:
        share = ((corners == corner) * shares).sum(dim=0)
        winner, most = torch.where(share > most, corner, winner), torch.maximum(share, most)
    return torch.where((own < 0.5 - TIE) & (own < most - TIE), winner, result)
