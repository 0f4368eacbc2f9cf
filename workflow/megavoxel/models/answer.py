"""What a scan gets back: its label map in its own format and on its own grid, and probabilities on demand."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from megavoxel.evaluation.postprocessing import Postprocessing, apply_postprocessing
from megavoxel.inference.logits import Logits
from megavoxel.models.prepare import Source
from megavoxel.models.scans import Scan
from megavoxel.volumes.itk import write_labels_like
from megavoxel.volumes.nifti import CANONICAL, Geometry, compressed_file, label_type, read_labels, write_labels

PROBABILITIES = ".probabilities.nii.gz"


def postprocess_in_place(path: Path, postprocessing: Postprocessing | None, labels: dict[str, int]) -> None:
    """Post-processes a label map in NIfTI, where there is something to do."""
    if postprocessing is not None and postprocessing.changes_anything:
        array, geometry = read_labels(path)
        write_labels(path, apply_postprocessing(array, postprocessing, labels), geometry)


def write_probabilities(path: Path, logits: Logits, scratch: Path, source: Source, scan: Scan) -> None:
    """Writes the softmax of a case's logits as float32 NIfTI (i, j, k, classes), background first.

    Memory is bounded by a slab: the volume lies in a file in `scratch` until it is compressed.
    """
    shape = (logits.array.shape[0], *logits.canonical_shape)
    volume = np.memmap(scratch / "probabilities", dtype=np.float32, mode="w+", shape=shape)
    for slab in logits.slabs():
        volume[:, slab.start : slab.stop] = slab.logits.softmax(dim=0).numpy()
    geometry = logits.header.properties.geometry
    image = nibabel.Nifti1Image(_in_order_of_file(volume, geometry), geometry.affine)
    if source.converted and _is_nifti(scan):
        image = _on_stated_grid(np.asanyarray(image.dataobj), scan.files[0])
    image.header.set_xyzt_units("mm")
    ready = scratch / "probabilities.nii.gz"
    with compressed_file(ready) as compressed:
        image.to_stream(compressed)
    os.replace(ready, path)


def write_answer(scan: Scan, source: Source, labels: Path, target: Path) -> None:
    """Brings a label map from NIfTI on the grid of a scan's source to the scan's own format and grid.

    Args:
        scan: what was labelled.
        source: the NIfTI files that were read.
        labels: the label map, which is moved where it needs no change.
        target: on the same disk; its suffix is the scan's.
    """
    ready = labels
    if source.converted and not scan.dicom:
        array = np.asanyarray(nibabel.load(labels).dataobj)
        array = array.astype(label_type(array.max(initial=0)))
        ready = labels.with_name(f"answer{scan.suffix}")
        if _is_nifti(scan):
            with compressed_file(ready) as compressed:
                _on_stated_grid(array, scan.files[0]).to_stream(compressed)
        else:
            write_labels_like(ready, array, scan.files[0])
    os.replace(ready, target)


def _on_stated_grid(array: np.ndarray, source: Path) -> nibabel.Nifti1Image:
    """A NIfTI image with the header's grid of another file, orientation codes of 0 included."""
    header = nibabel.load(source).header
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((*header.get_zooms()[:3], *(1.0,) * (array.ndim - 3)))
    return image


def _in_order_of_file(volume: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(channels, z, y, x) as (i, j, k, channels), a view."""
    back = ornt_transform(CANONICAL, io_orientation(geometry.affine))
    return apply_orientation(np.transpose(volume, (3, 2, 1, 0)), back)


def _is_nifti(scan: Scan) -> bool:
    return not scan.dicom and scan.suffix == ".nii.gz"
