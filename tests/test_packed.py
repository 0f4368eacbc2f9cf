"""A flipped bit in compressed voxels is an error: the checksum at the end of the stream is compared."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from megavoxel.errors import UserError
from megavoxel.volumes.open import open_volume

VOXELS = np.random.default_rng(1).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)


def nifti(path: Path) -> int:
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), path)
    return 10


def nrrd(path: Path) -> int:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), path, useCompression=True)
    return path.read_bytes().index(b"\n\n") + 12


def voxels_of(path: Path) -> np.ndarray:
    return np.concatenate([slab.voxels for slab in open_volume(path).image_slabs()])


@pytest.mark.parametrize(("write", "name"), [(nifti, "a.nii.gz"), (nrrd, "a.nrrd")])
def test_no_flipped_bit_of_a_compressed_stream_is_taken(tmp_path, write, name):
    path = tmp_path / name
    first = write(path)
    whole, expected = path.read_bytes(), voxels_of(path)
    for number, place in enumerate(np.linspace(first, len(whole) - 1, 40).astype(int)):
        content = bytearray(whole)
        content[place] ^= 1 << number % 8
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}"):
            voxels_of(path)
    path.write_bytes(whole)
    assert np.array_equal(voxels_of(path), expected)


def test_a_stream_in_several_parts_is_read(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:900]) + gzip.compress(content[900:]))
    assert np.array_equal(voxels_of(tmp_path / "b.nii.gz"), voxels_of(tmp_path / "a.nii"))
