"""`index.html` of a classification study: one file with its tables and figures in it."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2
import pandas as pd

from megavoxel.files import write_text
from megavoxel.reporting.classification.stored import StoredClassification
from megavoxel.reporting.classification.tables import shown
from megavoxel.tasks.classification.metrics import BINS, RESAMPLES

FIGURES = ("accuracy_against_resolution", "cost_against_resolution", "training_curves")


def write_page(stored: StoredClassification, tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Writes the page; the figures must lie in figures/ beside it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("megavoxel.reporting", "classification"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    settings = [setting for settings in stored.definition.cells.values() for setting in settings[:1]]
    text = environment.get_template("page.html.j2").render(
        definition=stored.definition,
        classes=stored.classes,
        split=stored.splits[-1],
        tables={name: shown(name, table) for name, table in tables.items()},
        figures={name: _embedded(path.parent / "figures" / f"{name}.png") for name in FIGURES},
        random=[name for name in stored.definition.cells if not stored.cell_plan(name).pretrained],
        manifest=stored.manifests[settings[0]][stored.definition.folds[settings[0]][0]],
        notes={setting: stored.plans[setting].notes for setting in settings},
        bins=BINS,
        resamples=RESAMPLES,
    )
    write_text(path, text)


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
