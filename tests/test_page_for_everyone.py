"""The report's page on desktop and phone, light and dark, by axe-core; and its viewer by wheel, mouse and keyboard."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browsing import faults_of

axe_playwright = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed (extra 'dev')"
)
pytestmark = pytest.mark.slow
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
READY = "document.querySelector('#view-status').textContent.includes('shown with')"


def opened(browser, reported, **options: Any) -> Any:
    page = browser.new_context(**options).new_page()
    page.faults = faults_of(page)
    page.goto((reported.results / "report/index.html").as_uri())
    page.wait_for_function(READY)
    return page


@pytest.fixture
def page(browser, reported) -> Iterator[Any]:
    """The page on a desktop, with one case's image alone in the viewer."""
    found = opened(browser, reported, viewport=DESKTOP)
    for name in ("#view-reference", "#view-prediction"):
        found.locator(name).uncheck()
    yield found
    found.context.close()
    assert not found.faults


def place(page: Any, plane: str = "Axial") -> int:
    return int(page.locator(f"#view-{plane}-slice").input_value())


def picture(page: Any, plane: str = "Axial") -> str:
    return page.evaluate("(name) => document.getElementById(name).toDataURL()", f"view-{plane}")


def brightness(page: Any) -> float:
    """Mean of the axial picture."""
    content = base64.b64decode(picture(page).partition(",")[2])
    with Image.open(io.BytesIO(content)) as shown:
        return float(np.asarray(shown.convert("L")).mean())


def box_in_view(page: Any) -> dict[str, float]:
    """Where the axial picture is on the screen."""
    page.locator("#view-Axial").evaluate("(canvas) => canvas.scrollIntoView({ block: 'center' })")
    return page.locator("#view-Axial").bounding_box()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(browser, reported, screen, scheme):
    page = opened(browser, reported, viewport=screen, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    found = axe_playwright.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    # No part of the page is wider than the screen, and nothing was asked of the network.
    assert page.evaluate("document.documentElement.scrollWidth") <= screen["width"]
    assert page.faults == []
    page.context.close()


def test_figures_and_page_turn_dark_with_the_screen_and_are_light_on_paper(browser, reported):
    page = opened(browser, reported, viewport=DESKTOP, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    drawn = "getComputedStyle(document.querySelector('#labels img')).filter"
    assert page.evaluate(ground) == "rgb(20, 20, 20)"
    assert page.evaluate(drawn).startswith("invert")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    assert page.evaluate(drawn) == "none"
    page.context.close()


def test_on_a_phone_each_number_has_its_head_beside_it(browser, reported):
    page = opened(browser, reported, viewport=PHONE)
    assert not page.locator("#scores thead").is_visible()
    cell = page.locator("#scores tbody tr").first.locator("td").nth(2)
    assert page.evaluate("(cell) => getComputedStyle(cell, '::before').content", cell.element_handle()) == '"DSC"'
    inside = page.evaluate("""() => [...document.querySelectorAll('#scores tbody td, #case-table tbody td')]
        .every((cell) => cell.getBoundingClientRect().right <= innerWidth)""")
    assert inside
    # Filtered lines are hidden, though a line is laid out as a block.
    page.locator("#labels input[type=search]").fill("spleen large")
    assert page.locator("#labels tbody tr:visible").count() == 2
    page.context.close()


def test_numbers_stand_to_the_right_and_words_to_the_left(page):
    sides = page.evaluate("""() => [...document.querySelector('#scores tbody tr').cells]
        .map((cell) => getComputedStyle(cell).textAlign)""")
    assert sides[:2] == ["left", "left"]
    assert set(sides[2:]) == {"right"}


def test_definitions_are_folded_up_and_figures_stand_beside_one_another(page):
    assert page.locator("details.how[open]").count() == 0
    assert not page.get_by_text("Mean ± standard deviation over cases (sample").is_visible()
    page.locator("#scores details.how summary").click()
    assert page.get_by_text("Mean ± standard deviation over cases (sample").is_visible()
    first, second = (figure.bounding_box() for figure in page.locator("#labels figure").all())
    assert first["y"] == second["y"]
    assert second["x"] > first["x"] + first["width"]


def test_the_wheel_goes_through_the_slices_and_with_control_it_zooms(page):
    before, seen = place(page), picture(page)
    page.locator("#view-Axial").hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function(f"document.querySelector('#view-Axial-slice').value != {before}")
    assert place(page) == before - 2
    page.mouse.wheel(0, -100)
    page.wait_for_function(f"document.querySelector('#view-Axial-slice').value == {before}")
    assert picture(page) == seen
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("document.querySelector('#view-Axial.zoomed')")
    assert picture(page) != seen
    assert place(page) == before


def test_a_zoomed_picture_is_moved_and_a_click_points_where_it_is_seen(page):
    for _ in range(8):
        page.locator("#view-closer").click()
    seen, box = picture(page), box_in_view(page)
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + box["width"] / 4, middle[1], steps=5)
    page.mouse.up()
    assert picture(page) != seen
    page.locator("#view-reset").click()
    page.locator("#view-Axial").click(position={"x": box["width"] * 0.02, "y": box["height"] * 0.5})
    assert place(page, "Sagittal") == 16
    for _ in range(8):
        page.locator("#view-closer").click()
    page.locator("#view-Axial").click(position={"x": box["width"] * 0.02, "y": box["height"] * 0.5})
    # Zoomed 6 times around the middle: the edge of the canvas is 5 / 12 of the way across.
    assert place(page, "Sagittal") == 10


def test_window_and_level_change_the_grey_values_and_are_said_in_intensities(page):
    assert page.locator("#view-window-value").inner_text() == "400"  # of CT, from -160 to 240
    assert page.locator("#view-level-value").inner_text() == "40"
    before = brightness(page)
    page.locator("#view-level").fill("0")
    assert brightness(page) > before + 20
    page.locator("#view-reset").click()
    assert brightness(page) == pytest.approx(before)
    box = box_in_view(page)
    page.mouse.move(box["x"] + 150, box["y"] + 20)
    page.mouse.down(button="right")
    page.mouse.move(box["x"] + 50, box["y"] + 20, steps=4)
    page.mouse.up(button="right")
    assert float(page.locator("#view-window-value").inner_text()) < 380


def test_the_viewer_obeys_the_keyboard(page):
    page.locator("#view-Axial").focus()
    before, seen = place(page), picture(page)
    page.keyboard.press("ArrowUp")
    assert place(page) == before + 1
    page.keyboard.press("PageDown")
    assert place(page) == 1
    page.locator("#view-Axial-slice").fill(str(before))
    page.locator("#view-Axial").focus()
    page.keyboard.press("+")
    zoomed = picture(page)
    assert zoomed != seen
    page.keyboard.press("Shift+ArrowRight")
    assert picture(page) != zoomed
    assert place(page) == before
    page.keyboard.press("0")
    assert picture(page) == seen


def test_a_plane_is_enlarged_and_made_equal_again(page):
    width = page.locator("#view-Coronal").bounding_box()["width"]
    button = page.get_by_role("button", name="Enlarge the coronal plane")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator("#view-Coronal").bounding_box()["width"] > 1.2 * width
    button.click()
    assert page.locator("#view-Coronal").bounding_box()["width"] == width


def test_a_worst_case_of_the_first_paragraph_opens_in_the_viewer(page):
    link = page.locator("#verdict a[data-case]").last
    name = link.inner_text()
    link.click()
    page.wait_for_function("(name) => document.querySelector('#view-status').textContent.startsWith(name)", arg=name)
    assert page.locator("#view-model").input_value() == "both"
    assert page.locator("#view-case").evaluate("(select) => select === document.activeElement")
