"""nnU-Net's augmentations on one patch (Isensee et al. 2021); probabilities and ranges: `config.study.Augmentation`.

All random numbers are drawn first. The spatial transform reads just the box that it needs, does nothing where it was
not drawn, and otherwise costs one grid for image and labels together. Patches with one coarse axis
(longest side / first side > 3) are turned and scaled in-plane only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megavoxel.config.study import Augmentation
from megavoxel.preprocessing.store import Box
from megavoxel.training import intensity


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
                zoom = intensity.draw_factor(self.settings.scaling_range, random)
                matrix = matrix @ np.diag([1.0 if self.in_plane else zoom, zoom, zoom])
        mirrored = tuple(axis for axis in self.settings.mirror_axes if random.random() < 0.5)
        return Draws(matrix=matrix, mirrored=mirrored)

    def source_box(self, start: Sequence[int], draws: Draws) -> Box:
        """The voxels that the patch beginning at `start` is made of."""
        if draws.matrix is None:
            return Box(start=tuple(start), shape=self.patch)
        half = (
            np.array(self.patch) - 1
        ) / 2  # rounding outwards keeps the box centred on the patch: both end on .0 or .5
        reach = np.abs(draws.matrix) @ half
        centre = np.array(start) + half
        first = np.floor(centre - reach).astype(int)
        last = np.ceil(centre + reach).astype(int)
        return Box(start=tuple(int(x) for x in first), shape=tuple(int(x) for x in last - first + 1))

    def apply(self, image: Tensor, labels: Tensor, draws: Draws, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augments what was read from the source box.

        Args:
            image: float32 (channels, box).
            labels: integer classes (box).

        Returns:
            image (channels, patch) and labels (patch).
        """
        if draws.matrix is not None:
            image, labels = self._transform(image, labels, draws.matrix)
        image = intensity.augment(image, self.settings, random, in_plane=self.in_plane)
        if draws.mirrored:
            image = image.flip([axis + 1 for axis in draws.mirrored])
            labels = labels.flip(list(draws.mirrored))
        return image.contiguous(), labels.contiguous()

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
            turned, turned_labels = _sample(image.flatten(0, 1), labels, grid)
            return turned.unflatten(0, (image.shape[0], image.shape[1])), turned_labels
        grid = _grid(matrix, image.shape[1:], self.patch)
        turned, turned_labels = _sample(image, labels[None], grid)
        return turned, turned_labels[0]


def rotation_matrix(angles: Sequence[float]) -> np.ndarray:
    """Rotation about axes 0, 1 and 2, one after the other, by angles in radians; 3 x 3 on offsets in axis order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[first, second], [first, second]] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def _grid(matrix: np.ndarray, source: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Sampling grid of a patch in a source box with the same centre, for `grid_sample` with align_corners."""
    # grid_sample counts from -1 at the first to 1 at the last voxel, and takes its coordinates in the order x, y, z.
    to_unit = np.diag(2 / np.maximum(np.array(source) - 1, 1))
    from_unit = np.diag((np.array(patch) - 1) / 2)
    linear = (to_unit @ matrix @ from_unit)[::-1, ::-1]
    theta = torch.from_numpy(np.hstack([linear, np.zeros((len(patch), 1))])).float()
    return F.affine_grid(theta[None], [1, 1, *patch], align_corners=True)


def _sample(image: Tensor, labels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    turned = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    nearest = F.grid_sample(labels[None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=True)
    return turned[0], nearest[0].to(labels.dtype)
