"""Slices of single cases with their label maps: the best, median and worst of a model, and one case of all models."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megavoxel.datasets.cases import Case, Cases
from megavoxel.evaluation.metrics import Metric
from megavoxel.evaluation.pairs import SUFFIX
from megavoxel.files import atomic_directory
from megavoxel.reporting.definition import Definition
from megavoxel.reporting.panels import draw_panel, label_legend, seen_from_the_feet, window_of
from megavoxel.reporting.solid import solid_figure
from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import empty_figure, figure_style, save_figure
from megavoxel.volumes.open import read_labels

COLUMNS = ("Image", "Reference", "Prediction")
WIDTH = 8.4
ALL_CASES = "all"
"""Name of the picture where the dataset has no others."""
MOST_MODELS = 8
PANELS_PER_ROW = 5
PANEL_WIDTH = 2.4
TITLE_WIDTH = 26
"""Characters of a line above a panel."""
TITLE_LINE_HEIGHT = 0.2
"""Inches of such a line."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A case to show."""

    rank: str
    """`best`, `median` or `worst`."""
    case: str
    score: float
    """Mean over labels of the study's first metric."""
    prediction: Path
    """Its predicted label map."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One axial slice, seen from the feet: the patient's right is on the left, the front is up."""

    image: np.ndarray
    """(y, x) intensities."""
    reference: np.ndarray
    """(y, x) label values."""
    prediction: np.ndarray
    """(y, x) label values."""
    aspect: float
    """Height of a voxel divided by its width."""
    window: tuple[float, float]
    """Intensities shown black and white."""


def write_overlays(stored: Stored, cases: Cases, folder: Path) -> None:
    """Writes `MODEL.png` for every setting and ensemble."""
    means = case_means(stored.scores)
    with figure_style():
        for model in stored.definition.models:
            examples = choose_examples(stored, means[means["setting"] == model], model)
            save_figure(overlay_figure(model, examples, cases, stored.metrics[0]), folder / f"{model}.png")


def choose_examples(stored: Stored, means: pd.DataFrame, model: str) -> list[Example]:
    """Best, median and worst case by the study's first metric, of validation where that is scored, else of test.

    Args:
        means: a model's lines of `case_means`.

    Returns:
        Three examples, or fewer where fewer cases have a value.
    """
    metric = stored.metrics[0]
    ranked = means[means[metric.name].notna()]
    for split in ("validation", "test"):
        part = ranked[ranked["split"] == split].sort_values(
            [metric.name, "case"], ascending=[not metric.higher_is_better, True]
        )
        if len(part):
            break
    chosen: dict[int, str] = {}
    for rank, place in (("best", 0), ("worst", len(part) - 1), ("median", len(part) // 2)):
        if 0 <= place < len(part):
            chosen.setdefault(place, rank)
    rows = [(rank, part.iloc[place]) for place, rank in sorted(chosen.items())]
    return [
        Example(
            rank=rank,
            case=row["case"],
            score=float(row[metric.name]),
            prediction=prediction_path(stored, model, row),
        )
        for rank, row in rows
    ]


def overlay_figure(model: str, examples: Sequence[Example], cases: Cases, metric: Metric) -> Figure:
    """One row per example: image, reference and prediction, with a legend of the labels' colours."""
    if not examples:
        return empty_figure(f"{model}: no case has a value of {metric.shown} to be ranked by")
    slices = [read_slice(cases, example) for example in examples]
    ratios = [cut.image.shape[0] * cut.aspect / cut.image.shape[1] for cut in slices]
    heights = [WIDTH / len(COLUMNS) * min(1.5, max(0.3, ratio)) + 0.6 for ratio in ratios]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(model)
    rows = figure.subfigures(len(slices), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, example, cut in zip(rows, examples, slices, strict=True):
        row.suptitle(f"{example.rank}: {example.case}, mean {metric.head} {example.score:.3f}", x=0.01, ha="left")
        maps = zip(row.subplots(1, len(COLUMNS)), COLUMNS, (None, cut.reference, cut.prediction), strict=True)
        for ax, name, labels in maps:
            draw_panel(ax, cut.image, labels, cases.labels, window=cut.window, aspect=cut.aspect)
            ax.set_title(name)
    label_legend(figure, cases.labels)
    return figure


def read_slice(cases: Cases, example: Example) -> Slice:
    """The axial slice with most foreground in the reference (in the prediction where the reference has none)."""
    case = cases.case(example.case)
    image, geometry = cases.read_image(case)
    reference, prediction = cases.read_annotation(case), read_labels(example.prediction)[0]
    shown = reference if reference.any() else prediction
    position = int(np.count_nonzero(shown, axis=(1, 2)).argmax())
    _, height, width = geometry.spacing
    return Slice(
        image=seen_from_the_feet(image[0], position),
        reference=seen_from_the_feet(reference, position),
        prediction=seen_from_the_feet(prediction, position),
        aspect=height / width,
        window=window_of(image[0], case.modality or cases.channels[0]),
    )


def prediction_path(stored: Stored, model: str, row: pd.Series) -> Path:
    """The predicted label map behind a line of `case_means`."""
    split = "test" if row["split"] == "test" else f"fold-{row['fold']}/validation"
    return stored.folder(model) / split / f"{row['case']}{SUFFIX}"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture and what its caption says."""

    name: str
    """Name in `Cases.pictures`, or `all`."""
    lines: pd.DataFrame
    """The case's line of `case_means` of each model, indexed by model; empty where no case could be chosen."""
    ranked_by: str
    """The model whose median the case is."""
    metric: Metric
    """The study's first."""
    position: int = 0
    """Number of the axial slice, counted from the feet and from 1."""
    slices: int = 0
    """Axial slices of the case."""
    left_out: tuple[str, ...] = ()
    """Models without a panel."""

    @property
    def file(self) -> str:
        """Name of the picture's file."""
        return f"comparison-{self.name}.png"

    @property
    def solid_file(self) -> str:
        """Name of the file with the case's labels as solid bodies; there is none where no case could be chosen."""
        return f"solid-{self.name}.png"

    @property
    def solid_caption(self) -> str:
        """What the picture of solid bodies shows."""
        first = self.lines.iloc[0]
        return (
            f"{first['case']} ({first['split']}): all labels in the reference and by {self.ranked_by}, seen from the "
            "front, a little to the left and above. A label that lies within another one shines through it."
        )

    @property
    def place(self) -> str:
        """Which slice of which case."""
        first = self.lines.iloc[0]
        return f"{first['case']} ({first['split']}), axial slice {self.position} of {self.slices}"

    @property
    def caption(self) -> str:
        """All that a reader has to know."""
        kind = "" if self.name == ALL_CASES else f"{self.name}: "
        if self.lines.empty:
            return f"{kind}there is no case with a {self.metric.shown} that all models share."
        scores = ", ".join(f"{model} {value:.3f}" for model, value in self.lines[self.metric.name].items())
        omitted = f" Not shown: {', '.join(self.left_out)}." if self.left_out else ""
        return (
            f"{kind}{self.place}, counted from the feet: the slice with the most labels in the reference. The case is "
            f"the median of {self.ranked_by} by mean {self.metric.shown} over labels. {self.metric.head} of the "
            f"whole case: {scores}.{omitted}"
        )


def write_comparisons(stored: Stored, cases: Cases, folder: Path) -> list[Shown]:
    """Writes `comparison-NAME.png` for each name of `Cases.pictures`, or `comparison-all.png` where there is none;
    beside each its case as solid bodies, `solid-NAME.png`.

    The folder is replaced as a whole, so that no picture of an earlier report stays in it.
    """
    groups = cases.pictures or {ALL_CASES: [case.id for case in cases.cases]}
    written = []
    with figure_style(), atomic_directory(folder, replace=True) as partial:
        for name, names in groups.items():
            shown, figure = comparison(stored, cases, name, names)
            save_figure(figure, partial / shown.file)
            if not shown.lines.empty:
                save_figure(_solid(stored, cases, shown), partial / shown.solid_file)
            written.append(shown)
    return written


def shown_models(definition: Definition) -> tuple[str, ...]:
    """At most eight models: all, or the ensembles with their members first, or else the first ones of the study."""
    models = definition.models
    if len(models) > MOST_MODELS and definition.ensembles:
        members = {member for names in definition.ensembles.values() for member in names}
        models = tuple(model for model in models if model in members or model in definition.ensembles)
    return models[:MOST_MODELS]


def comparison(stored: Stored, cases: Cases, name: str, names: Sequence[str]) -> tuple[Shown, Figure]:
    """The picture of the median case of the baseline (of the first model where there is none).

    Args:
        stored: the study; its test split is taken where it is scored, else validation.
        name: what the cases have in common.
        names: ids of the cases to choose from.
    """
    definition = stored.definition
    ranked_by = definition.baseline or definition.models[0]
    models = shown_models(definition)
    left_out = tuple(model for model in definition.models if model not in models)
    means = case_means(stored.scores)
    means = means[(means["split"] == stored.splits[-1]) & means["case"].isin(names)]
    metric = stored.metrics[0]
    chosen = median_case(means, {ranked_by, *models}, ranked_by, metric)
    lines = means[means["case"] == chosen].set_index("setting").reindex(models if chosen else ())
    if chosen is None:
        shown = Shown(name=name, lines=lines, ranked_by=ranked_by, metric=metric, left_out=left_out)
        return shown, empty_figure(textwrap.fill(shown.caption, 70))
    case = cases.case(chosen)
    reference = cases.read_annotation(case)
    position = slice_with_most_labels(reference, list(cases.labels.values()))
    shown = Shown(
        name=name,
        lines=lines,
        ranked_by=ranked_by,
        metric=metric,
        position=position + 1,
        slices=len(reference),
        left_out=left_out,
    )
    return shown, _draw(stored, cases, case, shown, reference)


def median_case(means: pd.DataFrame, models: set[str], ranked_by: str, metric: Metric) -> str | None:
    """The case in the middle of one model, among those that all models have a value of; None where there is none.

    Args:
        models: who must have the case.
        ranked_by: the model that counts; of two in the middle the worse one is taken, and ties go by name.
        metric: by which cases are ranked.
    """
    part = means[means["setting"].isin(models) & means[metric.name].notna()]
    shared = part[part.groupby("case")["setting"].transform("nunique") == len(models)]
    own = shared[shared["setting"] == ranked_by]
    ranked = own.sort_values([metric.name, "case"], ascending=[not metric.higher_is_better, True])["case"]
    return ranked.iloc[len(ranked) // 2] if len(ranked) else None


def slice_with_most_labels(labels: np.ndarray, values: Sequence[int]) -> int:
    """The axial slice of a map (z, y, x) with the most of the given values, and of those the one with most voxels."""
    counts = np.stack([np.count_nonzero(labels == value, axis=(1, 2)) for value in values])
    present, voxels = np.count_nonzero(counts, axis=0), counts.sum(axis=0)
    return int(np.lexsort((-np.arange(len(voxels)), voxels, present))[-1])


def _draw(stored: Stored, cases: Cases, case: Case, shown: Shown, reference: np.ndarray) -> Figure:
    image, geometry = cases.read_image(case)
    _, height, width = geometry.spacing
    position = shown.position - 1
    flat = seen_from_the_feet(image[0], position)
    style = {"window": window_of(image[0], case.modality or cases.channels[0]), "aspect": height / width}
    titles = {
        model: [*textwrap.wrap(model, TITLE_WIDTH), f"{shown.metric.head} {value:.3f}"]
        for model, value in shown.lines[shown.metric.name].items()
    }
    title_height = TITLE_LINE_HEIGHT * max(map(len, titles.values()))
    figure, panels = _grid(2 + len(titles), flat.shape[0] * style["aspect"] / flat.shape[1], title_height)
    figure.suptitle(f"{shown.place}; {shown.metric.shown} of the whole case")
    for ax, title, labels in zip(panels[:2], ("Image", "Reference"), (None, reference), strict=True):
        draw_panel(ax, flat, None if labels is None else seen_from_the_feet(labels, position), cases.labels, **style)
        ax.set_title(title)
    for ax, (model, line) in zip(panels[2:], shown.lines.iterrows(), strict=True):
        labels = read_labels(prediction_path(stored, model, line))[0]
        draw_panel(ax, flat, seen_from_the_feet(labels, position), cases.labels, **style)
        ax.set_title("\n".join(titles[model]))
    label_legend(figure, cases.labels)
    return figure


def _solid(stored: Stored, cases: Cases, shown: Shown) -> Figure:
    case = cases.case(shown.lines.iloc[0]["case"])
    predicted, geometry = read_labels(prediction_path(stored, shown.ranked_by, shown.lines.loc[shown.ranked_by]))
    maps = {"Reference": cases.read_annotation(case), shown.ranked_by: predicted}
    return solid_figure(maps, geometry.spacing, cases.labels)


def _grid(panels: int, height_to_width: float, title_height: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels below titles of so many inches, in rows of nearly equal length."""
    rows = math.ceil(panels / PANELS_PER_ROW)
    columns = math.ceil(panels / rows)
    height = PANEL_WIDTH * min(1.5, max(0.3, height_to_width)) + title_height
    figure = Figure(figsize=(PANEL_WIDTH * columns, height * rows + 0.8), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[panels:]:
        ax.set_axis_off()
    return figure, axes[:panels]
