"""The same small phantoms in the layouts that people have their images in; everything is linked to one copy."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel

from megavoxel.config.source import Phantom
from megavoxel.datasets.phantom import write_phantoms

CASES = 4


def make_phantoms(folder: Path) -> Path:
    """A Decathlon folder of four labelled cases and a labelled test case, with `Task07_` before its name."""
    root = folder / "Task07_Abdomen"
    root.mkdir(parents=True)
    write_phantoms(
        root, Phantom(training_cases=CASES, test_cases=1, shape=(16, 28, 28), spacing=(6.0, 4.0, 4.0), seed=3)
    )
    return root


def label_values(phantoms: Path) -> dict[str, int]:
    """Names and values as the phantoms' dataset.json has them, background left out."""
    content = json.loads((phantoms / "dataset.json").read_text())
    return {name: int(value) for value, name in content["labels"].items() if value != "0"}


def training_pairs(phantoms: Path) -> list[tuple[Path, Path]]:
    """Image and label map of the training cases."""
    images = sorted((phantoms / "imagesTr").iterdir())
    return [(image, phantoms / "labelsTr" / image.name) for image in images]


def link(source: Path, target: Path) -> None:
    """A link to a file, with the folders that it lies in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def nnunet_raw(phantoms: Path, folder: Path, *, channels: int = 2) -> Path:
    """nnU-Net v2: the image is there once per channel."""
    root = folder / "Dataset017_Abdomen"
    for image, label in training_pairs(phantoms):
        case = image.name.removesuffix(".nii.gz")
        for channel in range(channels):
            link(image, root / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        link(label, root / "labelsTr" / label.name)
    content = {
        "channel_names": {str(channel): ("CT", "PET")[channel] for channel in range(channels)},
        "labels": {"background": 0, **label_values(phantoms)},
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def bids(phantoms: Path, folder: Path) -> Path:
    """Raw images, and label maps with a table of their names below derivatives."""
    root = folder / "bids"
    for number, (image, label) in enumerate(training_pairs(phantoms), start=1):
        link(image, root / f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz")
        link(label, root / f"derivatives/manual/sub-{number:02d}/anat/sub-{number:02d}_desc-manual_dseg.nii.gz")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "phantoms", "BIDSVersion": "1.9.0"}))
    names = {**label_values(phantoms), "never drawn": 77}
    rows = [f"{value}\t{name}" for name, value in names.items()]
    (root / "derivatives/manual/desc-manual_dseg.tsv").write_text(
        "\n".join(["index\tname", "0\tbackground", *rows]) + "\n"
    )
    return root


def plain(phantoms: Path, folder: Path) -> Path:
    """images/NAME.nii.gz and labels/NAME_seg.nii.gz, one of them not compressed."""
    root = folder / "Our scans (2024)"
    for number, (image, label) in enumerate(training_pairs(phantoms)):
        link(label, root / f"labels/patient {number}_seg.nii.gz")
        if number:
            link(image, root / f"images/patient {number}.nii.gz")
        else:
            nibabel.save(nibabel.load(image), root / "images.tmp.nii")
            (root / "images").mkdir()
            (root / "images.tmp.nii").rename(root / "images/patient 0.nii")
    return root
