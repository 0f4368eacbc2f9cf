"""Every metric of the table by values counted by hand, and against programs that we did not write."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from fake_study import FakeStudy, evaluate_part, make_study, report_study
from megavoxel.cli import main
from megavoxel.errors import UserError
from megavoxel.evaluation import lesions
from megavoxel.evaluation.choice import parse_choice, read_choice, require_ranking
from megavoxel.evaluation.compared import Compared, compared_labels
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.surfaces import near

SHAPE = (8, 12, 16)
PAIRS = 200
BOUND = 1e-6


def box(*corners: tuple[tuple[int, ...], tuple[int, ...]], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A label map with some boxes of the value 1, from a first voxel up to the one behind the last."""
    labels = np.zeros(shape, np.uint8)
    for start, stop in corners:
        labels[tuple(map(slice, start, stop))] = 1
    return labels


def compared(prediction: np.ndarray, reference: np.ndarray, spacing=(1.0, 1.0, 1.0), tolerance=1.0) -> Compared:
    (label,) = compared_labels(prediction, reference, [1], tolerances=[tolerance], spacing=spacing)
    return label


def value(key: str, *arguments, **options) -> float:
    return METRICS[key].of(compared(*arguments, **options))


def random_pair(number: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], float]:
    """Two label maps, alike or not, now and then empty, with a spacing and a tolerance."""
    random = np.random.default_rng(number)
    shape, spacing = random.integers(4, 15, 3), tuple(float(size) for size in random.uniform(0.4, 4.0, 3).round(2))
    fields = [gaussian_filter(random.normal(size=shape), random.uniform(0.3, 1.5)) for _ in range(2)]
    fields[1] = fields[0] + random.uniform(0, 1.5) * fields[1]
    share = random.uniform(60, 95)
    maps = [(field > np.percentile(field, share)).astype(np.uint8) for field in fields]
    if number % 20 in (0, 1):
        maps[number % 20][:] = 0
    if number % 50 == 7:
        maps = [np.zeros_like(own) for own in maps]
    return maps[0], maps[1], spacing, float(random.uniform(0, 4))


PLATES = box(((2, 0, 0), (3, 12, 16))), box(((5, 0, 0), (6, 12, 16)))
"""Single layers with two layers between them."""


def test_mean_distance_of_plates_and_of_a_voxel_that_stands_out():
    assert value("assd", *PLATES, (2.0, 1.0, 1.0)) == 6.0
    one = box(((1, 1, 1), (2, 2, 2)))
    # The first voxel is in both; the second one is 3 mm from it: distances 0 and 3 of one map, 0 of the other.
    assert value("assd", box(((1, 1, 1), (2, 2, 3))), one, (1.0, 1.0, 3.0)) == pytest.approx(1.0, abs=1e-12)


def test_volume_and_its_error_in_ml():
    large, small = box(((0, 0, 0), (4, 10, 10))), box(((0, 0, 0), (1, 10, 10)))
    spacing = (5.0, 1.0, 2.0)
    assert value("volume", large, small, spacing) == 4.0
    assert value("volume_error", large, small, spacing) == 3.0
    assert value("volume_error", small, large, spacing) == -3.0
    assert [value(key, small * 0, large, spacing) for key in ("volume", "volume_error")] == [0.0, -4.0]
    assert [value(key, small * 0, small * 0, spacing) for key in ("volume", "volume_error")] == [0.0, 0.0]


def test_sensitivity_and_precision_are_shares_of_one_map():
    prediction, reference = box(((0, 0, 0), (1, 1, 8))), box(((0, 0, 6), (1, 1, 10)))
    assert value("sensitivity", prediction, reference) == 2 / 4
    assert value("precision", prediction, reference) == 2 / 8
    empty = np.zeros(SHAPE, np.uint8)
    assert value("sensitivity", empty, reference) == 0.0
    assert math.isnan(value("precision", empty, reference))
    assert math.isnan(value("sensitivity", prediction, empty))
    assert value("precision", prediction, empty) == 0.0


def test_components_are_the_same_from_half_on():
    # Of four components of the reference the first is right, of the second half is there, of the third too little;
    # the last is missed, and there is one where none should be.
    reference = box(((0, 0, 0), (2, 2, 2)), ((0, 5, 0), (1, 6, 4)), ((0, 8, 0), (1, 9, 4)), ((6, 0, 0), (7, 1, 1)))
    prediction = box(((0, 0, 0), (2, 2, 2)), ((0, 5, 0), (1, 6, 2)), ((0, 8, 0), (1, 9, 1)), ((6, 11, 15), (7, 12, 16)))
    assert value("lesion_f1", prediction, reference) == 2 * 2 / 8
    assert value("pq", prediction, reference) == 2 * (1.0 + 0.5) / 8
    found = compared(prediction, reference).components
    assert sorted(found.referred) == [1, 4, 4, 8]
    assert sorted(found.predicted) == [1, 1, 2, 8]
    assert sorted(iou for _, iou in found.same.values()) == [0.5, 1.0]


def test_voxels_that_touch_by_a_corner_are_one_component():
    corner = box(((0, 0, 0), (1, 1, 1)), ((1, 1, 1), (2, 2, 2)))
    assert value("lesion_f1", corner, corner) == 1.0
    assert len(compared(corner, corner).components.referred) == 1


def test_a_component_in_two_halves_counts_once():
    whole, halves = box(((0, 0, 0), (1, 1, 5))), box(((0, 0, 0), (1, 1, 2)), ((0, 0, 3), (1, 1, 5)))
    assert value("lesion_f1", halves, whole) == 0.0  # 2 of 5 voxels each
    whole = box(((0, 0, 0), (2, 1, 2)))
    diagonal = np.zeros(SHAPE, np.uint8)
    diagonal[0, 0, :2] = 1
    assert value("pq", diagonal, whole) == 2 * 0.5 / 2


def test_centre_lines_of_a_line_that_is_cut():
    line, half = box(((4, 5, 0), (5, 6, 16))), box(((4, 5, 0), (5, 6, 8)))
    # A line is its own centre line: all of the half lies in the whole, half of the whole in the half.
    assert value("cldice", half, line) == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert value("cldice", line, line) == 1.0
    assert value("cldice", line, box(((0, 0, 0), (1, 1, 16)))) == 0.0


def test_centre_lines_do_not_punish_a_tube_that_is_too_thick():
    thin, thick = box(((4, 5, 0), (5, 6, 16))), box(((3, 4, 0), (6, 7, 16)))
    assert value("cldice", thick, thin) == 1.0
    assert value("dsc", thick, thin) == 2 * 16 / (16 + 144)


def test_bands_along_the_border_have_the_width_of_the_tolerance():
    prediction, reference = box(((0, 0, 0), (8, 12, 8))), box(((0, 0, 0), (8, 12, 10)))
    # The field of view ends where the boxes do, and counts as their border. Without a width only border voxels count.
    ours, theirs = 8 * 12 * 8 - 6 * 10 * 6, 8 * 12 * 10 - 6 * 10 * 8
    # Of the border of the first box all but the inner part of its last layer is border of the second one.
    both = ours - 6 * 10
    assert value("boundary_iou", prediction, reference, tolerance=0.0) == both / (ours + theirs - both)
    # So wide a band is the whole mask.
    assert value("boundary_iou", prediction, reference, tolerance=50.0) == 0.8


def test_what_is_near_is_the_same_by_steps_and_by_a_map_of_distances():
    places = np.random.default_rng(1).random((9, 10, 11)) > 0.98
    spacing = (2.5, 0.8, 0.8)
    for distance in (0.0, 0.8, 2.4, 2.5, 5.0, 9.0):
        expected = distance_transform_edt(~places, sampling=spacing) <= distance
        assert np.array_equal(near(places, distance, spacing), expected)


@pytest.mark.parametrize("key", [key for key, metric in METRICS.items() if metric.both_empty != 0])
def test_a_label_in_no_map_has_no_value(key):
    empty = np.zeros(SHAPE, np.uint8)
    assert math.isnan(value(key, empty, empty))


@pytest.mark.parametrize("key", [key for key, metric in METRICS.items() if metric.one_empty is not None])
def test_a_label_in_one_map_alone_has_the_worst_value(key):
    full, empty = box(((1, 1, 1), (3, 3, 3))), np.zeros(SHAPE, np.uint8)
    worst = 0.0 if METRICS[key].higher_is_better else math.hypot(*SHAPE)
    assert [value(key, full, empty), value(key, empty, full)] == [worst, worst]


@pytest.mark.parametrize("key", METRICS)
def test_a_right_map_has_the_best_value(key):
    mask = box(((1, 1, 1), (5, 6, 7)), ((6, 9, 9), (8, 12, 16)))
    best = {"higher": 1.0, "lower": 0.0, "zero": 0.0, "none": (4 * 5 * 6 + 2 * 3 * 7) / 1000}
    assert value(key, mask, mask) == best[METRICS[key].direction]


@pytest.mark.slow
def test_values_are_those_of_monai():
    from monai.metrics import (
        compute_average_surface_distance,
        compute_confusion_matrix_metric,
        compute_dice,
        compute_surface_dice,
        get_confusion_matrix,
    )
    from monai.metrics.utils import get_edge_surface_distance

    warnings.simplefilter("ignore")
    for number in range(PAIRS):
        prediction, reference, spacing, tolerance = random_pair(number)
        label = compared(prediction, reference, spacing, tolerance)
        masks = [torch.from_numpy(own == 1)[None, None].float() for own in (prediction, reference)]
        counts = get_confusion_matrix(*masks)
        theirs = {
            "dsc": compute_dice(*masks) if reference.any() else None,
            "sensitivity": compute_confusion_matrix_metric("sensitivity", counts),
            "precision": compute_confusion_matrix_metric("precision", counts),
        }
        if prediction.any() and reference.any():
            whole = [mask[0, 0].bool() for mask in masks]
            both = get_edge_surface_distance(*whole, spacing=spacing, symmetric=True)[1]
            # MONAI's own percentile is of float32, and its last digits are others.
            theirs["hd95"] = max(np.percentile(distances.double().numpy(), 95) for distances in both)
            theirs["assd"] = compute_average_surface_distance(*masks, symmetric=True, spacing=spacing)
            theirs["nsd"] = compute_surface_dice(*masks, [tolerance], spacing=spacing, use_subvoxels=True)
        for key, found in theirs.items():
            if found is not None:
                ours = METRICS[key].of(label)
                # MONAI's distances in mm are float32: the bound is relative for those above 1.
                assert ours == pytest.approx(float(found), rel=BOUND, abs=BOUND, nan_ok=True), (number, key)


@pytest.mark.slow
def test_nsd_is_that_of_deepmind():
    peer = pytest.importorskip("surface_distance", reason="the peer is not installed")
    for number in range(PAIRS):
        prediction, reference, spacing, tolerance = random_pair(number)
        if prediction.any() and reference.any():
            distances = peer.compute_surface_distances(reference == 1, prediction == 1, spacing)
            theirs = peer.compute_surface_dice_at_tolerance(distances, tolerance)
            assert value("nsd", prediction, reference, spacing, tolerance) == pytest.approx(theirs, abs=BOUND), number


@pytest.mark.slow
def test_components_are_those_of_panoptica():
    peer = pytest.importorskip("panoptica", reason="the peer is not installed")
    evaluator = peer.Panoptica_Evaluator(
        expected_input=peer.InputType.SEMANTIC,
        instance_approximator=peer.ConnectedComponentsInstanceApproximator(),
        instance_matcher=peer.NaiveThresholdMatching(matching_threshold=0.5),
        instance_metrics=[peer.Metric.IOU],
        global_metrics=[],
    )
    for number in range(PAIRS):
        prediction, reference, *_ = random_pair(number)
        found = compared(prediction, reference).components
        if len(found.predicted) and len(found.referred):
            result = evaluator.evaluate(prediction, reference, verbose=False)["ungrouped"]
            assert (result.tp, result.fp, result.fn) == (
                len(found.same),
                len(found.predicted) - len(found.same),
                len(found.referred) - len(found.same),
            )
            assert found.f1 == pytest.approx(result.rq, abs=BOUND)
            theirs = result.pq if result.tp else 0.0
            assert found.panoptic_quality == pytest.approx(theirs, abs=BOUND), number


def test_metrics_are_chosen_by_label():
    choice = read_choice(
        {"default": ["dsc", "nsd"], "vessel": ["cldice", "nsd"]}, where="s", labels=["liver", "vessel"]
    )
    assert [metric.key for metric in choice.of("vessel")] == ["cldice", "nsd"]
    assert [metric.key for metric in choice.of("liver")] == ["dsc", "nsd"]
    assert [metric.key for metric in choice.of_all(["liver", "vessel"])] == ["dsc", "nsd", "cldice"]
    assert [metric.key for metric in choice.of_all(["vessel"])] == ["cldice", "nsd"]
    assert choice.words == ["dsc", "nsd", "vessel=cldice,nsd"]
    assert parse_choice(choice.words, ["liver", "vessel"]) == choice
    assert [metric.key for metric in parse_choice((), ["liver"]).of("liver")] == ["dsc", "nsd"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"vesel": ["dsc"]}, "s: there is no label 'vesel'; allowed: default, liver, vessel"),
        ({"vessel": ["cdice"]}, "s: vessel: there is no metric 'cdice'; allowed: dsc, nsd, hd95, assd"),
        (["cdice"], "s: there is no metric 'cdice'"),
    ],
)
def test_a_choice_names_labels_and_metrics_that_exist(chosen, message):
    with pytest.raises(UserError) as caught:
        read_choice(chosen, where="s", labels=["liver", "vessel"])
    assert str(caught.value).startswith(message)


def test_a_metric_that_cannot_rank_does_not_stand_first():
    require_ranking([METRICS["hd95"], METRICS["volume"]], where="s")
    for key in ("volume", "volume_error"):
        with pytest.raises(UserError, match=f"s: '{key}' stands first, and cannot rank models.*put one of these first"):
            require_ranking([METRICS[key], METRICS["dsc"]], where="s")


def test_the_page_of_scores_has_every_metric(repository):
    page = (repository / "docs/scores.md").read_text()
    rows = [line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")]
    assert rows == list(METRICS)


def lesions_of_part(results: Path, name: str, fold: str) -> Path:
    """Where a study has the lesions of a model in a fold, or of its test cases."""
    folder = results / ("ensembles/both" if name == "both" else name)
    path = folder / ("lesions-test.csv" if fold == "all" else f"fold-{fold}/lesions.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> FakeStudy:
    """Its livers are scored by DSC and both metrics of volume, its spleens by clDice and lesion-wise F1; reported."""
    fake = make_study(tmp_path_factory.mktemp("study"), score=False)
    parts = []
    for name in ("small", "large", "both"):
        for split, fold in (("validation", "0"), ("validation", "1"), ("test", "all")):
            parts.append(fake.root / f"{name}-{split}-{fold}.csv")
            words = ["--metrics", "dsc", "volume", "volume_error", "spleen=cldice,lesion_f1"]
            words += ["--lesions", str(lesions_of_part(fake.results, name, fold))]
            assert evaluate_part(fake, name, split, fold, parts[-1], *words) == 0
    assert main(["evaluate", "--collect", *map(str, parts), "--output", str(fake.results / "scores.csv")]) == 0
    chosen = {"default": ["dsc", "volume", "volume_error"], "spleen": ["cldice", "lesion_f1"]}
    fake.definition.write_text(json.dumps(json.loads(fake.definition.read_text()) | {"metrics": chosen}))
    assert report_study(fake) == 0
    return fake


@pytest.mark.slow
def test_a_report_shows_each_label_by_its_own_metrics(study):
    tables = {
        name: pd.read_csv(study.results / f"report/tables/{name}.csv") for name in ("labels", "summary", "comparison")
    }
    labels = tables["labels"].set_index(["split", "label", "model"]).loc["validation"]
    assert labels.loc[("liver", "small"), "volume_mean"] == pytest.approx(6 * 8 * 6 * 4.5 / 1000)
    assert math.isnan(labels.loc[("spleen", "small"), "volume_mean"])
    # The spleen is in no map of case_3, and in case_1 it is missed.
    row = labels.loc[("spleen", "small"), ["values", "both_empty", "cldice_mean", "lesion_f1_mean"]]
    assert row.tolist() == [3, 1, pytest.approx(2 / 3), pytest.approx(2 / 3)]
    summary = tables["summary"].set_index(["model", "split"])
    assert summary.loc[("large", "validation"), ["both_empty", "unannotated"]].tolist() == [1, 0]
    comparison = tables["comparison"].set_index(["metric", "split", "model"])
    assert "Volume" not in comparison.index
    assert comparison.loc[("Volume_error", "validation", "large"), ["better", "equal", "worse"]].tolist() == [0, 4, 0]
    page = (study.results / "report/index.html").read_text()
    assert "The nearer to 0 the better." in page
    assert "Volume error (ml)" in page
    assert (study.results / "report/figures/volume_error_by_label.png").is_file()


@pytest.mark.slow
def test_a_report_misses_a_metric_of_a_label(study, tmp_path, capsys):
    shutil.copytree(study.results, tmp_path / "results", ignore=shutil.ignore_patterns("report"))
    scores = pd.read_csv(study.results / "scores.csv")
    cut = scores[~((scores["metric"] == "Lesion_F1") & (scores["case"] == "case_0"))]
    cut.to_csv(tmp_path / "results/scores.csv", index=False)
    words = ["--results", str(tmp_path / "results"), "--definition", str(study.definition), "--tables-only"]
    assert main(["report", *words]) == 1
    assert "case case_0 has no Lesion_F1 of spleen" in capsys.readouterr().err


def test_a_metric_of_an_unknown_label_is_one_line_before_anything_is_read(tmp_path, capsys):
    fake = make_study(tmp_path, score=False)
    assert evaluate_part(fake, "small", "validation", "0", tmp_path / "scores.csv", "--metrics", "splen=cldice") == 1
    expected = "--metrics: there is no label 'splen'; allowed: default, liver, spleen"
    assert expected in capsys.readouterr().err
    words = ["--cases", str(fake.cases), "--folds", "2", "--seed", "1", "--output", str(tmp_path / "splits.json")]
    assert main(["split", *words, "--metrics", "dsc", "splen=cldice"]) == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "splits.json").exists()
    assert main(["split", *words, "--metrics", "dsc", "spleen=cldice"]) == 0


@pytest.mark.slow
def test_the_table_of_lesions_has_sizes_and_matches(study):
    table = pd.read_csv(lesions_of_part(study.results, "small", "0"))
    assert set(table["label"]) == {"spleen"}
    columns = ["case", "map", "component", "voxels", "same_as", "iou"]
    found = table[columns].astype(object).where(table[columns].notna(), None).to_numpy().tolist()
    # The spleen of case_0 is right, that of case_1 is missed.
    assert found == [
        ["case_0", "reference", 1, 48, 1, 1.0],
        ["case_0", "prediction", 1, 48, 1, 1.0],
        ["case_1", "reference", 1, 48, None, None],
    ]
    assert table["volume_ml"].tolist() == [pytest.approx(48 * 4.5 / 1000)] * 3


@pytest.mark.slow
def test_a_report_counts_lesions_by_size(study):
    table = pd.read_csv(study.results / "report/tables/lesions.csv").set_index(["split", "label", "model", "low"])
    row = table.loc[("validation", "spleen", "small", 0.1)]
    assert row[["referred", "found", "predicted", "false"]].tolist() == [3, 2, 2, 0]
    assert len(table) == 6, "of three models in two splits, all spleens have 0.216 ml"
    assert "0.1 to 1" in (study.results / "report/tables/lesions.md").read_text()
    assert 'id="lesions-heading"' in (study.results / "report/index.html").read_text()


def test_a_damaged_table_of_lesions_is_named_with_its_line(tmp_path):
    path = tmp_path / "lesions.csv"
    path.write_text(",".join(lesions.COLUMNS) + "\n" + "a,test,all,c,l,reference,1,9,much,,\n")
    with pytest.raises(UserError, match="line 2: 'much' is not a number"):
        lesions.read_lesions(path)


def test_lesions_need_a_metric_that_counts_them(tmp_path, capsys):
    fake = make_study(tmp_path, score=False)
    words = ["--metrics", "dsc", "--lesions", str(tmp_path / "lesions.csv")]
    assert evaluate_part(fake, "small", "validation", "0", tmp_path / "scores.csv", *words) == 1
    assert "--lesions: no label is scored by lesion_f1 or pq" in capsys.readouterr().err
