"""Folders of patients with a mask per label: read in three formats, merged by `fetch`, known to what follows."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

import scans
from dataset_folder import refusal
from megavoxel.cli import main
from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.source import Patients, Source
from megavoxel.datasets.cases import Cases, load_cases
from megavoxel.datasets.fetch import fetch
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.files import read_json, write_json
from megavoxel.planning.splits import make_splits
from megavoxel.volumes.open import open_volume, read_image, read_labels
from megavoxel.volumes.volume import Hints
from megavoxel.volumes.write import write_nifti

SHAPE = (6, 5, 4)
SPACING = (1.1, 1.2, 2.5)
"""Along x, y, z."""
ORIGIN = (-20.0, 30.0, 7.0)
LABELS = {"stem": 1, "jaw": 2, "chiasm": 5}
MASKS = {"jaw": "structures/Jaw*", "stem": "structures/Stem*", "chiasm": "structures/Chiasm*"}
BOXES = {
    "Jaw": np.s_[0:4, 0:3, 0:2],
    "Stem": np.s_[3:6, 2:5, 1:4],  # shares one voxel, (3, 2, 1), with the jaw
    "Chiasm": np.s_[4:5, 4:5, 2:4],  # lies in the stem: two voxels
}


def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def masks() -> dict[str, np.ndarray]:
    arrays = {name: np.zeros(SHAPE, np.uint8) for name in BOXES}
    for name, box in BOXES.items():
        arrays[name][box] = 1
    return arrays


def expected(*names: str) -> np.ndarray:
    """The label map (i, j, k) of the masks in their order, by hand."""
    labels = np.zeros(SHAPE, np.uint8)
    for name, value in (("Jaw", 2), ("Stem", 1), ("Chiasm", 5)):
        if name in names:
            labels[BOXES[name]] = value
    return labels


def write_nrrd(path: Path, array: np.ndarray, **changes: object) -> None:
    """As ITK writes it: the world's axes run to the left and to the back."""
    header = {"space": "left-posterior-superior", "space directions": np.diag(SPACING), "space origin": ORIGIN}
    scans.write_nrrd(path, array, **{**header, **changes})


def write_npy(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array.T)


def write_nii(path: Path, array: np.ndarray) -> None:
    write_nifti(path, array, np.diag([*SPACING, 1.0]))


WRITERS = {".nrrd": write_nrrd, ".npy": write_npy, ".nii.gz": write_nii}


def write_patient(root: Path, name: str, suffix: str = ".npy", *, without: tuple[str, ...] = ()) -> Path:
    """A patient's folder in one of the formats."""
    WRITERS[suffix](root / name / f"img{suffix}", volume())
    for structure, mask in masks().items():
        if structure not in without:
            WRITERS[suffix](root / name / f"structures/{structure}{suffix}", mask)
    return root / name


def keys(root: Path, **changes: object) -> Dataset:
    patients = {"image": "img*", "masks": MASKS, "spacing": SPACING[::-1]} | changes.pop("patients", {})
    whole = {"name": "some", "labels": LABELS, "channels": ("CT",), "source": Source(folder=str(root))}
    return Dataset(**whole | changes, patients=Patients(**patients))


def bring(root: Path, base: Path, **changes: object) -> tuple[Path, str]:
    """The fetched folder, and what is said of it."""
    made = base / "data" / "some"
    return made, fetch(keys(root, **changes), made, downloads=base / "downloads")


@pytest.mark.parametrize("suffix", WRITERS)
def test_masks_become_one_label_map_on_the_images_grid(tmp_path, suffix):
    write_patient(tmp_path / "source/part1", "0522c0001", suffix)
    made, message = bring(tmp_path / "source", tmp_path)
    image = nibabel.load(made / "imagesTr/0522c0001.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume())
    assert image.get_data_dtype() == np.int16
    labels = nibabel.load(made / "labelsTr/0522c0001.nii.gz")
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected("Jaw", "Stem", "Chiasm"))
    np.testing.assert_allclose(labels.affine, image.affine)
    np.testing.assert_allclose(image.header.get_zooms(), SPACING, rtol=1e-6)
    assert "1 patients merged; 3 voxels of 1 patients lie in several masks and went to the later one" in message


def test_the_place_of_an_nrrd_file_is_that_which_itk_gives_it(tmp_path):
    """left-posterior-superior (1.1 to the left, 1.2 to the back) is the negative of NIfTI's x and y."""
    write_nrrd(tmp_path / "a.nrrd", volume())
    grid = open_volume(tmp_path / "a.nrrd").geometry
    np.testing.assert_allclose(grid.affine, [[-1.1, 0, 0, 20], [0, -1.2, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1]])
    itk = SimpleITK.ReadImage(str(tmp_path / "a.nrrd"))
    place = np.array(itk.TransformIndexToPhysicalPoint((3, 2, 1)))
    np.testing.assert_allclose((grid.affine @ [3, 2, 1, 1])[:3], place * [-1, -1, 1])


@pytest.mark.parametrize(
    ("space", "signs"), [("LPS", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1))]
)
def test_nrrd_spaces_are_turned_to_ras(tmp_path, space, signs):
    turned = np.array([[0, 2.0, 0], [1.0, 0, 0], [0, 0, -3.0]])
    write_nrrd(tmp_path / "a.nrrd", volume(), space=space, **{"space directions": turned})
    grid = open_volume(tmp_path / "a.nrrd").geometry
    np.testing.assert_allclose(grid.affine[:3, 0], np.array([0, 2.0, 0]) * signs)
    np.testing.assert_allclose(grid.affine[:3, 2], np.array([0, 0, -3.0]) * signs)


@pytest.mark.parametrize("changes", [{"space": None}, {"space": None, "space origin": None, "space directions": None}])
def test_an_nrrd_file_that_does_not_say_where_it_lies_is_refused(tmp_path, changes):
    if changes.get("space directions", 0) is None:
        write_nrrd(tmp_path / "a.nrrd", volume(), **changes)
    else:
        write_nrrd(tmp_path / "a.nrrd", volume(), space="scanner-xyz")
    with pytest.raises(UserError, match=r"a\.nrrd: .*by 'space' \(one of las, last, left-anterior-superior") as refused:
        open_volume(tmp_path / "a.nrrd")
    assert "its header does not say how the scan lies in the patient" in str(refused.value)


def test_an_array_needs_the_size_of_its_voxels(tmp_path):
    write_npy(tmp_path / "a.npy", volume())
    with pytest.raises(UserError, match=r"a\.npy: an array says nothing of its voxels' size; give 'spacing'"):
        open_volume(tmp_path / "a.npy")
    opened = open_volume(tmp_path / "a.npy", Hints(spacing=(2.5, 1.2, 1.1)))
    np.testing.assert_array_equal(opened.voxels(None), volume())
    assert opened.geometry.spacing == pytest.approx((2.5, 1.2, 1.1))
    write_npy(tmp_path / "flat.npy", volume()[0])
    with pytest.raises(UserError, match=r"expected one volume with three axes; the file has shape \(5, 4\)"):
        open_volume(tmp_path / "flat.npy", Hints(spacing=(1, 1, 1)))
    np.save(tmp_path / "code.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"code\.npy: cannot be read to its end"):
        open_volume(tmp_path / "code.npy", Hints(spacing=(1, 1, 1)))


def test_the_order_of_the_masks_decides_where_they_overlap(tmp_path):
    write_patient(tmp_path / "source", "a")
    turned = dict(reversed(MASKS.items()))
    made, _ = bring(tmp_path / "source", tmp_path, patients={"masks": turned})
    labels = np.asarray(nibabel.load(made / "labelsTr/a.nii.gz").dataobj)
    assert (labels == 5).sum() == 0  # within the stem, which comes later
    assert (labels == 1).sum() == 3 * 3 * 3 - 1
    assert labels[3, 2, 1] == 2


def checked(root: Path, made: Path, lines: str = "") -> Cases:
    """The cases by `megavoxel check`, whose dataset file has more lines."""
    masks = "\n".join(f"    {name}: '{pattern}'" for name, pattern in MASKS.items())
    file = made.parent / "some.yaml"
    file.write_text(
        f"name: some\nsource: {{folder: '{root}'}}\nchannels: [CT]\nlabels: {{stem: 1, jaw: 2, chiasm: 5}}\n"
        f"patients:\n  image: 'img*'\n  masks:\n{masks}\n{lines}"
    )
    paths = ["--checks", str(made.parent / "checks.csv"), "--output", str(made.parent / "cases.json")]
    assert main(["check", "--dataset", str(file), "--data", str(made), *paths]) == 0
    return load_cases(made.parent / "cases.json")


def test_a_missing_mask_is_an_unannotated_label_and_an_empty_one_is_not(tmp_path):
    root = tmp_path / "source"
    write_patient(root, "a")
    write_patient(root, "b", without=("Chiasm", "Jaw"))
    write_npy(write_patient(root, "c") / "structures/Chiasm.npy", np.zeros(SHAPE, np.uint8))
    write_patient(root, "t[1]", without=("Stem",))
    made, message = bring(root, tmp_path)
    assert message.startswith("4 patients merged; masks missing: stem in 1, jaw in 1, chiasm in 1; ")
    assert read_json(made / "dataset.json", what="x")["unannotated"] == {
        "stem": ["t[1]"],
        "jaw": ["b"],
        "chiasm": ["b"],
    }
    np.testing.assert_array_equal(np.asarray(nibabel.load(made / "labelsTr/b.nii.gz").dataobj), expected("Stem"))
    cases = checked(root, made, "test_cases: ['t[1]']\nunannotated: {stem: [c]}\n")
    found = {case.id: (case.split, case.unannotated) for case in cases.cases}
    assert found == {
        "a": ("training", ()),
        "b": ("training", ("jaw", "chiasm")),
        "c": ("training", ("stem",)),
        "t[1]": ("test", ("stem",)),
    }
    splits = make_splits(cases, folds=3, seed=1)
    assert splits.test == ("t[1]",)


def test_what_dataset_json_records_is_held_to_its_form(tmp_path):
    write_patient(tmp_path / "source", "a")
    made, _ = bring(tmp_path / "source", tmp_path)
    content = read_json(made / "dataset.json", what="x")
    for recorded in (["a"], {"stem": "a"}, {"stem": [1]}):
        write_json(made / "dataset.json", {**content, "unannotated": recorded})
        with pytest.raises(UserError, match=r"dataset\.json: 'unannotated' must list case ids by label name"):
            read_layout(made, keys(tmp_path / "source"))


def spoil(patient: Path, fault: str) -> None:
    other = {"shape": np.zeros((6, 5, 3), np.uint8), "values": np.arange(120).reshape(SHAPE).astype(np.uint8)}
    if fault in other:
        write_npy(patient / "structures/Jaw.npy", other[fault])
    elif fault == "damaged":
        (patient / "structures/Jaw.npy").write_bytes((patient / "structures/Jaw.npy").read_bytes()[:-20])
    elif fault == "twice":
        write_npy(patient / "structures/Jaw_old.npy", masks()["Jaw"])
    elif fault == "none":
        for path in (patient / "structures").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("shape", r"b: the image and Jaw\.npy lie on different grids: 6 x 5 x 4 and 6 x 5 x 3 voxels"),
        ("values", r"b: Jaw\.npy has several values besides 0, such as 1 and 119; a mask has one"),
        ("damaged", r"b: .*Jaw\.npy: cannot be read to its end"),
        ("twice", r"b: 'structures/Jaw\*' matches structures/Jaw\.npy and structures/Jaw_old\.npy; make the pattern"),
        ("none", r"b: none of its masks is there: structures/Jaw\*, structures/Stem\*, structures/Chiasm\*"),
    ],
)
def test_faults_of_all_patients_are_listed_and_nothing_is_written(tmp_path, fault, words):
    for name in "abc":
        write_patient(tmp_path / "source", name)
    for name in "bc":
        spoil(tmp_path / "source" / name, fault)
    with pytest.raises(UserError, match=words) as caught:
        bring(tmp_path / "source", tmp_path)
    assert "dataset some: 2 of 3 patients in" in str(caught.value)
    assert "  c: " in str(caught.value)
    assert not (tmp_path / "data/some").exists()


def test_a_truncated_nrrd_file_is_named(tmp_path):
    write_patient(tmp_path / "source", "a", ".nrrd")
    path = tmp_path / "source/a/structures/Stem.nrrd"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\n\n") + 12])
    with pytest.raises(UserError, match=r"a: .*Stem\.nrrd: cannot be read to its end"):
        bring(tmp_path / "source", tmp_path)


def test_folders_without_patients_and_patients_of_one_name_are_refused(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match=r"some: patients: .*source has no folder with an image 'img\*'"):
        bring(tmp_path / "source", tmp_path)
    for part in ("part1", "part2"):
        write_patient(tmp_path / "source" / part, "a")
    with pytest.raises(UserError, match=r"part1/a and part2/a in .* have the same name"):
        bring(tmp_path / "source", tmp_path)
    with pytest.raises(UserError, match=r"its source folder was not found: there is no .*/absent; give the folder"):
        fetch(keys(Path("absent")), tmp_path / "data/some", downloads=tmp_path)


PATIENTS = "patients: {image: 'img*', masks: {a: A*}}"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (f"{PATIENTS}\nlabels: {{a: 1}}", "patients: it also needs 'channels'"),
        (f"{PATIENTS}\nchannels: [CT]", "patients.masks: 'labels' and 'masks' must have the same names"),
        (f"{PATIENTS}\nchannels: [CT]\nlabels: {{a: 1, b: 2}}", "only one of them has b"),
        (f"{PATIENTS}\nblocks: {{counts: [1, 2, 2]}}", "patients: they are not cut into blocks"),
        ("patients: {image: 'ct/img*', masks: {a: A*}}", "patients.image: 'ct/img*' is not allowed"),
        ("patients: {masks: {a: A*}}", "'image' is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, lines, words):
    assert words in refusal(tmp_path, lines)


@pytest.mark.parametrize(("suffix", "tail"), [(".nrrd", ""), (".npy", "_crp_v2")])
def test_head_and_neck_reads_pddca_and_the_arrays_of_anatomynet(repository, tmp_path, suffix, tail):
    shipped = load_dataset(repository / "config/datasets/head-and-neck.yaml")
    assert len(shipped.test_cases) == 10
    assert len(shipped.labels) == 9
    structures = [pattern.split("/")[1].rstrip("*") for pattern in shipped.patients.masks.values()]
    for name in (*shipped.test_cases, "0522c0001", "HN-CHUM-001"):
        home = tmp_path / "head_and_neck" / name
        WRITERS[suffix](home / f"img{tail}{suffix}", volume())
        for place, structure in enumerate(structures):
            if (name, structure) != ("HN-CHUM-001", "Chiasm"):
                mask = np.zeros(SHAPE, np.uint8)
                mask.reshape(-1)[3 * place : 3 * place + 4] = 1  # the last voxel is the next one's first
                WRITERS[suffix](home / f"structures/{structure}{tail}{suffix}", mask)
    fetch(shipped, tmp_path / "data/head-and-neck", downloads=tmp_path, mirror=tmp_path)
    layout = read_layout(tmp_path / "data/head-and-neck", shipped)
    assert [case.id for case in layout.cases if case.split == "training"] == ["0522c0001", "HN-CHUM-001"]
    assert {case.id: case.unannotated for case in layout.cases if case.unannotated} == {"HN-CHUM-001": ("chiasm",)}
    path = tmp_path / "data/head-and-neck/labelsTr/0522c0555.nii.gz"
    voxels = dict(zip(*np.unique(read_labels(path)[0], return_counts=True), strict=True))
    assert {name: voxels[value] for name, value in shipped.labels.items()} == {
        **dict.fromkeys(shipped.labels, 3),
        "chiasm": 4,
    }
    assert read_image(tmp_path / "data/head-and-neck/imagesTr/0522c0555.nii.gz")[0].shape == (1, *SHAPE[::-1])
