"""The sections of the page: what each one is given, and when it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from megavoxel.config.study import Sweep
from megavoxel.evaluation.postprocessing import load_postprocessing
from megavoxel.inference.confidence import BINS, LEAST, MOST_VOXELS
from megavoxel.reporting.best import BEHIND, BEST, LEFT_OUT, TOGETHER, UNDECIDED, deciding_metric
from megavoxel.reporting.cells import NONE
from megavoxel.reporting.claim import claim_table, items_left, times
from megavoxel.reporting.claims import show_claims
from megavoxel.reporting.costs import PEAK, how_measured, own_peaks
from megavoxel.reporting.definition import Definition
from megavoxel.reporting.methods import TO_ADD, Methods
from megavoxel.reporting.notices import findings_of
from megavoxel.reporting.page import Report, Section
from megavoxel.reporting.provenance import flattened, provenance_table
from megavoxel.reporting.ranking import FEW_CASES, few_cases
from megavoxel.reporting.references import bibliography
from megavoxel.reporting.scatter import model_groups, panels
from megavoxel.reporting.statistics import FEWEST_DIFFERENCES
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import palette, photo
from megavoxel.reporting.tables import PEAK_HEADS, compared_heads
from megavoxel.reporting.viewer import case_data

CLASSIFICATION_COSTS = ("cost_against_resolution", "accuracy_against_memory", "accuracy_against_seconds")
ENTRIES_SHOWN = 8
VERDICTS = {"best": BEST, "together": TOGETHER, "behind": BEHIND, "few": UNDECIDED, "left_out": LEFT_OUT}
"""What the table of the best model says of each, by the template's name for it."""
CONFIDENCE_FIGURES = {
    "reliability": "Reliability by label",
    "disagreement": "Disagreement of the folds, and scores of the test cases",
}
AGAINST_FIRST = ("− first [95 %]", "p", "p (Holm)")
"""Columns of a sweep that compare its points with the first one."""


def without(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """A table as the page shows it: what another table of the page has is left out."""
    return table.drop(columns=list(columns), errors="ignore")


def _scores(report: Report) -> dict[str, Any]:
    stored = report.stored
    first = stored.counted["value"]
    compared = [head for metric in stored.metrics for head in compared_heads(metric)]
    return {
        "tolerances": stored.tolerances,
        "both_empty": int(first.isna().sum()),
        "scored_values": len(first),
        "summary": without(report.tables["summary"], [*compared, *PEAK_HEADS.values()]),
    }


def _comparison(report: Report) -> dict[str, Any]:
    """By split, the models whose interval says that they differ from the baseline in the first metric, and others."""
    table, metric = report.numbers["comparison"], report.stored.metrics[0]
    table = table[table["metric"] == metric.name]
    is_apart = ~((table["low"] <= 0) & (table["high"] >= 0)) & _enough(table)
    told = {}
    for split in report.stored.splits:
        own = table["split"] == split
        few, apart = own & ~_enough(table) & (table["equal"] < table["cases"]), own & is_apart
        names = {"apart": apart, "together": own & ~few & ~apart, "few": few}
        told[split] = {key: list(table["model"][rows]) for key, rows in names.items()}
    return {"told": told}


def _enough(table: pd.DataFrame) -> pd.Series:
    return table["better"] + table["worse"] >= FEWEST_DIFFERENCES


def _has_others(report: Report) -> bool:
    return not report.numbers["comparison"].empty


def _best(report: Report) -> dict[str, Any]:
    table = report.numbers["best"]
    names = {key: list(table["model"][table["verdict"] == verdict]) for key, verdict in VERDICTS.items()}
    return {"best_told": names, "best_metric": deciding_metric(report.stored)}


def _has_ranking(report: Report) -> bool:
    return report.numbers["best"]["rank"].count() > 1


def _ranking(report: Report) -> dict[str, Any]:
    """By split, the first model of the study's first metric, and the models that cannot be told apart from it."""
    table, metric = report.numbers["ranking"], report.stored.metrics[0]
    told = {}
    for split, own in table[table["metric"] == metric.name].groupby("split", sort=False):
        first = own.iloc[0]
        together = list(own["model"][own["verdict"] == TOGETHER])
        told[split] = {"first": first["model"], "share": first["rank_1"], "tau": first["tau"], "together": together}
    return {"ranking_told": told, "few": few_cases(report.stored), "few_below": FEW_CASES}


def _subgroups(report: Report) -> dict[str, Any]:
    return {"subgroup_columns": " and ".join(report.stored.subgroups)}


def _labels(report: Report) -> dict[str, Any]:
    table = without(report.tables["labels"], PEAK_HEADS.values())
    first = ["Label", "Model", "Split"]
    return {"label_table": table[[*first, *table.columns.drop(first)]]}


def _confidence(_: Report) -> dict[str, Any]:
    return {"confidence_figures": CONFIDENCE_FIGURES, "most_voxels": MOST_VOXELS, "least": LEAST, "bins": BINS}


def _label_figures(report: Report) -> dict[str, str]:
    return {f"{metric.key}_by_label": f"{metric.key}_by_label" for metric in report.stored.metrics}


def _sweeps(report: Report) -> dict[str, Any]:
    table, definition = without(report.tables["sweeps"], PEAK_HEADS.values()), report.stored.definition
    tables = {
        sweep.name: without(
            table[table["Sweep"] == sweep.title], ["Sweep", *(AGAINST_FIRST if is_compared(sweep, definition) else ())]
        )
        for sweep in definition.sweeps
    }
    return {"sweeps": tables, "has_differences": any(AGAINST_FIRST[0] in own for own in tables.values())}


def is_compared(sweep: Sweep, definition: Definition) -> bool:
    """Whether the section that compares models with the baseline has all differences of a sweep."""
    first = next(iter(sweep.points.values()))
    return tuple(first) == (definition.baseline,) and all(len(models) == 1 for models in sweep.points.values())


def _sweep_figures(report: Report) -> dict[str, str]:
    return {f"sweep {sweep.name}": f"sweep-{sweep.name}" for sweep in report.stored.definition.sweeps}


def _cost(report: Report) -> dict[str, Any]:
    stored = report.stored
    return {
        "timed": is_timed(report.tables),
        "time_table": without(report.tables["inference_time"], PEAK_HEADS.values()),
        "is_scattered": is_scattered(report),
        "first_split": stored.first_split,
        "label_panels": len(panels(stored)) > 1,
        "memory_how": how_measured(stored),
        "has_cascade": any(plan.stage1 for plan in stored.plans.values()),
        "has_repeats": any(len(models) > 1 for models in model_groups(stored)),
        "is_published": _is_published(report),
    }


def is_scattered(report: Report) -> bool:
    """Whether there is more than one point of memory: one alone says nothing."""
    peaks = own_peaks(report.stored)[PEAK].dropna()
    return len(peaks) > 1 or (len(peaks) > 0 and _is_published(report))


def _cost_figures(report: Report) -> dict[str, str]:
    costs = (["memory"] if is_scattered(report) else []) + (["seconds"] if is_timed(report.tables) else [])
    return {f"against_{cost}": f"{report.stored.metrics[0].key}_against_{cost}" for cost in costs}


def _classification_cost(report: Report) -> dict[str, Any]:
    return {"forecast_shown": report.numbers["cost"]["forecast_ms_per_image"].notna().any()}


def _has_cells(report: Report) -> bool:
    """Whether there are cells to compare: a figure of one point says nothing."""
    return len(report.stored.definition.cells) > 1


def _cases(report: Report) -> dict[str, Any]:
    return {"case_data": case_data(report.stored) | {"colours": label_colours(report.stored)}}


def _pictures(report: Report) -> dict[str, Any]:
    folder, models = report.folder / "figures", report.stored.definition.models
    shown = report.comparisons if len(models) > 1 else ()
    return {
        "comparisons": {own.caption: photo(folder / "comparisons" / own.file) for own in shown},
        "solids": {
            own.solid_caption: photo(folder / "comparisons" / own.solid_file)
            for own in report.comparisons
            if not own.lines.empty
        },
        "overlays": {name: photo(folder / f"overlays/{name}.png") for name in models},
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


def _published(report: Report) -> dict[str, Any]:
    return {"published": without(report.tables["published"], PEAK_HEADS.values())}


def _is_published(report: Report) -> bool:
    return "Source" in report.tables["published"].columns


def is_timed(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether inference was timed."""
    return "Seconds per image" in tables["inference_time"].columns


def label_colours(stored: Stored) -> list[str]:
    """The colours of the labels in pictures, as `#rrggbb`, in their order."""
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in palette(stored.labels).values()]


def settings_table(stored: Stored) -> pd.DataFrame:
    """One line per setting with its patch, training and plan."""
    return pd.DataFrame(
        {
            "Setting": name,
            "Patch": times(plan.patch),
            "Batch": plan.batch,
            "Spacing (mm)": plan.preprocessing.shown_spacing,
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


def _claim(report: Report) -> dict[str, Any]:
    table = claim_table(report.stored, findings_of(report.stored))
    return {"claim": table, "claim_left": items_left(table)}


def _methods(report: Report) -> dict[str, Any]:
    methods = Methods(stored=report.stored, markdown=False)
    return {"methods": methods.paragraphs(), "methods_left": TO_ADD, "bibliography": bibliography(methods.used)}


METHODS = Section(name="methods", title="Methods", values=_methods)
CLAIM = Section(name="claim", title="CLAIM", values=_claim)
PAPERS = Section(
    name="papers",
    title="Claims of papers",
    values=lambda report: {"papers": show_claims(report.claims)},
    is_shown=lambda report: report.claims is not None and len(report.claims) > 0,
)
SEGMENTATION_SECTIONS = (
    Section(name="scores", title="Scores", values=_scores),
    Section(name="comparison", title="Comparison", values=_comparison, is_shown=_has_others),
    Section(name="best", title="Best by cross-validation", values=_best, is_shown=_has_ranking),
    Section(
        name="ranking",
        title="Ranking",
        values=_ranking,
        is_shown=lambda report: not report.numbers["ranking"].empty,
    ),
    Section(
        name="subgroups",
        title="Subgroups",
        values=_subgroups,
        is_shown=lambda report: not report.numbers["subgroups"].empty,
    ),
    Section(name="labels", title="Per label", values=_labels, figures=_label_figures),
    Section(name="lesions", title="Lesions", is_shown=lambda report: "lesions" in report.numbers),
    Section(
        name="confidence",
        title="Confidence",
        values=_confidence,
        figures=lambda _: {name: name for name in CONFIDENCE_FIGURES},
        is_shown=lambda report: "confidence" in report.numbers,
    ),
    Section(
        name="sweeps",
        title="Sweeps",
        values=_sweeps,
        figures=_sweep_figures,
        is_shown=lambda report: bool(report.stored.definition.sweeps),
    ),
    Section(name="published", title="Published", values=_published, is_shown=_is_published),
    PAPERS,
    Section(name="cost", title="Cost", values=_cost, figures=_cost_figures),
    Section(name="cases", title="Cases", values=_cases),
    Section(name="pictures", title="Pictures", values=_pictures),
    Section(name="training", title="Training", figures=_training_figure),
    Section(name="run", title="What was run", values=_run),
    METHODS,
    CLAIM,
)
CLASSIFICATION_SECTIONS = (
    Section(
        name="scores",
        title="Scores",
        template="classification_scores",
        figures=lambda report: {"against_resolution": "accuracy_against_resolution"} if _has_cells(report) else {},
    ),
    Section(
        name="distributed",
        title="Serial and distributed",
        is_shown=lambda report: not report.numbers["distributed"].empty,
    ),
    Section(name="published", title="Published", values=_published, is_shown=_is_published),
    PAPERS,
    Section(
        name="cost",
        title="Time and memory",
        template="classification_cost",
        values=_classification_cost,
        figures=lambda report: {name: name for name in CLASSIFICATION_COSTS} if _has_cells(report) else {},
    ),
    Section(name="confusion", title="Confusion"),
    Section(name="training", title="Training", figures=_training_figure),
    Section(name="run", title="What was run", values=_run),
    METHODS,
    CLAIM,
)
