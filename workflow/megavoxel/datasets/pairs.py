"""A folder with an image and a label map per case, found by patterns: linked as a dataset in nnU-Net's own terms."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from megavoxel.config.dataset import Dataset
from megavoxel.config.source import Files
from megavoxel.datasets.folder import visible_files
from megavoxel.errors import UserError
from megavoxel.files import require_file_name, write_json
from megavoxel.volumes.open import DETACHED, suffix_of

CASE = "{case}"
LISTED_CASES = 20


def matching(files: Iterable[str], pattern: str) -> dict[str, str]:
    """The files that a pattern of `Files` matches, by the ids of their cases, in order of the ids.

    Raises:
        UserError: two files belong to one case, or an id cannot be a file's name.
    """
    known, *more = (re.sub(r"(\\\*)+", "[^/]*", re.escape(part)) for part in pattern.split(CASE))
    expression = re.compile(f"{known}(?P<case>[^/]+){'(?P=case)'.join(more)}")
    found: dict[str, str] = {}
    for file in files:
        match = expression.fullmatch(file)
        if match is None:
            continue
        case = match["case"]
        require_file_name(case, f"{file}: case")
        if case in found:
            raise UserError(
                f"'{pattern}': {found[case]} and {file} both are of the case '{case}'; make the pattern narrower"
            )
        found[case] = file
    return dict(sorted(found.items()))


def pairs(origin: Path, files: Files) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Images of each channel, and label maps, by case; names are below `origin`.

    What is a label map by its pattern is no image, though a pattern of images may match it as well.

    Raises:
        UserError: a pattern of images matches nothing or several files of a case, a case lacks a channel, or a label
            map has no image.
    """
    names = [path.as_posix() for path in visible_files(origin) if suffix_of(path.name)]
    labels = matching(names, files.label)
    others = [name for name in names if name not in set(labels.values())]
    images = [matching(others, pattern) for pattern in files.images]
    for pattern, found in zip(files.images, images, strict=True):
        if not found:
            raise UserError(f"{origin}: no image matches '{pattern}'; correct the pattern, or the folder")
    for pattern, found in zip(files.images, images, strict=True):
        _refuse_lacking(set().union(*images) - set(found), f"{origin}: '{pattern}': no such image of")
    _refuse_lacking(set(labels) - set(images[0]), f"{origin}: '{files.label}': label maps, but no images, of")
    return images, labels


def link_pairs(origin: Path, folder: Path, dataset: Dataset, *, copy: bool = False) -> str:
    """Brings images and label maps of `dataset.files` to imagesTr and labelsTr, and writes dataset.json.

    Args:
        origin: the folder that the patterns are below.
        folder: the existing folder to write to.
        dataset: its `files`, `labels` and `channels` count.
        copy: copy the files instead of linking them.

    Returns:
        What was linked, for the reader.

    Raises:
        UserError: as `pairs`.
        OSError: the disk is full.
    """
    images, labels = pairs(origin, dataset.files)
    entries: dict[str, dict[str, list[str] | str]] = {}
    for case in images[0]:
        names = [f"imagesTr/{case}_{number:04d}{suffix_of(found[case])}" for number, found in enumerate(images)]
        for name, found in zip(names, images, strict=True):
            _bring(origin / found[case], folder / name, copy=copy)
        entries[case] = {"images": names}
        if case in labels:
            entries[case]["label"] = f"labelsTr/{case}{suffix_of(labels[case])}"
            _bring(origin / labels[case], folder / entries[case]["label"], copy=copy)
    content = {
        "name": dataset.name,
        "channel_names": {str(number): name for number, name in enumerate(dataset.channels)},
        "labels": {"background": 0, **dataset.labels},
        "numTraining": len(entries),
        "file_ending": suffix_of(min(images[0].values())),
        "dataset": entries,
    }
    write_json(folder / "dataset.json", content)
    return f"{len(entries)} cases, {len(labels)} of them labelled"


def _refuse_lacking(cases: set[str], fault: str) -> None:
    if cases:
        raise UserError(f"{fault} {listed(cases)}; bring these files, or move the others of these cases away")


def listed(cases: Iterable[str]) -> str:
    """Ids of cases for a message, cut where they are many."""
    names = sorted(cases)
    more = f" and {len(names) - LISTED_CASES} more" if len(names) > LISTED_CASES else ""
    return f"{', '.join(names[:LISTED_CASES])}{more}"


def _bring(source: Path, target: Path, *, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy and suffix_of(source.name) in DETACHED:
        raise UserError(
            f"{source}: its voxels lie in another file, which a copy would leave behind; leave out --copy, or write it "
            "as .mha or .nrrd"
        )
    if copy:
        shutil.copyfile(source, target)
    else:
        target.symlink_to(source.resolve())
