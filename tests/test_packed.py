"""A flipped bit in compressed voxels is an error: the checksum at the end of the stream is compared."""

from __future__ import annotations

import gzip
import re
import zlib
from itertools import pairwise
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


def metaimage(path: Path) -> int:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), path, useCompression=True)
    return path.read_bytes().index(b"LOCAL\n") + 10


def detached(path: Path) -> int:
    """The voxels beside a header."""
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), path.with_suffix(".mhd"), useCompression=True)
    return 2


def voxels_of(path: Path) -> np.ndarray:
    return np.concatenate([slab.voxels for slab in open_volume(path).image_slabs()])


def whole_voxels_of(path: Path) -> np.ndarray:
    return open_volume(path).image()


def cut_voxels_of(path: Path) -> np.ndarray:
    """By the function that divides a volume into blocks: the last planes are in none of them."""
    part = path.with_name(f"part-{path.name}")
    open_volume(path).cut([((slice(0, 8), slice(0, 10), slice(0, 6)), part)])
    return open_volume(part).image()


@pytest.mark.parametrize("voxels_of", [voxels_of, whole_voxels_of, cut_voxels_of])
@pytest.mark.parametrize(("write", "name"), [(nifti, "a.nii.gz"), (nrrd, "a.nrrd"), (metaimage, "a.mha")])
def test_no_flipped_bit_of_a_compressed_stream_is_taken(tmp_path, write, name, voxels_of):
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


@pytest.mark.parametrize("order", ["False", "True"])
def test_compressed_voxels_beside_their_header_are_compared_as_well(tmp_path, order):
    """In either order of bytes; the checksum is that of the bytes in the file."""
    detached(tmp_path / "a.zraw")
    header = (tmp_path / "a.mhd").read_text()
    if order == "True":
        packed = zlib.compress(VOXELS.astype(">i2").tobytes())
        (tmp_path / "a.zraw").write_bytes(packed)
        header = re.sub("CompressedDataSize = .*", f"CompressedDataSize = {len(packed)}", header)
        header = header.replace("ByteOrderMSB = False", "ByteOrderMSB = True")
        (tmp_path / "a.mhd").write_text(header)
    assert np.array_equal(open_volume(tmp_path / "a.mhd").image()[0, :, ::-1, ::-1], VOXELS)
    whole = (tmp_path / "a.zraw").read_bytes()
    for place in np.linspace(2, len(whole) - 1, 20).astype(int):
        (tmp_path / "a.zraw").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"a\.(zraw|mhd)"):
            open_volume(tmp_path / "a.mhd").image()


def test_a_stream_in_several_parts_is_read(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:900]) + gzip.compress(content[900:]))
    assert np.array_equal(voxels_of(tmp_path / "b.nii.gz"), voxels_of(tmp_path / "a.nii"))


@pytest.mark.parametrize("order", ["little", "big", "channels last", "two parts"])
def test_a_sound_nrrd_is_read_and_a_wrong_checksum_refused_in_any_order_of_bytes(tmp_path, order):
    """The checksum is that of the bytes in the file, which are not always those in memory."""
    channels = np.stack(
        [VOXELS, VOXELS + 1], axis=-1 if order != "channels last" else 0
    )  # (z, y, x, c) or (c, z, y, x)
    content = channels.astype(">i2" if order == "big" else "<i2").tobytes()
    axes = (
        ("8 10 12 2", "space space space vector")
        if order == "channels last"
        else ("2 8 10 12", "vector " + "space " * 3)
    )
    directions = "(1,0,0) (0,1,0) (0,0,1)"
    header = (
        f"NRRD0005\ntype: int16\ndimension: 4\nspace: left-posterior-superior\nsizes: {axes[0]}\nkinds: {axes[1]}\n"
        f"endian: {'big' if order == 'big' else 'little'}\nencoding: gzip\n"
        f"space directions: {directions + ' none' if order == 'channels last' else 'none ' + directions}\n"
        "space origin: (0,0,0)\n\n"
    )
    places = (0, 999, len(content)) if order == "two parts" else (0, len(content))
    packed = b"".join(gzip.compress(content[begin:end]) for begin, end in pairwise(places))
    path = tmp_path / "a.nrrd"
    path.write_bytes(header.encode() + packed)
    found = open_volume(path).image()
    assert np.array_equal(found[0, :, ::-1, ::-1], VOXELS)
    assert np.array_equal(found[1], found[0] + 1)
    path.write_bytes(path.read_bytes()[:-8] + b"\0\0\0\0" + packed[-4:])
    with pytest.raises(UserError, match=r"a\.nrrd"):
        open_volume(path).image()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd"])
def test_a_stream_that_goes_on_far_behind_its_voxels_is_refused_without_reading_all_of_it(tmp_path, name, monkeypatch):
    path = tmp_path / name
    {"a.nii.gz": nifti, "a.nrrd": nrrd}[name](path)
    sound = voxels_of(path)
    begin = path.read_bytes()
    path.write_bytes(begin + gzip.compress(bytes(1000)))
    assert np.array_equal(voxels_of(path), sound)
    path.write_bytes(begin + gzip.compress(bytes(8 * 2**20)))
    read = []
    real = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda *given: read.append(len(found := real(*given))) or found)
    with pytest.raises(UserError, match=r"a\..*it goes on behind the \d+ bytes that its header claims"):
        voxels_of(path)
    assert sum(read) < 2 * 2**20


PACKED = zlib.compress(VOXELS.tobytes())


@pytest.mark.parametrize(
    ("content", "size", "is_sound"),
    [
        (PACKED, len(PACKED), True),
        (PACKED + b"behind", len(PACKED), True),
        (PACKED, None, False),  # ITK does not look for the end of the stream
        (PACKED, len(PACKED) - 99, False),
        (zlib.compress(VOXELS.tobytes()[:-100]), None, False),
        (zlib.compress(VOXELS.tobytes() + bytes(100)), None, False),
        (b"no stream" * 20, None, False),
    ],
)
def test_what_itk_makes_of_a_metaimage_is_what_its_stream_holds(tmp_path, content, size, is_sound):
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), tmp_path / "a.mha", useCompression=True)
    header = (tmp_path / "a.mha").read_bytes().split(b"LOCAL\n")[0]
    stated = b"" if size is None else b"CompressedDataSize = %d\n" % size
    header = re.sub(rb"CompressedDataSize = [^\n]*\n", stated, header)
    (tmp_path / "a.mha").write_bytes(header + b"LOCAL\n" + content)
    if is_sound:
        assert np.array_equal(open_volume(tmp_path / "a.mha").image()[0, :, ::-1, ::-1], VOXELS)
    else:
        with pytest.raises(UserError, match=r"a\.mha: cannot be read to its end"):
            open_volume(tmp_path / "a.mha").image()


def test_compressed_slices_of_a_metaimage_that_itk_cannot_unpack_are_refused(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.zraw").write_bytes(zlib.compress(VOXELS[6 * number : 6 * number + 6].tobytes()))
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), tmp_path / "a.mhd", useCompression=True)
    header = re.sub("CompressedDataSize = .*\n", "", (tmp_path / "a.mhd").read_text())
    (tmp_path / "a.mhd").write_text(header.replace("a.zraw", "LIST\n0.zraw\n1.zraw"))
    with pytest.raises(UserError, match="cannot be read to its end"):
        open_volume(tmp_path / "a.mhd").image()
