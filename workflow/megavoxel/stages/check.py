"""Look at every case of a dataset: writes checks.csv with all faults, and cases.json if none of them is an error.

Looked at are: every file can be read to its end; image and label have the same shape, spacing (0.1 %) and place (5 % of
the smallest voxel side); intensities are finite and not constant; the channels are as many as declared; labels are
whole numbers that are declared; training cases have a label map. Of images to be classified: every file can be decoded
to its end; no file has two lines in a table; no patient is in training and in test; grey images among colour ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.datasets.cases import save_cases
from megavoxel.datasets.check import Finding, write_findings
from megavoxel.errors import UserError
from megavoxel.tasks import TASKS

LISTED_FAULTS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--dataset", type=Path, required=True, help="dataset file, config/datasets/NAME.yaml")
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset, data/NAME")
    parser.add_argument("--checks", type=Path, required=True, help="checks.csv to write: case,check,severity,message")
    parser.add_argument("--output", type=Path, required=True, help="cases.json to write if there are no errors")
    parser.add_argument("--processes", type=int, default=1, help="cases read at the same time (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Checks all cases, then writes both files, or one error that lists all faults."""
    if arguments.processes < 1:
        raise UserError(f"--processes {arguments.processes}: allowed: 1 or more")
    arguments.output.unlink(missing_ok=True)  # an older list would contradict the faults found now
    dataset = load_dataset(arguments.dataset)
    cases, findings, lines = TASKS[dataset.task].check(arguments.data, dataset, processes=arguments.processes)
    _write_checks(arguments, dataset, findings, len(cases.cases))
    save_cases(arguments.output, cases)
    print("\n".join(lines))


def _write_checks(arguments: argparse.Namespace, dataset: Dataset, findings: list[Finding], total: int) -> None:
    """Writes checks.csv.

    Raises:
        UserError: there are errors among the findings.
    """
    write_findings(arguments.checks, findings)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise UserError(_report(arguments, dataset, errors, total))


def _report(arguments: argparse.Namespace, dataset: Dataset, errors: list[Finding], total: int) -> str:
    wrong = len({finding.case for finding in errors})
    lines = [f"dataset {dataset.name}: {len(errors)} faults in {wrong} of {total} cases of {arguments.data}:"]
    lines += [f"  {finding.case}: {finding.check}: {finding.message}" for finding in errors[:LISTED_FAULTS]]
    if len(errors) > LISTED_FAULTS:
        lines.append(f"  ... and {len(errors) - LISTED_FAULTS} more")
    lines.append(
        f"all of them are in {arguments.checks}; mend the files, or list the cases under 'exclude' in "
        f"{arguments.dataset}"
    )
    return "\n".join(lines)
