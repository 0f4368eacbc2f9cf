"""Milliseconds per sample of training augmentation, against nnU-Net's own list of transforms in batchgeneratorsv2.

Both start from a whole case in memory, cut out the box that they need, and end with a patch of image and labels, in one
thread. The case is smooth noise with four structures; probabilities and ranges are nnU-Net's, the same in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from scipy import ndimage

from benchmarks.measure import Row, in_process, paired_seconds, peer, smaller_is_better
from megavoxel.config.training import Augmentation
from megavoxel.preprocessing.store import read_box
from megavoxel.training.augmentation import Augmenter

SAMPLES = {(64, 160, 160): 60, (32, 224, 256): 150, (40, 56, 40): 500}
"""Samples per repeat of each patch, of other random numbers in every repeat."""
REPEATS = 3
STRUCTURES = 4


def run() -> list[Row]:
    """One row per patch."""
    rows = []
    for patch, samples in SAMPLES.items():
        ours, theirs = in_process(seconds, patch, samples)
        kind = "in-plane" if Augmenter(Augmentation(), patch).in_plane else "3D"
        title = f"augmentation of a {' x '.join(map(str, patch))} patch, {kind}"
        rows.append(
            smaller_is_better(title, peer("batchgeneratorsv2"), 1e3 * ours / samples, 1e3 * theirs / samples, "ms")
        )
    return rows


def seconds(patch: tuple[int, ...], samples: int) -> tuple[float, float]:
    """Seconds that each needs for so many samples."""
    torch.set_num_threads(1)
    image, labels = make_case(tuple(2 * size for size in patch))
    ours, theirs = our_sample(patch, image, labels), their_sample(patch, image, labels)

    def many(sample: Callable[[int], None]) -> Callable[[], None]:
        numbers = itertools.count()

        def work() -> None:
            for number in itertools.islice(numbers, samples):
                sample(number)

        return work

    return paired_seconds(many(ours), many(theirs), repeats=REPEATS)


def make_case(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """float32 image (1, z, y, x) and uint8 labels (z, y, x): an ellipsoid in each of four quarters of the plane."""
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = ndimage.gaussian_filter(image, 1.0)
    labels = np.zeros(shape, dtype=np.uint8)
    grid = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij", sparse=True)
    for label, (y, x) in enumerate(((-0.25, -0.25), (-0.25, 0.25), (0.25, -0.25), (0.25, 0.25)), start=1):
        labels[(grid[0] / 0.6) ** 2 + ((grid[1] - y) / 0.2) ** 2 + ((grid[2] - x) / 0.22) ** 2 < 1] = label
    return image[None], labels


def our_sample(patch: tuple[int, ...], image: np.ndarray, labels: np.ndarray) -> Callable[[int], None]:
    """A function that makes one sample, by its number."""
    augmenter = Augmenter(Augmentation(), patch)
    start = [(size - extent) // 2 for size, extent in zip(labels.shape, patch, strict=True)]

    def sample(number: int) -> None:
        random = np.random.default_rng(number)
        draws = augmenter.draw(random)
        box = augmenter.source_box(start, draws)
        cut = torch.from_numpy(read_box(image, box)), torch.from_numpy(read_box(labels, box))
        augmenter.apply(*cut, draws, random)

    return sample


def their_sample(patch: tuple[int, ...], image: np.ndarray, labels: np.ndarray) -> Callable[[int], None]:
    """A function that makes one sample with the crop and transforms of nnU-Net's trainer, by its number."""
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=patch), print_to_log_file=lambda *_: None
    )
    configure = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size
    rotation, in_plane, enlarged, mirror_axes = configure(trainer)
    transforms = nnUNetTrainer.get_training_transforms(patch, rotation, None, mirror_axes, in_plane)
    start = [(size - extent) // 2 for size, extent in zip(labels.shape, enlarged, strict=True)]
    box = [[first, first + int(extent)] for first, extent in zip(start, enlarged, strict=True)]

    def sample(number: int) -> None:
        np.random.seed(number)
        torch.manual_seed(number)
        cut = torch.from_numpy(crop_and_pad_nd(image, box, 0)).float()
        cut_labels = torch.from_numpy(crop_and_pad_nd(labels[None], box, -1, cast_cropped_to=np.int16))
        transforms(image=cut, segmentation=cut_labels.to(torch.int16))

    return sample
