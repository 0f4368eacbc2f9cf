"""`index.html`: one page that shows it all and loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from megavoxel.config.study import Sweep
from megavoxel.errors import UserError
from megavoxel.evaluation.postprocessing import load_postprocessing
from megavoxel.files import write_text
from megavoxel.reporting.memory import how_measured
from megavoxel.reporting.memory_figure import panels
from megavoxel.reporting.side_by_side import Shown
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.tables import NONE

FIGURES = ("dsc_by_label", "nsd_by_label", "training_curves", "dsc_against_memory")
TIMED_FIGURE = "dsc_against_seconds"
ENTRIES_SHOWN = 8
FINDINGS_SHOWN = 100


def write_page(
    stored: Stored, tables: Mapping[str, pd.DataFrame], comparisons: Sequence[Shown], figures: Path, path: Path
) -> None:
    """Writes the page.

    Args:
        tables: as `megavoxel.reporting.tables.write_tables` returns them.
        comparisons: as `megavoxel.reporting.side_by_side.write_comparisons` returns them.
        figures: folder of the figures, from which they are copied into the page.
        path: the page.

    Raises:
        UserError: a figure is missing, or checks.csv or a postprocessing.json is damaged.
    """
    environment = Environment(
        loader=PackageLoader("megavoxel", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    definition = stored.definition
    timed = "Seconds per image" in tables["inference_time"].columns
    text = environment.get_template("page.html.j2").render(
        definition=definition,
        splits=stored.splits,
        findings=read_findings(stored.results / "checks.csv"),
        findings_shown=FINDINGS_SHOWN,
        never_seen=labels_never_seen(stored),
        tables=tables,
        settings=settings_table(stored),
        notes={name: plan.notes for name, plan in stored.plans.items() if plan.notes},
        postprocessing=postprocessing_table(stored),
        manifests={name: manifest_table(found) for name, found in stored.manifests.items() if found},
        tolerances=stored.tolerances,
        both_empty=both_empty(stored),
        scored_values=int((stored.scores["metric"] == "DSC").sum()),
        timed=timed,
        memory_how=how_measured(stored),
        label_panels=len(panels(stored)) > 1,
        figures={name: data_uri(figures / f"{name}.png") for name in (*FIGURES, *([TIMED_FIGURE] if timed else []))},
        sweeps={sweep.name: sweep_section(tables["sweeps"], sweep) for sweep in definition.sweeps},
        sweep_figures={sweep.name: data_uri(figures / f"sweep-{sweep.name}.png") for sweep in definition.sweeps},
        comparisons={shown.caption: data_uri(figures / "comparisons" / shown.file) for shown in comparisons},
        overlays={name: data_uri(figures / "overlays" / f"{name}.png") for name in definition.models},
    )
    write_text(path, text.rstrip() + "\n")


def data_uri(path: Path) -> str:
    """A PNG file as a data URI.

    Raises:
        UserError: the file is missing.
    """
    try:
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    except FileNotFoundError:
        raise UserError(f"{path}: this figure is missing; run 'megavoxel report' without --tables-only") from None


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
    flat = {fold: dict(_flatten(manifest)) for fold, manifest in manifests.items()}
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
    """Values of DSC that are not numbers."""
    dsc = stored.scores[stored.scores["metric"] == "DSC"]["value"]
    return int(dsc.isna().sum())


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
        elif isinstance(value, list) and len(value) > ENTRIES_SHOWN:
            yield name, f"{len(value)} entries"
        elif isinstance(value, list):
            yield name, ", ".join(map(str, value)) or NONE
        else:
            yield name, NONE if value is None else str(value)


def _times(numbers: Iterable[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
