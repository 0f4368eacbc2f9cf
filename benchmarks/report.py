"""The page of a large study, 12 settings x 5 folds x 240 cases with 15 labels: its size, and when it can be seen.

Volumes have 96 x 128 x 128 voxels of 5 x 2.7 x 2.7 mm, so that they are written in minutes: the field of view of a scan
of the abdomen, and more voxels than the page shows of it. What reading full scans takes is measured on a few of
100 x 512 x 512 voxels. First paint is that of a headless Chromium, and left out where there is none.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

import yaml

from benchmarks.large_study import make_results, write_runs, write_scores
from benchmarks.made import call
from benchmarks.measure import REPOSITORY, Row, seconds_of, smaller_is_better
from megavoxel.cli import main
from megavoxel.datasets.cases import load_cases
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.viewer import build_viewer

SETTINGS, FOLDS, CASES = 12, 5, 240
SHAPE, SPACING = (96, 128, 128), (5.0, 2.7, 2.7)
SCAN_SHAPE, SCAN_SPACING, SCANS = (100, 512, 512), (5.0, 0.7, 0.7), 4
BOUND_MEGABYTES, BOUND_PAINT_SECONDS = 30.0, 3.0
BOUND_TABLES_SECONDS = 10.0
SETTINGS_OF_TABLES, CASES_OF_TABLES, TURNS = 10, 200, 5
"""With 15 labels and two metrics, 60 000 scores."""
BOUND_READING_SECONDS = 1800.0
"""Bound for 240 scans with 13 label maps each, in one process."""
MEGABYTE = 1_000_000


def run() -> list[Row]:
    """Size, first paint, and seconds for the page, for tables alone and for reading full scans."""
    title = f"report of {SETTINGS} settings x {FOLDS} folds x {CASES} cases"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        definition = make_results(root, settings=SETTINGS, folds=FOLDS, cases=CASES, shape=SHAPE, spacing=SPACING)
        options = ["--results", str(root / "results"), "--definition", definition]
        page = seconds_of(lambda: main(["report", *options]))
        path = root / "results/report/index.html"
        rows = [
            smaller_is_better(f"{title}: page", "own bound", path.stat().st_size / MEGABYTE, BOUND_MEGABYTES, "MB"),
            smaller_is_better(f"{title}: page, one process", "own bound", page, BOUND_READING_SECONDS, "s"),
        ]
        paint = first_paint_seconds(path)
        if paint is not None:
            rows.append(smaller_is_better(f"{title}: first paint", "own bound", paint, BOUND_PAINT_SECONDS, "s"))
    return [*rows, tables_row(), reading_row()]


def tables_row() -> Row:
    """Seconds of the whole command `snakemake tables`, the median of a few."""
    names = [f"setting-{number:02}" for number in range(SETTINGS_OF_TABLES)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        count = write_scores(root / "results/large/scores.csv", names, range(CASES_OF_TABLES), FOLDS)
        for number, name in enumerate(names):
            write_runs(root / "results/large" / name, name, number, FOLDS)
        study = {"study": "large", "dataset": "phantom", "folds": FOLDS, "settings": {name: {} for name in names}}
        (root / "large.yaml").write_text(yaml.safe_dump(study))
        words = ["tables", "--snakefile", REPOSITORY / "Snakefile"]
        words += ["--directory", root, "--configfile", root / "large.yaml"]
        seconds = [seconds_of(lambda: call("snakemake", *words, folder=root)) for _ in range(TURNS)]
    print("snakemake tables:", *(f"{value:.1f}" for value in seconds), "s", flush=True)
    title = f"snakemake tables of {count} scores, the whole command"
    return smaller_is_better(title, "own bound", statistics.median(seconds), BOUND_TABLES_SECONDS, "s")


def reading_row() -> Row:
    """Seconds to read full scans for the viewer, scaled from a few to all."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        definition = make_results(root, settings=SETTINGS, folds=2, cases=SCANS, shape=SCAN_SHAPE, spacing=SCAN_SPACING)
        stored = load_stored(root / "results", definition, need_cases=True)
        cases = load_cases(root / "results/cases.json")
        seconds = seconds_of(lambda: build_viewer(stored, cases, processes=1)) * CASES / SCANS
    title = f"slices of {CASES} scans of 100 x 512 x 512 with 13 predictions, one process, from {SCANS}"
    return smaller_is_better(title, "own bound", seconds, BOUND_READING_SECONDS, "s")


def first_paint_seconds(path: Path) -> float | None:
    """Seconds from the navigation to Chromium's first paint of a page; None without Chromium or Playwright."""
    browser_path = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser_path is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(path.resolve().as_uri())
        milliseconds = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        browser.close()
    return milliseconds / 1000
