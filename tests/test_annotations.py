"""Labels that cases have no annotation of: dataset file, cases.json, and what training reads of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dataset_folder import Folder
from fake_study import evaluate_part, make_study, report_study, score_study
from helpers import store_case, tiny_plan
from megavoxel.cli import main
from megavoxel.config.dataset import Dataset, Hidden, load_dataset
from megavoxel.config.regions import LabelScheme
from megavoxel.config.setting import Preprocessing, Setting
from megavoxel.config.source import Source
from megavoxel.datasets.adjustments import annotated_cases
from megavoxel.datasets.cases import Case, Cases, load_cases, save_cases
from megavoxel.errors import UserError
from megavoxel.evaluation.pairs import predicted_pairs
from megavoxel.evaluation.postprocessing import determine_postprocessing
from megavoxel.files import write_json
from megavoxel.planning.fingerprint import measure
from megavoxel.planning.plan import Plan, load_plan, save_plan
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from megavoxel.preprocessing.store import Box, open_case, save_case
from megavoxel.tasks.segmentation.data import (
    VolumeData,
    background_never_seen,
    cases_without_annotation,
    labels_never_seen,
)
from megavoxel.tasks.segmentation.training import start_run, train, validate
from megavoxel.training.annotation import annotation_table, decode_target, encode_target, unannotated_classes
from megavoxel.training.class_weights import class_voxels
from megavoxel.training.patches import TRAINING, PatchDataset, foreground_share, foreground_start
from megavoxel.training.run import Part, Run
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.write import write_labels

CPU = torch.device("cpu")
LABELS = ("one", "two")
SCHEME = LabelScheme(labels={name: number for number, name in enumerate(LABELS, start=1)})


def keys(**changes: object) -> Dataset:
    return Dataset(name="some", source=Source(folder="some"), **changes)


def made(count: int, *, tests: int = 0) -> list[Case]:
    """Training cases c000, c001, … and test cases t000, …, all with a label map."""
    names = [("training", f"c{number:03}") for number in range(count)]
    names += [("test", f"t{number:03}") for number in range(tests)]
    return [Case(id=name, images=("i.nii.gz",), label="l.nii.gz", split=split) for split, name in names]


def applied(cases: list[Case], dataset: Dataset) -> dict[str, Case]:
    done = annotated_cases(cases, dataset, SCHEME, {case.id for case in cases})
    return {case.id: case for case in done}


def test_patterns_say_which_cases_lack_a_label_test_cases_included():
    cases = applied(made(3, tests=1), keys(unannotated={"two": ("c00[01]", "t*"), "one": ("c001",)}))
    found = {name: case.unannotated for name, case in cases.items()}
    assert found == {"c000": ("two",), "c001": ("one", "two"), "c002": (), "t000": ("two",)}
    assert all(case.hidden == () and case.unseen == case.unannotated for case in cases.values())


@pytest.mark.parametrize(
    ("unannotated", "words"),
    [
        ({"tow": ("c*",)}, r"some: unannotated: there is no label 'tow' \(did you mean 'two'\?\); allowed: one, two"),
        ({"two": ("x*",)}, r"some: unannotated\.two: 'x\*' matches none of the 3 cases, the first of which is 'c000'"),
        ({"two": ("c*",)}, r"some: unannotated: none of the 3 training cases has an annotation of two"),
    ],
)
def test_what_cannot_be_meant_is_refused(unannotated, words):
    with pytest.raises(UserError, match=words):
        applied(made(3), keys(unannotated=unannotated))


def test_a_pattern_may_name_a_case_that_is_left_out():
    cases = made(2)
    assert annotated_cases(cases[:1], keys(unannotated={"two": ("c001",)}), SCHEME, {"c000", "c001"})[0].unseen == ()


def test_hidden_annotations_are_the_share_asked_for_of_each_label_and_none_of_test_cases():
    cases = applied(made(30, tests=30), keys(hidden=Hidden(share=1 / 3, seed=1)))
    for label in LABELS:
        assert sum(label in case.hidden for case in cases.values()) == 10
    assert not any(case.hidden for case in cases.values() if case.split == "test")
    one, two = ({name for name, case in cases.items() if label in case.hidden} for label in LABELS)
    assert one != two, "each label is drawn on its own"


def test_the_same_seed_hides_the_same_and_a_larger_share_more():
    def hidden(share: float, seed: int) -> dict[str, tuple[str, ...]]:
        cases = applied(made(30), keys(hidden=Hidden(share=share, seed=seed)))
        return {name: case.hidden for name, case in cases.items()}

    assert hidden(0.4, 1) == hidden(0.4, 1)
    assert hidden(0.4, 1) != hidden(0.4, 2)
    assert all(
        set(few) <= set(many) for few, many in zip(hidden(0.2, 1).values(), hidden(0.4, 1).values(), strict=True)
    )


def test_only_annotations_that_are_there_are_hidden():
    cases = applied(made(10), keys(unannotated={"two": ("c00[0-5]",)}, hidden=Hidden(share=0.5)))
    assert sum("two" in case.hidden for case in cases.values()) == 2, "half of the four that have it"
    assert not any({*case.hidden} & {*case.unannotated} for case in cases.values())


def test_a_share_that_hides_a_label_everywhere_is_refused():
    with pytest.raises(UserError, match=r"hidden: with share 0\.9: none of the 3 training cases .* lower the share"):
        applied(made(3), keys(hidden=Hidden(share=0.9)))


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_shares_that_hide_nothing_or_everything_are_refused(tmp_path, share):
    (tmp_path / "some.yaml").write_text(f"name: some\nsource: {{folder: some}}\nhidden: {{share: {share}}}\n")
    with pytest.raises(UserError, match=r"hidden\.share"):
        load_dataset(tmp_path / "some.yaml")


def test_cases_json_keeps_both_kinds_and_old_files_load_unchanged(tmp_path):
    cases = Cases(
        dataset="d",
        root="r",
        channels=("CT",),
        labels={"one": 1, "two": 2},
        nsd_tolerance_mm={"one": 1.0, "two": 1.0},
        cases=tuple(made(2)),
    )
    save_cases(tmp_path / "old.json", cases)
    assert "unannotated" not in (tmp_path / "old.json").read_text()
    assert "hidden" not in (tmp_path / "old.json").read_text()
    assert load_cases(tmp_path / "old.json") == cases
    first = replace(cases.cases[0], unannotated=("one",), hidden=("two",))
    changed = replace(cases, cases=(first, cases.cases[1]))
    save_cases(tmp_path / "new.json", changed)
    assert load_cases(tmp_path / "new.json") == changed
    assert load_cases(tmp_path / "new.json").cases[0].unseen == ("one", "two")


def test_the_check_writes_them_counts_them_and_warns_of_voxels_that_should_not_be_there(tmp_path, capsys):
    folder = Folder(tmp_path, cases=4)
    assert folder.check(keys="unannotated: {two: [case_1]}\nhidden: {share: 0.5}\n") == 0
    cases = load_cases(tmp_path / "cases.json")
    assert cases.case("case_1").unannotated == ("two",)
    assert [sum(label in case.hidden for case in cases.cases) for label in LABELS] == [2, 2]
    printed = capsys.readouterr().out
    assert "one: not annotated in 0 cases, hidden from training in 2" in printed
    assert "two: not annotated in 1 cases, hidden from training in 2" in printed
    ((case, check, message),) = folder.rows("warning")
    assert (case, check) == ("case_1", "unannotated")
    assert "labelsTr/case_1.nii.gz has voxels of two" in message


def test_the_plan_of_a_setting_says_what_training_must_not_see_and_its_hash_follows(tmp_path):
    folder = Folder(tmp_path, cases=4)

    def planned(text: str) -> Plan:
        assert folder.check(keys=text) == 0
        cases = load_cases(tmp_path / "cases.json")
        preprocessing = plan_preprocessing(cases, measure(cases), Preprocessing())
        setting = Setting(name="a", patch=(8, 8, 8), batch=2)
        return plan_setting(cases, preprocessing, setting, study="s", seed=1)

    plain = planned("")
    save_plan(tmp_path / "plan.json", plain)
    assert json.loads((tmp_path / "plan.json").read_text())["unannotated"] == {}
    missing = planned("unannotated: {two: [case_1]}\n")
    assert missing.unannotated == {"case_1": ("two",)}
    save_plan(tmp_path / "plan.json", missing)
    assert load_plan(tmp_path / "plan.json") == missing
    hidden = planned("hidden: {share: 0.25}\n")
    assert sorted(label for labels in hidden.unannotated.values() for label in labels) == ["one", "two"]
    assert len({plan.hash for plan in (plain, missing, hidden)}) == 3
    fold = VolumeData(number=0, preprocessed=tmp_path, training=("case_0",), validation=("case_1",))
    assert fold.key(plain) != fold.key(missing), "the run's key"
    assert plain.preprocessing.hash == hidden.preprocessing.hash, "preprocessed cases are the same"


def test_a_target_says_which_labels_its_case_has():
    plan = tiny_plan(unannotated={"a": ("cube",), "b": ("ball", "cube"), "c": ("cube",)})
    assert [unannotated_classes(plan, case) for case in "abcd"] == [(2,), (1, 2), (2,), ()]
    table = annotation_table(plan)
    assert table.tolist() == [[True, True], [False, False], [True, False]]
    classes = torch.tensor([0, 1, 2, 2])[None, None]
    targets = torch.stack([encode_target(classes, unannotated_classes(plan, case), plan) for case in "abcd"])
    assert targets[:, 0, 0].tolist() == [[6, 7, 6, 6], [3, 3, 3, 3], [6, 7, 6, 6], [0, 1, 2, 2]]
    for part, names in zip(targets.chunk(2), ("ab", "cd"), strict=True):
        decoded, known = decode_target(part, table)
        assert known.tolist() == [[case != "b", case == "d"] for case in names]
        assert decoded.max() <= 2
    assert annotation_table(tiny_plan()) is None
    assert decode_target(classes, None) == (classes, None)


@pytest.fixture
def stored(tmp_path):
    """Three cases with ball and cube; the cube of case0 is hidden, nothing of case1, all of case2."""
    for number in range(3):
        store_case(tmp_path, f"case{number}", seed=number)
    return tmp_path


HIDDEN = {"case0": ("cube",), "case2": ("ball", "cube")}


def test_patches_are_not_centred_on_hidden_voxels(stored):
    case = replace(open_case(stored, "case0"), unannotated=(2,))
    assert set(case.foreground) == {1, 2}
    random = np.random.default_rng(0)
    for _ in range(50):
        start = foreground_start(case, (4, 4, 4), True, random)
        z, y, x = (first + 2 for first in start)
        assert (z - 6) ** 2 + (y - 5) ** 2 + (x - 6) ** 2 <= 9, "in the ball"
    cube = Box(start=(8, 11, 9), shape=(4, 4, 4))
    assert foreground_share(case, cube) == 0
    assert foreground_share(open_case(stored, "case0"), cube) == 1


def test_hidden_voxels_are_background_in_what_training_reads_and_the_rest_of_the_run_is_as_before(stored):
    plain = tiny_plan(training={"foreground_fraction": 0.0})
    plan = replace(plain, unannotated=HIDDEN)
    shown, masked = (PatchDataset(one, stored, ["case0"], fold=0, stream=TRAINING, count=8) for one in (plain, plan))
    seen = set()
    for (image, labels), (same, target) in ((shown[number], masked[number]) for number in range(8)):
        assert torch.equal(image, same)
        classes, known = decode_target(target[None], annotation_table(plan))
        assert known.tolist() == [[True, False]]
        assert torch.equal(classes[0], labels.masked_fill(labels == 2, 0))
        seen |= set(labels.unique().tolist())
    assert seen == {0, 1, 2}, "there was something to hide"


def test_class_weights_do_not_count_what_is_not_seen(stored):
    for case, counts in {"case0": [6, 1, 1], "case1": [10, 4, 2], "case2": [5, 5, 5]}.items():
        where = stored / f"{case}.json"
        where.write_text(json.dumps(json.loads(where.read_text()) | {"class_voxels": counts}))
    cases = ["case0", "case1", "case2"]
    assert class_voxels(tiny_plan(), stored, cases) == [21, 10, 8]
    assert class_voxels(tiny_plan(unannotated=HIDDEN), stored, cases) == [10, 5, 2]


def test_labels_that_are_annotated_in_no_case_of_a_fold_are_named(stored):
    plan = tiny_plan(unannotated=HIDDEN)
    assert labels_never_seen(plan, stored, ["case0", "case1"]) == []
    assert labels_never_seen(plan, stored, ["case0", "case2"]) == ["cube"]
    assert labels_never_seen(plan, stored, ["case2"]) == ["ball", "cube"]
    assert background_never_seen(plan, ["case0", "case2"])
    assert not background_never_seen(plan, ["case0", "case1"])
    assert cases_without_annotation(plan, ["case0", "case1", "case2"]) == {"ball": 1, "cube": 2}


def test_the_stage_warns_and_the_manifest_counts(stored, tmp_path, capsys):
    save_plan(tmp_path / "plan.json", tiny_plan(training={"epochs": 1}, unannotated=HIDDEN))
    write_json(tmp_path / "splits.json", {"folds": [{"training": ["case0", "case2"], "validation": ["case1"]}]})
    options = {"plan": "plan.json", "preprocessed": ".", "splits": "splits.json", "state": "s", "output": "o"}
    words = [word for name, file in options.items() for word in (f"--{name}", str(tmp_path / file))]
    assert main(["train", *words, "--fold", "0", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "warning: fold 0: no training case has cube annotated" in printed
    assert "warning: fold 0: every training case lacks the annotation of some label" in printed
    data = json.loads((tmp_path / "o/manifest.json").read_text())["data"]
    assert data["labels_never_seen"] == ["cube"]
    assert data["cases_without_annotation"] == {"ball": 1, "cube": 2}


def without_cube(folder: Path, case: str) -> None:
    """Stores the case once more, the same image with the cube called background."""
    stored = open_case(folder, case)
    image, labels = stored.image[...], stored.labels[...]
    labels[labels == 2] = 0
    save_case(folder, stored.properties, image, labels, {1: stored.foreground[1]}, (8, 12, 12))


@pytest.mark.parametrize(
    "keys",
    [{"batch_dice": True}, {"loss": "dice_topk", "sampling": "roulette"}],
)
def test_hidden_annotations_change_nothing_at_all_of_a_run(stored, keys):
    short = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1}
    plan = tiny_plan(training={**short, **keys}, unannotated=HIDDEN)
    fold = VolumeData(number=0, preprocessed=stored, training=("case0", "case1"), validation=("case0",))
    first = train(plan, fold, stored / "a", CPU)
    without_cube(stored, "case0")
    second = train(plan, fold, stored / "b", CPU)
    assert all(torch.equal(*pair) for pair in zip(weights(first), weights(second), strict=True))
    assert first.history[-1]["validation_loss"] == second.history[-1]["validation_loss"]
    shown = train(replace(plan, unannotated={}), fold, stored / "c", CPU)
    assert not all(torch.equal(*pair) for pair in zip(weights(first), weights(shown), strict=True))


def weights(run: Run) -> list[torch.Tensor]:
    return list(run.network.state_dict().values())


def test_pseudo_dice_counts_a_label_where_it_is_annotated(stored):
    plan = tiny_plan(unannotated=HIDDEN)
    run = start_run(plan, VolumeData(number=0, preprocessed=stored, training=(), validation=()), CPU)

    def batch(case: str) -> Part:
        patches = PatchDataset(plan, stored, [case], fold=0, stream=TRAINING, count=2)
        images, targets = zip(*(patches[number] for number in range(2)), strict=True)
        return torch.stack(images), torch.stack(targets)

    scores = {names: validate(run, [batch(f"case{name}") for name in names], ("ball", "cube")) for names in ("0", "02")}
    assert np.isnan(scores["0"]["pseudo_dice_cube"]), "annotated in neither"
    assert scores["0"]["pseudo_dice_ball"] > 0
    assert scores["02"]["pseudo_dice_ball"] == scores["0"]["pseudo_dice_ball"], "case2 has no annotation of the ball"


@pytest.mark.slow
def test_scores_skip_what_is_not_annotated_and_count_it_and_keep_what_is_hidden(tmp_path, capsys):
    fake = make_study(tmp_path, score=False)
    cases = load_cases(fake.cases)
    changes = {"case_0": {"unannotated": ("spleen",)}, "case_2": {"hidden": ("liver", "spleen")}}
    changed = (replace(case, **changes.get(case.id, {})) for case in cases.cases)
    save_cases(fake.cases, replace(cases, cases=tuple(changed)))
    score_study(fake)
    assert report_study(fake, "--tables-only") == 0
    scores = pd.read_csv(fake.results / "scores.csv")
    own = scores[(scores.setting == "large") & (scores.split == "validation") & (scores.metric == "DSC")]
    assert sorted(zip(own.case, own.label, strict=True)) == [
        ("case_0", "liver"),
        *((case, label) for case in ("case_1", "case_2", "case_3") for label in ("liver", "spleen")),
    ]
    # Liver 5/6 everywhere; spleen: skipped in case_0, 0 in case_1, 1 in case_2, in neither map of case_3.
    tables = fake.results / "report/tables"
    summary = pd.read_csv(tables / "summary.csv").set_index(["model", "split"]).loc[("large", "validation")]
    assert (summary["cases"], summary["unannotated"], summary["both_empty"]) == (4, 1, 1)
    liver = 10 / 12
    assert summary["dsc_mean"] == pytest.approx((liver + liver / 2 + (liver + 1) / 2 + liver) / 4)
    labels = pd.read_csv(tables / "labels.csv").set_index(["split", "label", "model"])
    spleen = labels.loc[("validation", "spleen", "large")]
    assert (spleen["values"], spleen["unannotated"], spleen["both_empty"]) == (2, 1, 1)
    assert spleen["dsc_mean"] == pytest.approx(0.5)
    assert labels.loc[("validation", "liver", "large"), "unannotated"] == 0
    assert "| Unannotated" in (tables / "summary.md").read_text()
    capsys.readouterr()
    assert evaluate_part(fake, "large", "validation", "0", tmp_path / "part.csv") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "spleen" in line)
    assert row.replace("│", " ").split()[2:5] == ["1", "1", "0"], "cases, unannotated, both empty"


@pytest.mark.slow
def test_reports_of_complete_datasets_say_nothing_of_annotations(tmp_path):
    fake = make_study(tmp_path)
    assert report_study(fake, "--tables-only") == 0
    assert "Unannotated" not in (fake.results / "report/tables/summary.md").read_text()
    assert (pd.read_csv(fake.results / "report/tables/labels.csv")["unannotated"] == 0).all()


def test_post_processing_does_not_learn_from_what_is_not_annotated_or_hidden(tmp_path):
    """Case a predicts a piece too much of each label: keeping the largest helps where it is looked at. Case b is right,
    and would lose label two if the largest piece of the whole foreground were kept."""
    geometry = Geometry(shape=(8, 8, 8), affine=np.eye(4))
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[1:4, 1:4, 1:4], reference[1:4, 5:7, 5:7] = 1, 2
    predicted = reference.copy()
    predicted[6, 1, 1], predicted[6, 6, 6] = 1, 2
    for name, prediction in {"a": predicted, "b": reference}.items():
        write_labels(tmp_path / f"labels/{name}.nii.gz", reference, geometry)
        write_labels(tmp_path / f"predicted/{name}.nii.gz", prediction, geometry)

    def kept(**changes: tuple[str, ...]) -> tuple[str, ...]:
        cases = [Case(id=name, images=("i",), label=f"labels/{name}.nii.gz") for name in ("a", "b")]
        cases[0] = replace(cases[0], **changes)
        labels, tolerances = {"one": 1, "two": 2}, {"one": 1.0, "two": 1.0}
        dataset = Cases(dataset="d", root=str(tmp_path), channels=("CT",), labels=labels, nsd_tolerance_mm=tolerances,
                        cases=tuple(cases))  # fmt: skip
        found = determine_postprocessing(predicted_pairs(dataset, [tmp_path / "predicted"]), labels)
        assert not found.keep_largest.foreground
        return found.keep_largest.labels

    assert kept() == ("one", "two")
    assert kept(unannotated=("two",)) == ("one",)
    assert kept(hidden=("one",)) == ("two",)
