"""Look at a folder of images and label maps, and write a first dataset file and study file for it.

Read are datasets of the Medical Segmentation Decathlon and of nnU-Net (dataset.json), BIDS with derivatives, images
with label maps by any common names, a folder per patient with an image and a mask per label (TotalSegmentator, PDDCA),
and a folder per patient with a DICOM series and SEG, RTSTRUCT, masks or a label map. Nothing is copied, and nothing in
the folder is changed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megavoxel.errors import UserError

if TYPE_CHECKING:
    from megavoxel.datasets.surveyed import Survey

CONFIG = Path("config")
HARDWARE = CONFIG / "hardware.yaml"
LEAST_CASES = 2
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the stage's options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="PATH", help="the folder")
    parser.add_argument("--name", help="name of dataset and study; default: by the folder's")
    gpu = parser.add_mutually_exclusive_group()
    gpu.add_argument(
        "--gpu",
        metavar="DEVICE",
        default="cpu",
        help="a name in the hardware file, or auto: the GPU that PyTorch sees here; default: %(default)s",
    )
    gpu.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="a GPU that the hardware file does not have, by its memory"
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=CONFIG,
        metavar="FOLDER",
        help="gets datasets/NAME.yaml, studies/NAME.yaml; default: %(default)s",
    )
    parser.add_argument("--hardware", type=Path, default=HARDWARE, help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="replace these files where they are there")
    parser.add_argument(
        "--image",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="the images, as 'images/{case}.nii.gz': a pattern per channel; in folders of patients, as 'ct.nii.gz'",
    )
    parser.add_argument("--label", metavar="PATTERN", help="the label maps, as 'labels/{case}.nii.gz'")
    parser.add_argument(
        "--channels", nargs="+", default=[], metavar="NAME", help="names of the channels; CT is normalised as CT"
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="names of the label values; or which masks to take, each with the value that it gets",
    )
    parser.add_argument(
        "--leave-out", action="store_true", help="leave out cases with a missing or faulty file, and masks of one case"
    )
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="cases read at once; default: all cores"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes both files and prints the next command."""
    from megavoxel.config.dataset import Declared, load_dataset
    from megavoxel.config.fields import CHARACTERS
    from megavoxel.config.first_files import dataset_text, study_text
    from megavoxel.config.hardware import bring_hardware, load_device
    from megavoxel.config.study_file import load_study
    from megavoxel.datasets.label_shapes import metrics_hint, shapes_of_labels
    from megavoxel.datasets.survey import survey
    from megavoxel.datasets.surveyed import Asked
    from megavoxel.files import write_text
    from megavoxel.planning.larger_patch import larger_patch
    from megavoxel.planning.splits import count_folds

    if arguments.hardware == HARDWARE and bring_hardware(arguments.hardware):
        print(f"written: {HARDWARE}, the devices that are known")
    device = load_device(arguments.hardware, _device_name(arguments), source="--gpu")
    asked = Asked(
        images=tuple(arguments.image),
        label=arguments.label,
        channels=tuple(arguments.channels),
        labels=_labels(arguments.labels),
        leave_out=arguments.leave_out,
    )
    name = arguments.name or _name(arguments.path)
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name}: {CHARACTERS}")
    dataset, study = (arguments.to / kind / f"{name}.yaml" for kind in ("datasets", "studies"))
    _refuse_replacing(dataset, study, force=arguments.force)
    found = survey(arguments.path, asked, processes=arguments.processes)
    if found.training_cases < LEAST_CASES:
        raise UserError(f"{found.root}: there is one labelled image; cross-validation takes {LEAST_CASES} at least")
    shapes = shapes_of_labels(found.label_maps, found.scheme.structures, processes=arguments.processes)
    size = {key: getattr(found, key) for key in ("training_cases", "shape", "largest_shape", "spacing")}
    described = dataset_text(
        name=name,
        origin=str(found.root),
        layout=found.layout,
        files=found.files,
        patients=found.patients,
        channels=found.channels,
        scheme=found.scheme,
        unnamed=found.unnamed,
        excluded=found.excluded,
        groups=found.groups,
        tolerance=_tolerance(found.spacing),
        declared=Declared(**size),
    )
    text = partial(
        study_text,
        name=name,
        dataset=str(dataset),
        device=device,
        path=str(study),
        cases=found.training_cases,
        labels=[*found.scheme.structures],
        shapes=shapes,
        metrics=metrics_hint(shapes) if shapes else None,
        splits=None if found.splits is None else (str(found.splits), count_folds(found.splits)),
    )
    write_text(dataset, described)
    write_text(study, text())
    if device.gpus:
        write_text(study, text(larger=larger_patch(load_dataset(dataset), load_study(study).settings[0])))
    load_dataset(dataset)
    load_study(study)
    _say(found, dataset, study, shapes)


def _device_name(arguments: argparse.Namespace) -> str:
    """Name of the device to plan for; one that the hardware file does not have is added to the own devices."""
    if arguments.gpu_memory is not None:
        return _added(arguments.hardware, arguments.gpu_memory, option=f"--gpu-memory {arguments.gpu_memory:g}")
    if arguments.gpu != "auto":
        return arguments.gpu

    import torch

    from megavoxel.config.hardware import load_hardware
    from megavoxel.config.visible_gpu import known_device

    if not torch.cuda.is_available():
        raise UserError(
            "--gpu auto: PyTorch sees no GPU here; run it on a machine that has one, or name one: --gpu a100-40, or "
            "--gpu-memory with its GiB"
        )
    seen = torch.cuda.get_device_properties(0)
    memory = seen.total_memory / 2**30
    name = known_device(seen.name, memory, load_hardware(arguments.hardware))
    print(f"--gpu auto: {seen.name} of {memory:.1f} GiB{'' if name is None else f', {name} in the hardware file'}")
    return name or _added(arguments.hardware, float(f"{memory:.3g}"), option="--gpu auto")


def _added(hardware: Path, memory_gib: float, *, option: str) -> str:
    """Name of a device with so much memory, which is added to the own devices if it is not there."""
    from megavoxel.config.hardware import OWN, load_hardware, update_device

    if not 0 < memory_gib < float("inf"):
        raise UserError(f"{option}: allowed: a number of GiB greater than 0")
    name = f"gpu-{memory_gib:g}".replace(".", "-")
    if name not in load_hardware(hardware):
        own = hardware.with_name(OWN.name)
        keys = {"kind": "gpu", "memory_gib": memory_gib, "source": f"megavoxel init {option}"}
        update_device(own, name, keys, base=hardware)
        print(f"written: {own}, device {name}; 'megavoxel calibrate {name}' on it measures its rate for forecasts")
    return name


def _say(found: Survey, dataset: Path, study: Path, shapes: dict[str, str]) -> None:
    from megavoxel.datasets.pairs import listed

    size, spacing = (" x ".join(f"{number:g}" for number in numbers) for numbers in (found.shape, found.spacing))
    tests = f" and {found.test_cases} to test" if found.test_cases else ""
    print(f"{found.root}: {found.layout}; {found.training_cases} labelled images{tests}")
    print(f"channels: {', '.join(found.channels)}; median size {size} voxels of {spacing} mm (z, y, x)")
    values = {name: " + ".join(map(str, own)) for name, own in found.scheme.structures.items()}
    print(f"labels: {', '.join(f'{name} {own}' for name, own in values.items())}")
    if found.scheme.ignore_value is not None:
        print(f"voxels of the value {found.scheme.ignore_value} were not annotated, and count for nothing")
    if found.splits is not None:
        print(f"folds: those of {found.splits}")
    if found.unnamed:
        print(f"no file names the labels: correct their names in {dataset}")
    if found.overlap:
        print(f"{found.overlap} voxels lie in several masks: the smaller mask counts, by the order in {dataset}")
    if found.empty:
        print(f"left out, because their masks are empty in all cases: {listed(found.empty)}")
    if found.single:
        print(f"left out, because one case alone has such a mask: {listed(found.single)}")
    if found.excluded:
        print(f"left out, because a file is missing or faulty: {listed(found.excluded)}")
    if found.groups:
        print(f"several images have one patient by their ids: no fold divides them (groups in {dataset})")
    if found.unused:
        print(f"not used, because they belong to no case: {listed(found.unused)}")
    if shapes:
        told = ", ".join(f"{name} is {kind}" for name, kind in shapes.items())
        print(f"{told}: {study} proposes metrics that suit them")
    print(f"written: {dataset}, {study}")
    file = shlex.quote(str(study))
    print("next:")
    print(f"  snakemake plan --configfile {file}    # memory and hours, before anything runs")
    print(f"  snakemake --configfile {file}")


def _labels(pairs: list[str]) -> dict[str, int]:
    labels: dict[str, int] = {}
    for pair in pairs:
        name, _, value = pair.rpartition("=")
        if not name or not value.isdecimal() or not 0 < int(value) <= 65535:
            raise UserError(f"--labels {pair}: expected NAME=VALUE with a value from 1 to 65535, such as liver=1")
        if name in labels or int(value) in labels.values():
            raise UserError(f"--labels {pair}: this name or value is there already; give each name its own value")
        labels[name] = int(value)
    return labels


def _name(folder: Path) -> str:
    """The folder's name without the number of the Decathlon or nnU-Net, of letters, digits, '-' and '_' only."""
    plain = re.sub(r"^(Task\d{2,3}|Dataset\d{3})_", "", folder.resolve().name)
    return re.sub(r"[^A-Za-z0-9_]+", "-", plain).strip("-_")[:64].lower() or "dataset"


def _refuse_replacing(*files: Path, force: bool) -> None:
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        raise UserError(
            f"{' and '.join(there)}: already there, and not replaced; give another --name or --to, or --force"
        )


def _tolerance(spacing: tuple[float, ...]) -> float:
    """Twice the finest spacing in mm, to one digit: what a reader cannot see."""
    return float(f"{2 * min(spacing):.1g}")
