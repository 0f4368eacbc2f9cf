"""Cases that memory does not hold, from their files to the store block by block.

Each file is read once, slab by slab, to a compressed array beside the stored cases. From there blocks are normalised,
resampled and written as the chunks of the stored arrays. What depends on the whole image is gathered first: the nonzero
box while the file is read, moments, holes and extremes by a pass over the blocks.

The result is that of `preprocess_image` and `preprocess_labels`: labels and foreground exactly; intensities exactly
where the rule is `ct` and nothing is resampled, else but for the rounding of moments summed in another order, and for
the negligible weights of `resample_block`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import blosc2
import numpy as np

from megavoxel.errors import UserError
from megavoxel.files import writing
from megavoxel.planning.plan import ChannelNormalisation, PreprocessingPlan
from megavoxel.preprocessing.foreground import count_classes, sample_foreground
from megavoxel.preprocessing.normalise import normalise_channel, statistics_of
from megavoxel.preprocessing.resample import elect_labels, extremes, label_taps, resample_block
from megavoxel.preprocessing.store import CaseProperties, case_properties, image_path, labels_path, new_array
from megavoxel.volumes.checks import Intensities, require_sound
from megavoxel.volumes.grid import separate_axis
from megavoxel.volumes.masks import filled_slabs
from megavoxel.volumes.slabs import Place, scratch_array, slab_rows
from megavoxel.volumes.spool import SpooledImage, spool_image, spool_labels
from megavoxel.volumes.volume import Volume

BLOCK_VOXELS = 2**22
"""Most voxels of a block, on the new grid and on the old one, unless a chunk of the store has more."""
EDGE = 128
"""Voxels along an axis of a block of which only numbers are kept."""

Reader = Callable[[Place], np.ndarray]
"""From a box of the cropped grid to its voxels (three axes)."""


def is_large(volumes: Sequence[Volume], most: int) -> bool:
    """Whether the files of an image have `most` voxels or more together, all channels counted."""
    return sum(math.prod(volume.shape) for volume in volumes) >= most


def spool_for(volumes: Sequence[Volume], plan: PreprocessingPlan, case_id: str, scratch: Path) -> SpooledImage:
    """Reads an image to an array in `scratch`, in the plan's order of axes.

    Raises:
        UserError: a file cannot be read, or the image has another number of channels than the plan, or voxels that are
            not finite or all of one value.
    """
    check_channels(sum(volume.channels for volume in volumes), plan, case_id)
    spooled = spool_image(volumes, plan.transpose, scratch / "image.b2nd")
    _require_sound(spooled.intensities, case_id)
    return spooled


def require_sound_image(image: np.ndarray, case_id: str) -> None:
    """Refuses an image (channels, three axes) with intensities that `megavoxel check` refuses.

    Raises:
        UserError: it has voxels that are not finite, or a channel with one value in every voxel.
    """
    seen = Intensities(len(image))
    for channel, voxels in enumerate(image):
        seen.add(channel, voxels)
    _require_sound(seen, case_id)


def _require_sound(seen: Intensities, case_id: str) -> None:
    require_sound(seen.faults(named_scan(case_id)), "mend the file, or leave this scan out")


def named_scan(case_id: str) -> str:
    """What messages call the image of a case."""
    return f"case {case_id}: the scan"


def store_large_image(
    spooled: SpooledImage,
    plan: PreprocessingPlan,
    case_id: str,
    modality: str | None,
    *,
    folder: Path,
    patch: Sequence[int],
    scratch: Path,
) -> CaseProperties:
    """Brings an image to the network's grid and stores its array.

    Args:
        spooled: the image on disk.
        modality: its modality, which a plan with modalities needs.
        patch: voxels per axis of a typical patch.
        scratch: an existing folder on disk for what is read again.

    Returns:
        The way back.

    Raises:
        UserError: the plan does not know the modality.
    """
    rules = plan.normalisation_of(case_id, modality)
    properties = case_properties(spooled.array.shape[1:], spooled.box, spooled.geometry, plan, case_id, modality)
    inside = None
    if any(rule.inside_nonzero for rule in rules):
        inside = _nonzero_region(spooled, properties.cropped_shape, scratch / "inside.b2nd")
    with new_array(image_path(folder, case_id), (len(rules), *properties.shape), np.float32, patch) as array:
        for channel, rule in enumerate(rules):
            region = inside if rule.inside_nonzero else None
            whole = _cropped(spooled.array, spooled.box, channel)
            read = _normalised(whole, rule, region, properties.cropped_shape, named_scan(case_id))
            for place, voxels in _resampled(read, properties, plan, array.chunks[1:]):
                with writing(image_path(folder, case_id)):
                    array[(channel, *place)] = voxels
    return properties


def store_large_labels(
    volume: Volume,
    properties: CaseProperties,
    plan: PreprocessingPlan,
    to_classes: Callable[[np.ndarray], np.ndarray],
    *,
    folder: Path,
    patch: Sequence[int],
    scratch: Path,
) -> tuple[CaseProperties, dict[int, np.ndarray]]:
    """Brings a label map to the grid of its image and stores its array.

    Args:
        to_classes: from values of the label file to classes.
        patch: as for the image.
        scratch: as for the image.

    Returns:
        The properties with `class_voxels`, and the sampled foreground.

    Raises:
        UserError: the file cannot be read, has another shape than the image, or a value that the plan does not know.
    """
    spooled = spool_labels(volume, plan.transpose, scratch / "labels.b2nd")
    if tuple(spooled.shape) != tuple(properties.full_shape):
        raise UserError(
            f"case {properties.case}: the label map {volume.path} has another shape than the image; "
            "run 'megavoxel check' on the dataset"
        )
    kind = to_classes(np.zeros(1, dtype=np.uint16)).dtype
    separate = separate_axis(properties.spacing, plan.spacing_for(properties.spacing))
    taps = label_taps(properties.cropped_shape, properties.shape, separate)
    read = _cropped(spooled, properties.box)
    with new_array(labels_path(folder, properties.case), properties.shape, kind, patch) as array:
        for place in _blocks(properties.shape, _extent(array.chunks, properties)):
            spans, parts = zip(*(axis.part(span) for axis, span in zip(taps, place, strict=True)), strict=True)
            classes = elect_labels(to_classes(read(spans)), parts, plan.label_order)
            with writing(labels_path(folder, properties.case)):
                array[place] = classes
        voxels = count_classes(array, plan.label_classes)
        foreground = sample_foreground(array, properties.case, plan.ignored_class)
    return replace(properties, class_voxels=tuple(map(int, voxels))), foreground


def check_channels(count: int, plan: PreprocessingPlan, case_id: str) -> None:
    """Raises UserError where an image has another number of channels than the plan."""
    if count != len(plan.channels):
        raise UserError(
            f"case {case_id}: the image has {count} channels; the plan has {len(plan.channels)} "
            f"({', '.join(plan.channels)})"
        )


def _cropped(array: blosc2.NDArray, box: Sequence[Sequence[int]], *lead: int) -> Reader:
    def read(place: Place) -> np.ndarray:
        inner = (slice(first + span.start, first + span.stop) for (first, _), span in zip(box, place, strict=True))
        return np.asarray(array[(*lead, *inner)])

    return read


def _normalised(
    read: Reader, rule: ChannelNormalisation, region: blosc2.NDArray | None, shape: Sequence[int], where: str
) -> Reader:
    parts = (read(place) if region is None else read(place)[region[place]] for place in _blocks(shape, (EDGE,) * 3))
    seen = statistics_of(rule, parts, where)

    def normalised(place: Place) -> np.ndarray:
        return normalise_channel(read(place), rule, seen, None if region is None else region[place])

    return normalised


def _nonzero_region(spooled: SpooledImage, shape: Sequence[int], target: Path) -> blosc2.NDArray:
    """The nonzero region of the cropped image with its holes filled, bool on disk."""
    readers = [_cropped(spooled.array, spooled.box, channel) for channel in range(spooled.array.shape[0])]

    def nonzero(first: int, last: int) -> np.ndarray:
        place = (slice(first, last), *(slice(0, size) for size in shape[1:]))
        mask = readers[0](place) != 0
        for read in readers[1:]:
            mask |= read(place) != 0
        return mask

    region = scratch_array(target, shape, np.bool_, axis=0)
    for start, mask in filled_slabs(nonzero, shape[0], slab_rows(shape, 0)):
        region[start : start + len(mask)] = mask
    return region


def _resampled(
    read: Reader, properties: CaseProperties, plan: PreprocessingPlan, chunk: Sequence[int]
) -> Iterator[tuple[Place, np.ndarray]]:
    """Places and voxels of the blocks of a channel on the network's grid."""
    old, new = properties.cropped_shape, properties.shape
    places = _blocks(new, _extent(chunk, properties))
    if old == tuple(new):
        yield from ((place, read(place)) for place in places)
        return
    separate = separate_axis(properties.spacing, plan.spacing_for(properties.spacing))
    limits = extremes(((place, read(place)) for place in _blocks(old, (EDGE,) * 3)), old, separate)
    for place in places:
        yield place, resample_block(read, place, (old, new), limits, separate, plan.image_order)


def _extent(chunk: Sequence[int], properties: CaseProperties) -> list[int]:
    """Voxels per axis of a block: whole chunks, as many as `BLOCK_VOXELS` allows."""
    extent = list(chunk)
    ratios = [max(1.0, old / new) for old, new in zip(properties.cropped_shape, properties.shape, strict=True)]
    while any(size < whole for size, whole in zip(extent, properties.shape, strict=True)):
        if 2 * np.prod(extent) * np.prod(ratios) > BLOCK_VOXELS:
            break
        axis = min((axis for axis in range(3) if extent[axis] < properties.shape[axis]), key=extent.__getitem__)
        extent[axis] *= 2
    return extent


def _blocks(shape: Sequence[int], extent: Sequence[int]) -> list[Place]:
    sides = [
        [slice(start, min(size, start + step)) for start in range(0, size, step)]
        for size, step in zip(shape, extent, strict=True)
    ]
    return list(product(*sides))
