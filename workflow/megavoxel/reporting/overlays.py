"""Image, reference and prediction side by side for the best, the median and the worst case of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megavoxel.datasets.cases import Cases
from megavoxel.evaluation.metrics import Metric
from megavoxel.evaluation.pairs import SUFFIX
from megavoxel.reporting.panels import draw_panel, label_legend, seen_from_the_feet, window_of
from megavoxel.reporting.statistics import case_means
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.style import empty_figure, figure_style, save_figure
from megavoxel.volumes.nifti import read_labels

COLUMNS = ("Image", "Reference", "Prediction")
WIDTH = 8.4


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
    return [_example(stored, model, part.iloc[place], rank) for place, rank in sorted(chosen.items())]


def overlay_figure(model: str, examples: Sequence[Example], cases: Cases, metric: Metric) -> Figure:
    """One row per example: image, reference and prediction, with a legend of the labels' colours."""
    if not examples:
        return empty_figure(f"{model}: no case has a value of {metric.shown} to be ranked by")
    slices = [read_slice(cases, example) for example in examples]
    heights = [WIDTH / len(COLUMNS) * min(1.5, max(0.3, _height_to_width(cut))) + 0.6 for cut in slices]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(model)
    rows = figure.subfigures(len(slices), 1, squeeze=False, height_ratios=heights)[:, 0]
    for row, example, cut in zip(rows, examples, slices, strict=True):
        row.suptitle(f"{example.rank}: {example.case}, mean {metric.head} {example.score:.3f}", x=0.01, ha="left")
        _draw_row(row.subplots(1, len(COLUMNS)), cut, cases)
    label_legend(figure, cases.labels)
    return figure


def read_slice(cases: Cases, example: Example) -> Slice:
    """The axial slice with most foreground in the reference (in the prediction where the reference has none)."""
    case = cases.case(example.case)
    image, geometry = cases.read_image(case)
    reference, prediction = cases.read_labels(case), read_labels(example.prediction)[0]
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


def _draw_row(row: Sequence[Axes], cut: Slice, cases: Cases) -> None:
    for ax, name, labels in zip(row, COLUMNS, (None, cut.reference, cut.prediction), strict=True):
        draw_panel(ax, cut.image, labels, cases.labels, window=cut.window, aspect=cut.aspect)
        ax.set_title(name)


def _example(stored: Stored, model: str, row: pd.Series, rank: str) -> Example:
    path = prediction_path(stored, model, row)
    return Example(rank=rank, case=row["case"], score=float(row[stored.metrics[0].name]), prediction=path)


def _height_to_width(cut: Slice) -> float:
    return cut.image.shape[0] * cut.aspect / cut.image.shape[1]
