"""The report of a classification study."""

from __future__ import annotations

import argparse


def run_report(arguments: argparse.Namespace) -> None:
    """Writes report/ in the study's folder."""
    from megavoxel.reporting.classification.figures import write_figures
    from megavoxel.reporting.classification.page import write_page
    from megavoxel.reporting.classification.stored import load_stored, read_published_accuracy
    from megavoxel.reporting.classification.tables import write_tables

    published = read_published_accuracy(arguments.published)
    stored = load_stored(arguments.results, arguments.definition)
    report = arguments.results / "report"
    tables = write_tables(stored, published, report / "tables")
    print(f"tables: {report / 'tables'}", flush=True)
    write_figures(stored, tables, report / "figures")
    print(f"figures: {report / 'figures'}", flush=True)
    if not arguments.tables_only:
        write_page(stored, tables, report / "index.html")
        print(f"page: {report / 'index.html'}", flush=True)
