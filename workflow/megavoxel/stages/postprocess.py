"""Keep largest components where cross-validation improves by it.

Determine, on the validation predictions of all folds, what to keep:
  megavoxel postprocess --determine --predictions fold-0/validation fold-1/validation --cases cases.json
  --output postprocessing.json
Apply that to label maps:
  megavoxel postprocess --apply postprocessing.json --predictions DIR --cases cases.json --output DIR2
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from megavoxel.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--determine", action="store_true", help="find out what to keep")
    action.add_argument("--apply", type=Path, metavar="JSON", help="keep what postprocessing.json says")
    parser.add_argument("--predictions", type=Path, nargs="*", default=[], help="folders of label maps (.nii.gz)")
    parser.add_argument("--cases", type=Path, required=True, help="cases.json: labels and label maps")
    parser.add_argument("--output", type=Path, required=True, help="postprocessing.json, or the folder to write")
    parser.add_argument("--disabled", action="store_true", help="--determine: keep everything, as the study says")
    parser.add_argument("--processes", type=int, default=1, help="processes that share the cases (default: 1)")


def run(arguments: argparse.Namespace) -> None:
    """Writes postprocessing.json, or a folder of post-processed label maps."""
    if arguments.determine:
        _determine(arguments)
    else:
        _apply(arguments)


def _determine(arguments: argparse.Namespace) -> None:
    from megavoxel.datasets.cases import load_cases
    from megavoxel.evaluation.pairs import predicted_pairs
    from megavoxel.evaluation.postprocessing import (
        determine_postprocessing,
        disabled_postprocessing,
        save_postprocessing,
    )

    if arguments.disabled:
        reason = "disabled by the study (postprocess: false, or no cases to validate on)"
        save_postprocessing(arguments.output, disabled_postprocessing(reason))
        return
    if not arguments.predictions:
        raise UserError("--determine needs --predictions: the validation folders of all folds, or --disabled")
    cases = load_cases(arguments.cases)
    pairs = predicted_pairs(cases, arguments.predictions)
    found = determine_postprocessing(pairs, cases.structures, processes=arguments.processes)
    save_postprocessing(arguments.output, found)
    for step in found.evidence:
        name, verdict = step.label or "foreground", "kept" if step.kept else "not kept"
        print(f"largest component of {name}: mean DSC {step.before} without, {step.after} with it: {verdict}")


def _apply(arguments: argparse.Namespace) -> None:
    from megavoxel.datasets.cases import load_cases
    from megavoxel.evaluation.pairs import SUFFIX, case_names
    from megavoxel.evaluation.postprocessing import load_postprocessing, postprocess_file
    from megavoxel.files import atomic_directory
    from megavoxel.parallel import map_cases

    if len(arguments.predictions) != 1:
        raise UserError("--apply needs one folder in --predictions")
    folder = arguments.predictions[0]
    names = [f"{name}{SUFFIX}" for name in case_names(folder)]
    if arguments.output.resolve() == folder.resolve():
        raise UserError(f"--output {arguments.output}: this is the folder of the predictions; choose another one")
    postprocessing, labels = load_postprocessing(arguments.apply), load_cases(arguments.cases).structures
    with atomic_directory(arguments.output) as partial_folder:
        one = partial(postprocess_file, postprocessing=postprocessing, label_values=labels)
        jobs = [(folder / name, partial_folder / name) for name in names]
        map_cases(one, jobs, processes=arguments.processes, title="post-processing")
