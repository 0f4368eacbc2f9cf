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
        "sweeps, metrics; of classification task and cells, and no sweeps",
    )
    parser.add_argument(
        "--published",
        type=Path,
        metavar="CSV",
        help="published numbers: table,row,metric,value,source; metric is DSC or another one, alone or with a label, "
        "peak_gib (GPU memory in GB), seconds or seconds_sd (inference per image)",
    )
    parser.add_argument(
        "--claims",
        type=Path,
        metavar="CSV",
        help="claims of papers that studies measure: "
        "paper,claim,published,table,row,against,metric,study,setting,reference; the folder published beside it has "
        "the papers' numbers",
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
    from megavoxel.reporting.closing import best_words
    from megavoxel.reporting.report import write_report

    write_report(
        arguments.results,
        arguments.definition,
        published=arguments.published,
        claims=arguments.claims,
        timings=arguments.timings,
        tables_only=arguments.tables_only,
        partial=arguments.partial,
        allow_extra=arguments.allow_extra,
        processes=arguments.processes,
    )
    best = arguments.results / "report/tables/best.csv"
    if best.is_file():
        print(best_words(best))
