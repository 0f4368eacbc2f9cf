"""Pack a finished study as a Workflow Run RO-Crate: workflow, study and dataset file, plans, splits, what each training
recorded, scores, and tables and methods of the report.

No image goes in, and no page of the report, which shows images; names of cases do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megavoxel.config.dataset import dataset_path, load_dataset
from megavoxel.config.study_file import load_study
from megavoxel.errors import UserError

CONFIG = Path("config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of the study: results/STUDY")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--study", type=Path, help="study file; default: config/studies/STUDY.yaml")
    parser.add_argument(
        "--datasets", type=Path, default=CONFIG / "datasets", help="folder of the dataset files; default: %(default)s"
    )
    parser.add_argument("--author", metavar="NAME", help="who ran the study")
    parser.add_argument("--orcid", metavar="URL", help="ORCID of the author: https://orcid.org/0000-…")
    parser.add_argument("--licence", metavar="URL", help="licence of the crate; default: to be stated by the authors")
    parser.add_argument("--weights", action="store_true", help="also model.pt of each training")


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder."""
    from megavoxel.reporting.crate import Request, write_crate
    from megavoxel.reporting.definition import definition_of
    from megavoxel.reporting.loading import load_stored

    if arguments.orcid and not arguments.author:
        raise UserError("--orcid: give the name that belongs to it by --author")
    path = arguments.study or CONFIG / "studies" / f"{arguments.results.resolve().name}.yaml"
    study = load_study(path)
    dataset_file = dataset_path(study.dataset, arguments.datasets, source=str(path))
    dataset = load_dataset(dataset_file)
    cases = str(arguments.results / "cases.json")
    stored = load_stored(arguments.results, json.dumps(definition_of(study, dataset.name, cases)), need_cases=True)
    request = Request(
        stored=stored,
        study_file=path,
        dataset_file=dataset_file,
        dataset=dataset,
        author=arguments.author,
        orcid=arguments.orcid,
        licence=arguments.licence,
        weights=arguments.weights,
    )
    write_crate(request, arguments.output)
    print(f"{arguments.output}: a Workflow Run RO-Crate of {study.name}", flush=True)
