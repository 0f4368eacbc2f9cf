"""`index.html`: one page with the sections that a task names, which loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megavoxel.errors import UserError
from megavoxel.files import write_text
from megavoxel.reporting import words
from megavoxel.reporting.examples import Shown
from megavoxel.reporting.notices import notices
from megavoxel.reporting.provenance import results_date, results_versions
from megavoxel.reporting.stored import Stored, StoredClassification
from megavoxel.reporting.style import drawing
from megavoxel.reporting.verdict import Verdict
from megavoxel.reporting.viewer import Viewer
from megavoxel.tasks.classification.metrics import RESAMPLES

SCRIPTS = ("tables.js", "print.js")
CASE_SCRIPTS = ("cases.js", "viewer.js")
"""Where single cases are shown."""
FILTERS = (
    words.duration,
    words.gibibytes,
    words.joined,
    words.listed,
    words.numeric,
    words.score,
    words.signed_score,
    words.some,
    words.spoken,
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows."""

    stored: Stored
    numbers: Mapping[str, pd.DataFrame]
    """Tables with full numbers, by name."""
    tables: Mapping[str, pd.DataFrame]
    """Tables with rounded numbers, by name."""
    folder: Path
    """The report's folder, whose tables and figures are copied into the page."""
    verdict: Verdict | None
    """None where nothing has a value."""
    comparisons: Sequence[Shown] = ()
    """Pictures of single cases, from `megavoxel.reporting.examples.write_comparisons`."""
    viewer: Viewer | None = None
    """None where a study has no volumes."""
    claims: pd.DataFrame | None = None
    """Claims of papers with what the study measures, from `megavoxel.reporting.claims.study_claims`."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: `template/sections/TEMPLATE.html.j2`, and what it is given."""

    name: str
    """Its name in links."""
    title: str
    template: str = ""
    """Empty: the name."""
    values: Callable[[Report], dict[str, Any]] = lambda _: {}
    """Gives what the template uses besides what all sections are given (`write_page`)."""
    figures: Callable[[Report], dict[str, str]] = lambda _: {}
    """Names of figures by what the template calls them."""
    is_shown: Callable[[Report], bool] = lambda _: True


def write_page(report: Report, sections: Sequence[Section]) -> None:
    """Writes `index.html` with some sections.

    Raises:
        UserError: a table or figure is missing, or checks.csv or a postprocessing.json is damaged.
    """
    environment = Environment(
        loader=PackageLoader("megavoxel", "reporting/template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    template = files("megavoxel.reporting") / "template"
    stored, shown = report.stored, [section for section in sections if section.is_shown(report)]
    values = {key: value for section in shown for key, value in section.values(report).items()}
    figures = {key: name for section in shown for key, name in section.figures(report).items()}
    scripts = [*SCRIPTS, *(CASE_SCRIPTS if report.viewer is not None else ())]
    text = environment.get_template("page.html.j2").render(
        **_study(stored),
        resamples=RESAMPLES,
        tables=report.tables,
        verdict=report.verdict,
        viewed={case["id"] for case in report.viewer.cases} if report.viewer is not None else set(),
        sections=[(section.name, section.title, section.template or section.name) for section in shown],
        style=Markup((template / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup((template / name).read_text(encoding="utf-8")) for name in scripts],
        exports={name: _text(report.folder / "tables" / f"{name}.csv") for name in report.tables},
        viewer=report.viewer,
        figures={key: drawing(report.folder / "figures" / f"{name}.png") for key, name in figures.items()},
        **notices(stored),
        **values,
    )
    write_text(report.folder / "index.html", text.rstrip() + "\n")


def _study(stored: Stored) -> dict[str, Any]:
    """What the title and all sections say of the study."""
    return {
        "definition": stored.definition,
        "date": results_date(stored),
        "version": " and ".join(results_versions(stored)),
        "metrics": stored.metrics,
        "metric_names": " and ".join(", ".join(metric.shown for metric in stored.metrics).rsplit(", ", 1)),
        "splits": stored.splits,
        "groups": stored.groups,
        "classes": stored.classes if isinstance(stored, StoredClassification) else (),
        "run_count": sum(map(len, stored.histories.values())),
        "case_counts": stored.scores.groupby("split")["case"].nunique().reindex(stored.splits).to_dict(),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: this table is missing; run 'megavoxel report' again") from None
