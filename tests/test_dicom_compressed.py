"""DICOM series whose pixels are compressed: read where the library can, else refused in one line."""

from __future__ import annotations

import locale
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from dicom_files import data_set, dicom_file, slice_tags
from megavoxel.errors import UserError
from megavoxel.volumes.open import open_volume

STACK = np.random.default_rng(0).integers(-900, 1200, (5, 16, 16)).astype(np.int16)
HTJ2K, JPEG_XL = "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.110"
"""Transfer syntaxes of PS3.6 that came after most readers."""


@pytest.fixture
def plain(tmp_path) -> Path:
    """A series without compression."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, plane in enumerate(STACK):
        tags = slice_tags(plane, number, (0.0, 0.0, 3.0 * number), (2.0, 1.5, 3.0))
        (folder / f"{number}.dcm").write_bytes(dicom_file(tags))
    return folder


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_lossless_compression_is_read_to_the_same_voxels(plain, tmp_path, compressor):
    packed = tmp_path / "packed"
    packed.mkdir()
    before = locale.setlocale(locale.LC_ALL)  # which the writer changes
    for path in sorted(plain.iterdir()):
        reader, writer = SimpleITK.ImageFileReader(), SimpleITK.ImageFileWriter()
        reader.SetFileName(str(path))
        writer.SetFileName(str(packed / path.name))
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(reader.Execute())
    locale.setlocale(locale.LC_ALL, before)
    content = (packed / "0.dcm").read_bytes()
    assert b"1.2.840.10008.1.2.4." in content, "it is compressed"
    found, wanted = open_volume(packed), open_volume(plain)
    np.testing.assert_array_equal(found.image(), wanted.image())
    np.testing.assert_allclose(found.geometry.affine, wanted.geometry.affine)


@pytest.mark.parametrize("syntax", [HTJ2K, JPEG_XL])
def test_compression_that_the_library_does_not_know_is_named_in_one_line(tmp_path, syntax):
    folder = tmp_path / "new"
    folder.mkdir()
    for number, plane in enumerate(STACK):
        tags = slice_tags(plane, number, (0.0, 0.0, 3.0 * number), (2.0, 1.5, 3.0))
        pixels = tags.pop((0x7FE0, 0x10))[1]
        content = dicom_file(tags, syntax)
        assert content.endswith(data_set(tags))
        (folder / f"{number}.dcm").write_bytes(content + _encapsulated(pixels[:100]))
    with pytest.raises(UserError) as caught:
        open_volume(folder).image()
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def _encapsulated(fragment: bytes) -> bytes:
    """Pixel data of one fragment (PS3.5, A.4)."""
    head = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, len(fragment)) + fragment
    return head + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
