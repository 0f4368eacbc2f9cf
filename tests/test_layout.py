"""dataset.json of both layouts, and what a dataset file changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.source import Source
from megavoxel.datasets.cases import Case
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError

DECATHLON = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "2": "tail", "1": "head"},
    "training": [
        {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
    ],
    "test": ["./imagesTs/x.nii.gz", {"image": "imagesTs/y.nii", "label": "labelsTs/y.nii"}],
}


def describe(folder: Path, content: object) -> Path:
    """A dataset folder with that dataset.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def dataset(**changes: object) -> Dataset:
    """A dataset file with some keys."""
    return Dataset(name="some", source=Source(folder="some"), **changes)


def test_the_decathlon_layout_is_read(tmp_path):
    layout = read_layout(describe(tmp_path, DECATHLON), dataset())
    assert layout.channels == ("MRI",)
    assert list(layout.labels.items()) == [("head", 1), ("tail", 2)]
    assert layout.cases == (
        Case(id="a", images=("imagesTr/a.nii.gz",), label="labelsTr/a.nii.gz", split="training"),
        Case(id="b", images=("imagesTr/b.nii.gz",), label="labelsTr/b.nii.gz", split="training"),
        Case(id="x", images=("imagesTs/x.nii.gz",), label=None, split="test"),
        Case(id="y", images=("imagesTs/y.nii",), label="labelsTs/y.nii", split="test"),
    )


def test_label_maps_of_test_cases_are_found_by_name_where_the_list_has_images_alone(tmp_path):
    (tmp_path / "labelsTs").mkdir(parents=True)
    for name in ("x.nii.gz", "y.mha", "._z.nii.gz", "z.txt"):
        (tmp_path / "labelsTs" / name).touch()
    content = DECATHLON | {"test": ["imagesTs/x.nii.gz", {"image": "imagesTs/y.nii"}, "imagesTs/z.nii.gz"]}
    layout = read_layout(describe(tmp_path, content), dataset())
    found = {case.id: case.label for case in layout.cases if case.split == "test"}
    assert found == {"x": "labelsTs/x.nii.gz", "y": "labelsTs/y.mha", "z": None}


def nnunet_folder(folder: Path) -> Path:
    """Two channels; training cases p and q, test cases r (labelled) and s; hidden files among them."""
    names = ["imagesTr/p_0000", "imagesTr/p_0001", "imagesTr/q_0000", "labelsTr/p", "labelsTr/q", "imagesTr/._p_0000"]
    names += ["imagesTs/r_0000", "imagesTs/r_0001", "imagesTs/s_0000", "imagesTs/s_0001", "labelsTs/r", "labelsTs/._r"]
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return describe(
        folder,
        {
            "channel_names": {"0": "T1", "1": "T2"},
            "labels": {"background": 0, "tumour": 3, "organ": 1},
            "file_ending": ".nii.gz",
        },
    )


def test_the_layout_of_nnunet_is_read(tmp_path):
    layout = read_layout(nnunet_folder(tmp_path), dataset())
    assert layout.channels == ("T1", "T2")
    assert list(layout.labels.items()) == [("organ", 1), ("tumour", 3)]
    assert [(case.id, case.split, case.label) for case in layout.cases] == [
        ("p", "training", "labelsTr/p.nii.gz"),
        ("q", "training", "labelsTr/q.nii.gz"),
        ("r", "test", "labelsTs/r.nii.gz"),
        ("s", "test", None),
    ]
    assert layout.cases[0].images == ("imagesTr/p_0000.nii.gz", "imagesTr/p_0001.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_cases_are_those_that_nnunet_itself_finds(tmp_path, ending):
    """Ids with underscores, numbers and dots, and channels beyond nine; nnU-Net tells no image from a lone label."""
    utilities = pytest.importorskip("nnunetv2.utilities.utils")
    names = ["BRATS_001", "a", "a_0001", "scan.2024-01-01", "z_b_0000"]
    content = {"channel_names": {str(n): f"c{n}" for n in range(11)}, "labels": {"background": 0, "one": 1}}
    folder = describe(tmp_path / "Dataset123_Some", {**content, "file_ending": ending})
    for case in names:
        for file in [f"labelsTr/{case}", *(f"imagesTr/{case}_{channel:04d}" for channel in range(11))]:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / f"{file}{ending}").touch()
    theirs = utilities.get_filenames_of_train_images_and_targets(str(folder))
    ours = {case.id: case for case in read_layout(folder, dataset()).cases}
    assert set(ours) == set(theirs) == set(names)
    for name, entry in theirs.items():
        assert [str(folder / image) for image in ours[name].images] == entry["images"]
        assert str(folder / ours[name].label) == entry["label"]


def test_training_cases_may_be_listed_by_nnunets_own_dataset_json(tmp_path):
    utilities = pytest.importorskip("nnunetv2.utilities.utils")
    entries = {
        "q": {"images": ["scans/q-t1.nii.gz", "scans/q-t2.nii.gz"], "label": "drawn/q.nii.gz"},
        "p": {"images": ["scans/p-t1.nii.gz", "scans/p-t2.nii.gz"], "label": "drawn/p.nii.gz"},
    }
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "one": 1}, "file_ending": ".nii.gz"}
    folder = describe(tmp_path, {**content, "dataset": entries})
    assert read_layout(folder, dataset()).cases == tuple(
        Case(id=case, images=tuple(entries[case]["images"]), label=entries[case]["label"]) for case in ("p", "q")
    )
    theirs = utilities.get_filenames_of_train_images_and_targets(str(folder))
    assert theirs["q"]["images"] == [str(folder / image) for image in entries["q"]["images"]]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {"images": "a.nii.gz", "label": "b.nii.gz"}}, "dataset: a: expected"),
        ({"a": {"images": [], "label": "b.nii.gz"}}, "dataset: a: expected"),
        ({"a": {"images": ["../a.nii.gz"], "label": "b.nii.gz"}}, "outside the dataset's folder"),
        ({"a": {"images": ["a.nii.gz"], "label": "/b.nii.gz"}}, "outside the dataset's folder"),
        ({"a": {"images": ["a.png"], "label": "b.nii.gz"}}, "is of a kind that is not read"),
        ({"../a": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}, "cannot be the name of a file"),
        ({}, "there are no cases"),
    ],
)
def test_what_is_wrong_in_nnunets_list_is_named(tmp_path, entries, message):
    content = {"channel_names": {"0": "T1"}, "labels": {"one": 1}, "file_ending": ".nii.gz", "dataset": entries}
    with pytest.raises(UserError) as caught:
        read_layout(describe(tmp_path, content), dataset())
    assert message in str(caught.value)


def test_a_text_called_dataset_is_no_list(tmp_path):
    layout = read_layout(describe(tmp_path, {**DECATHLON, "dataset": "of our hospital"}), dataset())
    assert [case.id for case in layout.cases] == ["a", "b", "x", "y"]


def test_files_with_numbers_are_found_where_the_list_has_none(tmp_path):
    """nnU-Net v1 lists cases as the Decathlon does, while the files have the number of their channel."""
    content = {**DECATHLON, "modality": {"0": "T1", "1": "T2"}, "test": []}
    folder = describe(tmp_path, content)
    for case in "ab":
        for file in (f"imagesTr/{case}_0000", f"imagesTr/{case}_0001", f"labelsTr/{case}"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / f"{file}.nii.gz").touch()
    cases = read_layout(folder, dataset()).cases
    assert [case.images for case in cases] == [
        (f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz") for case in "ab"
    ]
    assert [case.label for case in cases] == ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz"]


def test_a_missing_channel_and_a_lone_label_are_not_overlooked(tmp_path):
    folder = nnunet_folder(tmp_path)
    (folder / "labelsTr" / "lone.nii.gz").touch()
    cases = {case.id: case for case in read_layout(folder, dataset()).cases}
    assert cases["q"].images == ("imagesTr/q_0000.nii.gz", "imagesTr/q_0001.nii.gz")
    assert cases["lone"].images == ("imagesTr/lone_0000.nii.gz", "imagesTr/lone_0001.nii.gz")


def test_the_dataset_file_overrides_and_excludes(tmp_path):
    changes = dataset(labels={"hippocampus": 1}, channels=("CT",), exclude=("x",), test_cases=("a",))
    layout = read_layout(describe(tmp_path, DECATHLON), changes)
    assert layout.labels == {"hippocampus": 1}
    assert layout.channels == ("CT",)
    assert layout.excluded == ("x",)
    assert [(case.id, case.split) for case in layout.cases] == [("a", "test"), ("b", "training"), ("y", "test")]


def test_hidden_files_in_the_list_are_left_out(tmp_path):
    entry = {"image": "./imagesTr/._b.nii.gz", "label": "./labelsTr/._b.nii.gz"}
    layout = read_layout(describe(tmp_path, {**DECATHLON, "training": [entry]}), dataset())
    assert [case.id for case in layout.cases] == ["x", "y"]


@pytest.mark.parametrize("name", ["../a.nii.gz", "/etc/a.nii.gz", "imagesTr/../../a.nii.gz", ""])
@pytest.mark.parametrize("key", ["image", "label"])
def test_files_outside_the_folder_are_refused(tmp_path, key, name):
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", key: name}
    with pytest.raises(UserError, match="outside the dataset's folder"):
        read_layout(describe(tmp_path, {**DECATHLON, "training": [entry]}), dataset())


@pytest.mark.parametrize("key", ["exclude", "test_cases"])
def test_an_unknown_case_comes_with_the_nearest_names(tmp_path, key):
    training = [{"image": f"imagesTr/liver_{n:02d}.nii.gz", "label": f"l/{n}.nii.gz"} for n in (7, 17, 70, 99)]
    folder = describe(tmp_path, {**DECATHLON, "training": training})
    with pytest.raises(UserError, match=rf"some: {key}.*'liver_007' \(nearest: .*liver_07") as caught:
        read_layout(folder, dataset(**{key: ("liver_007", "liver_17")}))
    assert "'liver_17'" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "'labels' must name"),
        ({"labels": {"background": 0}}, "no label above 0"),
        ({"labels": {"0": "background", "1": "a", "2": "a"}}, "two values have the name 'a'"),
        ({"labels": {"a": 1, "b": 1}}, "a and b have the same value"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "'regions_class_order' is missing"),
        ({"labels": {"whole": [1, 2]}, "regions_class_order": "1"}, "'1' is not allowed; a list of label values"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "'ignore' is [1]; it must be one value"),
        ({"labels": {"background": 0, "a": 1.5}}, "'a' has the value 1.5"),
        ({"labels": {"background": 0, "a": -1}}, "'a' has the value -1"),
        ({"modality": None}, "must name the channels"),
        ({"modality": {"1": "CT"}}, "must name the channels"),
        ({"training": {}}, "'training' must be a list"),
        ({"training": [{"label": "l.nii.gz"}]}, 'expected {"image"'),
        ({"training": [{"image": "a.png", "label": "l.nii.gz"}]}, "'a.png' is of a kind that is not read"),
        ({"training": [], "test": []}, "no cases"),
    ],
)
def test_what_is_wrong_in_dataset_json_is_named(tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        read_layout(describe(tmp_path, {**DECATHLON, **changes}), dataset())
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_ending_that_is_not_read_is_named(tmp_path):
    content = {"channel_names": {"0": "CT"}, "labels": {"a": 1}, "file_ending": ".png"}
    with pytest.raises(UserError, match=r"file_ending: '\.png' is not read"):
        read_layout(describe(tmp_path, content), dataset())


def test_an_empty_folder_and_empty_lists_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"no dataset\.json.*megavoxel fetch"):
        read_layout(tmp_path, dataset())
    with pytest.raises(UserError, match="no cases"):
        read_layout(describe(tmp_path, {"channel_names": {"0": "CT"}, "labels": {"a": 1}}), dataset())
    with pytest.raises(UserError, match="expected a JSON object"):
        read_layout(describe(tmp_path, []), dataset())
    with pytest.raises(UserError, match="all 4 cases are left out"):
        read_layout(describe(tmp_path, DECATHLON), dataset(exclude=("a", "b", "x", "y")))


def test_shipped_dataset_files_are_valid(repository):
    for name in ("hippocampus", "chaos-mr", "phantom"):
        shipped = load_dataset(repository / "config" / "datasets" / f"{name}.yaml")
        assert shipped.name == name
        assert shipped.licence


def test_the_official_address_and_checksum_are_those_that_monai_knows(repository):
    from monai.apps.datasets import DecathlonDataset

    source = load_dataset(repository / "config" / "datasets" / "hippocampus.yaml").source
    assert source.url == DecathlonDataset.resource["Task04_Hippocampus"]
    assert source.md5 == DecathlonDataset.md5["Task04_Hippocampus"]


@pytest.mark.real_data
def test_real_folders_are_read(real_data):
    layout = read_layout(real_data / "hippocampus", dataset())
    assert len(layout.cases) == 200
    assert layout.labels == {"Anterior": 1, "Posterior": 2}
    assert layout.channels == ("MRI",)
