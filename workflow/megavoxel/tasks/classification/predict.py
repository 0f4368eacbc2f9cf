"""Class probabilities of images by trained networks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megavoxel.errors import UserError, printable
from megavoxel.forecast.memory import explained_out_of_memory
from megavoxel.network.device import Precision, choose_device, set_threads
from megavoxel.network.weights import fill_network, load_weights, precision_of
from megavoxel.planning.splits import cases_of
from megavoxel.tasks.classification.cases import load_image_cases
from megavoxel.tasks.classification.layout import SUFFIXES
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.plan import ClassifierPlan, load_classifier_plan
from megavoxel.tasks.classification.scores import write_probabilities
from megavoxel.tasks.classification.splits import load_image_splits
from megavoxel.tasks.classification.training import logits_of
from megavoxel.volumes.no_scans import is_no_scan


def predict(arguments: argparse.Namespace) -> None:
    """Writes a CSV with a line per image and a column per class.

    Raises:
        UserError: an image or weights cannot be read, memory ran out, or it is not said which images.
    """
    plan = load_classifier_plan(arguments.plan)
    given = arguments.input
    names, files = _any_images(given, leave_out=arguments.leave_out) if given else _of_study(arguments)
    set_threads(arguments.threads)
    with explained_out_of_memory(plan.setting, lambda: "while it classified images; take a device with more memory"):
        found = predict_images(plan, arguments.weights, files, choose_device(arguments.device))
    write_probabilities(arguments.output, names, plan.classes, found)
    print(f"{len(names)} images: {arguments.output}")


def predict_images(
    plan: ClassifierPlan, weights: Sequence[Path], files: Sequence[Path], device: torch.device
) -> np.ndarray:
    """float64 (images, classes): the mean of the networks' probabilities.

    Raises:
        UserError: an image cannot be read, weights are of another plan, or what a network gives is not finite.
    """
    total = np.zeros((len(files), len(plan.classes)))
    if not files:
        return total
    for path in weights:
        content = load_weights(path, plan_hash=plan.hash)
        network = build_network(plan.network, len(plan.classes))
        fill_network(network, content["weights"], path)
        network = network.to(device, memory_format=torch.channels_last)
        precision = Precision(name=precision_of(content, path), reason="as in training")
        total += logits_of(network, files, plan, precision, device).double().softmax(dim=1).numpy()
    for row in np.flatnonzero(~np.isfinite(total).all(axis=1))[:1]:
        raise UserError(
            f"{files[row]}: the network gives values that are NaN or infinite; its weights are damaged or its training "
            "failed"
        )
    return total / len(weights)


def _of_study(arguments: argparse.Namespace) -> tuple[Sequence[str], list[Path]]:
    if not (arguments.cases and arguments.splits and arguments.split):
        raise UserError("a classifier predicts --input, or the images of --cases, --splits and --split")
    cases = load_image_cases(arguments.cases)
    names = cases_of(load_image_splits(arguments.splits), arguments.split, arguments.fold)
    return names, [cases.path(case) for case in cases.select(names)]


def _any_images(paths: Sequence[Path], *, leave_out: bool) -> tuple[list[str], list[Path]]:
    files = []
    for path in paths:
        _name_others(path, leave_out=leave_out)
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            raise UserError(f"--input {path}: no such image, or a folder without {', '.join(SUFFIXES)}")
        files += inside
    return [str(file) for file in files], files


def _name_others(folder: Path, *, leave_out: bool) -> None:
    """Refuses what lies in a folder and is neither an image nor known to be none, or says that it is left out."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    others = [entry.name for entry in entries if entry.suffix.lower() not in SUFFIXES and not is_no_scan(entry)]
    others = [name for name in others if not name.startswith(".")]
    if others and not leave_out:
        raise UserError(
            f"--input {folder}: {', '.join(others)}: neither images ({', '.join(SUFFIXES)}) nor known to be something "
            "else; name the folders of images, move the rest away, or pass --leave-out"
        )
    if others:
        print(printable(f"left out of {folder}: {', '.join(others)}"), flush=True)
