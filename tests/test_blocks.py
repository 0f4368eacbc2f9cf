"""Volumes cut into blocks: a voxel lies in one block or in a margin, at its place in the world, with its own number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from dataset_folder import refusal
from megavoxel.cli import main
from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.source import Blocks, Source
from megavoxel.datasets.blocks import blocks_of
from megavoxel.datasets.cases import load_cases
from megavoxel.datasets.fetch import fetch
from megavoxel.datasets.folder import visible_files
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.volumes.open import read_image

SHAPE = (9, 8, 3)
"""Voxels of the small volume in the order of the file: x, y, z."""
TWO_BY_TWO = Blocks(counts=(1, 2, 2), margin=(5, 2, 1))
"""Of the small volume: 3 + 2 + 3 voxels along y, 4 + 1 + 4 along x; along z it stays whole."""


def test_a_line_of_voxels_is_cut_by_hand():
    """11 voxels, three blocks, margins of 1: 3 + 1 + 3 + 1 + 3."""
    blocks = blocks_of((1, 1, 11), Blocks(counts=(1, 1, 3), margin=1))
    assert [block.box[2] for block in blocks] == [(0, 3), (4, 7), (8, 11)]
    assert [block.name for block in blocks] == ["b0-0-0", "b0-0-1", "b0-0-2"]


def test_voxels_that_do_not_divide_go_to_the_first_blocks():
    """As numpy.array_split has it."""
    blocks = blocks_of((11, 1, 1), Blocks(counts=(4, 1, 1)))
    parts = np.array_split(np.arange(11), 4)
    assert [block.box[0] for block in blocks] == [(int(part[0]), int(part[-1]) + 1) for part in parts]


@pytest.mark.parametrize("margin", [0, 2, (1, 3, 0)])
@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 3, 4), (1, 4, 4)])
def test_no_voxel_lies_in_two_blocks_and_margins_hold_the_rest(counts, margin):
    shape, blocks = (13, 20, 17), Blocks(counts=counts, margin=margin)
    times = np.zeros(shape, dtype=int)
    for block in blocks_of(shape, blocks):
        times[tuple(slice(*side) for side in block.box)] += 1
    assert times.max() == 1
    in_blocks = [size - (count - 1) * width for size, count, width in zip(shape, counts, blocks.margins, strict=True)]
    assert times.sum() == np.prod(in_blocks)
    assert len(blocks_of(shape, blocks)) == np.prod(counts)


def test_two_blocks_are_apart_by_the_margin():
    """Of every two blocks, at least one axis lies the whole margin between them."""
    blocks = blocks_of((30, 30, 30), Blocks(counts=(2, 3, 2), margin=4))
    for number, first in enumerate(blocks):
        for second in blocks[number + 1 :]:
            gaps = [max(b[0] - a[1], a[0] - b[1]) for a, b in zip(first.box, second.box, strict=True)]
            assert max(gaps) >= 4


def test_names_sort_as_places_do():
    names = [block.name for block in blocks_of((2, 12, 3), Blocks(counts=(2, 12, 1)))]
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("b0-00-0", "b1-11-0")


def test_a_block_without_voxels_is_refused():
    assert len(blocks_of((19, 10, 10), Blocks(counts=(4, 1, 1), margin=5))) == 4
    with pytest.raises(UserError, match=r"18 voxels along z are too few for 4 blocks with a margin of 5.*'counts'"):
        blocks_of((18, 10, 10), Blocks(counts=(4, 1, 1), margin=5))


def volume(shape: tuple[int, ...] = SHAPE, kind: type = np.int16) -> np.ndarray:
    """An array whose every voxel has another value."""
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


def label_map() -> np.ndarray:
    """Values 0 to 4 of the volume's grid."""
    return (volume() % 5).astype(np.uint8)


ORIENTED = np.eye(4)
ORIENTED[:3, :3] = Rotation.from_euler("xy", (4, -3), degrees=True).as_matrix() @ [[0, -2, 0], [1.5, 0, 0], [0, 0, -3]]
ORIENTED[:3, 3] = (7, -3, 11)
"""An oblique file with axes turned and running the other way."""


def write(path: Path, array: np.ndarray, affine: np.ndarray, **header: object) -> None:
    """A NIfTI file with some fields of its header set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(path)


def dataset(source: Path, blocks: Blocks | None = TWO_BY_TWO, **keys: object) -> Dataset:
    return Dataset(name="some", source=Source(folder=str(source)), blocks=blocks, **keys)


def bring(source: Path, base: Path, **keys: object) -> Path:
    """The folder that `fetch` makes of a source."""
    fetch(dataset(source, **keys), base / "data/some", downloads=base / "downloads")
    return base / "data/some"


@pytest.fixture(params=[np.eye(4), np.diag([-0.0046, -0.0046, 0.045, 1.0]), ORIENTED], ids=["ras", "las", "oblique"])
def affine(request) -> np.ndarray:
    return request.param


@pytest.fixture
def source(tmp_path, affine) -> Path:
    """One labelled volume `v` and a test image `t` in the layout of the Medical Segmentation Decathlon."""
    folder = tmp_path / "source"
    write(folder / "imagesTr/v.nii.gz", volume(), affine, descrip=b"section 7")
    write(folder / "labelsTr/v.nii.gz", label_map(), affine, intent_code=1002)
    write(folder / "imagesTs/t.nii.gz", volume(), affine)
    content = {
        "name": "two",
        "modality": {"0": "EM"},
        "labels": {"0": "background", "1": "a", "2": "b", "3": "c", "4": "d"},
        "numTraining": 1,
        "training": [{"image": "./imagesTr/v.nii.gz", "label": "./labelsTr/v.nii.gz"}],
        "test": ["./imagesTs/t.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


NAMES = ["v-b0-0-0", "v-b0-0-1", "v-b0-1-0", "v-b0-1-1"]


def test_a_fetched_volume_is_its_blocks(source, tmp_path):
    folder = bring(source, tmp_path)
    blocks = [f"{kind}/{name}.nii.gz" for kind in ("imagesTr", "labelsTr") for name in NAMES]
    assert [name.as_posix() for name in visible_files(folder)] == sorted(
        ["checksums.tsv", "dataset.json", *blocks, "imagesTs/t.nii.gz"]
    )
    before, after = (json.loads((place / "dataset.json").read_text()) for place in (source, folder))
    assert after.pop("training") == [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in NAMES
    ]
    assert (after.pop("numTraining"), before.pop("numTraining")) == (4, 1)
    del before["training"]
    assert after == before
    assert (folder / "imagesTs/t.nii.gz").readlink() == source / "imagesTs/t.nii.gz"


def test_what_is_not_annotated_is_said_of_blocks(source, tmp_path):
    """Patterns of the dataset file name blocks; what dataset.json says of a volume holds for each of its blocks."""
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(source / kind / "v.nii.gz", source / kind / "w.nii.gz")
    description = source / "dataset.json"
    content = json.loads(description.read_text())
    content["training"] = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "vw"]
    description.write_text(json.dumps(content | {"unannotated": {"a": ["v"]}}))
    keys = {"unannotated": {"b": ("v-b0-0-*",)}}
    folder = bring(source, tmp_path, **keys)
    assert json.loads((folder / "dataset.json").read_text())["unannotated"] == {"a": NAMES}
    found = {case.id: case.unannotated for case in read_layout(folder, dataset(source, **keys)).cases}
    assert {name: found[name] for name in NAMES} == {name: ("a", "b") if "b0-0" in name else ("a",) for name in NAMES}
    assert {found[name.replace("v", "w")] for name in NAMES} == {()}


def test_the_source_is_left_alone(source, tmp_path):
    before = {name: (source / name).read_bytes() for name in visible_files(source)}
    bring(source, tmp_path)
    assert {name: (source / name).read_bytes() for name in visible_files(source)} == before


@pytest.mark.parametrize("kind", ["imagesTr", "labelsTr"])
def test_a_voxel_of_a_block_has_the_place_and_the_value_of_the_volume(source, tmp_path, kind):
    """Every voxel of every block, looked up in the volume by its world coordinates alone."""
    folder = bring(source, tmp_path)
    whole = nibabel.load(source / kind / "v.nii.gz")
    seen = np.zeros(SHAPE, dtype=int)
    for name in NAMES:
        block = nibabel.load(folder / kind / f"{name}.nii.gz")
        indices = np.indices(block.shape).reshape(3, -1).T
        found = apply_affine(np.linalg.inv(whole.affine), apply_affine(block.affine, indices))
        np.testing.assert_allclose(found, np.round(found), atol=1e-3)
        places = tuple(np.round(found).astype(int).T)
        np.testing.assert_array_equal(np.asarray(whole.dataobj)[places], np.asarray(block.dataobj).reshape(-1))
        seen[places] += 1
    assert seen.max() == 1


def test_blocks_are_numbered_along_canonical_axes(tmp_path):
    """x runs from right to left in this file, so the first block along x is the last of the file."""
    folder = tmp_path / "source"
    for kind in ("imagesTr", "labelsTr"):
        write(folder / kind / "v.nii.gz", volume(), np.diag([-1.0, 1.0, 1.0, 1.0]))
    content = {"modality": {"0": "EM"}, "labels": {"one": 1}, "training": [{"image": "imagesTr/v.nii.gz"}]}
    (folder / "dataset.json").write_text(json.dumps(content))
    made = bring(folder, tmp_path, blocks=Blocks(counts=(1, 1, 2), margin=1))
    first, second = (nibabel.load(made / f"imagesTr/v-b0-0-{x}.nii.gz") for x in (0, 1))
    np.testing.assert_array_equal(first.dataobj, volume()[5:])
    np.testing.assert_array_equal(second.dataobj, volume()[:4])


def test_types_intents_and_descriptions_stay(source, tmp_path):
    folder = bring(source, tmp_path)
    image, label = (nibabel.load(folder / kind / "v-b0-1-1.nii.gz").header for kind in ("imagesTr", "labelsTr"))
    assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
    assert int(label["intent_code"]) == 1002
    assert bytes(image["descrip"]).startswith(b"section 7")


def test_scaled_files_keep_their_stored_numbers_and_their_scale(source, tmp_path, affine):
    image = nibabel.Nifti1Image(volume(), affine)
    image.header.set_slope_inter(0.25, -100.0)
    image.to_filename(source / "imagesTr/v.nii.gz")
    folder = bring(source, tmp_path)
    whole = nibabel.load(source / "imagesTr/v.nii.gz")
    assert whole.dataobj.slope == 0.25
    block = nibabel.load(folder / "imagesTr/v-b0-0-0.nii.gz")
    assert (block.dataobj.slope, block.dataobj.inter) == (0.25, -100.0)
    assert block.get_data_dtype() == np.int16
    assert np.isin(np.asarray(block.dataobj), np.asarray(whole.dataobj)).all()


def test_both_affines_of_a_header_move(source, tmp_path):
    image = nibabel.Nifti1Image(volume(), np.diag([2.0, 3.0, 4.0, 1.0]))
    image.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    image.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), 4)
    for kind in ("imagesTr", "labelsTr"):
        image.to_filename(source / kind / "v.nii.gz")
    header = nibabel.load(bring(source, tmp_path) / "imagesTr/v-b0-1-1.nii.gz").header
    for matrix, code in (header.get_qform(coded=True), header.get_sform(coded=True)):
        np.testing.assert_allclose(matrix[:3, 3], [2.0 * 5, 3.0 * 5, 0.0])
        assert code in (1, 4)


def test_channels_in_one_file_and_in_several_are_cut_alike(tmp_path):
    array = volume((*SHAPE, 2))
    listed, found = tmp_path / "listed", tmp_path / "found"
    write(listed / "imagesTr/v.nii.gz", array, np.eye(4))
    for channel in (0, 1):
        write(found / f"imagesTr/v_{channel:04d}.nii.gz", array[..., channel], np.eye(4))
    for folder in (listed, found):
        write(folder / "labelsTr/v.nii.gz", label_map(), np.eye(4))
    content = {"labels": {"0": "background", "1": "a", "2": "b", "3": "c", "4": "d"}, "modality": {"0": "A", "1": "B"}}
    pairs = [{"image": "imagesTr/v.nii.gz", "label": "labelsTr/v.nii.gz"}]
    (listed / "dataset.json").write_text(json.dumps(content | {"training": pairs}))
    names = {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    raw = {"labels": names, "channel_names": {"0": "A", "1": "B"}, "numTraining": 1, "file_ending": ".nii.gz"}
    (found / "dataset.json").write_text(json.dumps(raw))
    first, second = bring(listed, tmp_path / "1"), bring(found, tmp_path / "2")
    assert sorted(path.name for path in (second / "imagesTr").iterdir()) == [
        f"{name}_{channel:04d}.nii.gz" for name in NAMES for channel in (0, 1)
    ]
    cases = [read_layout(folder, dataset(folder)).cases for folder in (first, second)]
    assert [case.id for case in cases[0]] == [case.id for case in cases[1]] == NAMES
    for one, other in zip(*cases, strict=True):
        whole = read_image(first / one.images[0])[0]
        parts = [read_image(second / image)[0] for image in other.images]
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_blocks_pass_the_check_and_become_cases(source, tmp_path, capsys):
    folder = bring(source, tmp_path)
    file = tmp_path / "some.yaml"
    file.write_text("name: some\nsource: {folder: source}\nblocks: {counts: [1, 2, 2], margin: [5, 2, 1]}\n")
    outputs = ["--checks", str(tmp_path / "checks.csv"), "--output", str(tmp_path / "cases.json")]
    assert main(["check", "--dataset", str(file), "--data", str(folder), *outputs]) == 0
    assert [case.id for case in load_cases(tmp_path / "cases.json").of_split("training")] == NAMES


def test_keys_that_name_cases_name_blocks(source, tmp_path):
    keys = {"exclude": ("v-b0-0-1",), "test_cases": ("v-b0-1-1",)}
    folder = bring(source, tmp_path, **keys)
    layout = read_layout(folder, dataset(source, **keys))
    assert [(case.id, case.split) for case in layout.cases] == [
        ("t", "test"), ("v-b0-0-0", "training"), ("v-b0-1-0", "training"), ("v-b0-1-1", "test")
    ]  # fmt: skip


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    first, second = (bring(source, tmp_path / name) / "checksums.tsv" for name in ("1", "2"))
    assert first.read_bytes() == second.read_bytes()


def test_a_volume_that_is_too_small_is_named_and_nothing_is_left(source, tmp_path):
    with pytest.raises(UserError, match=r"case v: 3 voxels along z are too few for 4 blocks"):
        bring(source, tmp_path, blocks=Blocks(counts=(4, 1, 1)))
    assert not (tmp_path / "data/some").exists()


def test_a_label_map_on_another_grid_is_refused(source, tmp_path, affine):
    write(source / "labelsTr/v.nii.gz", label_map()[:-1], affine)
    with pytest.raises(UserError, match=r"case v: imagesTr/v.nii.gz and labelsTr/v.nii.gz lie on different grids"):
        bring(source, tmp_path)


def test_a_truncated_volume_is_named(source, tmp_path):
    path = source / "imagesTr/v.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"case v: .*imagesTr/v.nii.gz: cannot be read to its end"):
        bring(source, tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("blocks: {counts: [1, 2]}", "blocks.counts"),
        ("blocks: {counts: [1, 0, 2]}", "blocks.counts.1"),
        ("blocks: {margin: 3}", "'counts' is missing"),
        ("blocks: {counts: [1, 2, 2], margin: -1}", "blocks.margin: -1 is less than the minimum of 0 (voxels left out"),
        ("blocks: {counts: [1, 2, 2], gap: 1}", "unknown key 'gap'"),
    ],
)
def test_mistakes_in_the_key_are_named(tmp_path, line, words):
    assert words in refusal(tmp_path, line)


def test_phantoms_are_not_cut(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("name: some\nsource: {phantom: {training_cases: 2}}\nblocks: {counts: [1, 2, 2]}\n")
    with pytest.raises(UserError, match="blocks: phantoms are not cut"):
        load_dataset(file)


@pytest.mark.slow
def test_the_shipped_em_volume_becomes_sixteen_blocks_as_declared(repository, real_data, tmp_path):
    """4 blocks of 244 voxels and 3 margins of 16 are the 1024 voxels of the volume, along y as along x."""
    if not (real_data / "vnc_em/dataset.json").is_file():
        pytest.skip(f"{real_data} has no vnc_em")
    shipped = load_dataset(repository / "config/datasets/vnc-em.yaml")
    fetch(shipped, tmp_path / "data", downloads=tmp_path, mirror=real_data)
    cases = read_layout(tmp_path / "data", shipped).cases
    assert len(cases) == shipped.declared.training_cases == 16
    image, grid = read_image(tmp_path / "data" / cases[-1].images[0])
    assert image.shape == (1, *shipped.declared.shape) == (1, 20, 244, 244)
    np.testing.assert_allclose(grid.spacing, shipped.declared.spacing, rtol=1e-5)
