"""Geometry: every orientation comes to canonical order and back; files that break off are named."""

from __future__ import annotations

import gzip
import re
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from megavoxel.errors import UserError
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.open import read_geometry, read_image, read_labels
from megavoxel.volumes.volume import DamagedFileError
from megavoxel.volumes.write import write_labels, write_nifti

SHAPE = (3, 4, 5)
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


def oriented(order: tuple[int, ...], signs: tuple[int, ...], turn: np.ndarray) -> np.ndarray:
    """An affine whose file axis n runs along world axis order[n], with spacings 1, 2, 3 mm in the file."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (axis + 1.0)
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-10, 20, 30)
    return affine


def agrees_with_nibabel(affine: np.ndarray) -> None:
    array = np.arange(60, dtype=np.int16).reshape(SHAPE)
    geometry = Geometry(shape=SHAPE, affine=affine)
    canonical = geometry.to_canonical(array)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    assert np.array_equal(canonical, np.asarray(expected.dataobj).transpose(2, 1, 0))
    assert np.allclose(geometry.spacing, expected.header.get_zooms()[::-1])
    assert geometry.canonical_shape == canonical.shape
    assert np.array_equal(geometry.restore(canonical), array)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_flip_and_permutation_comes_back(order, signs):
    agrees_with_nibabel(oriented(order, signs, np.eye(3)))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_oblique_grids_come_back(order, signs):
    agrees_with_nibabel(oriented(order, signs, Rotation.from_euler("xyz", (15, -10, 20), degrees=True).as_matrix()))


def test_there_are_48_orientations():
    codes = {nibabel.aff2axcodes(oriented(order, signs, np.eye(3))) for order, signs in ORIENTATIONS}
    assert len(codes) == 48


def test_a_tiny_spacing_is_no_singular_affine(tmp_path):
    write_nifti(tmp_path / "em.nii.gz", np.ones(SHAPE, np.uint8), np.diag([4.6e-6, 4.6e-6, 45e-6, 1]))
    assert read_geometry(tmp_path / "em.nii.gz").spacing == pytest.approx((45e-6, 4.6e-6, 4.6e-6))


def test_channels_come_first(tmp_path):
    array = np.arange(120, dtype=np.int16).reshape(*SHAPE, 2)
    write_nifti(tmp_path / "two.nii.gz", array, oriented((2, 0, 1), (1, -1, 1), np.eye(3)))
    image, geometry = read_image(tmp_path / "two.nii.gz")
    assert image.shape == (2, *geometry.canonical_shape)
    assert image.dtype == np.float32
    for channel in range(2):
        assert np.array_equal(geometry.restore(image[channel]), array[..., channel])


def test_labels_come_back_voxel_for_voxel(tmp_path):
    affine = oriented((1, 2, 0), (-1, 1, -1), Rotation.from_euler("z", 12, degrees=True).as_matrix())
    write_nifti(tmp_path / "image.nii.gz", np.zeros(SHAPE, np.int16), affine)
    labels = np.arange(60).reshape(read_geometry(tmp_path / "image.nii.gz").canonical_shape)
    write_labels(tmp_path / "label.nii.gz", labels, read_geometry(tmp_path / "image.nii.gz"))
    again, geometry = read_labels(tmp_path / "label.nii.gz")
    assert np.array_equal(again, labels)
    assert again.dtype == np.uint8
    stored = nibabel.load(tmp_path / "label.nii.gz")
    assert stored.shape == SHAPE
    assert np.allclose(stored.affine, nibabel.load(tmp_path / "image.nii.gz").affine)
    assert np.array_equal(geometry.restore(again), np.asarray(stored.dataobj))


def test_the_same_array_gives_the_same_bytes_under_any_name(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, np.ones(SHAPE, np.uint8), np.eye(4))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("kept", [0, 5, 40, 200, 600])
def test_a_truncated_gzip_is_named(tmp_path, kept):
    path = tmp_path / "scan.nii.gz"
    noise = np.random.default_rng(0).integers(0, 1000, (8, 9, 10)).astype(np.int16)
    write_nifti(path, noise, np.eye(4))
    path.write_bytes(path.read_bytes()[:kept])
    for read in (read_image, read_labels):
        with pytest.raises(DamagedFileError, match=r"scan\.nii\.gz: cannot be read to its end"):
            read(path)


def test_broken_headers_never_end_in_another_error(tmp_path):
    """A thousand headers with random bytes: either they can be read, or the file is named."""
    write_nifti(tmp_path / "good.nii.gz", np.ones(SHAPE, np.int16), np.diag([1, 2, 3, 1]))
    good = gzip.decompress((tmp_path / "good.nii.gz").read_bytes())
    generator = np.random.default_rng(1)
    refused = []
    for _ in range(1000):
        bad = bytearray(good)
        for place in generator.integers(0, 348, 4):
            bad[place] = generator.integers(0, 256)
        (tmp_path / "bad.nii").write_bytes(bad)
        try:
            read_image(tmp_path / "bad.nii")
        except UserError as fault:
            refused.append(str(fault))
    assert len(refused) > 100
    assert all("bad.nii" in message for message in refused)


@pytest.mark.parametrize(
    ("values", "shown"), [(1.5, "1.5"), (np.nan, "NaN"), (-1.0, "-1"), (70000.0, "70000")], ids=str
)
def test_labels_that_are_no_whole_numbers_are_refused(tmp_path, values, shown):
    array = np.ones(SHAPE, np.float32)
    array[0, 0, 0] = values
    write_nifti(tmp_path / "label.nii.gz", array, np.eye(4))
    with pytest.raises(UserError, match=f"label.nii.gz.*{shown}"):
        read_labels(tmp_path / "label.nii.gz")


@pytest.mark.parametrize(
    ("kind", "shown"),
    [(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"), (np.dtype(np.complex64), "complex64")],
)
@pytest.mark.parametrize("read", [read_image, read_labels])
def test_voxels_that_are_not_one_real_number_are_refused(tmp_path, kind, shown, read):
    nibabel.Nifti1Image(np.zeros(SHAPE, kind), np.eye(4)).to_filename(tmp_path / "odd.nii.gz")
    with pytest.raises(UserError, match=rf"odd\.nii\.gz: its voxels are .*{shown}; expected one real number"):
        read(tmp_path / "odd.nii.gz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.nii\.gz: no such file"):
        read_image(tmp_path / "absent.nii.gz")


def test_a_singular_affine_is_refused(tmp_path):
    write_nifti(tmp_path / "good.nii.gz", np.ones(SHAPE, np.uint8), np.eye(4))
    content = bytearray(gzip.decompress((tmp_path / "good.nii.gz").read_bytes()))
    content[296:312] = bytes(16)  # srow_y
    (tmp_path / "flat.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=r"flat\.nii\.gz.*singular"):
        read_geometry(tmp_path / "flat.nii.gz")


@pytest.mark.parametrize("name", ["short.nii", "short.nii.gz"])
def test_a_file_that_ends_within_its_header_is_damaged(tmp_path, name):
    whole = nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)).to_bytes()
    for length in (4, 194, 347):
        content = whole[:length]
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        with pytest.raises(DamagedFileError, match="it ends within its header"):
            read_geometry(tmp_path / name)


def sheared(cosine: float) -> np.ndarray:
    """An affine whose first two axes have an angle with this cosine."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 1] = 2 * cosine / np.sqrt(1 - cosine**2)
    return affine


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_sheared_grid_is_refused_in_every_format(tmp_path, suffix):
    """ITK refuses it in NIfTI, with cosines above about 0.0002."""
    path = tmp_path / f"tilted{suffix}"
    for cosine, is_sound in ((1e-6, True), (5e-4, True), (0.01, False), (0.3, False)):
        affine = sheared(cosine)
        if suffix == ".nii.gz":
            nibabel.Nifti1Image(np.ones(SHAPE, np.int16), affine).to_filename(path)
        else:
            image = sitk.GetImageFromArray(np.ones(SHAPE[::-1], np.int16))
            sides = np.linalg.norm(affine[:3, :3], axis=0)
            image.SetSpacing(sides)
            sitk.WriteImage(image, path)
            _with_directions(path, affine[:3, :3], sides)
        if is_sound:
            assert read_geometry(path).shape == SHAPE
        else:
            with pytest.raises(UserError, match=r"tilted.*angle of 8\d\.\d+ degrees|tilted.*angle of 72"):
                read_geometry(path)


def _with_directions(path: Path, axes: np.ndarray, sides: np.ndarray) -> None:
    """Writes directions into a header that SimpleITK does not write itself."""
    head, behind = path.read_bytes().split(b"\n", 1)
    vectors = [" ".join(f"{part:.9g}" for part in axis) for axis in (axes / sides).T]
    lengths = ["(" + ",".join(f"{part:.9g}" for part in axis) + ")" for axis in axes.T]
    behind = re.sub(rb"TransformMatrix = [^\n]*", f"TransformMatrix = {' '.join(vectors)}".encode(), behind)
    behind = re.sub(rb"space directions: [^\n]*", f"space directions: {' '.join(lengths)}".encode(), behind)
    path.write_bytes(head + b"\n" + behind)


def test_sform_and_qform_that_contradict_one_another_are_refused(tmp_path):
    mirrored, turned = np.diag([-1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1])
    bent = np.eye(4)
    bent[:3, :3] = Rotation.from_euler("z", 40, degrees=True).as_matrix() * 1.2
    for sform, code, qform, qform_code, is_sound in (
        (np.eye(4), 1, np.eye(4), 1, True),
        (mirrored, 1, mirrored, 1, True),
        (np.eye(4), 1, mirrored, 1, False),
        (mirrored, 4, np.eye(4), 1, False),
        (mirrored, 1, np.eye(4), 0, True),
        (mirrored, 0, np.eye(4), 1, True),
        (turned, 1, np.eye(4), 1, False),
        (turned, 4, np.eye(4), 1, True),
        (bent, 4, np.eye(4), 1, True),
    ):
        image = nibabel.Nifti1Image(np.ones(SHAPE, np.int16), None)
        image.set_sform(sform, code)
        image.set_qform(qform, qform_code)
        image.to_filename(tmp_path / "a.nii")
        if is_sound:
            assert np.allclose(read_geometry(tmp_path / "a.nii").affine, sform if code else qform)
        else:
            with pytest.raises(UserError, match=r"a\.nii: its sform and its qform contradict"):
                read_geometry(tmp_path / "a.nii")
