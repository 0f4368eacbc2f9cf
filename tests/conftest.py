"""What tests share: where the real images lie, and small files made on the spot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_study import FakeStudy, make_study, report_study

REPOSITORY = Path(__file__).parents[1]
LONGEST = (
    "test_rehearsed_steps", "test_rehearsed_stages", "test_rehearsed_groups",
    "test_faults", "test_tutorial", "test_workflow", "test_pipeline", "test_readme", "test_models", "test_group",
    "test_report_partial", "test_curriculum", "test_classification_study", "test_two_accounts", "test_late_files",
    "test_status", "test_fuzz", "test_report_page",
)  # fmt: skip
"""Files that take longest, in order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that none is left to one process at the end."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real labelled images; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MEGAVOXEL_TEST_DATA", REPOSITORY / "../shared/data")).resolve()
    if not (folder / "hippocampus" / "dataset.json").is_file():
        pytest.skip(f"no real images: {folder} has no hippocampus/dataset.json; set MEGAVOXEL_TEST_DATA")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; the test is skipped where one of them is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra 'dev')")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def scored(tmp_path_factory) -> FakeStudy:
    """A study by hand with its scores; tests must not change it."""
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def reported(scored) -> FakeStudy:
    """The same after `megavoxel report`, with the pixels that figures have."""
    assert report_study(scored, dpi=150) == 0
    return scored


@pytest.fixture
def work(tmp_path, monkeypatch, repository) -> Path:
    """An empty working directory with a hardware file."""
    folder = tmp_path / "work"
    (folder / "config").mkdir(parents=True)
    shutil.copy(repository / "config/hardware.yaml", folder / "config")
    monkeypatch.chdir(folder)
    return folder
