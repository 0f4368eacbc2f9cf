"""The page of `megavoxel report` and its pictures."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import megavoxel
from fake_study import GEOMETRY, FakeStudy, make_study, report_study
from megavoxel.datasets.cases import load_cases
from megavoxel.evaluation.postprocessing import KeepLargest, Postprocessing, save_postprocessing
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.reporting.examples import Example, choose_examples, read_slice
from megavoxel.reporting.figures import thinned
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.statistics import case_means
from megavoxel.volumes.write import write_labels


class Resources(HTMLParser):
    """Collects what a page would load, its text, and its images' descriptions."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.descriptions: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.add(tag)
        self.loads += [attributes[key] for key in ("src", "href", "data", "srcset", "poster") if key in attributes]
        if tag == "img":
            self.descriptions.append(attributes.get("alt", ""))

    def handle_data(self, data):
        self.text += data


def text_of(fake: FakeStudy) -> str:
    """The words of a study's page, one space between them."""
    return " ".join(Resources((fake.results / "report/index.html").read_text()).text.split())


@pytest.mark.slow
def test_labels_that_a_fold_never_saw_are_named_at_the_top(reported):
    text = Resources((reported.results / "report/index.html").read_text()).text
    assert "large, fold 1: spleen" in text[: text.index("mean over labels and cases")]


def test_the_page_loads_nothing_from_elsewhere(reported):
    page = (reported.results / "report/index.html").read_text()
    found = Resources(page)
    assert not [
        address for address in found.loads if not address.startswith(("data:image/webp;base64,", "data:,", "#"))
    ]
    assert not found.tags & {"iframe", "object", "embed"}
    assert not re.search(r"url\(|@import|https?://|\bimport\(|XMLHttpRequest|\bfetch\(", page)
    # Box plots, training curves and memory, a sweep, a comparison, solid labels, and overlays of three models.
    assert len(found.descriptions) == 4 + 1 + 1 + 1 + 3
    assert all(found.descriptions)


def test_the_page_says_what_was_run_and_what_is_odd(reported):
    page = (reported.results / "report/index.html").read_text()
    text = " ".join(Resources(page).text.split())
    assert "warning: case_3 – labels/case_3.nii.gz has no voxel of <spleen>" in text
    assert "excluded: case_9" in text
    assert "sound" not in text
    assert text.index("excluded: case_9") < text.index("Mean ± standard deviation")
    assert "liver 1.5 mm, spleen 1 mm" in text
    assert "Nikolov et al. 2018" in text
    # Three models with one such value in validation, of 3 x 5 cases x 2 labels.
    assert "3 of 30 values" in text
    assert load_plan(reported.results / "large/plan.json").hash in text
    assert "versions.torch" in text
    assert "20 entries" in text
    assert "fold 0: 0; fold 1: 1" in text
    assert "There is no postprocessing.json" in text


def test_the_page_says_how_memory_was_measured(reported):
    text = text_of(reported)
    assert "on one device in training (tracked tensors of the first step), the largest of a setting's folds" in text
    assert "peak_memory.forecast_gib" in text
    # Once, in the table of the settings' cost.
    assert text.count("Peak, measured (GiB)") == 1
    # This study has neither cascades nor published numbers.
    assert "first stage" not in text
    assert "Hollow" not in text
    assert "Published" not in text


def test_the_page_begins_with_what_is_best_by_how_much_at_what_cost_and_what_to_look_at(reported):
    text = text_of(reported)
    begin = text[: text.index("The data check reports")]
    # The liver counts half in three cases and fully in the fourth: 2.5 / 4 of a third.
    found = re.search(
        r"both has the highest mean DSC in validation: 0\.875 \(95 % interval 0\.\d{3} to 1\.000, 4 cases\), "
        r"a difference of \+0\.208 \(95 % interval \+0\.167 to \+0\.\d{3}\) to small, the baseline\.",
        begin,
    )
    assert found, begin
    # Two runs of small on one device, and two of large on four and five: 40 minutes each.
    assert "Training it took 7 h 20 min of device time in 4 runs, with a peak of 1.62 GiB on one device" in begin
    assert "both, large and small cannot be told apart: they differ in fewer than six cases" in begin
    assert "In test (1 case), both is best as well, with 1.000." in begin
    assert "Look at the cases that both does worst: case_1 (validation, 0.500), case_0 (validation, 1.000)" in begin
    assert "1 thing that speaks against these numbers" in begin


def test_nothing_is_green_where_something_speaks_against_the_numbers(reported):
    page = (reported.results / "report/index.html").read_text()
    assert 'class="note fine"' not in page
    assert "was run and scored. Not all of it is in order" in page


def test_the_title_names_the_study_and_the_version(reported):
    page = (reported.results / "report/index.html").read_text()
    assert f"<title>fake – report, megavoxel {megavoxel.__version__}</title>" in page


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> str:
    """The text of a page with published numbers, a cascade, a plan that is not that of its runs, and dates."""
    fake, published = make_study(tmp_path_factory.mktemp("odd")), tmp_path_factory.mktemp("published") / "p.csv"
    published.write_text("table,row,metric,value,source\n1,large,DSC,0.9,A et al. 2020\n")
    path = fake.results / "large/plan.json"
    save_plan(path, replace(load_plan(path), stage1=("small",)))
    for manifest in fake.results.glob("*/fold-*/manifest.json"):
        dated = {"written": f"2026-03-0{1 + int(manifest.parent.name[-1])}", "code": {"version": "0.1.0"}}
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | dated))
    assert report_study(fake, "--published", str(published)) == 0
    return text_of(fake)


@pytest.mark.slow
def test_the_page_speaks_of_published_numbers_and_cascades_where_there_are_some(odd):
    assert "Published numbers" in odd
    assert "A et al. 2020" in odd
    assert "Hollow: published numbers" in odd
    assert "in the figure that of its largest stage, as Wang et al. 2022 count a cascade" in odd


@pytest.mark.slow
def test_runs_of_another_plan_are_named_at_the_top(odd):
    begin = odd[: odd.index("The data check reports")]
    assert "2 runs contradict their plan, forecast or other folds" in begin
    assert "large, fold 0: trained with plan" in begin


@pytest.mark.slow
def test_the_title_has_the_last_date_of_the_runs(odd):
    assert odd.startswith("fake – report of 2026-03-02, megavoxel 0.1.0")
    assert "Results of 2026-03-02" in odd


@pytest.mark.slow
def test_a_study_of_one_setting_is_compared_with_nothing(tmp_path):
    fake = make_study(tmp_path)
    alone = {"baseline": None, "settings": ["large"], "ensembles": {}, "folds": {"large": [0, 1]}, "sweeps": []}
    fake.definition.write_text(json.dumps(json.loads(fake.definition.read_text()) | alone))
    assert report_study(fake) == 0
    found = Resources((fake.results / "report/index.html").read_text())
    text = " ".join(found.text.split())
    assert "large has a mean DSC in validation: 0.771 (95 % interval" in text
    assert "In test (1 case), its mean is 0.917." in text
    assert not [words for words in ("Comparison", "cannot be told", "against peak", "Wang") if words in text]
    # Box plots of two metrics, training curves, solid labels, and the overlays of the setting.
    assert len(found.descriptions) == 5
    # The files that the workflow promises are there all the same.
    assert (fake.results / "report/figures/dsc_against_memory.png").is_file()


@pytest.mark.slow
def test_the_page_shows_the_post_processing(tmp_path):
    fake = make_study(tmp_path)
    save_postprocessing(
        fake.results / "large/postprocessing.json",
        Postprocessing(keep_largest=KeepLargest(foreground=True, labels=("liver",)), cases=4),
    )
    assert report_study(fake) == 0
    text = (fake.results / "report/index.html").read_text()
    assert "large</th><td>the whole foreground, liver</td><td>4 validation cases</td>" in text


def test_pictures_can_be_opened_and_are_not_blank(reported):
    folder = reported.results / "report/figures"
    for path in [*folder.glob("*.png"), *folder.glob("*/*.png")]:
        with Image.open(path) as picture:
            assert min(picture.size) > 400
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_best_median_and_worst_case(reported):
    stored = load_stored(reported.results, str(reported.definition), need_cases=True)
    means = case_means(stored.scores)
    examples = choose_examples(stored, means[means["setting"] == "both"], "both")
    # case_3 has a liver only and is right; case_0 and case_2 are right, too: ties go by name.
    assert [(example.rank, example.case) for example in examples] == [
        ("best", "case_0"),
        ("median", "case_3"),
        ("worst", "case_1"),
    ]
    assert examples[-1].prediction == reported.results / "ensembles/both/fold-0/validation/case_1.nii.gz"
    assert examples[-1].prediction.is_file()
    one = means[(means["setting"] == "both") & (means["case"] == "case_4")]
    assert [(example.rank, example.case) for example in choose_examples(stored, one, "both")] == [("best", "case_4")]
    assert choose_examples(stored, one.assign(DSC=np.nan), "both") == []


def test_a_slice_is_seen_from_the_feet_with_the_right_aspect(reported):
    cases = load_cases(reported.cases)
    prediction = reported.results / "small/fold-0/validation/case_0.nii.gz"
    cut = read_slice(cases, Example(rank="best", case="case_0", score=1.0, prediction=prediction))
    assert cut.aspect == pytest.approx(1.5)
    assert cut.window == (-160.0, 240.0)
    # The liver lies at low x, the patient's left in RAS+, so on the right of the picture.
    assert np.argwhere(cut.reference == 1)[:, 1].min() == 16 - 7
    assert np.argwhere(cut.prediction == 1)[:, 1].min() == 16 - 9
    # Slices 4 to 6 hold liver and spleen; the first of them is shown.
    assert np.count_nonzero(cut.reference) == 8 * 6 + 4 * 4
    volume = nibabel.load(Path(cases.root) / "images/case_0.nii.gz").get_fdata()
    np.testing.assert_allclose(cut.image, volume[::-1, :, 4].T, rtol=1e-6)


def test_a_slice_of_a_case_without_reference_foreground(reported, tmp_path):
    cases = load_cases(reported.cases)
    empty = tmp_path / "empty"
    write_labels(empty / "labels/case_0.nii.gz", np.zeros((12, 16, 16), np.uint8), GEOMETRY)
    shutil.copytree(Path(cases.root) / "images", empty / "images")
    moved = type(cases)(**{**vars(cases), "root": str(empty), "channels": ("MR",)})
    prediction = reported.results / "small/fold-0/validation/case_0.nii.gz"
    cut = read_slice(moved, Example(rank="worst", case="case_0", score=0.0, prediction=prediction))
    assert not cut.reference.any()
    assert np.count_nonzero(cut.prediction) == 8 * 6 + 4 * 4
    low, high = np.percentile(cases.read_image(cases.case("case_0"))[0], [1, 99])
    assert cut.window == pytest.approx((low, high))


def test_a_slice_is_chosen_and_shown_without_what_nobody_annotated(reported, tmp_path):
    cases = load_cases(reported.cases)
    labels = cases.read_labels(cases.case("case_0"))
    labels[:4] = 9  # no label: whole slices, and half of the first one with labels
    labels[4, :, 8:] = 9
    write_labels(tmp_path / "labels/case_0.nii.gz", labels, GEOMETRY)
    (tmp_path / "images").symlink_to(Path(cases.root) / "images")
    moved = type(cases)(**{**vars(cases), "root": str(tmp_path), "ignore_value": 9})
    prediction = reported.results / "small/fold-0/validation/case_0.nii.gz"
    cut = read_slice(moved, Example(rank="best", case="case_0", score=1.0, prediction=prediction))
    assert np.count_nonzero(cut.reference) == 8 * 6 + 4 * 4  # slice 5 is whole
    assert 9 not in cut.reference


def test_long_histories_are_thinned_to_means():
    history = pd.DataFrame({"epoch": np.arange(1, 1001), "learning_rate": 0.1})
    for column in ("training_loss", "validation_loss", "pseudo_dice", "seconds", "peak_memory_mib"):
        history[column] = np.arange(1000.0)
    short = thinned(history)
    assert len(short) == 200
    assert short.iloc[0].to_dict() | {"epoch": 3.0, "training_loss": 2.0} == short.iloc[0].to_dict()
    pd.testing.assert_frame_equal(thinned(history[:200])["epoch"].to_frame(), history[:200][["epoch"]].astype(float))
