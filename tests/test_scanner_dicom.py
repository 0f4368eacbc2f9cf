"""DICOM files as scanners wrote them: those that nibabel has for its own tests."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from megavoxel.errors import UserError
from megavoxel.volumes.formats.dicom import chosen_series, read_series
from megavoxel.volumes.formats.itk import affine_of

FILES = Path(nibabel.__file__).parent / "nicom/tests/data"


def series(folder: Path, *names: str) -> Path:
    """A folder with copies of files, unpacked."""
    folder.mkdir()
    for name in names:
        source = FILES / name
        if not source.is_file():
            pytest.skip(f"this nibabel was installed without {name}")
        if name.endswith(".gz"):
            with gzip.open(source) as packed, (folder / name.removesuffix(".gz")).open("wb") as target:
                shutil.copyfileobj(packed, target)
        else:
            shutil.copy(source, folder)
    return folder


def place(image: object, *index: int) -> np.ndarray:
    """Where a voxel lies, in mm of RAS+."""
    return (affine_of(image) @ (*index, 1))[:3]


@pytest.mark.slow
def test_frames_of_an_enhanced_philips_file_lie_where_each_says(tmp_path):
    image = read_series(chosen_series(series(tmp_path / "frames", "philips_mprage.dcm.gz"), ()))
    assert image.GetSize() == (256, 256, 176)
    # ImagePositionPatient of the first and the last of PerFrameFunctionalGroupsSequence by pydicom 3.0, in LPS+.
    first, last = (92.7090416, -125.1276697, 136.4952569), (-82.1908302, -125.1276697, 142.4216485)
    np.testing.assert_allclose(place(image, 0, 0, 0), np.array(first) * (-1, -1, 1), atol=1e-3)
    np.testing.assert_allclose(place(image, 0, 0, 175), np.array(last) * (-1, -1, 1), atol=0.01)


@pytest.mark.parametrize("names", [["siemens_dwi_0.dcm.gz"], ["0.dcm", "1.dcm"]])
def test_mosaics_are_refused_rather_than_read_as_large_slices(tmp_path, names):
    found = chosen_series(series(tmp_path / "mosaic", *names), ())
    with pytest.raises(UserError, match="stored as mosaics, many slices in each picture; convert it to NIfTI"):
        read_series(found)
