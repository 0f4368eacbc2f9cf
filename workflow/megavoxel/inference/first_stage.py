"""What a network of a cascade's second stage is given: the image, and the first stage's labels behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from megavoxel.network.one_hot import one_hot_branches
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.first_stage import open_first_stage
from megavoxel.preprocessing.store import CaseProperties


def with_first_stage(plan: Plan, image: Any, properties: CaseProperties, folders: Sequence[Path]) -> Any:
    """What the network of a setting is given of a preprocessed case: its image or, in a second stage, both together.

    Args:
        plan: the setting.
        image: array (channels, network grid), which need not have been read.
        properties: of the case.
        folders: with the first stage's labels, of which the case is in one; for a plan with `stage1`.
    """
    if not plan.stage1:
        return image
    labels = open_first_stage(folders, properties.case, (len(plan.stage1), *properties.shape))
    return ImageWithFirstStage(image=image, first_stage=labels, classes=plan.network.classes)


@dataclass(frozen=True, kw_only=True)
class ImageWithFirstStage:
    """An array (channels, network grid) that is put together as it is read: indexing reads what it touches."""

    image: np.ndarray | blosc2.NDArray
    """float32 (channels, network grid)."""
    first_stage: np.ndarray | blosc2.NDArray
    """uint8 classes (branches, network grid)."""
    classes: int
    """Classes of the first stage, background counted."""

    ndim = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels of the image and of the one-hot labels, and the network grid."""
        channels = self.image.shape[0] + self.first_stage.shape[0] * (self.classes - 1)
        return (channels, *self.image.shape[1:])

    def __getitem__(self, index: Any) -> np.ndarray:
        """float32 voxels of a box; `index` is four slices, the first of which takes all channels."""
        labels = np.asarray(self.first_stage[index])
        return np.concatenate([self.image[index], one_hot_branches(labels, self.classes).numpy()])
