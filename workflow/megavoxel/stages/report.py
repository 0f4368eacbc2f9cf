"""Tables, figures and a page from the scores of a study.

--tables-only makes tables and the figures of scores from what is stored (scores.csv, manifest.json, plan.json) and
reads no image and no prediction; overlays, comparisons and training curves stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--results", type=Path, required=True, help="folder of the study: results/STUDY")
    parser.add_argument(
        "--definition",
        required=True,
        metavar="JSON",
        help="what is compared, as JSON or a file of it: study, dataset, baseline, settings, ensembles, folds, cases, "
        "sweeps",
    )
    parser.add_argument(
        "--published",
        type=Path,
        metavar="CSV",
        help="published numbers: table,row,metric,value,source; metric is DSC or another one, alone or with a label, "
        "peak_gib (GPU memory in GB), seconds or seconds_sd (inference per image)",
    )
    parser.add_argument(
        "--timings",
        type=Path,
        nargs="*",
        default=[],
        metavar="CSV",
        help="seconds of inference: setting,split,fold,case,repeat,seconds,window, a line per repeat",
    )
    parser.add_argument("--tables-only", action="store_true", help="no overlays, no training curves and no page")
    parser.add_argument(
        "--partial", action="store_true", help="report what there is of the study, and name what is missing"
    )
    parser.add_argument(
        "--allow-extra", action="store_true", help="leave out scores of cases that the study does not have"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that share the cases of the page's viewer (default: 1)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes report/ in the study's folder."""
    from megavoxel.reporting.classification.stored import is_classification_report

    if is_classification_report(arguments.definition):
        from megavoxel.stages.classification.report import run_report

        run_report(arguments)
        return
    from megavoxel.reporting.figures import write_score_figures
    from megavoxel.reporting.published import read_published
    from megavoxel.reporting.scatter import write_memory_figure, write_time_figure
    from megavoxel.reporting.stored import load_stored
    from megavoxel.reporting.sweep_figures import write_sweep_figures
    from megavoxel.reporting.tables import write_tables
    from megavoxel.reporting.timing import read_timings

    published, timings = read_published(arguments.published), read_timings(arguments.timings)
    stored = load_stored(
        arguments.results,
        arguments.definition,
        need_cases=not arguments.tables_only,
        partial=arguments.partial,
        allow_extra=arguments.allow_extra,
    )
    for line in (*stored.missing, *stored.ignored):
        print(f"left out: {line}", flush=True)
    report = arguments.results / "report"
    tables = write_tables(stored, published, timings, report / "tables")
    print(f"tables: {report / 'tables'}", flush=True)
    write_score_figures(stored, report / "figures")
    write_memory_figure(stored, published, report / "figures")
    write_time_figure(stored, timings, published, report / "figures")
    write_sweep_figures(stored, report / "figures")
    print(f"figures: {report / 'figures'}", flush=True)
    if arguments.tables_only:
        return
    from megavoxel.reporting.figures import write_training_figure
    from megavoxel.reporting.overlays import write_overlays
    from megavoxel.reporting.page import write_page
    from megavoxel.reporting.side_by_side import write_comparisons
    from megavoxel.reporting.viewer import build_viewer

    write_training_figure(stored, report / "figures")
    write_overlays(stored, stored.cases, report / "figures" / "overlays")
    comparisons = write_comparisons(stored, stored.cases, report / "figures" / "comparisons")
    viewer = build_viewer(stored, stored.cases, processes=arguments.processes)
    write_page(stored, tables, comparisons, viewer, report)
    print(f"page: {report / 'index.html'}", flush=True)
