"""Datasets of two modalities: which case is which, and fingerprint, plan, folds and arrays of each on its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import preprocessing_plan, tiny_plan
from megavoxel.cli import main
from megavoxel.config.dataset import Dataset, Declared, load_dataset
from megavoxel.config.setting import IntensityRange, Preprocessing
from megavoxel.config.source import Source
from megavoxel.datasets.cases import Cases, load_cases, save_cases
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.declared import declared_dataset
from megavoxel.planning.fingerprint import load_fingerprint, measure, save_fingerprint
from megavoxel.planning.plan import ChannelNormalisation, load_plan, load_preprocessing_plan, save_plan
from megavoxel.planning.planner import plan_preprocessing
from megavoxel.planning.splits import make_splits
from megavoxel.preprocessing.case import preprocess_cases, preprocess_image
from megavoxel.preprocessing.store import open_case
from megavoxel.volumes.write import write_nifti
from scans import dataset, unwritten, write_case

PATTERNS = {"CT": ("s_0[0-4]*",), "MR": ("s_05*",)}
SHAPE = (5, 6, 7)
TRAINING, VALIDATION = ("s_001", "s_002", "s_501", "s_502"), ("s_003", "s_503")


def scan(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A CT in HU without any 0, or an MR whose x-plane 0 to 3 are background; both with 12 foreground voxels."""
    random = np.random.default_rng(int(name[2:]))
    if name < "s_500":
        image = random.integers(1, 400, size=SHAPE).astype(np.float32)
    else:
        image = random.integers(1000, 5000, size=SHAPE).astype(np.float32)
        image[:, :, :4] = 0
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:3, 2:4, 4:] = 1
    return image, labels


def write_dataset(folder: Path) -> Path:
    """The folder as the Decathlon lays it out, with a section "validation" and unlabelled test images beside it."""
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "organ"}}
    content["test"] = ["imagesTs/s_004.nii.gz"]
    for section, names, suffix in (("training", TRAINING, "Tr"), ("validation", VALIDATION, "Va")):
        entries = [{"image": f"./images{suffix}/{n}.nii.gz", "label": f"./labels{suffix}/{n}.nii.gz"} for n in names]
        content[section] = entries
        for name in names:
            for kind, array in zip(("images", "labels"), scan(name), strict=True):
                write_nifti(folder / f"{kind}{suffix}/{name}.nii.gz", array.transpose(2, 1, 0), np.eye(4))
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def described(folder: Path, **sections: list[str]) -> Path:
    """A dataset folder with a dataset.json and no images."""
    listed = {
        section: [{"image": f"i/{name}.nii.gz", "label": f"l/{name}.nii.gz"} for name in names]
        for section, names in sections.items()
    }
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": {"organ": 1}, **listed}))
    return folder


def keys(**changes: object) -> Dataset:
    return Dataset(name="some", source=Source(folder="some"), **changes)


@pytest.fixture
def two(tmp_path) -> Cases:
    """The checked cases of `write_dataset`, by the stage itself."""
    folder = write_dataset(tmp_path / "data")
    (tmp_path / "some.yaml").write_text(
        "name: some\nsource: {folder: some}\nchannels: [scan]\ntest_section: validation\n"
        "modalities: {CT: ['s_0[0-4]*'], MR: ['s_05*', 's_5*']}\n"
    )
    files = ["--checks", str(tmp_path / "checks.csv"), "--output", str(tmp_path / "cases.json")]
    assert main(["check", "--dataset", str(tmp_path / "some.yaml"), "--data", str(folder), *files]) == 0
    return load_cases(tmp_path / "cases.json")


def test_the_validation_section_becomes_the_test_split_and_each_case_has_its_modality(two):
    found = [(case.id, case.split, case.modality, case.label is not None) for case in two.cases]
    assert found == [
        ("s_001", "training", "CT", True),
        ("s_002", "training", "CT", True),
        ("s_003", "test", "CT", True),
        ("s_501", "training", "MR", True),
        ("s_502", "training", "MR", True),
        ("s_503", "test", "MR", True),
    ]
    assert two.modalities == ("CT", "MR")


def test_without_the_key_the_test_section_is_the_test_split(tmp_path):
    layout = read_layout(described(tmp_path, training=["a"], validation=["b"], test=["c"]), keys())
    assert [(case.id, case.split, case.modality) for case in layout.cases] == [
        ("a", "training", None),
        ("c", "test", None),
    ]


def test_with_none_no_section_becomes_the_test_split(tmp_path):
    layout = read_layout(described(tmp_path, training=["a"], validation=["b"], test=["c"]), keys(test_section="none"))
    assert [(case.id, case.split) for case in layout.cases] == [("a", "training")]
    drawn = keys(test_section="none", test_count=1)
    layout = read_layout(described(tmp_path, training=["a", "b"], test=["c"]), drawn)
    assert sorted(case.split for case in layout.cases) == ["test", "training"]
    assert {case.id for case in layout.cases} == {"a", "b"}


def test_the_layout_of_nnunet_has_a_validation_folder(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"organ": 1}}))
    for name in ("imagesTr/p_0000", "labelsTr/p", "imagesVa/q_0000", "labelsVa/q", "imagesTs/r_0000"):
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    layout = read_layout(tmp_path, keys(test_section="validation"))
    assert [(case.id, case.split, case.label) for case in layout.cases] == [
        ("p", "training", "labelsTr/p.nii.gz"),
        ("q", "test", "labelsVa/q.nii.gz"),
    ]


def test_a_section_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"some: test_section: .*dataset\.json has no 'validation'"):
        read_layout(described(tmp_path, training=["a"]), keys(test_section="validation"))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"organ": 1}}))
    with pytest.raises(UserError, match=r"test_section: there are no images in .*imagesVa"):
        read_layout(tmp_path, keys(test_section="validation"))


def test_cases_without_a_modality_and_with_two_are_named(tmp_path):
    folder = described(tmp_path, training=["ct_1", "ct_mr_2", "x_3", "mr_4"])
    with pytest.raises(UserError) as caught:
        read_layout(folder, keys(modalities={"CT": ("ct_*",), "MR": ("*mr_*",)}))
    message = str(caught.value)
    assert "some: modalities: each case must match the patterns of exactly one of CT, MR" in message
    assert "'ct_mr_2' (CT and MR), 'x_3' (none)" in message
    assert "ct_1" not in message
    chosen = keys(modalities={"CT": ("ct_*",), "MR": ("mr_*",)}, exclude=("ct_mr_2", "x_3"))
    assert [case.modality for case in read_layout(folder, chosen).cases] == ["CT", "MR"]


def test_many_faulty_cases_are_counted(tmp_path):
    folder = described(tmp_path, training=[f"x_{number:02}" for number in range(13)])
    with pytest.raises(UserError, match=r"'x_09' \(none\) and 3 more"):
        read_layout(folder, keys(modalities={"CT": ("ct_*",)}))


def test_patterns_say_which_cases_are_kept(tmp_path):
    folder = described(tmp_path, training=["s_001", "s_002", "s_501"])
    layout = read_layout(folder, keys(include=("s_0*",), exclude=("s_002",), modalities={"CT": ("s_0*",)}))
    assert [(case.id, case.modality) for case in layout.cases] == [("s_001", "CT")]
    assert layout.excluded == ("s_002", "s_501")
    with pytest.raises(UserError, match=r"include: 's_9\*' matches none of the 3 cases .* 's_001'"):
        read_layout(folder, keys(include=("s_0*", "s_9*")))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("test_section: testing", ["test_section", "allowed: test, validation, none"]),
        ("modalities: {}", ["modalities"]),
        ("modalities: {CT: []}", ["modalities.CT"]),
        ("modalities: {'C T': [a]}", ["modalities"]),
        ("include: []", ["include"]),
    ],
)
def test_mistakes_in_the_keys_are_named(tmp_path, line, words):
    (tmp_path / "some.yaml").write_text(f"name: some\nsource: {{folder: x}}\n{line}\n")
    with pytest.raises(UserError) as caught:
        load_dataset(tmp_path / "some.yaml")
    for word in words:
        assert word in str(caught.value)


def foreground(names: tuple[str, ...]) -> np.ndarray:
    """All foreground voxels of some scans; each has as many, so that voxels and cases weigh the same."""
    return np.concatenate([image[labels > 0] for image, labels in map(scan, names)]).astype(np.float64)


def test_intensities_are_those_of_the_modality_alone(two):
    found = measure(two)
    assert found.intensities == ()
    for modality, names in (("CT", ("s_001", "s_002")), ("MR", ("s_501", "s_502"))):
        values, (intensities,) = foreground(names), found.modalities[modality]
        assert values.size == 24
        assert intensities.mean == pytest.approx(values.mean())
        assert intensities.std == pytest.approx(values.std())
        expected = np.percentile(values, [0, 0.5, 50, 99.5, 100], method="inverted_cdf")
        of = intensities
        assert [of.minimum, of.percentile_0_5, of.median, of.percentile_99_5, of.maximum] == expected.tolist()
        alone = replace(two, cases=tuple(replace(case, modality=None) for case in two.cases if case.id in names))
        assert measure(alone).intensities == found.modalities[modality]


def test_a_fingerprint_of_modalities_comes_back_from_its_file(two, tmp_path):
    save_fingerprint(tmp_path / "fingerprint.json", measure(two))
    assert load_fingerprint(tmp_path / "fingerprint.json") == measure(two)


def test_a_modality_that_cannot_be_measured_is_refused(two):
    tested = replace(two, cases=tuple(replace(c, split="test") if c.modality == "MR" else c for c in two.cases))
    with pytest.raises(UserError, match="no training case has the modality MR"):
        measure(tested)
    partly = replace(two, cases=(replace(two.cases[0], modality=None), *two.cases[1:]))
    with pytest.raises(UserError, match="case s_001 has no modality, others have CT, MR"):
        measure(partly)


def test_a_modality_without_foreground_is_named(tmp_path):
    image, labels = np.ones(SHAPE), np.ones(SHAPE)
    cases = [
        replace(write_case(tmp_path, "a", image, labels), modality="CT"),
        replace(write_case(tmp_path, "b", image, labels * 0), modality="MR"),
    ]
    with pytest.raises(UserError, match="no training case of modality MR has any foreground"):
        measure(dataset(tmp_path, cases))


def test_ct_is_planned_with_its_own_statistics_and_mr_by_z_score(two):
    found = measure(two)
    plan = plan_preprocessing(two, found, Preprocessing())
    (ct,), (mr,) = plan.normalisation_by_modality["CT"], plan.normalisation_by_modality["MR"]
    values = foreground(("s_001", "s_002"))
    assert plan.normalisation == ()
    assert (ct.scheme, ct.inside_nonzero) == ("ct", False)
    assert (ct.mean, ct.std) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert (ct.lower, ct.upper) == (values.min(), values.max())
    # Of an MR, 3 of 7 planes are left after cropping, of a CT all: over both the median would be 71 %.
    assert mr == ChannelNormalisation(scheme="z-score", inside_nonzero=True)
    notes = [note for note in plan.notes if note.startswith("normalisation")]
    assert notes == [
        "normalisation: modality CT: ct, by the modality's name; statistics of the foreground of its own cases",
        "normalisation: modality MR: z-score, by the modality's name; statistics of each image itself",
        "normalisation: modality MR: z-score of the nonzero region only: it is 43% of the median case",
    ]


def test_a_scheme_that_the_study_fixes_holds_for_all_modalities_with_statistics_of_each(two):
    plan = plan_preprocessing(two, measure(two), Preprocessing(normalisation="ct"))
    (ct,), (mr,) = plan.normalisation_by_modality["CT"], plan.normalisation_by_modality["MR"]
    assert (ct.scheme, mr.scheme) == ("ct", "ct")
    assert ct.mean < 400 < mr.mean


def test_a_fingerprint_of_other_modalities_is_refused(two):
    found = measure(two)
    without = replace(two, cases=tuple(replace(case, modality=None) for case in two.cases))
    with pytest.raises(UserError, match="the fingerprint has the modalities CT, MR, dataset some has none"):
        plan_preprocessing(without, found, Preprocessing())


def test_a_range_that_the_study_fixes_is_that_of_all_modalities(two):
    keys = Preprocessing(normalisation=IntensityRange(range=(0.0, 4.0)))
    plan = plan_preprocessing(two, measure(two), keys)
    rule = ChannelNormalisation(scheme="range", lower=0.0, upper=4.0)
    assert plan.normalisation_by_modality == {"CT": (rule,), "MR": (rule,)}
    assert "normalisation: modality MR: 0 to 4 becomes 0 to 1, fixed by the study" in plan.notes


def test_arrays_of_ct_and_mr_are_normalised_each_in_its_own_way(two, tmp_path):
    plan = plan_preprocessing(two, measure(two), Preprocessing())
    save_plan(tmp_path / "plan.json", plan)
    plan = load_preprocessing_plan(tmp_path / "plan.json")
    preprocess_cases(two.cases, cases=two, plan=plan, folder=tmp_path / "stored", patch=(4, 4, 4))
    values = foreground(("s_001", "s_002"))
    for name in ("s_001", "s_003"):
        expected = (np.clip(scan(name)[0], values.min(), values.max()) - values.mean()) / values.std()
        np.testing.assert_allclose(open_case(tmp_path / "stored", name).image[:][0], expected, atol=1e-5)
    for name in ("s_501", "s_503"):
        inside = scan(name)[0][:, :, 4:]
        expected = (inside - inside.mean()) / inside.std()
        np.testing.assert_allclose(open_case(tmp_path / "stored", name).image[:][0], expected, atol=1e-5)


def test_a_test_case_whose_modality_is_corrected_is_made_again(two, tmp_path, capsys):
    plan = plan_preprocessing(two, measure(two), Preprocessing())
    wrong = replace(two.case("s_503"), modality="CT")
    for case, expected in ((wrong, 0), (wrong, 1), (two.case("s_503"), 0)):
        capsys.readouterr()
        preprocess_cases([case], cases=two, plan=plan, folder=tmp_path, patch=(4, 4, 4), resume=True)
        assert ("1 of 1 cases are there already" in capsys.readouterr().out) == bool(expected)
    assert abs(open_case(tmp_path, "s_503").image[:].mean()) < 1e-5


def test_a_case_without_a_known_modality_cannot_be_preprocessed(two):
    plan = plan_preprocessing(two, measure(two), Preprocessing())
    image, geometry = two.read_image(two.cases[0])
    with pytest.raises(UserError, match="case a: its modality is not known; the plan normalises CT, MR"):
        preprocess_image(image, geometry, plan, "a")
    with pytest.raises(UserError, match="case a: its modality is PET"):
        preprocess_image(image, geometry, plan, "a", "PET")


def test_plans_without_modalities_come_back_from_their_files(tmp_path):
    plan = preprocessing_plan()
    save_plan(tmp_path / "plan.json", plan)
    assert json.loads((tmp_path / "plan.json").read_text())["normalisation_by_modality"] == {}
    assert load_preprocessing_plan(tmp_path / "plan.json") == plan
    rules = {"CT": plan.normalisation}
    assert replace(plan, normalisation=(), normalisation_by_modality=rules).hash != plan.hash


def of_modalities(modalities: list[str | None]) -> Cases:
    cases = unwritten(len(modalities), tests=1)
    named = zip(cases.cases, [*modalities, modalities[0]], strict=True)
    return replace(cases, cases=tuple(replace(case, modality=modality) for case, modality in named))


@pytest.mark.parametrize(("counts", "folds", "seed"), [((200, 40), 5, 12345), ((11, 7), 4, 0), ((9, 4, 6), 3, 7)])
def test_each_fold_has_its_share_of_each_modality_as_in_scikit_learn(counts, folds, seed):
    selection = pytest.importorskip("sklearn.model_selection")
    modalities = [f"m{number}" for number, count in enumerate(counts) for _ in range(count)]
    modalities = np.random.default_rng(seed).permutation(modalities).tolist()
    cases = of_modalities(modalities)
    names = np.array([case.id for case in cases.of_split("training")])
    splitter = selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
    expected = [names[held].tolist() for _, held in splitter.split(names, modalities)]
    made = make_splits(cases, folds, seed)
    assert [list(fold.validation) for fold in made.folds] == expected
    modality_of = dict(zip(names.tolist(), modalities, strict=True))
    for fold in made.folds:
        assert sorted([*fold.training, *fold.validation]) == names.tolist()
        for number, count in enumerate(counts):
            share = sum(modality_of[name] == f"m{number}" for name in fold.validation)
            assert share in (count // folds, -(-count // folds))
    assert made.test == ("t000",)


def test_declared_modalities_are_planned_without_images():
    declared = Declared(training_cases=5, shape=(20, 64, 64), spacing=(3.0, 1.0, 1.0))
    keyed = keys(labels={"organ": 1}, channels=("scan",), declared=declared, modalities=PATTERNS)
    cases, fingerprint = declared_dataset(keyed)
    assert [case.modality for case in cases.cases] == ["CT", "MR", "CT", "MR", "CT"]
    plan = plan_preprocessing(cases, fingerprint, Preprocessing())
    assert {name: rules[0].scheme for name, rules in plan.normalisation_by_modality.items()} == {
        "CT": "ct",
        "MR": "z-score",
    }


def test_modalities_survive_the_list_of_cases(two, tmp_path):
    save_cases(tmp_path / "again.json", two)
    assert load_cases(tmp_path / "again.json") == two


ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip


@pytest.mark.parametrize(
    ("task", "training", "test"),
    [
        ("amos22-task1", {"amos_0001": None, "amos_0410": None}, {"amos_0008": None}),
        (
            "amos22-task2",
            {"amos_0001": "CT", "amos_0410": "CT", "amos_0507": "MR", "amos_0510": "MR", "amos_0600": "MR"},
            {"amos_0008": "CT", "amos_0599": "MR"},
        ),
    ],
)
def test_amos_cases_are_ct_up_to_410_and_mr_up_to_600(repository, tmp_path, task, training, test):
    names = ["amos_0001", "amos_0410", "amos_0507", "amos_0510", "amos_0600"]
    folder = described(tmp_path, training=names, validation=["amos_0008", "amos_0599"], test=["amos_0500"])
    keyed = load_dataset(repository / f"config/datasets/{task}.yaml")
    layout = read_layout(folder, keyed)
    assert {case.id: case.modality for case in layout.cases if case.split == "training"} == training
    assert {case.id: case.modality for case in layout.cases if case.split == "test"} == test
    assert tuple(layout.labels.items()) == tuple(zip(ORGANS, range(1, 16), strict=True))
    assert re.fullmatch(r"https://zenodo\.org/.*/7262581/files/amos22\.zip", keyed.source.url)
    assert keyed.declared.training_cases == (200 if task == "amos22-task1" else 240)


def test_new_scans_are_predicted_as_the_modality_that_they_are_said_to_be(two, tmp_path, capsys):
    rules = plan_preprocessing(two, measure(two), Preprocessing())
    plan = replace(tiny_plan(), preprocessing=rules, network=replace(tiny_plan().network, classes=2))
    save_plan(tmp_path / "plan.json", plan)
    network = SegmentationNetwork(plan.network, seed=0)
    saved = load_plan(tmp_path / "plan.json")
    save_weights(tmp_path / "model.pt", network, plan_hash=saved.hash, precision="float32")
    scan_file = tmp_path / "data/imagesTr/s_501.nii.gz"
    words = ["predict", "--plan", tmp_path / "plan.json", "--weights", tmp_path / "model.pt", "--input", scan_file]

    def predicted(*options: str) -> int:
        return main([*map(str, words), "--device", "cpu", "--output", str(tmp_path / "out"), *options])

    assert predicted() == 1
    assert "case s_501: its modality is not known; the plan normalises CT, MR" in capsys.readouterr().err
    assert predicted("--modality", "MR") == 0
