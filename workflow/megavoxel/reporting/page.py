"""`index.html`: one page with the sections that a task names, which loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megavoxel.csv_files import as_written
from megavoxel.errors import UserError
from megavoxel.evaluation.postprocessing import load_postprocessing
from megavoxel.files import table_text, write_text
from megavoxel.reporting.costs import how_measured
from megavoxel.reporting.examples import Shown
from megavoxel.reporting.provenance import differing, flattened, provenance_table, without_manifest
from megavoxel.reporting.scatter import panels
from megavoxel.reporting.stored import Stored, StoredClassification
from megavoxel.reporting.style import drawing_uri, palette, photo_uri
from megavoxel.reporting.tables import NONE, compared_heads
from megavoxel.reporting.viewer import Viewer, case_data
from megavoxel.tasks.classification.metrics import RESAMPLES

SCRIPTS = ("tables.js", "print.js")
CASE_SCRIPTS = ("cases.js", "viewer.js")
"""Where single cases are shown."""
CLASSIFICATION_COSTS = ("cost_against_resolution", "accuracy_against_memory", "accuracy_against_seconds")
ENTRIES_SHOWN = 8
FINDINGS_SHOWN = 100
NAMES_SHOWN = 12
"""Names of a list that stand in a sentence; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that a page shows."""

    stored: Stored
    tables: Mapping[str, pd.DataFrame]
    """Tables with rounded numbers, by name."""
    folder: Path
    """The report's folder, whose tables and figures are copied into the page."""
    comparisons: Sequence[Shown] = ()
    """Pictures of single cases, from `megavoxel.reporting.examples.write_comparisons`."""
    viewer: Viewer | None = None
    """None where a study has no volumes."""


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
    environment.filters["listed"] = listed
    template = files("megavoxel.reporting") / "template"
    stored, shown = report.stored, [section for section in sections if section.is_shown(report)]
    values = {key: value for section in shown for key, value in section.values(report).items()}
    figures = {key: name for section in shown for key, name in section.figures(report).items()}
    scripts = [*SCRIPTS, *(CASE_SCRIPTS if report.viewer is not None else ())]
    text = environment.get_template("page.html.j2").render(
        definition=stored.definition,
        metrics=stored.metrics,
        metric_names=" and ".join(", ".join(metric.shown for metric in stored.metrics).rsplit(", ", 1)),
        splits=stored.splits,
        resamples=RESAMPLES,
        tables=report.tables,
        sections=[(section.name, section.title, section.template or section.name) for section in shown],
        style=Markup((template / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup((template / name).read_text(encoding="utf-8")) for name in scripts],
        exports={name: _text(report.folder / "tables" / f"{name}.csv") for name in report.tables},
        viewer=report.viewer,
        figures={key: drawing_uri(report.folder / "figures" / f"{name}.png") for key, name in figures.items()},
        **_notices(stored),
        **values,
    )
    write_text(report.folder / "index.html", text.rstrip() + "\n")


def _notices(stored: Stored) -> dict[str, Any]:
    """The notices at the top: parts that are missing, left out or odd."""
    random = []
    if isinstance(stored, StoredClassification):
        random = [cell for cell in stored.definition.cells if not stored.cell_plan(cell).pretrained]
    # That of images has lines of faults alone.
    has_lines_of_all = stored.cases is not None and not stored.definition.classifies
    return {
        "classes": stored.classes if isinstance(stored, StoredClassification) else (),
        "random": random,
        "run_count": sum(map(len, stored.histories.values())),
        "case_counts": stored.scores.groupby("split")["case"].nunique().reindex(stored.splits).to_dict(),
        "missing": stored.missing,
        "ignored": stored.ignored,
        "findings": read_findings(
            stored.results / "checks.csv", [case.id for case in stored.cases.cases] if has_lines_of_all else []
        ),
        "findings_shown": FINDINGS_SHOWN,
        "never_seen": labels_never_seen(stored),
        "differing": differing(stored),
        "without_manifest": without_manifest(stored),
    }


def _scores(report: Report) -> dict[str, Any]:
    stored, summary = report.stored, report.tables["summary"]
    first = stored.scores[stored.scores["metric"] == stored.metrics[0].name]["value"]
    # They have a table of their own on the page.
    compared = [head for metric in stored.metrics for head in compared_heads(metric)]
    return {
        "tolerances": stored.tolerances,
        "both_empty": int(first.isna().sum()),
        "scored_values": len(first),
        "summary": summary.drop(columns=compared, errors="ignore"),
        "memory_how": how_measured(stored),
    }


def _score_figures(report: Report) -> dict[str, str]:
    return {f"{metric.key}_by_label": f"{metric.key}_by_label" for metric in report.stored.metrics}


def _sweeps(report: Report) -> dict[str, Any]:
    table, sweeps = report.tables["sweeps"], report.stored.definition.sweeps
    return {"sweeps": {sweep.name: table[table["Sweep"] == sweep.title].drop(columns="Sweep") for sweep in sweeps}}


def _sweep_figures(report: Report) -> dict[str, str]:
    return {f"sweep {sweep.name}": f"sweep-{sweep.name}" for sweep in report.stored.definition.sweeps}


def _cost(report: Report) -> dict[str, Any]:
    return {"timed": is_timed(report.tables), "label_panels": len(panels(report.stored)) > 1}


def _cost_figures(report: Report) -> dict[str, str]:
    costs = ("memory", "seconds") if is_timed(report.tables) else ("memory",)
    return {f"against_{cost}": f"{report.stored.metrics[0].key}_against_{cost}" for cost in costs}


def _cases(report: Report) -> dict[str, Any]:
    return {"case_data": case_data(report.stored) | {"colours": label_colours(report.stored)}}


def _pictures(report: Report) -> dict[str, Any]:
    folder = report.folder / "figures"
    return {
        "comparisons": {shown.caption: photo_uri(folder / "comparisons" / shown.file) for shown in report.comparisons},
        "overlays": {name: photo_uri(folder / f"overlays/{name}.png") for name in report.stored.definition.models},
    }


def _run(report: Report) -> dict[str, Any]:
    """The software, hardware and settings of the runs."""
    stored = report.stored
    classifies = stored.definition.classifies
    return {
        "provenance": provenance_table(stored),
        "settings": None if classifies else settings_table(stored),
        "notes": {name: plan.notes for name, plan in stored.plans.items() if plan.notes},
        "postprocessing": None if classifies else postprocessing_table(stored),
        "manifests": {name: manifest_table(found) for name, found in stored.manifests.items() if found},
    }


def _training_figure(_: Report) -> dict[str, str]:
    return {"training_curves": "training_curves"}


def _is_published(report: Report) -> bool:
    return "Source" in report.tables["published"].columns


SEGMENTATION_SECTIONS = (
    Section(name="scores", title="Scores", values=_scores, figures=_score_figures),
    Section(name="comparison", title="Comparison"),
    Section(name="labels", title="Per label"),
    Section(
        name="sweeps",
        title="Sweeps",
        values=_sweeps,
        figures=_sweep_figures,
        is_shown=lambda report: bool(report.stored.definition.sweeps),
    ),
    Section(name="published", title="Published", is_shown=_is_published),
    Section(name="cost", title="Cost", values=_cost, figures=_cost_figures),
    Section(name="cases", title="Cases", values=_cases),
    Section(name="pictures", title="Pictures", values=_pictures),
    Section(name="training", title="Training", figures=_training_figure),
    Section(name="run", title="What was run", values=_run),
)
CLASSIFICATION_SECTIONS = (
    Section(
        name="scores",
        title="Scores",
        template="classification_scores",
        figures=lambda _: {"against_resolution": "accuracy_against_resolution"},
    ),
    Section(name="distributed", title="Serial and distributed"),
    Section(name="published", title="Published", is_shown=_is_published),
    Section(
        name="cost",
        title="Time and memory",
        template="classification_cost",
        figures=lambda _: {name: name for name in CLASSIFICATION_COSTS},
    ),
    Section(name="confusion", title="Confusion"),
    Section(name="training", title="Training", figures=_training_figure),
    Section(name="run", title="What was run", values=_run),
)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of many only the first ones, and the number of the others."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def is_timed(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether inference was timed."""
    return "Seconds per image" in tables["inference_time"].columns


def label_colours(stored: Stored) -> list[str]:
    """The colours of the labels in pictures, as `#rrggbb`, in their order."""
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in palette(stored.labels).values()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: this table is missing; run 'megavoxel report' again") from None


def read_findings(path: Path, cases: Iterable[str] = ()) -> list[dict[str, str]]:
    """Findings of `megavoxel check` besides sound cases: warnings, errors and excluded cases; empty without the file.

    Args:
        cases: that it must have a line of.

    Raises:
        UserError: the file cannot be read, or was cut.
    """
    if not path.exists():
        return []
    try:
        table = as_written(pd.read_csv(table_text(path), dtype=str, keep_default_na=False))
        found = table.loc[table["severity"] != "ok", ["severity", "case", "message"]].to_dict("records")
    except (OSError, UnicodeDecodeError, KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); run 'megavoxel check' again") from None
    unseen = sorted(set(cases) - set(table["case"]))
    if unseen:
        raise UserError(f"{path}: there is no line of case {unseen[0]}, so it was cut; run 'megavoxel check' again")
    return found


def labels_never_seen(stored: Stored) -> list[str]:
    """One line per setting and fold whose training cases lack labels, by the manifests."""
    return [
        f"{setting}, fold {fold}: {', '.join(labels)}"
        for setting, manifests in stored.manifests.items()
        for fold, manifest in manifests.items()
        if (labels := manifest.get("data", {}).get("labels_never_seen"))
    ]


def settings_table(stored: Stored) -> pd.DataFrame:
    """One line per setting with its patch, training and plan."""
    return pd.DataFrame(
        {
            "Setting": name,
            "Patch": _times(plan.patch),
            "Batch": plan.batch,
            "Spacing (mm)": _times(plan.preprocessing.spacing),
            "Loss": plan.training.loss,
            "Optimiser": f"{plan.training.optimizer}, {plan.training.learning_rate:g}, {plan.training.schedule}",
            "Epochs × iterations": f"{plan.training.epochs} × {plan.training.iterations_per_epoch}",
            "Folds": ", ".join(map(str, stored.histories[name])),
            "Seed": plan.seed,
            "Plan hash": plan.hash,
        }
        for name, plan in stored.plans.items()
    )


def postprocessing_table(stored: Stored) -> pd.DataFrame:
    """The labels of each model that post-processing cuts to their largest component; models without a
    postprocessing.json are left out.

    Raises:
        UserError: a file is damaged.
    """
    rows = []
    for model in stored.definition.models:
        path = stored.folder(model) / "postprocessing.json"
        if path.exists():
            found = load_postprocessing(path)
            kept = ["the whole foreground"] if found.keep_largest.foreground else []
            kept += found.keep_largest.labels
            basis = found.reason or f"{found.cases} validation cases"
            rows.append({"Model": model, "Largest component of": ", ".join(kept) or NONE, "Decided on": basis})
    return pd.DataFrame(rows, columns=["Model", "Largest component of", "Decided on"])


def manifest_table(manifests: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    """All entries of the manifests of a setting's folds; a value that all folds share stands once."""
    flat = {fold: {key: _shown(value) for key, value in flattened(manifest)} for fold, manifest in manifests.items()}
    rows = []
    for key in dict.fromkeys(key for entries in flat.values() for key in entries):
        values = {fold: entries.get(key, NONE) for fold, entries in flat.items()}
        if len(set(values.values())) == 1:
            shown = next(iter(values.values()))
        else:
            shown = "; ".join(f"fold {fold}: {value}" for fold, value in values.items())
        rows.append({"Entry": key, "Value": shown})
    return pd.DataFrame(rows, columns=["Entry", "Value"])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) > ENTRIES_SHOWN else ", ".join(map(str, value)) or NONE
    return NONE if value is None else str(value)


def _times(numbers: Iterable[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
