"""First-stage label maps on the grid of the second stage: as the label map of the same case, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import preprocessing_plan, tiny_plan
from megavoxel.cli import main
from megavoxel.datasets.cases import Case
from megavoxel.errors import UserError
from megavoxel.network.first_stage import one_hot_branches
from megavoxel.planning.plan import Plan, save_plan
from megavoxel.planning.splits import Fold, Splits, cases_of, save_splits
from megavoxel.preprocessing.case import preprocess_cases
from megavoxel.preprocessing.first_stage import first_stage_classes, open_first_stage, store_first_stage
from megavoxel.preprocessing.store import open_case
from megavoxel.volumes.open import read_labels
from megavoxel.volumes.write import write_nifti
from scans import dataset

SHAPE = (9, 12, 14)
SPLITS = Splits(folds=(Fold(training=("b",), validation=("a",)), Fold(training=("a",), validation=("b",))), test=("t",))
AXES = {
    "axial": np.diag([0.8, 0.8, 3.0, 1.0]),
    "flipped": np.diag([-0.8, -0.8, 3.0, 1.0]),
    "coronal": np.array([[0.0, 0.8, 0, -7], [0, 0, -3.0, 20], [1.1, 0, 0, 3], [0, 0, 0, 1]]),
}
"""Voxel index of the file to mm."""


def labels_in_file_order(seed: int) -> np.ndarray:
    """Two labels with values 1 and 3, uint8 in the file's order of axes, away from the border of the grid."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2:7, 3 + seed % 3 : 9, 2:9] = 1
    labels[4:8, 5:10, 6 + seed % 2 : 11] = 3
    return labels


class Study:
    """A preprocessed dataset of the cases a, b and t, and predictions of two first-stage settings."""

    def __init__(self, root, affine: np.ndarray, plan: Plan) -> None:
        self.root, self.plan, self.affine = root, plan, affine
        cases = []
        for number, name in enumerate("abt"):
            image = np.zeros(SHAPE, dtype=np.float32)
            image[1:8, 2:11, 1:12] = np.random.default_rng(number).normal(50, 20, size=(7, 9, 11))
            write_nifti(root / f"images/{name}.nii.gz", image, affine)
            write_nifti(root / f"labels/{name}.nii.gz", labels_in_file_order(number), affine)
            cases.append(Case(id=name, images=(f"images/{name}.nii.gz",), label=f"labels/{name}.nii.gz"))
        preprocess_cases(
            cases, cases=dataset(root, cases), plan=plan.preprocessing, folder=root / "cases", patch=plan.patch
        )
        for branch, shift in (("wide", 0), ("deep", 1)):
            for number, name in enumerate("abt"):
                write_nifti(root / branch / f"{name}.nii.gz", labels_in_file_order(number + shift), affine)
        save_plan(root / "plan.json", plan)
        save_splits(root / "splits.json", SPLITS)

    def run(self, *options: str, branches: tuple[str, ...] = ("wide", "deep"), output: str = "out") -> int:
        places = ["--plan", "plan.json", "--preprocessed", "cases", "--splits", "splits.json", "--output", output]
        words = [word if word.startswith("--") else str(self.root / word) for word in places]
        folders = [str(self.root / branch) for branch in branches]
        return main(["stage1", *words, "--predictions", *folders, *(options or ("--split", "test"))])


def cascade_plan(**changes) -> Plan:
    """A plan with two branches whose grid turns and resamples the file's."""
    preprocessing = preprocessing_plan(transpose=(1, 0, 2), spacing=(1.0, 2.0, 0.8))
    return tiny_plan(stage1=("wide", "deep"), preprocessing=preprocessing, **changes)


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(tmp_path, AXES["axial"], cascade_plan())


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_a_prediction_is_treated_as_the_label_map_of_its_case(tmp_path, axes, transpose):
    preprocessing = preprocessing_plan(transpose=transpose, spacing=(1.0, 2.0, 0.8))
    study = Study(tmp_path, AXES[axes], tiny_plan(stage1=("same",), preprocessing=preprocessing))
    shutil.copytree(tmp_path / "labels", tmp_path / "same")
    assert study.run(branches=("same",)) == 0
    case = open_case(tmp_path / "cases", "t")
    assert case.properties.cropped_shape != case.properties.full_shape
    assert case.properties.shape != case.properties.cropped_shape
    found = open_first_stage([tmp_path / "out"], "t", (1, *case.properties.shape))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], case.labels[:])
    assert set(np.unique(found[:])) == {0, 1, 2}


def test_branches_come_in_the_order_of_the_folders(study):
    assert study.run() == 0
    assert study.run(branches=("deep", "wide"), output="swapped") == 0
    grid = open_case(study.root / "cases", "t").properties.shape
    one, two = (open_first_stage([study.root / out], "t", (2, *grid))[:] for out in ("out", "swapped"))
    np.testing.assert_array_equal(one, two[::-1])
    assert (one[0] != one[1]).any()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--split", "test"), ["t"]),
        (("--split", "validation", "--fold", "0"), ["a"]),
        (("--split", "validation", "--fold", "1"), ["b"]),
    ],
)
def test_the_cases_of_a_part_are_stored_and_nothing_else(study, options, names):
    assert study.run(*options) == 0
    wanted = [f"{name}.stage1.{suffix}" for name in names for suffix in ("b2nd", "sha256")]
    assert sorted(path.name for path in (study.root / "out").iterdir()) == wanted


def test_a_flipped_byte_of_a_first_stage_is_named(study):
    store = study.root / "direct"
    store.mkdir()
    folders = [study.root / "wide", study.root / "deep"]
    store_first_stage("a", plan=study.plan, preprocessed=study.root / "cases", predictions=folders, output=store)
    shape = (2, *open_case(study.root / "cases", "a").properties.shape)
    open_first_stage([store], "a", shape)
    content = bytearray((store / "a.stage1.b2nd").read_bytes())
    content[len(content) // 2] ^= 1
    (store / "a.stage1.b2nd").write_bytes(content)
    with pytest.raises(UserError, match=r"case a: .*a\.stage1\.b2nd: damaged.*run 'megavoxel stage1' again"):
        open_first_stage([store], "a", shape)


def test_chunks_suit_the_patch_and_hold_one_branch(study):
    store = study.root / "direct"
    store.mkdir()
    folders = [study.root / "wide", study.root / "deep"]
    store_first_stage("ab", plan=study.plan, preprocessed=study.root / "cases", predictions=folders, output=store)
    grid = open_case(study.root / "cases", "a").properties.shape
    array = open_first_stage([store], "a", (2, *grid))
    assert array.chunks == (1, *(min(size, int(1.5 * p)) for size, p in zip(grid, study.plan.patch, strict=True)))


def test_label_maps_of_a_new_scan_give_the_same_in_memory(study):
    assert study.run() == 0
    properties = open_case(study.root / "cases", "t").properties
    paths = [study.root / branch / "t.nii.gz" for branch in ("wide", "deep")]
    found = first_stage_classes(paths, properties, study.plan)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, open_first_stage([study.root / "out"], "t", (2, *properties.shape))[:])


def test_a_missing_prediction_is_named_before_anything_is_computed(study, capsys):
    (study.root / "deep/t.nii.gz").unlink()
    assert study.run() == 1
    message = capsys.readouterr().err
    assert "case t: there is no" in message
    assert "deep/t.nii.gz (1 of 1 cases are missing there)" in message
    assert "run 'megavoxel predict' for setting deep first" in message
    assert not (study.root / "out").exists()
    assert not list(study.root.glob(".partial*"))


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        ((9, 12, 13), AXES["axial"], "(shape): 9 x 12 x 14 and 9 x 12 x 13 voxels"),
        (SHAPE, np.diag([0.8, 0.8, 2.0, 1.0]), "(spacing): spacings of 0.8 x 0.8 x 3 and 0.8 x 0.8 x 2 mm"),
        (SHAPE, AXES["flipped"], "(affine): their affines place a corner"),
    ],
)
def test_another_grid_is_refused(study, capsys, shape, affine, said):
    write_nifti(study.root / "wide/t.nii.gz", np.zeros(shape, dtype=np.uint8), affine)
    assert study.run() == 1
    message = capsys.readouterr().err
    assert f"case t: {study.root}/wide/t.nii.gz does not lie on the grid of the case's image {said}" in message
    assert "must be on the image's own grid" in message
    assert not (study.root / "out").exists()


def test_a_value_that_the_plan_does_not_know_is_refused(study, capsys):
    labels, _ = read_labels(study.root / "deep/t.nii.gz")
    write_nifti(study.root / "deep/t.nii.gz", np.where(labels.T == 3, 7, labels.T).astype(np.uint8), study.affine)
    assert study.run() == 1
    assert (
        f"{study.root}/deep/t.nii.gz: case t: the label map holds 7; the plan knows 0 and 1 (ball), 3 (cube)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("branches", [("wide",), ("wide", "deep", "wide")])
def test_another_number_of_folders_than_branches_is_refused(study, capsys, branches):
    assert study.run(branches=branches) == 1
    assert (
        f"setting tiny: predictions of {len(branches)} first-stage settings were given, its plan has 2 (wide, deep); "
        "give those of each first-stage setting, in this order" in capsys.readouterr().err
    )


def test_a_plan_without_a_first_stage_is_refused(study, capsys):
    save_plan(study.root / "plan.json", tiny_plan())
    assert study.run() == 1
    assert "of 2 first-stage settings were given, its plan has none" in capsys.readouterr().err


def test_more_labels_than_a_byte_holds_are_refused(study):
    many = preprocessing_plan(labels={f"l{value}": value for value in range(1, 257)})
    network = replace(tiny_plan().network, classes=257)
    with pytest.raises(UserError, match="setting tiny: 256 labels; a cascade can have 255 at most"):
        first_stage_classes(["a", "b"], None, tiny_plan(stage1=("wide", "deep"), preprocessing=many, network=network))


@pytest.mark.parametrize("fold", [None, -1, 2])
def test_validation_needs_a_fold_of_the_study(fold):
    with pytest.raises(UserError, match=rf"--fold {fold}: --split validation needs one of the folds 0 to 1"):
        cases_of(SPLITS, "validation", fold)


def test_the_array_of_a_case_is_found_in_the_one_folder_that_has_it(study):
    folders = [study.root / f"fold-{fold}" for fold in (0, 1)]
    for fold in (0, 1):
        assert study.run("--split", "validation", "--fold", str(fold), output=f"fold-{fold}") == 0
    for name in "ab":
        grid = open_case(study.root / "cases", name).properties.shape
        assert open_first_stage(folders, name, (2, *grid)).shape == (2, *grid)
    missing = rf"case t: none of these folders holds its .* t\.stage1\.b2nd \({folders[0]}, {folders[1]}\); run 'mega"
    with pytest.raises(UserError, match=missing):
        open_first_stage(folders, "t", (2, *grid))
    with pytest.raises(UserError, match=r"case a: 2 of these folders hold its first-stage labels"):
        open_first_stage([folders[0], folders[0]], "a", (2, *grid))


def test_an_array_of_another_shape_is_refused(study):
    assert study.run() == 0
    grid = open_case(study.root / "cases", "t").properties.shape
    with pytest.raises(UserError, match=r"t\.stage1\.b2nd: shape \(2, .*, expected \(1, .*made under another plan"):
        open_first_stage([study.root / "out"], "t", (1, *grid))


def test_one_channel_per_branch_and_label_without_the_background():
    labels = np.array([[0, 1, 2, 2], [2, 0, 0, 1]], dtype=np.uint8).reshape(2, 1, 1, 4)
    channels = one_hot_branches(labels, 3)
    assert channels.dtype == torch.float32
    assert channels[:, 0, 0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]]


def test_a_batch_of_label_maps_is_the_one_hot_form_of_pytorch():
    labels = torch.randint(0, 5, (2, 3, 4, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    channels = one_hot_branches(labels, 5, torch.bfloat16)
    expected = torch.nn.functional.one_hot(labels.long(), 5)[..., 1:].movedim(-1, 2).reshape(2, 12, 4, 5, 6)
    assert channels.dtype == torch.bfloat16
    assert (channels == expected).all()


def test_channels_are_those_of_nnunets_cascade():
    theirs = pytest.importorskip(
        "batchgeneratorsv2.transforms.nnunet.seg_to_onehot", reason="batchgeneratorsv2 is a peer, not a dependency"
    )
    labels = torch.randint(0, 4, (1, 4, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sample = {"image": torch.zeros(1, 4, 5, 6), "segmentation": labels.expand(2, -1, -1, -1).clone()}
    found = theirs.MoveSegAsOneHotToDataTransform(1, (1, 2, 3)).apply(sample)
    torch.testing.assert_close(one_hot_branches(labels, 4), found["image"][1:])
