"""Writes what a labelled scan gets back: its label map in its own format and on its own grid, and probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel
import numpy as np

from megavoxel.evaluation.postprocessing import Postprocessing, apply_postprocessing
from megavoxel.inference.logits import LogitsHeader, OnNetworkGrid
from megavoxel.inference.sliding_window import Slab
from megavoxel.volumes.formats.nifti import image_on
from megavoxel.volumes.open import label_suffix_of, read_labels
from megavoxel.volumes.volume import Volume, label_type
from megavoxel.volumes.write import compressed_file, write_labels


def postprocess_in_place(
    path: Path, postprocessing: Postprocessing | None, structures: Mapping[str, tuple[int, ...]]
) -> None:
    """Post-processes a label map in NIfTI, where there is something to do.

    Args:
        structures: values of labels or regions by name.
    """
    if postprocessing is not None and postprocessing.changes_anything:
        array, geometry = read_labels(path)
        write_labels(path, apply_postprocessing(array, postprocessing, structures), geometry)


def write_probabilities(
    path: Path, header: LogitsHeader, probabilities: Iterable[Slab], scratch: Path, scan: Volume
) -> None:
    """Writes the probabilities of a case as float32 NIfTI: (i, j, k, classes), background first, or (i, j, k, regions).

    Memory is bounded by a slab: the volume lies in a file in `scratch` until it is compressed.

    Args:
        probabilities: on the image's grid, along z.
    """
    volume = _on_image(header, header.decision.outputs, probabilities, scratch / "probabilities")
    _write(path, volume, header, scratch, scan)


def write_uncertainty(path: Path, disagreement: OnNetworkGrid, scratch: Path, scan: Volume) -> None:
    """Writes the disagreement of the networks as float32 NIfTI (i, j, k), in nats; memory as `write_probabilities`."""
    volume = _on_image(disagreement.header, 1, disagreement.slabs(), scratch / "uncertainty")
    _write(path, volume[0], disagreement.header, scratch, scan)


def _on_image(header: LogitsHeader, values: int, slabs: Iterable[Slab], file: Path) -> np.memmap:
    """Slabs along z as one array, float32 (values, z, y, x) on the image's grid, in a file."""
    shape = (values, *header.properties.geometry.canonical_shape)
    volume = np.memmap(file, dtype=np.float32, mode="w+", shape=shape)
    for slab in slabs:
        volume[:, slab.start : slab.stop] = slab.logits.numpy()
    return volume


def _write(path: Path, volume: np.ndarray, header: LogitsHeader, scratch: Path, scan: Volume) -> None:
    geometry = header.properties.geometry
    is_nifti = label_suffix_of(scan.path.name) == ".nii.gz"
    is_oriented = scan.is_oriented or scan.path.is_dir() or not is_nifti
    restored = geometry.restore_channels(volume) if volume.ndim == 4 else geometry.restore(volume)
    image = image_on(restored, geometry, is_oriented=is_oriented)
    ready = scratch / f"ready-{path.name}"
    with compressed_file(ready) as compressed:
        image.to_stream(compressed)
    os.replace(ready, path)


def write_label_map(scan: Volume, labels: Path, target: Path) -> None:
    """Brings a label map from NIfTI on the grid that a scan was read on to the scan's own format and grid.

    Args:
        labels: the label map, which is moved where it needs no change.
        target: on the same disk; its suffix is that of label maps of the scan's format.
    """
    ready = labels
    if scan.write_labels is not None:
        array = np.asanyarray(nibabel.load(labels).dataobj)
        ready = labels.with_name(f"ready-{target.name}")
        scan.write_labels(ready, array.astype(label_type(array.max(initial=0))))
    os.replace(ready, target)
