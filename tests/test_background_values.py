"""Values of label files that count as background, and test cases drawn by a seed: both are said by the dataset file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from monai.apps.datasets import DecathlonDataset
from sklearn.model_selection import train_test_split

from dataset_folder import SHAPE, Folder, refusal
from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.setting import Preprocessing
from megavoxel.config.source import Source
from megavoxel.datasets.adjustments import adjusted_cases
from megavoxel.datasets.cases import Case, Cases, load_cases, save_cases
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.pairs import predicted_pairs
from megavoxel.evaluation.scoring import score_pairs
from megavoxel.evaluation.targets import targets_of
from megavoxel.planning.fingerprint import measure
from megavoxel.planning.plan import load_preprocessing_plan, save_plan
from megavoxel.planning.planner import plan_preprocessing
from megavoxel.planning.splits import make_splits
from megavoxel.preprocessing.case import preprocess_case, preprocess_image, preprocess_labels
from megavoxel.preprocessing.store import open_case
from megavoxel.volumes.open import read_labels

KEYS = "labels: {synapse: 4}\nbackground_values: [1, 2]\n"


def map_of_four() -> np.ndarray:
    """24 voxels each of the values 1, 2 and 4; all others are 0."""
    array = np.zeros(SHAPE, np.uint8)
    array[1, 1:5, 1:7], array[2, 1:5, 1:7], array[4, 1:5, 1:7] = 1, 2, 4
    return array


@pytest.fixture
def folder(tmp_path) -> Folder:
    """Three cases with `map_of_four`; intensities are ten times the label, and 5 in the background.

    The first voxel, in the background, is another one in each case.
    """
    folder = Folder(tmp_path)
    values = map_of_four()
    for number in range(3):
        folder.write(f"labelsTr/case_{number}", values)
        image = np.where(values > 0, 10 * values, 5).astype(np.float32)
        image[0, 0, 0] += number
        folder.write(f"imagesTr/case_{number}", image)
    return folder


@pytest.fixture
def cases(folder):
    """The checked cases, of which 1 and 2 are background."""
    assert folder.check(keys=KEYS) == 0
    return load_cases(folder.base / "cases.json")


def test_the_check_accepts_them_and_passes_them_on(folder, cases):
    assert [row[0] for row in folder.rows("ok")] == ["case_0", "case_1", "case_2"]
    assert cases.background_values == (1, 2)
    assert cases.labels == {"synapse": 4}


def test_another_value_is_still_undeclared(folder, capsys):
    assert folder.check(keys="labels: {synapse: 4}\nbackground_values: [2]\n") == 1
    message = folder.rows()[0][2]
    assert "undeclared value 1; declared are 0 background, 2 background, 4 synapse" in message


def test_a_map_of_background_alone_is_a_warning(folder):
    values = map_of_four()
    values[values == 4] = 2
    folder.write("labelsTr/case_1", values)
    assert folder.check(keys=KEYS) == 0
    assert [(case, check) for case, check, _ in folder.rows("warning")] == [("case_1", "foreground")]


def test_label_maps_are_read_with_zero_in_their_place(cases):
    found = cases.read_labels(cases.case("case_0"))
    assert np.bincount(found.reshape(-1)).tolist() == [found.size - 24, 0, 0, 0, 24]


def test_only_labels_are_foreground_of_the_fingerprint(cases):
    """The one intensity of the synapse is 40; those of the other two would be 10 and 20."""
    (intensities,) = measure(cases).intensities
    assert (intensities.minimum, intensities.mean, intensities.maximum) == (40.0, 40.0, 40.0)


def test_preprocessed_classes_are_background_and_the_labels(cases, tmp_path):
    plan = plan_preprocessing(cases, measure(cases), Preprocessing(spacing=(2.0, 1.5, 1.0)))
    preprocess_case(cases.case("case_0"), cases=cases, plan=plan, folder=tmp_path / "pre", patch=(4, 4, 4))
    stored = open_case(tmp_path / "pre", "case_0")
    assert np.bincount(stored.labels[:].reshape(-1)).tolist() == [np.prod(SHAPE) - 24, 24]


def test_preprocessing_knows_them_from_its_plan_alone(cases):
    """A label map as its file has it, read past the list of cases."""
    plan = plan_preprocessing(cases, measure(cases), Preprocessing(spacing=(2.0, 1.5, 1.0)))
    image, geometry = cases.read_image(cases.case("case_0"))
    raw = read_labels(Path(cases.root) / "labelsTr/case_0.nii.gz")[0]
    _, properties = preprocess_image(image, geometry, plan, "case_0")
    assert np.bincount(preprocess_labels(raw, properties, plan).reshape(-1)).tolist() == [np.prod(SHAPE) - 24, 24]
    with pytest.raises(UserError, match="the label map holds 1; the plan knows 0 and 4"):
        preprocess_labels(raw, properties, replace(plan, background_values=(2,)))


def test_they_count_for_the_hash_of_a_plan_and_only_where_there_are_some(cases, tmp_path):
    plan = plan_preprocessing(cases, measure(cases), Preprocessing())
    without = replace(plan, background_values=())
    assert plan.hash != without.hash
    for case, expected in ((plan, [1, 2]), (without, [])):
        save_plan(tmp_path / "plan.json", case)
        assert json.loads((tmp_path / "plan.json").read_text())["background_values"] == expected
        assert load_preprocessing_plan(tmp_path / "plan.json") == case


def test_scores_are_those_of_the_labels(folder, cases):
    """12 of the 24 voxels are found, and 12 voxels of value 1 are taken for it: DSC 0.5."""
    found = np.zeros(SHAPE, np.uint8)
    found[4, 1:3, 1:7] = found[1, 1:3, 1:7] = 4
    for number in range(3):
        folder.write(f"../predictions/case_{number}", found)
    pairs = predicted_pairs(cases, [folder.base / "predictions"])
    scores = score_pairs(pairs, targets_of(cases), [METRICS["dsc"]]).rows
    assert [(label, value) for _, label, _, value in scores] == [("synapse", 0.5)] * 3


def test_files_of_datasets_without_the_key_stay_as_they_were(folder, tmp_path):
    assert folder.check(keys="labels: {one: 1, two: 2, four: 4}\n") == 0
    written = (tmp_path / "cases.json").read_text()
    assert "background_values" not in written
    again = load_cases(tmp_path / "cases.json")
    assert again.background_values == ()
    save_cases(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_text() == written


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("background_values: [1]", "background_values: it also needs 'labels'"),
        ("labels: {a: 1, b: 2}\nbackground_values: [3, 2]", "background_values: 2 is the value of the label 'b'"),
        ("labels: {a: 1}\nbackground_values: [0]", "background_values.0: 0 is less than the minimum of 1"),
        ("test_count: 2\ntest_cases: [a]", "test_count: test_cases names the test cases already"),
        ("test_seed: 2", "test_seed: it draws cases only beside 'test_count'"),
        ("test_seed: 0", "test_seed: it draws cases only beside 'test_count'"),
        ("test_count: 2\ntest_cases: []", "test_count: test_cases names the test cases already"),
        ("test_count: 0", "test_count: 0 is less than the minimum of 1"),
    ],
)
def test_mistakes_in_the_keys_are_named(tmp_path, lines, words):
    assert words in refusal(tmp_path, lines)


def labelled(count: int, **changes: object) -> list[Case]:
    return [Case(id=f"case_{number:02}", images=("i.nii.gz",), label="l.nii.gz", **changes) for number in range(count)]


def drawn(cases: list[Case], tmp_path, **keys: object) -> list[str]:
    """Ids of the test cases."""
    dataset = Dataset(name="some", source=Source(folder="some"), **keys)
    return [case.id for case in adjusted_cases(cases, dataset, tmp_path)[0] if case.split == "test"]


@pytest.mark.parametrize(("count", "seed"), [(6, 0), (6, 12345), (1, 3), (29, 4)])
def test_the_drawn_cases_are_those_of_scikit_learn(tmp_path, count, seed):
    cases = labelled(30)
    _, expected = train_test_split([case.id for case in cases], test_size=count, random_state=seed)
    assert drawn(cases[::-1], tmp_path, test_count=count, test_seed=seed) == sorted(expected)[::-1]


def test_another_seed_draws_others(tmp_path):
    first, second = (drawn(labelled(30), tmp_path, test_count=6, test_seed=seed) for seed in (1, 2))
    assert first != second


def test_cases_without_labels_and_those_left_out_are_not_drawn(tmp_path):
    unlabelled = Case(id="plain", images=("i.nii.gz",))
    for seed in range(10):
        chosen = drawn([*labelled(4), unlabelled], tmp_path, test_count=2, test_seed=seed, exclude=("case_00",))
        assert len(chosen) == 2
        assert not {"plain", "case_00"} & set(chosen)
    with pytest.raises(UserError, match="test_count: 2 test cases cannot be drawn from 2 labelled ones"):
        drawn([*labelled(3), unlabelled], tmp_path, test_count=2, exclude=("case_00",))


def decathlon_liver(folder: Path, order: int) -> Path:
    """dataset.json of Task03_Liver by its numbers: 131 labelled cases, in one order or the other, and 70 without."""
    entries = [{"image": f"./imagesTr/liver_{n}.nii.gz", "label": f"./labelsTr/liver_{n}.nii.gz"} for n in range(131)]
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "training": entries[::order],
        "test": [f"./imagesTs/liver_{n}.nii.gz" for n in range(131, 201)],
    }
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_the_liver_split_of_lamp_is_104_and_27_in_any_order_without_the_unlabelled_images(repository, tmp_path):
    """Zhu et al. 2020, section 3."""
    shipped = load_dataset(repository / "config/datasets/task03-liver.yaml")
    layouts = [read_layout(decathlon_liver(tmp_path / name, order), shipped) for name, order in (("a", 1), ("b", -1))]
    assert layouts[0] == layouts[1]
    splits = [case.split for case in layouts[0].cases]
    assert (splits.count("training"), splits.count("test")) == (104, 27)
    assert all(case.label is not None for case in layouts[0].cases)
    assert layouts[0].labels == {"liver": 1, "tumour": 2}
    assert shipped.declared.training_cases == 104


def test_address_and_checksum_of_the_liver_are_those_of_monai(repository):
    source = load_dataset(repository / "config/datasets/task03-liver.yaml").source
    assert source.url == DecathlonDataset.resource["Task03_Liver"]
    assert source.md5 == DecathlonDataset.md5["Task03_Liver"]


def test_the_split_of_the_paper_is_21_3_and_6(repository, tmp_path):
    """Wang et al. 2022, section 4.1: 70, 10 and 20 % of 30 images."""
    shipped = load_dataset(repository / "config/datasets/fruitfly-microct.yaml")
    kept, _ = adjusted_cases(labelled(30), shipped, tmp_path)
    cases = Cases(
        dataset=shipped.name, root="", channels=("microCT",), labels={"a": 1}, nsd_tolerance_mm={"a": 1.0}, cases=kept
    )
    splits = make_splits(cases, folds=8, seed=12345)
    assert {(len(fold.training), len(fold.validation)) for fold in splits.folds} == {(21, 3)}
    assert len(splits.test) == 6
    assert shipped.declared.training_cases == 24
