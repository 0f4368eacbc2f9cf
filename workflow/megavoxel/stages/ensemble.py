"""Average the probabilities of several settings; of label maps, each after its own post-processing."""

from __future__ import annotations

import argparse
from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import atomic_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.add_argument("--members", nargs="+", required=True, help="names of the settings, for messages")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--logits", type=Path, nargs="+", help="folder of logits of each member")
    source.add_argument("--probabilities", type=Path, nargs="+", help="CSV of each member, for classifiers")
    parser.add_argument(
        "--predictions", type=Path, nargs="+", default=[], help="folder of label maps of each member, beside --logits"
    )
    parser.add_argument(
        "--postprocessing", type=Path, nargs="+", default=[], help="postprocessing.json of each, beside --logits"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the label maps CASE.nii.gz; of classifiers, a CSV"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: all that the process may use")


def run(arguments: argparse.Namespace) -> None:
    """Averages case by case; the folder of label maps appears when all are done."""
    if arguments.probabilities:
        from megavoxel.tasks.classification.scores import average_probabilities

        _require_equal(arguments, "members", "probabilities")
        images = average_probabilities(arguments.probabilities, arguments.output)
        print(f"{images} images: {arguments.output}")
        return
    from megavoxel.evaluation.postprocessing import load_postprocessing
    from megavoxel.inference.ensemble import Member, write_ensemble
    from megavoxel.network.device import set_threads

    set_threads(arguments.threads)
    columns = _require_equal(arguments, "members", "logits", "predictions", "postprocessing")
    members = [
        Member(name=name, logits=logits, predictions=predictions, postprocessing=load_postprocessing(rules))
        for name, logits, predictions, rules in zip(*columns, strict=True)
    ]
    names = [_case_names(member.logits) for member in members]
    for member, own in zip(members, names, strict=True):
        odd = sorted(own ^ names[0])
        if odd:
            raise UserError(
                f"ensemble: {members[0].name} and {member.name} predicted different cases: {', '.join(odd)}"
            )
    with atomic_directory(arguments.output) as output:
        for number, case in enumerate(sorted(names[0]), start=1):
            write_ensemble(members, case, output)
            print(f"case {number}/{len(names[0])}  {case}", flush=True)


def _require_equal(arguments: argparse.Namespace, *names: str) -> list[list]:
    """The values of several options, as many of each."""
    columns = [getattr(arguments, name) for name in names]
    if len({len(column) for column in columns}) > 1:
        words = [f"--{name}" for name in names]
        raise UserError(f"{', '.join(words[:-1])} and {words[-1]} need as many values each")
    return columns


def _case_names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".json") for path in folder.glob("*.json")}
