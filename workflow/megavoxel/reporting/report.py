"""The report of a study: tables, figures and the page, each task with its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from megavoxel.reporting import tables
from megavoxel.reporting.claims import study_claims
from megavoxel.reporting.classification import tables as classification
from megavoxel.reporting.classification.figures import write_figures
from megavoxel.reporting.classification.verdict import classification_verdict
from megavoxel.reporting.confidence import Judged, judged_parts
from megavoxel.reporting.confidence_figures import write_confidence_figures
from megavoxel.reporting.costs import read_timings
from megavoxel.reporting.definition import load_definition
from megavoxel.reporting.examples import write_comparisons, write_overlays
from megavoxel.reporting.figures import write_score_figures, write_sweep_figures, write_training_figure
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.methods import CLAIM, METHODS, REFERENCES, write_methods
from megavoxel.reporting.page import Report, Section, write_page
from megavoxel.reporting.published import read_published
from megavoxel.reporting.ranking import FEW_CASES, few_cases
from megavoxel.reporting.scatter import write_memory_figure, write_time_figure
from megavoxel.reporting.sections import CLASSIFICATION_SECTIONS, SEGMENTATION_SECTIONS
from megavoxel.reporting.stored import Stored
from megavoxel.reporting.verdict import segmentation_verdict
from megavoxel.reporting.viewer import build_viewer

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that was read for a report, and the folder that it goes to."""

    stored: Stored
    published: pd.DataFrame
    """Published numbers, from `read_published`."""
    timings: pd.DataFrame
    """Seconds of inference, from `read_timings`."""
    report: Path
    """The report's folder."""
    processes: int
    """Number of processes that share the cases of the viewer."""
    claims: Path | None = None
    """File of claims of papers."""

    @cached_property
    def judged(self) -> list[Judged]:
        """How far the probabilities can be trusted, where the study asks for that."""
        return judged_parts(self.stored) if self.stored.definition.confidence else []

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.report / "figures"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a task's report."""

    numbers: Callable[[Inputs], Tables]
    """Tables with full numbers."""
    showing: dict[str, Callable[[pd.DataFrame], pd.DataFrame]]
    """By table, the function that rounds its numbers to texts."""
    figures: Callable[[Inputs, Tables], None]
    """Writes the figures that need nothing but what is stored, from tables with full numbers."""
    pictures: Callable[[Inputs, Tables, Tables], Report]
    """Writes the figures of images and of training; returns what the page is made of, from tables with full numbers
    and the same as shown."""
    sections: Sequence[Section]


def write_report(
    results: Path,
    definition: str,
    *,
    published: Path | None,
    timings: Sequence[Path],
    claims: Path | None = None,
    tables_only: bool = False,
    partial: bool = False,
    allow_extra: bool = False,
    processes: int = 1,
) -> None:
    """Writes report/ in the study's folder, and says what was written and what was left out.

    Args:
        timings: files of seconds of inference.
        claims: of papers, of which the page shows those that the study measures.
        tables_only: neither overlays nor training curves nor the page.
        partial: report what there is of the study.
        allow_extra: leave out scores of cases that the study does not have.
        processes: that share the cases of the viewer.

    Raises:
        UserError: a file is missing or wrong, or a part of the study was not scored.
    """
    classifies = load_definition(definition).classifies
    parts = CLASSIFICATION if classifies else SEGMENTATION
    inputs = Inputs(
        published=read_published(published, classifies=classifies),
        timings=read_timings(timings),
        stored=load_stored(results, definition, need_cases=not tables_only, partial=partial, allow_extra=allow_extra),
        report=results / "report",
        processes=processes,
        claims=claims,
    )
    for line in (*inputs.stored.missing, *inputs.stored.ignored):
        print(f"left out: {line}", flush=True)
    if not classifies:
        for split, count in few_cases(inputs.stored).items():
            what = f"{count} {'groups of cases' if inputs.stored.groups else 'cases'} in {split}"
            print(f"few cases: {what}; below {FEW_CASES}, intervals and rankings are unstable", flush=True)
    numbers = parts.numbers(inputs)
    shown = tables.write_tables(numbers, parts.showing, inputs.report / "tables")
    print(f"tables: {inputs.report / 'tables'}", flush=True)
    write_methods(inputs.stored, inputs.report)
    print(f"methods: {inputs.report / METHODS}, {inputs.report / REFERENCES}, {inputs.report / CLAIM}", flush=True)
    parts.figures(inputs, numbers)
    print(f"figures: {inputs.figures}", flush=True)
    if not tables_only:
        write_page(parts.pictures(inputs, numbers, shown), parts.sections)
        print(f"page: {inputs.report / 'index.html'}", flush=True)


def _score_figures(inputs: Inputs, _: Tables) -> None:
    write_score_figures(inputs.stored, inputs.figures)
    write_memory_figure(inputs.stored, inputs.published, inputs.figures)
    write_time_figure(inputs.stored, inputs.timings, inputs.published, inputs.figures)
    write_sweep_figures(inputs.stored, inputs.figures)
    if inputs.stored.definition.confidence:
        write_confidence_figures(inputs.stored, inputs.judged, inputs.figures)


def _pictures(inputs: Inputs, numbers: Tables, shown: Tables) -> Report:
    stored = inputs.stored
    write_training_figure(stored, inputs.figures)
    write_overlays(stored, stored.cases, inputs.figures / "overlays")
    comparisons = write_comparisons(stored, stored.cases, inputs.figures / "comparisons")
    viewer = build_viewer(stored, stored.cases, processes=inputs.processes)
    return Report(
        stored=stored,
        numbers=numbers,
        tables=shown,
        folder=inputs.report,
        verdict=segmentation_verdict(stored),
        claims=study_claims(inputs.claims, stored, inputs.timings),
        comparisons=comparisons,
        viewer=viewer,
    )


def _classification_page(inputs: Inputs, numbers: Tables, shown: Tables) -> Report:
    return Report(
        stored=inputs.stored,
        numbers=numbers,
        tables=shown,
        folder=inputs.report,
        verdict=classification_verdict(inputs.stored, numbers["summary"], numbers["confusion"]),
        claims=study_claims(inputs.claims, inputs.stored, inputs.timings),
    )


SEGMENTATION = Parts(
    numbers=lambda inputs: tables.numbers(inputs.stored, inputs.published, inputs.timings, inputs.judged),
    showing=tables.SHOWN,
    figures=_score_figures,
    pictures=_pictures,
    sections=SEGMENTATION_SECTIONS,
)
CLASSIFICATION = Parts(
    numbers=lambda inputs: classification.numbers(inputs.stored, inputs.published),
    showing=classification.SHOWN,
    figures=lambda inputs, numbers: write_figures(inputs.stored, numbers, inputs.figures),
    pictures=_classification_page,
    sections=CLASSIFICATION_SECTIONS,
)
