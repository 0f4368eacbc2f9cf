"""The report's page in a real Chromium: what a reader clicks, types and sees."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from browsing import faults_of

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra 'dev')")
pytestmark = pytest.mark.slow
SCORES, COMPARISON = "#scores table", "#comparison table"


@pytest.fixture
def page(browser, reported) -> Iterator[playwright.Page]:
    """The page with its viewer ready; ends with an error where the page complained or asked the network."""
    opened = browser.new_page(viewport={"width": 1300, "height": 850})
    faults = faults_of(opened)
    opened.goto((reported.results / "report/index.html").as_uri())
    opened.wait_for_function("document.querySelector('#view-status').textContent.includes('shown with')")
    yield opened
    opened.close()
    assert not faults


def column(page: playwright.Page, table: str, number: int) -> list[str]:
    """Texts of a column of the rows that can be seen."""
    return page.locator(f"{table} tbody tr:visible > :nth-child({number})").all_inner_texts()


def pixels(page: playwright.Page, plane: str) -> np.ndarray:
    """A canvas as (rows, columns, 3) of int."""
    address = page.evaluate("(name) => document.getElementById(name).toDataURL()", f"view-{plane}")
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def coloured(picture: np.ndarray) -> np.ndarray:
    """Where a picture (rows, columns, 3) is not grey."""
    return np.ptp(picture, axis=2) > 8


def set_slider(page: playwright.Page, name: str, value: int) -> None:
    page.locator(f"#{name}").fill(str(value))


def only(page: playwright.Page, *, reference: bool, prediction: bool) -> None:
    page.locator("#view-reference").set_checked(reference)
    page.locator("#view-prediction").set_checked(prediction)


def test_a_click_on_a_heading_sorts_and_a_second_turns_the_order(page):
    heading = page.locator(f"{SCORES} thead th").nth(3)
    assert heading.inner_text().startswith("DSC")
    before = column(page, SCORES, 1)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    ascending = [float(text.split()[0]) for text in column(page, SCORES, 4)]
    assert ascending == sorted(ascending)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(text.split()[0]) for text in column(page, SCORES, 4)] == ascending[::-1]
    assert sorted(column(page, SCORES, 1)) == sorted(before)
    # Another table is not touched.
    assert page.locator(f"{COMPARISON} th[aria-sort=descending]").count() == 0


def test_minus_signs_count_and_missing_values_come_last(page):
    heading = page.locator("#labels table thead th").nth(3)
    page.evaluate("""() => {
        const rows = document.querySelector('#labels table').tBodies[0].rows;
        ['–', '−0.500', '+0.250', '10', '9'].forEach((text, index) => { rows[index].cells[3].textContent = text; });
        [...rows].slice(5).forEach((row) => row.remove());
    }""")
    for expected in (["−0.500", "+0.250", "9", "10", "–"], ["10", "9", "+0.250", "−0.500", "–"]):
        heading.get_by_role("button").click()
        assert column(page, "#labels table", 4) == expected


def test_words_filter_the_lines_of_a_long_table(page):
    table = page.locator("#labels table")
    page.locator("#labels input[type=search]").fill("SPLEEN large")
    rows = table.locator("tbody tr:visible").all_inner_texts()
    assert len(rows) == 2
    assert all("spleen" in row and "large" in row for row in rows)


def test_cases_are_listed_worst_first_and_found_by_name(page):
    scores = [float(text) for text in column(page, "#case-table", 5)]
    assert scores == sorted(scores)
    # The spleen of case_1 was missed, and the liver of 'small' is moved most.
    assert (column(page, "#case-table", 1)[0], column(page, "#case-table", 4)[0]) == ("case_1", "small")
    assert column(page, "#case-table", 7)[0] == "spleen 0.000"
    page.locator("#case-search").fill("E_3")
    assert column(page, "#case-table", 1) == ["case_3"] * 3
    assert page.locator("#case-count").inner_text() == "3 of 3 lines"
    page.locator("#case-label").select_option(label="spleen")
    # case_3 has no spleen in either map.
    assert column(page, "#case-table", 5) == ["–"] * 3
    page.locator("#case-search").fill("nothing")
    assert page.locator("#case-count").inner_text() == "0 of 0 lines"


def test_a_model_and_a_split_can_be_chosen(page):
    page.locator("#case-model").select_option("large")
    page.locator("#case-split").select_option("test")
    assert column(page, "#case-table", 4) == ["large"]
    # Worked out by hand: five of six liver voxels along x, and all of the spleen.
    assert float(column(page, "#case-table", 5)[0]) == pytest.approx((5 / 6 + 1) / 2, abs=0.0005)


def test_the_viewer_shows_reference_and_prediction_where_they_are(page):
    page.locator("#view-case").select_option("case_0")
    page.wait_for_function("document.querySelector('#view-status').textContent.startsWith('case_0 (')")
    page.locator("#view-model").select_option("small")
    only(page, reference=False, prediction=False)
    grey = pixels(page, "Axial")
    assert not coloured(grey).any()
    assert len(np.unique(grey)) > 20
    only(page, reference=False, prediction=True)
    predicted = coloured(pixels(page, "Axial"))
    only(page, reference=True, prediction=False)
    outlined = coloured(pixels(page, "Axial"))
    assert 0 < outlined.mean() < predicted.mean()
    # The liver lies at the patient's left, so on the right; 'small' has it two of 16 voxels too far to the right side.
    moved = np.argwhere(outlined)[:, 1].max() - np.argwhere(predicted)[:, 1].max()
    assert moved == pytest.approx(2 / 16 * predicted.shape[1], abs=0.05 * predicted.shape[1])
    assert np.argwhere(outlined)[:, 1].max() > 0.9 * predicted.shape[1]
    # Of 12 slices the liver is in numbers 4 to 9, counted from 1.
    for number, present in ((3, False), (4, True), (9, True), (10, False)):
        set_slider(page, "view-Axial-slice", number)
        assert coloured(pixels(page, "Axial")).any() == present
        assert (
            page.locator("#view-Axial").get_attribute("aria-label").startswith(f"Axial slice {number} of 12 of case_0")
        )


@pytest.mark.parametrize("plane", ["Axial", "Coronal", "Sagittal"])
def test_each_plane_has_its_slider(page, plane):
    others = [name for name in ("Axial", "Coronal", "Sagittal") if name != plane]
    before = {name: pixels(page, name) for name in (plane, *others)}
    set_slider(page, f"view-{plane}-slice", 1)
    assert (pixels(page, plane) != before[plane]).any()
    assert all((pixels(page, name) == before[name]).all() for name in others)


def test_opacity_model_and_labels_change_the_picture(page):
    page.locator("#view-case").select_option("case_0")
    page.wait_for_function("document.querySelector('#view-status').textContent.startsWith('case_0 (')")
    only(page, reference=False, prediction=True)
    seen = [pixels(page, "Axial")]
    set_slider(page, "view-opacity", 100)
    seen.append(pixels(page, "Axial"))
    page.locator("#view-model").select_option("both")
    seen.append(pixels(page, "Axial"))
    page.get_by_label("Draw liver").uncheck()
    seen.append(pixels(page, "Axial"))
    assert all((one != other).any() for one, other in pairwise(seen))
    page.get_by_label("Draw spleen").uncheck()
    assert not coloured(pixels(page, "Axial")).any()
    assert page.locator("#view-scores tbody tr").first.inner_text().split()[-2:] == ["1.000", "1.000"]


def test_a_click_moves_the_other_planes(page):
    box = page.locator("#view-Axial").bounding_box()
    page.locator("#view-Axial").click(position={"x": box["width"] * 0.02, "y": box["height"] * 0.02})
    # Top left: the patient's right and front, the last slices of both.
    assert page.locator("#view-Sagittal-slice").input_value() == "16"
    assert page.locator("#view-Coronal-slice").input_value() == "16"


def test_a_case_of_the_table_is_shown(page):
    page.locator("#case-search").fill("case_2")
    page.locator("#case-model").select_option("large")
    page.get_by_role("button", name="Show slices of case_2, large").click()
    page.wait_for_function("document.querySelector('#view-status').textContent.startsWith('case_2 (')")
    assert page.locator("#view-model").input_value() == "large"
    shown = page.locator("#view-case").input_value()
    page.get_by_role("button", name="Next").click()
    page.wait_for_function("!document.querySelector('#view-status').textContent.startsWith('case_2 (')")
    page.get_by_role("button", name="Previous").click()
    page.wait_for_function("document.querySelector('#view-status').textContent.startsWith('case_2 (')")
    assert page.locator("#view-case").input_value() == shown


def test_a_table_is_saved_with_its_full_numbers(page, reported, tmp_path):
    with page.expect_download() as started:
        page.locator("#scores").get_by_role("button", name="Save as CSV").click()
    assert started.value.suggested_filename == "summary.csv"
    started.value.save_as(tmp_path / "summary.csv")
    assert (tmp_path / "summary.csv").read_bytes() == (reported.results / "report/tables/summary.csv").read_bytes()


def test_the_listed_cases_are_saved_with_all_labels(page, tmp_path):
    page.locator("#case-search").fill("case_1")
    with page.expect_download() as started:
        page.get_by_role("button", name="Save these lines as CSV").click()
    started.value.save_as(tmp_path / "cases.csv")
    saved = pd.read_csv(tmp_path / "cases.csv").set_index("model")
    assert set(saved["case"]) == {"case_1"}
    assert saved.loc["small", ["DSC mean", "DSC liver", "DSC spleen"]].tolist() == pytest.approx([0.333, 0.667, 0.0])


def test_everything_can_be_done_with_the_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    heading = page.locator(f"{SCORES} thead th").first
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Space")
    assert heading.get_attribute("aria-sort") == "descending"
    slider = page.locator("#view-Axial-slice")
    before = int(slider.input_value())
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert int(slider.input_value()) == before - 1
    assert slider.get_attribute("aria-valuetext") == f"{before - 1} of 12"
    page.locator("#view-reference").focus()
    page.keyboard.press("Space")
    assert not page.locator("#view-reference").is_checked()
    assert "reference" not in page.locator("#view-Axial").get_attribute("aria-label")


def test_everything_has_a_name_and_can_be_told_apart(page):
    nameless = page.evaluate("""() =>
        [...document.querySelectorAll('button, input, select, img, canvas, table, section')]
        .filter((element) => !(element.getAttribute('aria-label') || element.getAttribute('alt') || element.caption
            || element.getAttribute('aria-labelledby') || element.labels?.length || element.textContent.trim()))
        .map((element) => element.outerHTML.slice(0, 80))""")
    assert nameless == []
    missing = page.evaluate("""() => [...document.querySelectorAll('[aria-labelledby], a[href^="#"]')]
        .map((element) => element.getAttribute('aria-labelledby') ?? element.getAttribute('href').slice(1))
        .filter((id) => !document.getElementById(id))""")
    assert missing == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((item) => Number(item.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    twice = page.evaluate("""() => {
        const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
        return ids.filter((id, index) => ids.indexOf(id) !== index);
    }""")
    assert twice == []


def test_text_has_the_contrast_of_wcag_aa(page):
    faint = page.evaluate("""() => {
        const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
        const part = (value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
        const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
        const ground = (element) => {
            const colour = numbers(getComputedStyle(element).backgroundColor);
            return colour[3] === 0 && element.parentElement ? ground(element.parentElement) : colour;
        };
        const ratio = (element) => {
            const colours = [numbers(getComputedStyle(element).color), ground(element)];
            const both = colours.map(light).sort((a, b) => b - a);
            return (both[0] + 0.05) / (both[1] + 0.05);
        };
        return [...document.querySelectorAll('main *, header *')]
            .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
            .filter((element) => !element.closest('.frame') && !element.disabled && ratio(element) < 4.5)
            .map((element) => element.outerHTML.slice(0, 80));
    }""")
    assert faint == []


def test_the_page_is_no_wider_than_a_laptop_and_prints_without_controls(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.emulate_media(media="print")
    assert not page.locator("#case-tools").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.locator("#view-Axial").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_no_heading_of_a_table_lies_under_its_controls_however_long(page):
    hidden = page.evaluate("""() => [...document.querySelectorAll(".table > .tools")].flatMap(tools => {
        const caption = tools.parentElement.querySelector("caption")
        if (!caption) return []
        caption.append(" and more".repeat(40))
        const range = document.createRange()
        range.selectNodeContents(caption)
        const text = range.getBoundingClientRect()
        const over = [...tools.children].map(control => control.getBoundingClientRect()).some(box =>
            box.left < text.right && text.left < box.right && box.top < text.bottom - 2 && text.top + 2 < box.bottom)
        return over ? [caption.textContent] : []
    })""")
    assert hidden == []


def test_what_is_folded_up_is_printed_and_folded_again(page):
    folded = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(folded)
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.foldedOnPaper = {folded} }})")
    page.pdf(format="A4")
    assert before > 0
    assert page.evaluate("window.foldedOnPaper") == 0
    assert page.evaluate(folded) == before


def test_without_scripts_all_tables_are_there(browser, reported):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((reported.results / "report/index.html").as_uri())
    assert page.locator(f"{SCORES} tbody tr").count() == 6
    assert "need JavaScript" in page.locator("noscript").inner_text()
    context.close()
