"""Folds against scikit-learn, and ready-made ones."""

from __future__ import annotations

import json

import pytest

from megavoxel.cli import main
from megavoxel.datasets.cases import save_cases
from megavoxel.errors import UserError
from megavoxel.planning.splits import Fold, Splits, import_splits, load_splits, make_splits, save_splits
from scans import unwritten


@pytest.mark.parametrize(("count", "folds", "seed"), [(10, 5, 12345), (23, 5, 12345), (7, 3, 0), (2, 2, 9)])
def test_folds_are_those_of_scikit_learn(count, folds, seed):
    selection = pytest.importorskip("sklearn.model_selection")
    cases = unwritten(count)
    names = [case.id for case in cases.cases]
    splitter = selection.KFold(n_splits=folds, shuffle=True, random_state=seed)
    expected = [([names[i] for i in train], [names[i] for i in held]) for train, held in splitter.split(names)]
    made = make_splits(cases, folds, seed)
    assert [(list(fold.training), list(fold.validation)) for fold in made.folds] == expected


def test_the_order_of_the_file_does_not_matter_and_test_cases_stay_out():
    cases = unwritten(6, tests=2)
    shuffled = type(cases)(**{**cases.__dict__, "cases": cases.cases[::-1]})
    splits = make_splits(cases, 3, 1)
    assert make_splits(shuffled, 3, 1) == splits
    assert splits.test == ("t000", "t001")
    assert not any(name.startswith("t") for fold in splits.folds for name in fold.training + fold.validation)


def test_fewer_cases_than_folds_is_refused_with_the_number_that_goes():
    with pytest.raises(UserError, match=r"3 training cases cannot be divided into 5 folds.*at most 3"):
        make_splits(unwritten(3), 5, 0)


def test_fewer_folds_than_one_are_refused():
    with pytest.raises(UserError, match="folds is 0; expected 1 or more"):
        make_splits(unwritten(3), 0, 0)


def test_splits_come_back_from_their_file(tmp_path):
    splits = make_splits(unwritten(6, tests=1), 3, 1)
    save_splits(tmp_path / "splits.json", splits)
    assert load_splits(tmp_path / "splits.json") == splits


@pytest.mark.parametrize("own", [True, False])
def test_ready_made_folds_are_taken(tmp_path, own):
    names = ("training", "validation") if own else ("train", "val")
    folds = [{names[0]: ["c001", "c000"], names[1]: ["c002"]}, {names[0]: ["c002"], names[1]: ["c001"]}]
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps({"folds": folds} if own else folds))
    assert import_splits(path, unwritten(3, tests=1), 2) == Splits(
        folds=(
            Fold(training=("c000", "c001"), validation=("c002",)),
            Fold(training=("c002",), validation=("c001",)),
        ),
        test=("t000",),
    )


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        ({"train": ["c000", "c001"], "val": ["c001"]}, "fold 0: 'c001' is in training and in validation"),
        ({"train": ["c000", "x"], "val": ["c001"]}, "fold 0: 'x' is not among the 3 training cases"),
        ({"train": ["c000", "t000"], "val": ["c001"]}, "fold 0: 't000' is not among"),
        ({"train": ["c000"], "val": []}, "fold 0: the list 'validation' is empty"),
        ({"train": ["c000", "c000"], "val": ["c001"]}, "names a case twice"),
        ({"train": ["c000"]}, "expected a list of case ids under 'validation' or 'val'"),
        (["c000"], "expected a list of case ids under 'training'"),
    ],
)
def test_faulty_ready_made_folds_are_refused(tmp_path, fold, message):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([fold]))
    with pytest.raises(UserError, match=message):
        import_splits(path, unwritten(3, tests=1), 1)


def test_another_number_of_folds_is_refused(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["c000"], "val": ["c001"]}]))
    with pytest.raises(UserError, match="it has 1 folds, the study has 2"):
        import_splits(path, unwritten(3), 2)


def test_the_stage_writes_the_file(tmp_path, capsys):
    save_cases(tmp_path / "cases.json", unwritten(5, tests=1))
    asked = ["--cases", str(tmp_path / "cases.json"), "--folds", "2", "--seed", "1"]
    assert main(["split", *asked, "--output", str(tmp_path / "splits.json")]) == 0
    content = json.loads((tmp_path / "splits.json").read_text())
    assert set(content) == {"folds", "test"}
    assert [set(fold) for fold in content["folds"]] == [{"training", "validation"}] * 2
    assert "fold 0: 2 training, 3 validation cases" in capsys.readouterr().out


def test_a_list_that_names_a_case_twice_is_refused(tmp_path):
    fold = {"training": ["a", "b"], "validation": ["c"]}
    (tmp_path / "splits.json").write_text(json.dumps({"folds": [fold], "test": ["d", "d"]}))
    with pytest.raises(UserError, match="each case once in a list"):
        load_splits(tmp_path / "splits.json")
