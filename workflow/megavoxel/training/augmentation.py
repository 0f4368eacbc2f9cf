"""nnU-Net's augmentations on one patch (Isensee et al. 2021); probabilities and ranges: `config.training.Augmentation`.

All random numbers are drawn first. The spatial transform reads just the box that it needs, does nothing where it was
not drawn, and otherwise costs one grid for image and labels together. Patches with one coarse axis
(longest side / first side > 3) are turned and scaled in-plane only.

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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.config.training import Augmentation
from megavoxel.preprocessing.store import Box
from megavoxel.training import intensity

TIE = 1e-5
"""Shares of two labels that differ by less than this are equal but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The spatial part of one sample's augmentation."""

    matrix: np.ndarray | None
    """3 x 3, offsets from the patch's centre to offsets in the source, in voxels; None: no change."""
    mirrored: tuple[int, ...]
    """Axes to flip."""


class Augmenter:
    """Augments patches of one shape.

    Args:
        settings: probabilities and ranges.
        patch: voxels per axis.
    """

    def __init__(self, settings: Augmentation, patch: Sequence[int]) -> None:
        self.settings = settings
        self.patch = tuple(patch)
        self.in_plane = max(patch) / patch[0] > 3

    def draw(self, random: np.random.Generator) -> Draws:
        """Draws rotation, scaling and mirroring."""
        rotated = random.random() < self.settings.rotation
        scaled = random.random() < self.settings.scaling
        matrix = None
        if rotated or scaled:
            matrix = np.eye(3)
            if rotated:
                matrix = rotation_matrix(self._angles(random))
            if scaled:
                zoom = random.uniform(*self.settings.scaling_range)
                matrix = matrix @ np.diag([1.0 if self.in_plane else zoom, zoom, zoom])
        mirrored = tuple(axis for axis in self.settings.mirror_axes if random.random() < 0.5)
        return Draws(matrix=matrix, mirrored=mirrored)

    def source_box(self, start: Sequence[int], draws: Draws) -> Box:
        """The voxels that the patch beginning at `start` is made of."""
        if draws.matrix is None:
            return Box(start=tuple(start), shape=self.patch)
        half = (np.array(self.patch) - 1) / 2
        # Rounding outwards keeps the box centred on the patch: both ends lie on .0 or .5.
        reach = np.abs(draws.matrix) @ half
        centre = np.array(start) + half
        first = np.floor(centre - reach).astype(int)
        last = np.ceil(centre + reach).astype(int)
        return Box(start=tuple(int(x) for x in first), shape=tuple(int(x) for x in last - first + 1))

    def apply(self, image: Tensor, labels: Tensor, draws: Draws, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augments what was read from the source box.

        Args:
            image: float32 (channels, box).
            labels: uint8 or int32 classes: one map (box) or several (maps, box).

        Returns:
            image (channels, patch) and int64 labels ([maps,] patch).
        """
        if draws.matrix is not None:
            image, labels = self._transform(image, labels, draws.matrix)
        image = intensity.augment(image, self.settings, random, in_plane=self.in_plane)
        if draws.mirrored:
            image = image.flip([axis + 1 for axis in draws.mirrored])
            labels = labels.flip([axis - 3 for axis in draws.mirrored])
        return image.contiguous(), labels.long().contiguous()

    def _angles(self, random: np.random.Generator) -> tuple[float, float, float]:
        degrees = self.settings.rotation_degrees
        if degrees is None:
            degrees = 180.0 if self.in_plane else 30.0
        limit = math.radians(degrees)
        if self.in_plane:
            return (random.uniform(-limit, limit), 0.0, 0.0)
        first, second, third = (random.uniform(-limit, limit) for _ in range(3))
        return (first, second, third)

    def _transform(self, image: Tensor, labels: Tensor, matrix: np.ndarray) -> tuple[Tensor, Tensor]:
        if self.in_plane:
            grid = _grid(matrix[1:, 1:], image.shape[2:], self.patch[1:])
            turned = _sample_image(image.flatten(0, 1), grid).unflatten(0, image.shape[:2])
            slices = sample_labels(labels.reshape(-1, *labels.shape[-2:]), grid)
            return turned, slices.reshape(*labels.shape[:-2], *slices.shape[1:])
        grid = _grid(matrix, image.shape[1:], self.patch)
        maps = sample_labels(labels.reshape(-1, *labels.shape[-3:]), grid)
        return _sample_image(image, grid), maps.reshape(*labels.shape[:-3], *maps.shape[1:])


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


def _grid(matrix: np.ndarray, source: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Sampling grid of a patch in a source box with the same centre, for `grid_sample` with align_corners."""
    # grid_sample counts from -1 at the first to 1 at the last voxel, and takes its coordinates in the order x, y, z.
    to_unit = np.diag(2 / np.maximum(np.array(source) - 1, 1))
    from_unit = np.diag((np.array(patch) - 1) / 2)
    linear = (to_unit @ matrix @ from_unit)[::-1, ::-1]
    theta = torch.from_numpy(np.hstack([linear, np.zeros((len(patch), 1))])).float()
    return F.affine_grid(theta[None], [1, 1, *patch], align_corners=True)


def _sample_image(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)[0]


def sample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Interpolates the 0/1 mask of every label linearly and takes the largest; the nearest voxel's where two are equal.

    That is the nearest voxel's label wherever all voxels around it have the same one; only the others are worked out.

    Args:
        labels: uint8 or int32 (channels, source), two or three axes.
        grid: (1, patch, axes), as for `grid_sample` with align_corners; between -1 and 1.

    Returns:
        int64 (channels, patch).
    """
    labels = labels.contiguous()
    marked = labels.float().masked_fill_(_has_other_neighbours(labels), -1)
    sampled = F.grid_sample(marked[None], grid, mode="nearest", padding_mode="border", align_corners=True)[0]
    result = sampled.long()
    mixed = (sampled < 0).flatten().nonzero()[:, 0]
    points = grid.view(-1, grid.shape[-1])
    corners, shares = _corners(labels, mixed // len(points), points[mixed % len(points)])
    result.view(-1)[mixed] = _largest_share(corners.long(), shares)
    return result


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
    """Labels of the voxels around each point and their linear weights, both (corners, points)."""
    index, shares = (channel * labels.stride(0))[None], torch.ones(1, len(points))
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
