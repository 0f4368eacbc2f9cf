"""`index.html`: one page that shows it all and loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megavoxel.config.study import Sweep
from megavoxel.errors import UserError
from megavoxel.evaluation.postprocessing import load_postprocessing
from megavoxel.files import write_text
from megavoxel.reporting.case_scores import case_data
from megavoxel.reporting.embedded import drawing_uri, photo_uri
from megavoxel.reporting.memory import how_measured
from megavoxel.reporting.provenance import differing, flattened, provenance_table, without_manifest
from megavoxel.reporting.scatter import panels
from megavoxel.reporting.side_by_side import Shown
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import palette
from megavoxel.reporting.tables import NONE, compared_heads
from megavoxel.reporting.viewer import Viewer

SCRIPTS = ("tables.js", "cases.js", "viewer.js", "print.js")
ENTRIES_SHOWN = 8
FINDINGS_SHOWN = 100
NAMES_SHOWN = 12
"""Of a list in a sentence; the others are counted."""


def write_page(
    stored: Stored,
    tables: Mapping[str, pd.DataFrame],
    comparisons: Sequence[Shown],
    viewer: Viewer,
    report: Path,
) -> None:
    """Writes `index.html`.

    Args:
        tables: as `megavoxel.reporting.tables.write_tables` returns them.
        comparisons: as `megavoxel.reporting.side_by_side.write_comparisons` returns them.
        viewer: as `megavoxel.reporting.viewer.build_viewer` returns it.
        report: folder of the report, whose tables and figures are copied into the page.

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
    text = environment.get_template("page.html.j2").render(
        definition=stored.definition,
        metrics=stored.metrics,
        splits=stored.splits,
        tables=tables,
        style=Markup((template / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup((template / name).read_text(encoding="utf-8")) for name in SCRIPTS],
        exports={name: _text(report / "tables" / f"{name}.csv") for name in tables},
        viewer=viewer,
        case_data=case_data(stored) | {"colours": label_colours(stored)},
        **_notices(stored),
        **_numbers(stored, tables),
        **_pictures(stored, tables, comparisons, report / "figures"),
        **_runs(stored),
    )
    write_text(report / "index.html", text.rstrip() + "\n")


def _notices(stored: Stored) -> dict[str, Any]:
    """What stands at the top: what is missing, left out or odd."""
    return {
        "missing": stored.missing,
        "ignored": stored.ignored,
        "findings": read_findings(stored.results / "checks.csv"),
        "findings_shown": FINDINGS_SHOWN,
        "never_seen": labels_never_seen(stored),
        "differing": differing(stored),
        "without_manifest": without_manifest(stored),
    }


def _numbers(stored: Stored, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What the captions of the tables say."""
    # They have a table of their own on the page.
    compared = [head for metric in stored.metrics for head in compared_heads(metric)]
    return {
        "tolerances": stored.tolerances,
        "both_empty": both_empty(stored),
        "scored_values": int((stored.scores["metric"] == stored.metrics[0].name).sum()),
        "summary": tables["summary"].drop(columns=compared, errors="ignore"),
        "case_counts": {split: _case_count(stored, split) for split in stored.splits},
        "run_count": sum(map(len, stored.histories.values())),
        "timed": is_timed(tables),
        "memory_how": how_measured(stored),
        "label_panels": len(panels(stored)) > 1,
        "sweeps": {sweep.name: sweep_section(tables["sweeps"], sweep) for sweep in stored.definition.sweeps},
    }


def _pictures(
    stored: Stored, tables: Mapping[str, pd.DataFrame], comparisons: Sequence[Shown], figures: Path
) -> dict[str, Any]:
    """All pictures as data URIs."""
    definition = stored.definition
    first = stored.metrics[0].key
    names = {f"{metric.key}_by_label": f"{metric.key}_by_label" for metric in stored.metrics}
    names |= {"training_curves": "training_curves", "against_memory": f"{first}_against_memory"}
    names |= {"against_seconds": f"{first}_against_seconds"} if is_timed(tables) else {}
    return {
        "figures": {name: drawing_uri(figures / f"{file}.png") for name, file in names.items()},
        "sweep_figures": {sweep.name: drawing_uri(figures / f"sweep-{sweep.name}.png") for sweep in definition.sweeps},
        "comparisons": {shown.caption: photo_uri(figures / "comparisons" / shown.file) for shown in comparisons},
        "overlays": {name: photo_uri(figures / "overlays" / f"{name}.png") for name in definition.models},
    }


def _runs(stored: Stored) -> dict[str, Any]:
    """With what the study was run."""
    return {
        "provenance": provenance_table(stored),
        "settings": settings_table(stored),
        "notes": {name: plan.notes for name, plan in stored.plans.items() if plan.notes},
        "postprocessing": postprocessing_table(stored),
        "manifests": {name: manifest_table(found) for name, found in stored.manifests.items() if found},
    }


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of many only the first ones, and the number of the others."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def is_timed(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether inference was timed."""
    return "Seconds per image" in tables["inference_time"].columns


def _case_count(stored: Stored, split: str) -> int:
    return stored.scores.loc[stored.scores["split"] == split, "case"].nunique()


def label_colours(stored: Stored) -> list[str]:
    """The colours of the labels in pictures, as `#rrggbb`, in their order."""
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in palette(stored.labels).values()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: this table is missing; run 'megavoxel report' again") from None


def read_findings(path: Path) -> list[dict[str, str]]:
    """What `megavoxel check` found besides sound cases: warnings, errors and excluded cases; empty without the file.

    Raises:
        UserError: the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table.loc[table["severity"] != "ok", ["severity", "case", "message"]].to_dict("records")
    except (OSError, UnicodeDecodeError, KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise UserError(f"{path}: cannot be read ({fault}); run 'megavoxel check' again") from None


def labels_never_seen(stored: Stored) -> list[str]:
    """One line per setting and fold whose training cases lack labels, by the manifests."""
    return [
        f"{setting}, fold {fold}: {', '.join(labels)}"
        for setting, manifests in stored.manifests.items()
        for fold, manifest in manifests.items()
        if (labels := manifest.get("data", {}).get("labels_never_seen"))
    ]


def settings_table(stored: Stored) -> pd.DataFrame:
    """What was run: one line per setting."""
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


def sweep_section(table: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """The lines of one sweep, as shown."""
    return table[table["Sweep"] == sweep.title].drop(columns="Sweep")


def postprocessing_table(stored: Stored) -> pd.DataFrame:
    """Of what each model keeps the largest component only; models without a postprocessing.json are left out.

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


def both_empty(stored: Stored) -> int:
    """Pairs of case and label without a value."""
    return int(stored.scores[stored.scores["metric"] == stored.metrics[0].name]["value"].isna().sum())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries" if len(value) > ENTRIES_SHOWN else ", ".join(map(str, value)) or NONE
    return NONE if value is None else str(value)


def _times(numbers: Iterable[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
