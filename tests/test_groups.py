"""Cases that belong together: no fold and no test split divides them, and statistics draw them together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_study import make_study
from megavoxel.cli import main
from megavoxel.config.dataset import Dataset
from megavoxel.config.records import from_plain
from megavoxel.datasets.adjustments import adjusted_cases
from megavoxel.datasets.cases import Case, load_cases, save_cases
from megavoxel.datasets.groups import guess_groups
from megavoxel.errors import UserError
from megavoxel.planning.splits import import_splits, make_splits
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.statistics import case_means, comparison, mean_interval, paired_p, summary
from scans import unwritten


def cases_of(*names: str, **changes) -> list[Case]:
    return [Case(id=name, images=(f"{name}.nii.gz",), label=f"{name}-seg.nii.gz", **changes) for name in names]


def grouped(names: list[str], groups: object, **keys: object) -> dict[str, Case]:
    """The cases of a dataset file with these groups, by id."""
    dataset = from_plain(Dataset, {"name": "x", "source": {"folder": "x"}, "groups": groups} | keys, where="x.yaml")
    return {case.id: case for case in adjusted_cases(cases_of(*names), dataset, Path("x"))[0]}


@pytest.mark.parametrize("with_modalities", [False, True])
def test_no_patient_is_on_both_sides_and_folds_are_equal_but_for_one_patient(with_modalities):
    random = np.random.default_rng(5)
    for seed in range(500):
        patients, folds = int(random.integers(2, 30)), int(random.integers(2, 6))
        owners = np.sort(random.integers(0, patients, int(random.integers(patients, 4 * patients))))
        known = sorted(set(owners.tolist()))
        if len(known) < folds:
            continue
        cases = unwritten(len(owners))
        modality = [None, "CT", "MR"]
        cases = replace(cases, cases=tuple(
            replace(case, group=f"p{owner}", modality=modality[1 + owner % 2] if with_modalities else None)
            for case, owner in zip(cases.cases, owners, strict=True)
        ))  # fmt: skip
        group = {case.id: case.group for case in cases.cases}
        made = make_splits(cases, folds, seed).folds
        validated = [{group[name] for name in fold.validation} for fold in made]
        assert all(
            {group[name] for name in fold.training}.isdisjoint(own) for fold, own in zip(made, validated, strict=True)
        )
        assert sorted(name for fold in made for name in fold.validation) == sorted(group)
        sizes = [len(own) for own in validated]
        assert sum(sizes) == len(known)
        assert max(sizes) - min(sizes) <= 1


def test_a_group_of_one_case_each_gives_the_folds_of_cases():
    cases = unwritten(11)
    alone = replace(cases, cases=tuple(replace(case, group=case.id) for case in cases.cases))
    assert make_splits(alone, 4, 3) == make_splits(cases, 4, 3)


def test_fewer_groups_than_folds_are_refused_with_the_number_that_goes():
    cases = unwritten(6)
    pairs = replace(cases, cases=tuple(replace(case, group=f"g{n // 3}") for n, case in enumerate(cases.cases)))
    with pytest.raises(UserError, match=r"2 groups of training cases cannot be divided into 3 folds.*at most 2"):
        make_splits(pairs, 3, 0)


def test_a_pattern_takes_the_shortest_group():
    found = grouped(["sub-01_ses-1_T1", "sub-01_ses-2_T1", "sub-02_ses-1_T1"], "{group}_*")
    assert [case.group for case in found.values()] == ["sub-01", "sub-01", "sub-02"]
    assert grouped(["a.b_1", "aXb_1"], "{group}_1")["a.b_1"].group == "a.b"


def test_a_table_says_the_group_of_each_case(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("case,who,age\n001,A,3\n002,NA,4\n003,A,5\n004,B,6\n")
    found = grouped(["001", "002", "003"], {"table": "t.csv", "group": "who"})
    assert [case.group for case in found.values()] == ["A", "NA", "A"]


@pytest.mark.parametrize(
    ("names", "groups", "table", "message"),
    [
        (["p1_a", "q"], "{group}_*", "", r"1 of 2 cases are in no group: q; '\{group\}_\*' does not match them"),
        (["a", "b"], {"table": "t.csv"}, "case,group\na,1\n", "1 of 2 cases are in no group: b; add them to t.csv"),
        (["a", "b"], {"table": "t.csv"}, "case,group\na,1\nb,\n", "1 of 2 cases are in no group: b; add them"),
        (["a"], {"table": "t.csv"}, "case,group\na,1\na,2\n", "t.csv has the case 'a' in '1' and in '2'"),
        (["a"], {"table": "t.csv"}, "id,group\na,1\n", "t.csv has no column 'case'; it has: id, group"),
        (["a"], {"table": "t.csv"}, "", "t.csv cannot be read as CSV"),
        (["a"], {"table": "none.csv"}, "", "there is no file none.csv"),
    ],
)
def test_faulty_groups_are_refused(tmp_path, monkeypatch, names, groups, table, message):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(table)
    with pytest.raises(UserError, match=rf"dataset x: groups(\.table)?: .*{message}"):
        grouped(names, groups)


def test_a_column_of_a_table_says_which_pictures_of_the_report_a_case_may_be_chosen_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("id,phase\n001,portal venous\n002,\n003,none\n004,none\n005,portal venous\n")
    found = grouped(["001", "002", "003", "005"], None, pictures={"table": "t.csv", "case": "id", "column": "phase"})
    assert [case.picture for case in found.values()] == ["portal-venous", None, "none", "portal-venous"]
    cases = replace(unwritten(0), cases=tuple(replace(case, modality="CT") for case in found.values()))
    assert cases.pictures == {"none": ["003"], "portal-venous": ["001", "005"]}
    save_cases(tmp_path / "cases.json", cases)
    assert load_cases(tmp_path / "cases.json").pictures == cases.pictures
    assert "picture" not in json.loads((tmp_path / "cases.json").read_text())["cases"][1]
    plain = replace(cases, cases=tuple(replace(case, picture=None) for case in cases.cases))
    assert plain.pictures == {"CT": ["001", "002", "003", "005"]}
    assert unwritten(2).pictures == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,phase\na,x/y\nb,x y\n", "t.csv: 'x/y' is no name of a file, like that of 'x y'"),
        ("id,phase\na,?\n", "t.csv: '.' has no letter and no digit"),
        ("id,phase\na,\nz,late\n", "t.csv has no value of 'phase' for any case"),
        ("id,time\na,1\n", "t.csv has no column 'phase'; it has: id, time"),
    ],
)
def test_tables_of_pictures_that_name_none_are_refused(tmp_path, monkeypatch, table, message):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(table)
    with pytest.raises(UserError, match=f"dataset x: pictures.table: {message}"):
        grouped(["a", "b"], None, pictures={"table": "t.csv", "case": "id", "column": "phase"})


def test_cases_that_are_left_out_need_no_group():
    assert set(grouped(["p1_a", "q"], "{group}_*", exclude=["q"])) == {"p1_a"}


def test_a_patient_with_training_and_test_cases_is_refused():
    with pytest.raises(UserError, match="'p1' is divided: p1_b is a training case and p1_a a test case"):
        grouped(["p1_a", "p1_b", "p2_a"], "{group}_*", test_cases=["p1_a"])
    found = grouped(["p1_a", "p1_b", "p2_a"], "{group}_*", test_cases=["p1_a", "p1_b"])
    assert [case.split for case in found.values()] == ["test", "test", "training"]


def test_test_cases_are_drawn_by_whole_patients():
    names = [f"p{number}_{scan}" for number in range(8) for scan in "abc"]
    for seed in range(20):
        drawn = {c.id for c in grouped(names, "{group}_*", test_count=4, test_seed=seed).values() if c.split == "test"}
        assert len(drawn) == 6
        assert len({name[:2] for name in drawn}) == 2
    with pytest.raises(UserError, match="4 test cases cannot be drawn from 6 labelled ones"):
        grouped(names[:6], "{group}_*", test_count=4)


def test_ready_made_folds_that_divide_a_patient_are_refused(tmp_path):
    cases = unwritten(3)
    pair = replace(cases, cases=tuple(replace(case, group="g" if n < 2 else "h") for n, case in enumerate(cases.cases)))
    (tmp_path / "s.json").write_text(json.dumps([{"train": ["c000", "c002"], "val": ["c001"]}]))
    with pytest.raises(UserError, match=r"s\.json: fold 0: the group 'g' has cases in training and in validation"):
        import_splits(tmp_path / "s.json", pair, 1)


def test_cases_keep_their_groups_in_their_file_and_others_have_no_such_key(tmp_path):
    cases = unwritten(2)
    path = tmp_path / "cases.json"
    save_cases(path, cases)
    assert "group" not in path.read_text()
    pair = replace(cases, cases=tuple(replace(case, group="g") for case in cases.cases))
    save_cases(path, pair)
    assert load_cases(path) == pair


def test_an_interval_draws_groups_with_all_their_cases():
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(12), 4)
    values = random.normal(0.8, 0.05, 12)[groups] + random.normal(0, 0.005, 48)
    drawn = random.integers(0, 12, (100_000, 12))
    expected = np.percentile(values.reshape(12, 4).mean(axis=1)[drawn].mean(axis=1), [2.5, 97.5])
    spread = expected[1] - expected[0]
    assert mean_interval(values, groups) == pytest.approx(tuple(expected), abs=0.03 * spread)
    low, high = mean_interval(values)
    assert high - low < 0.7 * spread
    assert mean_interval(values, np.arange(48)) == mean_interval(values)


def test_missing_values_leave_their_group():
    values, groups = [0.5, np.nan, 0.7, 0.9], ["a", "a", "b", "c"]
    assert mean_interval(values, groups) == mean_interval([0.5, 0.7, 0.9], ["a", "b", "c"])


def test_a_test_compares_groups_by_their_means():
    gains = np.array([0.01, 0.03, 0.02, 0.02, 0.05, 0.06, 0.04, 0.01, 0.09, 0.03, 0.07, 0.05])
    groups = np.repeat(list("abcdef"), 2)
    assert paired_p(gains, groups) == pytest.approx(2 / 64)
    assert paired_p(gains, groups) == paired_p(gains.reshape(6, 2).mean(axis=1))
    assert np.isnan(paired_p(gains[:10], groups[:10]))


def test_the_tables_of_a_study_with_groups_draw_them(tmp_path):
    fake = make_study(tmp_path)
    path = fake.results / "cases.json"
    plain = load_stored(fake.results, str(fake.definition), need_cases=True)
    cases = load_cases(path)
    pairs = {case.id: f"g{number // 2}" for number, case in enumerate(sorted(cases.cases, key=lambda case: case.id))}
    save_cases(path, replace(cases, cases=tuple(replace(case, group=pairs[case.id]) for case in cases.cases)))
    stored = load_stored(fake.results, str(fake.definition), need_cases=True)
    assert plain.groups == {}
    assert stored.groups == pairs
    means = case_means(stored.scores)
    table = summary(stored)
    for row in table[table["split"] == "validation"].to_dict("records"):
        own = means[(means["setting"] == row["model"]) & (means["split"] == "validation")]
        wanted = mean_interval(own["DSC"], own["case"].map(pairs))
        assert (row["dsc_low"], row["dsc_high"]) == pytest.approx(wanted, nan_ok=True)
    changed = comparison(stored, table).merge(comparison(plain, summary(plain)), on=["model", "split", "metric"])
    assert (changed["difference_x"] == changed["difference_y"]).all()
    assert (changed["low_x"] != changed["low_y"]).any()


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w"], "{group}_*"),
        (["patient001_frame01", "patient001_frame12", "patient002_frame01"], "{group}_frame*"),
        (["a-Scan1", "a-Scan2", "b-Scan1"], "{group}-Scan*"),
        (["case_1_t0.nii", "case_1_t1", "case_2_t0"], "{group}_t*"),
        (["sub-01_T1w", "sub-02_T1w"], None),
        (["patient001_frame01", "patient002_frame01"], None),
        (["liver_1", "liver_2", "liver_3"], None),
        (["pat_1_scan1", "pat_1_scan2", "other"], None),
        (["hippocampus_001", "hippocampus_002"], None),
    ],
)
def test_groups_are_guessed_where_ids_show_them(names, pattern):
    assert guess_groups(names) == pattern


def test_init_proposes_groups_and_the_check_takes_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["phantom", "--training-cases", "4", "--seed", "1", "--shape", "16", "24", "24", "--output", "p"]) == 0
    for number, path in enumerate(sorted(Path("p/imagesTr").glob("*.nii.gz"))):
        name = f"pat{number // 2}_scan{number % 2}.nii.gz"
        for source, folder in ((path, "images"), (Path("p/labelsTr") / path.name, "labels")):
            Path("new", folder).mkdir(parents=True, exist_ok=True)
            source.rename(Path("new", folder, name))
    assert main(["init", "new", "--gpu", "a100-40"]) == 0
    assert "several images have one patient by their ids" in capsys.readouterr().out
    dataset = Path("config/datasets/new.yaml")
    assert main(["fetch", "--dataset", str(dataset), "--output", "data"]) == 0
    assert (
        main(["check", "--dataset", str(dataset), "--data", "data", "--output", "cases.json", "--checks", "c.csv"]) == 0
    )
    assert [case.group for case in load_cases(Path("cases.json")).cases] == ["pat0", "pat0", "pat1", "pat1"]
