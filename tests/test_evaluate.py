"""`megavoxel evaluate`: two folders, a part of a study, and the joined score file."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fake_study import GEOMETRY, SHAPE, evaluate_part, make_study
from megavoxel.cli import main
from megavoxel.datasets.cases import load_cases
from megavoxel.evaluation.compared import compared_labels, dice_per_label
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.tidy import COLUMNS, read_scores
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.open import read_labels
from megavoxel.volumes.write import write_labels


@pytest.fixture
def fake(tmp_path):
    """A study that was predicted but not scored."""
    return make_study(tmp_path, score=False)


@pytest.fixture
def folders(tmp_path):
    """Predictions and references of three cases: right, shifted, and without label 2."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 4:12, 2:8], labels[4:7, 4:8, 10:14] = 1, 2
    predictions, references = tmp_path / "ours", tmp_path / "theirs"
    for name in ("a", "b", "c"):
        write_labels(references / f"{name}.nii.gz", labels, GEOMETRY)
    write_labels(predictions / "a.nii.gz", labels, GEOMETRY)
    write_labels(predictions / "b.nii.gz", np.roll(labels, 1, axis=2), GEOMETRY)
    write_labels(predictions / "c.nii.gz", np.where(labels == 1, 1, 0), GEOMETRY)
    return predictions, references


def evaluate(*words) -> int:
    return main(["evaluate", *map(str, words)])


def values(path) -> dict[tuple[str, str, str], float]:
    table = read_scores(path)
    return dict(zip(zip(table["case"], table["label"], table["metric"], strict=True), table["value"], strict=True))


def test_two_folders_are_scored_by_file_name(folders, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    assert evaluate(*folders, "--tolerance", "0.5", "--output", output) == 0
    scores = values(output)
    assert len(scores) == 3 * 2 * 2
    assert [scores["a", label, metric] for label in "12" for metric in ("DSC", "NSD")] == [1.0] * 4
    # Shifted by one of six voxels along x, and by one of four.
    assert (scores["b", "1", "DSC"], scores["b", "2", "DSC"]) == (5 / 6, 3 / 4)
    assert (scores["c", "2", "DSC"], scores["c", "2", "NSD"]) == (0.0, 0.0)
    printed = capsys.readouterr().out
    assert f"{(1 + 5 / 6 + 1) / 3:.4f}" in printed
    assert f"{(1 + 3 / 4 + 0) / 3:.4f}" in printed


def test_names_values_and_tolerances_of_labels(folders, tmp_path):
    output = tmp_path / "scores.csv"
    labels = ["--labels", "kidney=2", "liver=1", "--tolerance", "liver=0.5", "kidney=1.0"]
    assert evaluate(*folders, *labels, "--output", output) == 0
    scores = values(output)
    assert {label for _, label, _ in scores} == {"liver", "kidney"}
    # x spacing is 1 mm: a shift by one voxel is within 1 mm and not within 0.5 mm.
    assert scores["b", "kidney", "NSD"] == 1.0
    assert scores["b", "liver", "NSD"] < 1.0


def test_spacing_is_taken_in_the_order_of_the_axes(folders, tmp_path):
    output = tmp_path / "scores.csv"
    assert evaluate(*folders, "--tolerance", "0.5", "--output", output) == 0
    prediction, reference = (read_labels(folder / "b.nii.gz")[0] for folder in folders)
    (label,) = compared_labels(prediction, reference, [1], tolerances=[0.5], spacing=(3.0, 1.5, 1.0))
    assert values(output)["b", "1", "NSD"] == METRICS["nsd"].of(label)
    assert dice_per_label(prediction, reference, [1])[0] == values(output)["b", "1", "DSC"]


def test_a_float32_affine_does_not_decide_what_is_within_the_tolerance(tmp_path):
    affine = np.diag([1.2500001, 1.25, 7.7, 1.0])
    grid = Geometry(shape=(12, 12, 6), affine=affine)
    labels = np.zeros((6, 12, 12), np.uint8)
    labels[2:4, 3:8, 3:8] = 1
    write_labels(tmp_path / "references/a.nii.gz", labels, grid)
    write_labels(tmp_path / "predictions/a.nii.gz", np.roll(labels, 1, axis=2), grid)
    output = tmp_path / "scores.csv"
    assert evaluate(tmp_path / "predictions", tmp_path / "references", "--tolerance", "1.25", "--output", output) == 0
    assert values(output)["a", "1", "NSD"] == 1.0


def test_what_is_there_is_scored_when_asked_and_what_is_missing_is_said(folders, tmp_path, capsys):
    predictions, _ = folders
    (predictions / "b.nii.gz").unlink()
    output = tmp_path / "scores.csv"
    assert evaluate(*folders, "--tolerance", "1", "--output", output) == 1
    assert "missing for 1 of the cases to score: b; " in capsys.readouterr().err
    assert not output.exists()
    assert evaluate(*folders, "--tolerance", "1", "--output", output, "--existing") == 0
    assert "1 of 3 cases have no prediction and are not scored, so means are over the other 2; missing: b\n" in (
        capsys.readouterr().out
    )
    assert {case for case, _, _ in values(output)} == {"a", "c"}
    for name in "ac":
        (predictions / f"{name}.nii.gz").unlink()
    assert evaluate(*folders, "--tolerance", "1", "--output", output, "--existing") == 1
    assert "missing for 3 of the cases to score: a, b, c; " in capsys.readouterr().err


def test_all_missing_predictions_are_named(folders, tmp_path, capsys):
    for name in ("a", "c"):
        (folders[0] / f"{name}.nii.gz").unlink()
    output = tmp_path / "scores.csv"
    assert evaluate(*folders, "--tolerance", "1", "--output", output) == 1
    error = capsys.readouterr().err
    assert "missing for 2 of the cases to score: a, c" in error
    assert not output.exists()


def test_an_extra_prediction_is_an_error_unless_allowed(folders, capsys):
    (folders[1] / "b.nii.gz").unlink()
    assert evaluate(*folders, "--tolerance", "1") == 1
    assert "not to be scored: b" in capsys.readouterr().err
    assert evaluate(*folders, "--tolerance", "1", "--allow-extra") == 0


@pytest.mark.parametrize("change", ["shape", "affine"])
def test_another_grid_is_an_error_that_names_the_case(folders, capsys, change):
    labels, geometry = read_labels(folders[0] / "b.nii.gz")
    if change == "shape":
        labels, geometry = labels[:-1], Geometry(shape=(16, 16, 11), affine=geometry.affine)
    else:
        affine = geometry.affine.copy()
        affine[0, 3] += 0.5
        geometry = Geometry(shape=geometry.shape, affine=affine)
    write_labels(folders[0] / "b.nii.gz", labels, geometry)
    assert evaluate(*folders, "--tolerance", "1") == 1
    error = capsys.readouterr().err
    assert "case b" in error
    assert f"({change})" in error


def test_a_truncated_prediction_is_named(folders, capsys):
    path = folders[0] / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert evaluate(*folders, "--tolerance", "1") == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--tolerance is missing"),
        (["--tolerance", "-1"], "not a number of mm from 0"),
        (["--tolerance", "wide"], "not a number of mm from 0"),
        (["--tolerance", "1=2"], "no tolerance for 2"),
        (["--tolerance", "7=2"], "no label '7'"),
        (["--tolerance", "1", "--labels", "liver"], "expected NAME=VALUE"),
        (["--tolerance", "1", "--labels", "a=1", "b=1"], "give each once"),
    ],
)
def test_wrong_options_are_explained(folders, capsys, words, message):
    assert evaluate(*folders, *words) == 1
    assert message in capsys.readouterr().err


def test_several_processes_write_the_same_bytes(folders, tmp_path):
    for processes in (1, 2):
        output = tmp_path / f"{processes}.csv"
        assert evaluate(*folders, "--tolerance", "1", "--processes", processes, "--output", output) == 0
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_a_fold_of_a_study(fake, tmp_path):
    output = tmp_path / "part.csv"
    assert evaluate_part(fake, "small", "validation", "1", output) == 0
    lines = output.read_text().splitlines()
    assert lines[0] == "setting,split,fold,case,label,metric,value" == ",".join(COLUMNS)
    assert lines[1:] == sorted(lines[1:])
    # The liver is shifted by 2 of 6 voxels; case_3 has no spleen, and none is predicted.
    assert f"small,validation,1,case_2,liver,DSC,{4 / 6!r}" in lines
    assert "small,validation,1,case_3,spleen,DSC," in lines
    assert "small,validation,1,case_3,spleen,NSD," in lines
    assert len(lines) == 1 + 2 * 2 * 2
    assert math.isnan(values(output)["case_3", "spleen", "DSC"])


def test_a_label_that_is_not_predicted_scores_zero(fake, tmp_path):
    output = tmp_path / "part.csv"
    assert evaluate_part(fake, "small", "validation", "0", output) == 0
    assert values(output)["case_1", "spleen", "DSC"] == 0.0
    assert values(output)["case_1", "spleen", "NSD"] == 0.0


def test_test_cases_without_a_label_map_are_counted_and_not_scored(fake, tmp_path, capsys):
    output = tmp_path / "part.csv"
    assert evaluate_part(fake, "both", "test", "all", output) == 0
    assert {case for case, _, _ in values(output)} == {"case_4"}
    assert "1 cases of the test split have no label map" in capsys.readouterr().out


def test_a_split_without_labelled_cases_gives_a_header_alone(fake, tmp_path):
    text = fake.cases.read_text().replace('"labels/case_4.nii.gz"', "null")
    fake.cases.write_text(text)
    output = tmp_path / "part.csv"
    assert evaluate_part(fake, "both", "test", "all", output) == 0
    assert output.read_text() == ",".join(COLUMNS) + "\n"
    assert len(read_scores(output)) == 0


def test_a_missing_prediction_of_a_fold_is_an_error(fake, tmp_path, capsys):
    (fake.model("large") / "fold-0/validation/case_1.nii.gz").unlink()
    assert evaluate_part(fake, "large", "validation", "0", tmp_path / "part.csv") == 1
    assert "case_1" in capsys.readouterr().err
    assert not (tmp_path / "part.csv").exists()


def test_a_prediction_of_another_fold_is_an_error(fake, tmp_path, capsys):
    folder = fake.model("large")
    (folder / "fold-1/validation/case_2.nii.gz").rename(folder / "fold-0/validation/case_2.nii.gz")
    assert evaluate_part(fake, "large", "validation", "0", tmp_path / "part.csv") == 1
    assert "not to be scored: case_2" in capsys.readouterr().err


def test_a_fold_that_does_not_exist_is_an_error(fake, tmp_path, capsys):
    (fake.model("small") / "fold-7/validation").mkdir(parents=True)
    assert evaluate_part(fake, "small", "validation", "7", tmp_path / "part.csv") == 1
    assert "allowed: 0 to 1" in capsys.readouterr().err


def test_validation_of_all_folds(fake, tmp_path):
    gathered = tmp_path / "gathered"
    gathered.mkdir()
    for path in fake.model("small").glob("fold-*/validation/*.nii.gz"):
        path.rename(gathered / path.name)
    place = ["--cases", fake.cases, "--splits", fake.splits, "--split", "validation", "--fold", "all"]
    output = tmp_path / "part.csv"
    assert evaluate(gathered, *place, "--setting", "small", "--output", output) == 0
    assert {case for case, _, _ in values(output)} == {"case_0", "case_1", "case_2", "case_3"}


def test_options_of_the_other_form_are_refused(fake, capsys):
    assert evaluate(fake.results, "--cases", fake.cases) == 1
    assert "needs --splits, --split, --setting, --output" in capsys.readouterr().err
    whole = ["--splits", fake.splits, "--split", "test", "--setting", "s", "--output", "x.csv", "--tolerance", "1"]
    assert evaluate(fake.results, "--cases", fake.cases, *whole) == 1
    assert "--tolerance: not together with --cases" in capsys.readouterr().err


def test_collected_scores_are_sorted_and_keep_every_digit(fake, tmp_path):
    parts = [tmp_path / "1.csv", tmp_path / "0.csv"]
    for path in parts:
        assert evaluate_part(fake, "small", "validation", path.stem, path) == 0
    output = tmp_path / "scores.csv"
    assert evaluate("--collect", *parts, "--output", output) == 0
    first, second = (path.read_text().splitlines()[1:] for path in reversed(parts))
    assert output.read_text().splitlines() == [",".join(COLUMNS), *first, *second]


def test_the_same_score_in_two_files_is_an_error(fake, tmp_path, capsys):
    part, copy = tmp_path / "part.csv", tmp_path / "copy.csv"
    assert evaluate_part(fake, "small", "validation", "0", part) == 0
    copy.write_bytes(part.read_bytes())
    assert evaluate("--collect", part, copy, "--output", tmp_path / "scores.csv") == 1
    error = capsys.readouterr().err
    assert f"{copy} and {part}" in error
    assert "case case_0" in error
    assert not (tmp_path / "scores.csv").exists()


def test_a_case_named_like_a_missing_value_is_kept(tmp_path):
    row = ["NA", "null", "0", "nan", "None", "DSC", "0.25"]
    path = tmp_path / "part.csv"
    path.write_text(",".join(COLUMNS) + "\n" + ",".join(row) + "\n")
    assert evaluate("--collect", path, "--output", tmp_path / "scores.csv") == 0
    assert (tmp_path / "scores.csv").read_text() == path.read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read as CSV"),
        ("case,value\na,1\n", "expected setting,split"),
        (",".join(COLUMNS) + "\ns,test,all,a,b,DSC,high\n", "line 2: 'high' is not a number"),
    ],
)
def test_a_damaged_score_file_is_named(tmp_path, capsys, content, message):
    path = tmp_path / "part.csv"
    path.write_text(content)
    assert evaluate("--collect", path, "--output", tmp_path / "scores.csv") == 1
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error


def test_real_label_maps_score_one_against_themselves(real_data, tmp_path):
    names = sorted(path.name for path in (real_data / "chaos_mr_t2/labelsTr").glob("*.nii.gz"))[:2]
    for name in names:
        (tmp_path / name).symlink_to(real_data / "chaos_mr_t2/labelsTr" / name)
    output = tmp_path / "scores.csv"
    assert evaluate(tmp_path, tmp_path, "--tolerance", "0", "--output", output) == 0
    table = pd.read_csv(output)
    assert set(table["label"]) == {1, 2, 3, 4}
    assert (table["value"] == 1.0).all()


def test_every_metric_can_be_sent_to_another_process():
    for metric in METRICS.values():
        assert pickle.loads(pickle.dumps(metric)).function is metric.function


@pytest.mark.parametrize("side", ["prediction", "reference"])
def test_a_value_that_the_dataset_does_not_declare_is_an_error_of_its_case(fake, tmp_path, capsys, side):
    prediction = min((fake.model("small") / "fold-0/validation").glob("*.nii.gz"))
    cases = load_cases(fake.cases)
    reference = Path(cases.root) / cases.case(prediction.name.removesuffix(".nii.gz")).label
    path = prediction if side == "prediction" else reference
    labels, geometry = read_labels(path)
    labels[0, 0, 0] = 77
    write_labels(path, labels, geometry)
    assert evaluate_part(fake, "small", "validation", "0", tmp_path / "part.csv") == 1
    message = capsys.readouterr().err
    assert f"{path} has the undeclared value 77; declared are 0 background" in message
    assert not (tmp_path / "part.csv").exists()


def test_maps_that_memory_does_not_hold_are_refused_by_their_headers(folders, monkeypatch, capsys):
    from megavoxel.evaluation import pairs

    monkeypatch.setattr(pairs, "BYTES_OF_VOXEL", 10**12)
    monkeypatch.setattr("megavoxel.volumes.volume.Volume.labels", lambda _: pytest.fail("was read"))
    predictions, references = folders
    assert evaluate(predictions, references, "--tolerance", "1") == 1
    message = capsys.readouterr().err
    assert "of memory or more, and " in message
    assert "take a machine with more, or cut both maps to their labels" in message


def test_a_prediction_on_another_grid_is_not_read(folders, monkeypatch, capsys):
    predictions, references = folders
    path = sorted(predictions.iterdir())[0]
    geometry = read_labels(path)[1]
    write_labels(path, np.zeros((40, 40, 40), np.uint8), Geometry(shape=(40, 40, 40), affine=geometry.affine))
    monkeypatch.setattr("megavoxel.volumes.volume.Volume.labels", lambda _: pytest.fail("was read"))
    assert evaluate(predictions, references, "--tolerance", "1") == 1
    assert "lie on different grids" in capsys.readouterr().err
