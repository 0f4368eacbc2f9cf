"""Headers of NRRD and MetaImage: voxels are read from their own folder, and no more than their files can hold."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from megavoxel.errors import UserError
from megavoxel.volumes.formats.itk_headers import read_header
from megavoxel.volumes.open import open_volume, read_image

SHAPE = (3, 4, 5)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 2\nDimSize = 5 4 3\n"
    "ElementType = MET_UCHAR\n{packed}{key} = {files}\n{more}"
)
NRRD = (
    "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\n"
    "space directions: (1,0,0) (0,1,0) (0,0,2)\nencoding: raw\nspace origin: (0,0,0)\n{key}: {files}\n{more}"
)
VOXELS = np.arange(60, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the voxels of an image in one file, in three, and in a folder below; and one beside it."""
    inside = tmp_path / "scan"
    (inside / "below").mkdir(parents=True)
    for place in (inside / "a.raw", inside / "below/a.raw", tmp_path / "secret.raw"):
        place.write_bytes(VOXELS.tobytes())
    for number in range(3):
        (inside / f"s{number + 1}.raw").write_bytes(VOXELS[20 * number :][:20].tobytes())
    (inside / "link.raw").symlink_to(tmp_path / "secret.raw")
    (inside / "linked").symlink_to(tmp_path)
    return inside


def header(folder: Path, suffix: str, files: str, more: str = "", key: str | None = None) -> Path:
    path = folder / f"head{suffix}"
    if suffix == ".mhd":
        path.write_text(META.format(packed="", key=key or "ElementDataFile", files=files, more=more))
    else:
        path.write_text(NRRD.format(key=key or "data file", files=files, more=more))
    return path


@pytest.mark.parametrize(
    ("suffix", "files", "more"),
    [
        (".mhd", "a.raw", ""),
        (".mhd", "below/a.raw", ""),
        (".mhd", "LIST", "s1.raw\ns2.raw\ns3.raw\n"),
        (".mhd", "s%d.raw 1 3 1", ""),
        (".nhdr", "a.raw", ""),
        (".nhdr", "./below/a.raw", ""),
        (".nhdr", "LIST", "s1.raw\ns2.raw\ns3.raw\n"),
        (".nhdr", "s%d.raw 1 3 1", ""),
        (".nrrd", "a.raw", "\n"),
    ],
)
def test_voxels_in_the_folder_of_the_header_are_read(folder, suffix, files, more):
    array, _ = read_image(header(folder, suffix, files, more))
    assert sorted(array.ravel().tolist()) == VOXELS.tolist()


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".nrrd"])
@pytest.mark.parametrize(
    ("files", "more"),
    [
        ("{outside}/secret.raw", ""),
        ("../secret.raw", ""),
        ("below/../../secret.raw", ""),
        ("link.raw", ""),
        ("linked/secret.raw", ""),
        ("LIST", "{outside}/secret.raw\n"),
        ("LIST", "s1.raw\ns2.raw\n../secret.raw\n"),
        ("LIST", "s1.raw\n\n../secret.raw\n"),
        ("LISTED", "../secret.raw\n"),
        ("{outside}/secret%d.raw 1 1 1", ""),
        ("..%csecret.raw 47 47 1", ""),
        ("{outside}/secret.ra%c 119 119 1", ""),
        ("linked/secret.%draw 1 1 1", ""),
    ],
)
def test_voxels_outside_of_the_folder_of_the_header_are_refused(folder, suffix, files, more):
    outside = str(folder.parent)
    path = header(folder, suffix, files.format(outside=outside), more.format(outside=outside))
    (folder / "LISTED").write_bytes(VOXELS.tobytes())
    (folder.parent / "secret1.raw").write_bytes(VOXELS.tobytes())
    (folder.parent / "secret.1raw").write_bytes(VOXELS.tobytes())
    with pytest.raises(UserError, match=r"not in the folder of the header|expected a name with one %d|is missing"):
        open_volume(path)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
@pytest.mark.parametrize(
    "name",
    ["9" * 300, "a/" * 3000 + "a", f"s{'9' * 300}%d.raw 1 3 1", "round/a.raw"],
    ids=["long", "deep", "long pattern", "circle"],
)
def test_a_name_that_no_file_can_have_is_a_missing_file(folder, suffix, name):
    (folder / "round").symlink_to("round")
    for files, more in ((name, ""), ("LIST", f"{name}\n")):
        with pytest.raises(UserError, match=r"is missing|makes no sense"):
            open_volume(header(folder, suffix, files, more))


@pytest.mark.parametrize("key", [" ElementDataFile", "\tElementDataFile ", "Comment = x\rElementDataFile"])
def test_a_name_in_another_spelling_is_seen_as_well(folder, key):
    with pytest.raises(UserError, match="not in the folder of the header"):
        open_volume(header(folder, ".mhd", "../secret.raw", key=key))


def test_a_name_behind_the_part_of_a_header_that_is_looked_at_is_refused(folder):
    for suffix, comment in ((".mhd", "Comment = " + "x" * 70 + "\n"), (".nhdr", "# " + "x" * 70 + "\n")):
        path = header(folder, suffix, "a.raw")
        first, rest = path.read_text().split("\n", 1)
        path.write_text(f"{first}\n{comment * 1000}{rest}")
        with pytest.raises(UserError, match="its header does not end within 65536 letters"):
            open_volume(path)


def test_a_header_that_is_a_link_has_its_voxels_beside_what_it_leads_to(folder, tmp_path):
    header(folder, ".mhd", "a.raw")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/case.mhd").symlink_to(folder / "head.mhd")
    assert read_image(tmp_path / "dataset/case.mhd")[0].shape == (1, *SHAPE)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_megabyte_cannot_claim_eight_gigabytes(tmp_path, suffix, packed):
    noise = os.urandom(10**6)
    path = tmp_path / f"a{suffix}"
    if suffix == ".mha":
        text = META.format(packed=f"CompressedData = {packed}\n", key="ElementDataFile", files="LOCAL", more="")
        text = text.replace("5 4 3", "1000 1000 1000").replace("UCHAR", "DOUBLE")
        path.write_bytes(text.encode() + noise)
    else:
        text = NRRD.format(key="endian", files="little", more="\n").replace("5 4 3", "1000 1000 1000")
        text = text.replace("uchar", "double").replace("raw", "gzip" if packed else "raw")
        path.write_bytes(text.encode() + (gzip.compress(noise) if packed else noise))
    with pytest.raises(UserError, match="its header claims 1000000000 voxels, which is more than the file can hold"):
        open_volume(path)


def test_numbers_as_text_may_be_shorter_than_in_memory(tmp_path):
    """A digit and a space stand for the eight bytes of a double."""
    text = NRRD.format(key="endian", files="little", more="\n").replace("uchar", "double").replace("raw", "ascii")
    (tmp_path / "a.nrrd").write_text(text + " ".join("7" * 60))
    assert np.array_equal(np.unique(read_image(tmp_path / "a.nrrd")[0]), [7])


def test_the_files_of_a_header_are_listed(folder):
    assert read_header(header(folder, ".nhdr", "s%d.raw 1 3 1")).files == tuple(folder / f"s{n}.raw" for n in (1, 2, 3))
    assert read_header(header(folder, ".mhd", "LOCAL")).files == ()


def test_voxels_that_memory_does_not_hold_are_refused_before_they_are_read(folder, monkeypatch):
    free = psutil.virtual_memory()._replace(available=59)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(UserError, match=r"take 0\.0 GB of memory, and 0\.0 GB are free"):
        read_image(header(folder, ".mhd", "a.raw"))
    free = free._replace(available=60)
    assert read_image(header(folder, ".mhd", "a.raw"))[0].shape == (1, *SHAPE)
