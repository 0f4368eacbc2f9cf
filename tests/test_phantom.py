"""Phantoms: same seed, same bytes; the anatomy is where it should be; no threshold finds it."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from megavoxel.cli import main
from megavoxel.config.source import Phantom
from megavoxel.datasets.anatomy import LABELS, Anatomy, Ellipsoid, Grid, Structure, render
from megavoxel.datasets.folder import replaced_folder, visible_files
from megavoxel.datasets.phantom import STORAGE, make_case, write_phantoms
from megavoxel.errors import UserError
from megavoxel.files import file_sha256, read_json
from megavoxel.volumes.grid import Geometry

SMALL = Phantom(training_cases=3, test_cases=2, seed=3, shape=(16, 24, 24), spacing=(6.0, 5.0, 5.0))
DEFAULT = Phantom(training_cases=10, seed=11)


def canonical(image: nibabel.Nifti1Image) -> np.ndarray:
    """The voxels of an image as (z, y, x) in RAS+."""
    return Geometry(shape=image.shape, affine=image.affine).to_canonical(np.asarray(image.dataobj))


@pytest.fixture(scope="module")
def cases() -> list[tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]]:
    """Two of each storage at the default grid."""
    return [make_case(DEFAULT, index) for index in range(2 * len(STORAGE))]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    sums = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_phantoms(tmp_path / name, SMALL)
        sums.append({str(file): file_sha256(tmp_path / name / file) for file in visible_files(tmp_path / name)})
    assert len(sums[0]) == 2 * 5 + 1
    assert sums[0] == sums[1]


def test_another_seed_gives_another_image():
    first, _ = make_case(Phantom(training_cases=2, seed=1, shape=(16, 16, 16)), 0)
    second, _ = make_case(Phantom(training_cases=2, seed=2, shape=(16, 16, 16)), 0)
    assert first.shape == second.shape
    assert not np.array_equal(first.dataobj, second.dataobj)


def test_a_case_depends_on_seed_and_number_only():
    alone = make_case(SMALL, 4)
    after_others = [make_case(Phantom(**{**SMALL.__dict__, "training_cases": 50}), index) for index in range(5)][4]
    for one, other in zip(alone, after_others, strict=True):
        assert np.array_equal(one.dataobj, other.dataobj)
        assert np.array_equal(one.affine, other.affine)


def test_image_and_label_share_a_grid_in_the_agreed_types(cases):
    for image, labels in cases:
        assert image.shape == labels.shape
        assert np.array_equal(image.affine, labels.affine)
        assert image.get_data_dtype() == np.int16
        assert labels.get_data_dtype() == np.uint8


def test_cases_take_every_storage_in_turn(cases):
    for index, (image, _) in enumerate(cases):
        axes, oblique = STORAGE[index % len(STORAGE)]
        assert "".join(nibabel.aff2axcodes(image.affine)) == axes
        degrees = np.degrees(nibabel.affines.obliquity(image.affine).max())
        assert 2 < degrees <= 20 if oblique else degrees < 1e-4


def test_shapes_and_spacings_vary_around_the_mean(cases):
    spacings = np.array([Geometry(shape=image.shape, affine=image.affine).spacing for image, _ in cases])
    shapes = np.array([canonical(image).shape for image, _ in cases])
    assert np.all(np.abs(spacings / DEFAULT.spacing - 1) < 0.121)
    assert np.all(np.abs(shapes - DEFAULT.shape) <= np.array(DEFAULT.shape) // 20)
    assert spacings.std(axis=0).min() > 0.01
    assert np.all(shapes.std(axis=0) > 0)


def test_every_organ_is_in_every_case_and_has_its_size(cases):
    voxels = np.array([np.bincount(np.asarray(labels.dataobj).ravel(), minlength=5)[1:] for _, labels in cases])
    liver, stomach, aorta, gland = voxels.T
    assert np.all(gland > 40)
    assert np.all(gland < 400)
    assert np.all(aorta > 2 * gland)
    assert np.all(liver > 2 * stomach)
    assert np.all(stomach > 500)


@pytest.mark.parametrize("shape", [(16, 16, 16), (16, 64, 24)])
def test_the_gland_survives_the_smallest_grids(shape):
    for index in range(30):
        _, labels = make_case(Phantom(training_cases=2, seed=5, shape=shape), index)
        assert set(np.unique(labels.dataobj)) == {0, *LABELS.values()}


def test_the_stomach_touches_the_liver_and_the_aorta_is_long(cases):
    for _, labels in cases:
        array = canonical(labels)
        assert (binary_dilation(array == LABELS["liver"]) & (array == LABELS["stomach"])).any()
        slices = (array == LABELS["aorta"]).any(axis=(1, 2))
        assert slices.mean() > 0.9
        assert label(array == LABELS["aorta"], np.ones((3, 3, 3)))[1] == 1


def test_anatomy_is_upright_in_ras_whatever_the_storage(cases):
    for _, labels in cases:
        array = canonical(labels)
        centre = {name: np.argwhere(array == value).mean(axis=0) for name, value in LABELS.items()}
        assert centre["liver"][2] > centre["aorta"][2] + 5, "the liver lies on the patient's right"
        assert centre["stomach"][2] < centre["aorta"][2] - 5, "the stomach lies on the patient's left"
        assert centre["stomach"][1] > centre["aorta"][1] + 3, "the aorta lies behind the stomach"
        assert centre["gland"][0] < centre["stomach"][0] - 1, "the gland lies below the stomach"


def test_no_intensity_window_finds_an_organ(cases):
    best = {name: [] for name in LABELS}
    for image, labels in cases:
        bins = np.clip((np.asarray(image.dataobj).ravel() + 200) // 10, 0, 60).astype(int)
        truth = np.asarray(labels.dataobj).ravel()
        everything = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=61))])
        for name, value in LABELS.items():
            organ = np.concatenate([[0], np.cumsum(np.bincount(bins[truth == value], minlength=61))])
            hit, taken = organ[None] - organ[:, None], everything[None] - everything[:, None]
            best[name].append((2 * hit / np.maximum(taken + organ[-1], 1)).max())
    assert {name: round(float(np.mean(scores)), 2) for name, scores in best.items() if np.mean(scores) > 0.72} == {}


def test_noise_has_the_deviation_that_was_asked_for():
    noisy = canonical(make_case(Phantom(training_cases=2, noise=25.0), 0)[0]).astype(float)
    clean = canonical(make_case(Phantom(training_cases=2, noise=0.0), 0)[0]).astype(float)
    inside = clean > -300
    difference = noisy - clean
    assert difference[inside].std() == pytest.approx(25, abs=1)
    rows = difference[:, :, :-1][inside[:, :, 1:] & inside[:, :, :-1]]
    neighbours = difference[:, :, 1:][inside[:, :, 1:] & inside[:, :, :-1]]
    assert 0.1 < np.corrcoef(rows, neighbours)[0, 1] < 0.5


def test_a_half_covered_voxel_has_the_mean_intensity():
    """A half-space from x = 0 on: five voxels along x put the border through the middle of the third."""
    half = Ellipsoid(centre=(1000.0, 0, 0), semi_axes=(1000.0, 1e6, 1e6))
    anatomy = Anatomy(structures=(Structure(shape=half, hounsfield=200, label=1),), control=np.zeros((3, 5, 5, 5)))
    grid = Grid(shape=(2, 2, 5), spacing=(3.0, 2.0, 2.0), rotation=np.eye(3))
    image, labels = render(anatomy, grid, (6.0, 4.0, 10.0))
    assert np.allclose(image, [-1000, -1000, -400, 200, 200])
    assert np.array_equal(labels[..., [0, 1, 3, 4]], np.broadcast_to([0, 0, 1, 1], (2, 2, 4)))
    assert labels[..., 2].sum() == 2, "of four ties, each side gets half"


def test_a_sphere_has_its_volume_on_an_oblique_anisotropic_grid():
    sphere = Ellipsoid(centre=(0.1, -0.1, 0), semi_axes=(0.5, 0.5, 0.5))
    anatomy = Anatomy(structures=(Structure(shape=sphere, hounsfield=0, label=1),), control=np.zeros((3, 5, 5, 5)))
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
    grid = Grid(shape=(30, 50, 50), spacing=(3.0, 2.0, 2.0), rotation=turn)
    _, labels = render(anatomy, grid, (100.0, 100.0, 100.0))
    assert labels.sum() * 12 == pytest.approx(4 / 3 * np.pi * 25**3, rel=0.01)
    z, y, x = (np.argwhere(labels).mean(axis=0) - (np.array(labels.shape) - 1) / 2) * grid.spacing
    assert np.allclose(turn @ [x, y, z], [5, -5, 0], atol=0.1)


def test_the_stage_writes_a_described_dataset(tmp_path, capsys):
    grid = ["--shape", "16", "24", "24", "--spacing", "6", "5", "5", "--noise", "25"]
    numbers = ["--training-cases", "3", "--test-cases", "2", "--seed", "3"]
    assert main(["phantom", "--output", str(tmp_path / "made"), *numbers, *grid]) == 0
    content = read_json(tmp_path / "made" / "dataset.json", what="description")
    assert content["modality"] == {"0": "CT"}
    assert content["labels"] == {"0": "background", "1": "liver", "2": "stomach", "3": "aorta", "4": "gland"}
    assert (len(content["training"]), len(content["test"])) == (3, 2)
    write_phantoms(tmp_path, SMALL)
    for file in visible_files(tmp_path / "made"):
        assert (tmp_path / "made" / file).read_bytes() == (tmp_path / file).read_bytes()
    for entry in content["training"] + content["test"]:
        assert (tmp_path / "made" / entry["image"]).is_file()
        assert (tmp_path / "made" / entry["label"]).is_file()
    assert content["test"][0]["image"] == "./imagesTs/phantom_0004.nii.gz"


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--training-cases 0", "training_cases"),
        ("--training-cases 3 --shape 16 4 16", "shape.1"),
        ("--training-cases 3 --noise -1", "noise"),
    ],
)
def test_impossible_options_are_refused(tmp_path, capsys, option, named):
    assert main(["phantom", "--output", str(tmp_path / "made"), *option.split()]) == 1
    assert capsys.readouterr().err.startswith(f"megavoxel phantom: error: options: {named}: ")
    assert list(tmp_path.iterdir()) == []


def test_images_that_others_put_there_are_not_replaced(tmp_path):
    precious = tmp_path / "made" / "scan.nii.gz"
    precious.parent.mkdir()
    precious.write_bytes(b"mine")
    with pytest.raises(UserError, match="did not make"), replaced_folder(precious.parent):
        pass
    assert precious.read_bytes() == b"mine"
