"""TIFF stacks as tifffile writes them for OME and ImageJ: the volume of the NIfTI file with the same voxels."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import tifffile

from helpers import tiny_plan
from megavoxel.cli import main
from megavoxel.errors import UserError
from megavoxel.volumes.open import open_volume, read_image, read_labels, stem_of
from megavoxel.volumes.volume import Hints
from test_formats import untrained_model

SHAPE = (6, 9, 8)
SPACING = (4.0, 1.5, 0.5)


def voxels(kind: type = np.int16) -> np.ndarray:
    """(z, y, x)."""
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(kind)


def write_ome(path, array, axes="ZYX", unit="mm", **options) -> None:
    path.parent.mkdir(exist_ok=True)
    sizes = {f"PhysicalSize{axis}": size for axis, size in zip("ZYX", SPACING, strict=True)}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "ZYX"}
    tifffile.imwrite(path, array, ome=True, metadata={"axes": axes, **sizes, **units}, **options)


def write_imagej(path, array, axes="ZYX", unit="um") -> None:
    depth, height, width = SPACING
    metadata = {"axes": axes, "spacing": depth, "unit": unit}
    tifffile.imwrite(path, array, imagej=True, resolution=(1 / width, 1 / height), metadata=metadata)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_ome_stack_is_the_volume_of_the_nifti_file(tmp_path, kind, compression):
    write_ome(tmp_path / "a.ome.tif", voxels(kind), compression=compression)
    nibabel.save(nibabel.Nifti1Image(voxels(kind).T, np.diag([*reversed(SPACING), 1.0])), tmp_path / "a.nii.gz")
    (ours, grid), (theirs, expected) = read_image(tmp_path / "a.ome.tif"), read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == theirs.dtype
    assert grid.shape == expected.shape
    np.testing.assert_allclose(grid.affine, expected.affine)
    assert stem_of("a.ome.tif") == "a"


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
def test_channels_and_slabs_are_those_of_the_whole(tmp_path, axes):
    two = np.stack([voxels(), voxels() + 1000], axis=axes.index("C"))
    write_ome(tmp_path / "a.ome.tif", two, axes=axes)
    volume = open_volume(tmp_path / "a.ome.tif")
    image = volume.image()
    np.testing.assert_array_equal(image, np.stack([voxels(), voxels() + 1000]))
    found = np.zeros_like(image)
    for slab in volume.image_slabs():
        found[(slab.channel, *slab.place)] = slab.voxels
    np.testing.assert_array_equal(found, image)


def test_a_stack_of_imagej_keeps_its_unit_and_is_read_plane_by_plane(tmp_path):
    write_imagej(tmp_path / "a.tif", voxels(np.uint16))
    volume = open_volume(tmp_path / "a.tif")
    assert volume.geometry.unit == "micron"
    np.testing.assert_allclose(np.diag(volume.geometry.affine)[:3], SPACING[::-1])
    labels, _ = read_labels(tmp_path / "a.tif")
    np.testing.assert_array_equal(labels, voxels())
    found = np.zeros(SHAPE, np.uint16)
    for slab in volume.label_slabs():
        found[slab.place] = slab.voxels
    np.testing.assert_array_equal(found, voxels())


def test_units_that_differ_from_micrometres_become_millimetres(tmp_path):
    write_ome(tmp_path / "a.ome.tif", voxels(), unit="nm")
    geometry = open_volume(tmp_path / "a.ome.tif").geometry
    np.testing.assert_allclose(np.diag(geometry.affine)[:3], [size * 1e-6 for size in SPACING[::-1]])
    assert geometry.unit == "mm"


def test_a_stack_that_says_nothing_of_its_voxels_needs_to_be_told(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels())
    with pytest.raises(UserError, match=r"a\.tif: does not say how large its voxels are .* OME-TIFF"):
        open_volume(tmp_path / "a.tif")
    told = open_volume(tmp_path / "a.tif", Hints(spacing=SPACING))
    np.testing.assert_allclose(np.diag(told.geometry.affine)[:3], SPACING[::-1])
    np.testing.assert_array_equal(told.labels(), voxels())


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["mm", "um"])
def test_a_stack_is_labelled_as_the_nifti_file_on_its_own_grid(tmp_path, unit):
    words = untrained_model(tmp_path, tiny_plan(), seed=0)
    write_ome(tmp_path / "in/a.ome.tif", voxels(), unit=unit)
    image = nibabel.Nifti1Image(voxels().T, np.diag([*reversed(SPACING), 1.0]))
    image.header.set_xyzt_units({"mm": "mm", "um": "micron"}[unit])
    nibabel.save(image, tmp_path / "in/b.nii.gz")
    assert main([str(word) for word in (*words, "--input", tmp_path / "in", "--output", tmp_path / "out")]) == 0
    ours, theirs = (nibabel.load(tmp_path / f"out/{case}.nii.gz") for case in "ab")
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
    np.testing.assert_allclose(ours.affine, theirs.affine)
    assert ours.header.get_xyzt_units()[0] == theirs.header.get_xyzt_units()[0]


def broken(tmp_path, way: str):
    path = tmp_path / "a.ome.tif"
    if way == "colours":
        tifffile.imwrite(path, np.zeros((9, 8, 3), np.uint8), photometric="rgb")
    elif way == "two times":
        write_ome(path, np.stack([voxels(), voxels()]), axes="TZYX")
    elif way == "two images":
        with tifffile.TiffWriter(path, ome=True) as file:
            for _ in range(2):
                file.write(voxels(), metadata={"axes": "ZYX"})
    else:
        write_ome(path, voxels(), compression="zlib" if way == "packed" else None)
        content = bytearray(path.read_bytes())
        if way == "negative":
            content = content.replace(b'PhysicalSizeX="0.5"', b'PhysicalSizeX="-.5"')
        elif way == "packed":
            start = tifffile.TiffFile(path).pages[2].dataoffsets[0]
            content[start + 4 : start + 12] = b"\xff" * 8
        else:
            del content[len(content) // 3 :]
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("colours", "expected planes"), ("two times", "its axes are 2 T"), ("two images", "holds 2 images"),
        ("negative", "expected sizes above 0"), ("packed", "cannot be read to its end"),
        ("cut", "cannot be read to its end"),
    ],
)  # fmt: skip
def test_what_is_no_volume_is_refused_by_name(tmp_path, way, message):
    path = broken(tmp_path, way)
    with pytest.raises(UserError, match=message) as refused:
        open_volume(path).image()
    assert str(path) in str(refused.value)


def test_a_list_of_planes_that_breaks_off_is_no_smaller_volume(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", voxels(), metadata=None)
    whole = (tmp_path / "a.tif").read_bytes()
    third = tifffile.TiffFile(tmp_path / "a.tif").pages[3].offset
    (tmp_path / "a.tif").write_bytes(whole[:third])
    with pytest.raises(UserError, match=r"a\.tif: cannot be read to its end"):
        open_volume(tmp_path / "a.tif", Hints(spacing=SPACING))


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_end_in_a_volume_or_in_one_line(tmp_path, seed):
    write_ome(tmp_path / "a.ome.tif", voxels(), compression="zlib" if seed % 2 else None)
    random, content = np.random.default_rng(seed), bytearray((tmp_path / "a.ome.tif").read_bytes())
    for place in random.integers(0, len(content) if seed % 3 else 400, 3):
        content[place] = random.integers(256)
    (tmp_path / "a.ome.tif").write_bytes(content)
    try:
        volume = open_volume(tmp_path / "a.ome.tif")
        assert volume.image().shape == volume.shape
        assert sum(slab.voxels.size for slab in volume.image_slabs()) == volume.image().size
    except UserError as refused:
        message = str(refused)
    else:
        message = ""
    assert "\n" not in message
