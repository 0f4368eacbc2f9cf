"""Slabs of files: together they are the whole file, in every orientation; what is begun is whole or absent."""

from __future__ import annotations

import gzip
import tracemalloc
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from megavoxel.errors import UserError
from megavoxel.volumes import slabs as module
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.open import open_volume, read_image, read_labels
from megavoxel.volumes.slabs import gathered
from megavoxel.volumes.volume import DamagedFileError, Volume
from megavoxel.volumes.write import write_label_slabs, write_labels, write_nifti

SHAPE = (5, 6, 7)
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


@pytest.fixture(autouse=True)
def slabs_of_two_planes(monkeypatch):
    monkeypatch.setattr(module, "SLAB_VOXELS", 2 * 42)


def affine_of(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """File axis n runs along world axis order[n], with spacings 1, 2, 3 mm in the file."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (axis + 1.0)
    return affine


def together(slabs, shape: tuple[int, ...]) -> np.ndarray:
    """All slabs in their places (channels, z, y, x); each voxel must come once."""
    whole, seen = np.zeros(shape), np.zeros(shape, dtype=int)
    for slab in slabs:
        whole[(slab.channel, *slab.place)] = slab.voxels
        seen[(slab.channel, *slab.place)] += 1
    assert (seen == 1).all()
    return whole


def rows_of(labels: np.ndarray, height: int = 1):
    return ((start, labels[start : start + height]) for start in range(0, len(labels), height))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_slabs_of_an_image_together_are_the_image(tmp_path, order, signs):
    array = np.random.default_rng(0).integers(-900, 900, (*SHAPE, 2)).astype(np.int16)
    write_nifti(tmp_path / "a.nii.gz", array, affine_of(order, signs))
    whole, _ = read_image(tmp_path / "a.nii.gz")
    slabs = list(open_volume(tmp_path / "a.nii.gz").image_slabs())
    assert open_volume(tmp_path / "a.nii.gz").shape == whole.shape
    assert {slab.voxels.dtype for slab in slabs} == {np.dtype(np.float32)}
    assert max(slab.voxels.size for slab in slabs) <= 84
    np.testing.assert_array_equal(together(slabs, whole.shape), whole)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
def test_scaled_values_are_those_of_the_whole_file(tmp_path, suffix, kind):
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 200, SHAPE).astype(kind), np.eye(4))
    image.header.set_slope_inter(0.37, -1024.3)
    nibabel.save(image, tmp_path / f"a{suffix}")
    whole, _ = read_image(tmp_path / f"a{suffix}")
    assert np.abs(whole).max() > 900
    np.testing.assert_array_equal(together(open_volume(tmp_path / f"a{suffix}").image_slabs(), whole.shape), whole)


@pytest.mark.parametrize("largest", [3, 300])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_label_maps_have_the_bytes_that_they_get_as_a_whole(tmp_path, order, signs, largest):
    geometry = Geometry(shape=SHAPE, affine=affine_of(order, signs))
    labels = np.random.default_rng(0).integers(0, largest + 1, geometry.canonical_shape).astype(np.uint16)
    labels[0, 0, 0] = largest
    write_labels(tmp_path / "whole.nii.gz", labels, geometry)
    write_label_slabs(tmp_path / "slabs.nii.gz", rows_of(labels), geometry, largest=largest)
    assert (tmp_path / "slabs.nii.gz").read_bytes() == (tmp_path / "whole.nii.gz").read_bytes()
    expected, _ = read_labels(tmp_path / "whole.nii.gz")
    again = together(open_volume(tmp_path / "slabs.nii.gz").label_slabs(), (1, *expected.shape))[0]
    np.testing.assert_array_equal(again, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slabs.nii.gz", "whole.nii.gz"]


def test_a_gzip_file_is_unpacked_once(tmp_path, monkeypatch):
    """Each byte is read in its turn: no slab begins at the first byte again."""
    write_nifti(tmp_path / "a.nii.gz", np.zeros((64, 64, 64), np.int16), np.eye(4))
    monkeypatch.setattr(module, "SLAB_VOXELS", 64 * 64)
    rewound, real = [], gzip._GzipReader._rewind

    def counted(reader: object) -> None:
        rewound.append(reader)
        real(reader)

    monkeypatch.setattr(gzip._GzipReader, "_rewind", counted)
    assert len(list(open_volume(tmp_path / "a.nii.gz").image_slabs())) == 64
    assert not rewound
    array = nibabel.load(tmp_path / "a.nii.gz", keep_file_open=True).dataobj
    assert array[..., 63].max() == array[..., 0].max() == 0
    assert len(rewound) == 1


def test_slabs_are_cut_anew():
    array = np.arange(22).reshape(11, 2)
    for given in (1, 3, 4, 7, 20):
        cut = list(gathered(rows_of(array, given), 4))
        assert [(start, len(slab)) for start, slab in cut] == [(0, 4), (4, 4), (8, 3)]
        np.testing.assert_array_equal(np.concatenate([slab for _, slab in cut]), array)


@pytest.mark.parametrize(("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (1, 1, -1)), ((2, 1, 0), (1, 1, 1))])
def test_no_label_map_and_no_image_is_held_whole(tmp_path, monkeypatch, order, signs):
    """NumPy's own allocations while 6 MiB of labels are written and read: a few slabs of 64 KiB, and copies of them."""
    monkeypatch.setattr(module, "SLAB_VOXELS", 2**16)
    affine = affine_of(order, signs)
    file_shape = tuple((384, 128, 128)[2 - world] for world in order)
    geometry = Geometry(shape=file_shape, affine=affine)
    rows = ((start, np.full((4, 128, 128), start % 3, np.uint8)) for start in range(0, 384, 4))
    tracemalloc.start()
    try:
        write_label_slabs(tmp_path / "a.nii.gz", rows, geometry, largest=3)
        for slab in open_volume(tmp_path / "a.nii.gz").image_slabs():
            assert slab.voxels.size <= 2**16
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * 2**20


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, 1, -1)])
def test_a_fault_half_way_leaves_nothing_behind(tmp_path, signs):
    geometry = Geometry(shape=SHAPE, affine=affine_of((0, 1, 2), signs))

    def half():
        yield 0, np.zeros((3, 6, 5), np.uint8)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_label_slabs(tmp_path / "a.nii.gz", half(), geometry, largest=3)
    assert list(tmp_path.iterdir()) == []


def test_missing_planes_are_no_label_map(tmp_path):
    geometry = Geometry(shape=SHAPE, affine=np.eye(4))
    with pytest.raises(ValueError, match="6 planes were given for a grid of 7"):
        write_label_slabs(tmp_path / "a.nii.gz", rows_of(np.zeros((6, 6, 5), np.uint8)), geometry, largest=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 5, 40, 200, 600])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = Path(tmp_path / "scan.nii.gz")
    write_nifti(path, np.random.default_rng(0).integers(0, 1000, (8, 9, 10)).astype(np.int16), np.eye(4))
    path.write_bytes(path.read_bytes()[:kept])
    for read in (Volume.image_slabs, Volume.label_slabs):
        with pytest.raises(DamagedFileError, match=r"scan\.nii\.gz: cannot be read to its end"):
            list(read(open_volume(path)))


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (np.nan, "NaN"), (-1.0, "-1"), (70000.0, "70000")], ids=str)
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, value, shown):
    array = np.ones(SHAPE, np.float32)
    array[0, 0, -1] = value
    write_nifti(tmp_path / "label.nii.gz", array, np.eye(4))
    with pytest.raises(UserError, match=rf"label\.nii\.gz.*{shown}"):
        list(open_volume(tmp_path / "label.nii.gz").label_slabs())
