"""What a dataset folder holds, read from its dataset.json and corrected by the dataset file.

Two layouts are read: that of the Medical Segmentation Decathlon (dataset.json lists the cases under "training" and
"test"; channels are volumes of one 4D file) and the raw layout of nnU-Net v2 (cases are found by listing imagesTr and
imagesTs; one file ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ... per channel). nnU-Net's dataset.json may list the
training cases itself, under "dataset": ``{CASE: {"images": [...], "label": ...}}``. nnU-Net v1 lists them as the
Decathlon does, by names that have no number while the files have one. Test cases may have labels: an entry ``{"image":
..., "label": ...}`` under "test", or a file in labelsTs. The dataset file may name "validation" (imagesVa, labelsVa) as
the test split in place of "test".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from megavoxel.config.dataset import Dataset
from megavoxel.config.regions import LabelScheme, label_scheme
from megavoxel.datasets.adjustments import adjusted_cases, annotated_cases, with_recorded
from megavoxel.datasets.cases import Case
from megavoxel.errors import UserError, shown
from megavoxel.files import read_json, require_file_name
from megavoxel.volumes.open import NIFTI, SUFFIXES, stem_of

FOLDERS = {
    "training": ("imagesTr", "labelsTr"),
    "test": ("imagesTs", "labelsTs"),
    "validation": ("imagesVa", "labelsVa"),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The content of a dataset folder as its files declare it; nobody has looked at the images yet."""

    channels: tuple[str, ...]
    """Names of the image channels."""
    scheme: LabelScheme
    """What the values of label maps mean."""
    cases: tuple[Case, ...]
    """All cases but those left out, in order of their ids; files may be missing, ids may occur twice."""
    excluded: tuple[str, ...]
    """Ids of the cases that the dataset file leaves out."""

    @property
    def labels(self) -> dict[str, int]:
        """Values 1 and up by name, in ascending order."""
        return self.scheme.labels


def read_layout(root: Path, dataset: Dataset) -> Layout:
    """Reads dataset.json of a folder, or lists the folder, and applies the dataset file.

    Raises:
        UserError: there is no dataset.json, it is malformed, it names files outside the folder, no case is left, the
            dataset file names a case, label or section that does not exist, a case has no modality or several, or a
            label is annotated in no training case.
    """
    source = root / "dataset.json"
    if not source.is_file():
        raise UserError(f"{root}: there is no dataset.json in this folder; 'megavoxel fetch' brings one")
    content = read_json(source, what="dataset description")
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected a JSON object with 'labels' and 'modality' or 'channel_names'")
    scheme = dataset.label_scheme or label_scheme(
        _labels(content, source), content.get("regions_class_order"), str(source)
    )
    channels = _channels(content, source) if dataset.channels is None else dataset.channels
    listed = "training" in content and not _has_own_list(content) and not _is_numbered(root, content, source)
    _require_section(root, content, dataset, listed)
    splits = {"training": "training"} | ({} if dataset.test_section == "none" else {dataset.test_section: "test"})
    if listed:
        found = _declared_cases(content, splits, source)
    else:
        found = _found_cases(root, content, splits, len(channels), source)
    cases = sorted(found, key=lambda case: (case.id, case.images))
    if not cases:
        hint = f"{' and '.join(map(repr, splits))} are empty" if listed else "imagesTr has no CASE_0000.nii.gz"
        raise UserError(f"{root}: there are no cases: {hint}")
    for case in cases:
        require_file_name(case.id, f"{source}: case")
    kept, excluded = adjusted_cases(cases, dataset, root)
    recorded = with_recorded(dataset, content.get("unannotated", {}), source)
    annotated = annotated_cases(kept, recorded, scheme, {case.id for case in cases})
    return Layout(channels=channels, scheme=scheme, cases=annotated, excluded=excluded)


def _has_own_list(content: dict[str, Any]) -> bool:
    """Whether the training cases are listed as nnU-Net does; a text of that name is somebody's description."""
    return isinstance(content.get("dataset"), dict)


def _is_numbered(root: Path, content: dict[str, Any], source: Path) -> bool:
    """Whether the listed training images lie on disk by nnU-Net's names, with the number of their channel."""
    cases = list(_declared_cases(content, {"training": "training"}, source))
    plain = [root / case.images[0] for case in cases]
    endings = [path.name.removeprefix(stem_of(path.name)) for path in plain]
    numbered = [path.with_name(f"{case.id}_0000{end}") for case, path, end in zip(cases, plain, endings, strict=True)]
    return any(path.is_file() for path in numbered) and not any(path.is_file() for path in plain)


def _require_section(root: Path, content: dict[str, Any], dataset: Dataset, listed: bool) -> None:
    """Refuses a section that is asked for and not there; "test" may be missing, as in datasets without test images."""
    section = dataset.test_section
    if section in ("test", "none"):
        return
    folder = root / FOLDERS[section][0]
    if not (section in content if listed else _names(folder)):
        missing = f"{root}/dataset.json has no '{section}'" if listed else f"there are no images in {folder}"
        raise UserError(f"dataset {dataset.name}: test_section: {missing}; leave the key out, or name another section")


def _labels(content: dict[str, Any], source: Path) -> dict[str, Any]:
    """Values by name, from {"1": "liver"} or {"liver": 1}; a region has a list of values."""
    entries = content.get("labels")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f'{source}: \'labels\' must name the label values, as in {{"0": "background", "1": "liver"}}')
    by_value = all(key.isdecimal() for key in entries) and all(isinstance(name, str) for name in entries.values())
    pairs = [(name, value) for value, name in entries.items()] if by_value else list(entries.items())
    labels: dict[str, Any] = {}
    for name, value in pairs:
        if name in labels:
            raise UserError(f"{source}: labels: two values have the name '{name}'; name each value once")
        labels[name] = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,5}", value) else value
    return labels


def _channels(content: dict[str, Any], source: Path) -> tuple[str, ...]:
    entries = content.get("channel_names", content.get("modality"))
    numbered = isinstance(entries, dict) and set(entries) == {str(number) for number in range(len(entries))}
    if not entries or not numbered or not all(isinstance(name, str) for name in entries.values()):
        raise UserError(
            f"{source}: 'modality' or 'channel_names' must name the channels from 0 on, as in {{\"0\": \"CT\"}}; "
            "or list them under 'channels' of the dataset file"
        )
    return tuple(entries[str(number)] for number in range(len(entries)))


def _declared_cases(content: dict[str, Any], splits: dict[str, str], source: Path) -> Iterator[Case]:
    for section, split in splits.items():
        entries = content.get(section, [])
        if not isinstance(entries, list):
            raise UserError(f"{source}: '{section}' must be a list of cases")
        for entry in entries:
            image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
            if not isinstance(image, str) or not isinstance(label, str | None):
                raise UserError(f'{source}: {section}: expected {{"image": FILE, "label": FILE}}, found {entry!r}')
            path = _inside(image, source)
            if not path.name.startswith("."):
                inner = None if label is None else str(_inside(label, source))
                case = _case_id(path, source)
                if inner is None and split == "test":
                    inner = _label_beside(source.parent, FOLDERS[section][1], case)
                yield Case(id=case, images=(str(path),), label=inner, split=split)


def _found_cases(
    root: Path, content: dict[str, Any], splits: dict[str, str], channels: int, source: Path
) -> Iterator[Case]:
    ending = content.get("file_ending", NIFTI)
    if ending not in SUFFIXES:
        raise UserError(
            f"{source}: file_ending: {ending!r} is not read; convert the files to one of {', '.join(SUFFIXES)}"
        )
    for section, split in splits.items():
        if section == "training" and _has_own_list(content):
            yield from _named_cases(content["dataset"], source)
            continue
        images, labels = FOLDERS[section]
        found: dict[str, set[int]] = {}
        for name in _names(root / images):
            match = re.fullmatch(rf"(.+)_(\d{{4}}){re.escape(ending)}", name)
            if match:
                found.setdefault(match[1], set()).add(int(match[2]))
        labelled = {name.removesuffix(ending) for name in _names(root / labels) if name.endswith(ending)}
        for case in sorted(labelled | set(found)):
            numbers = sorted(found.get(case, set()) | set(range(channels)))
            yield Case(
                id=case,
                images=tuple(f"{images}/{case}_{number:04d}{ending}" for number in numbers),
                label=f"{labels}/{case}{ending}" if case in labelled else None,
                split=split,
            )


def _named_cases(entries: dict[str, Any], source: Path) -> Iterator[Case]:
    """The training cases under "dataset" of nnU-Net's dataset.json."""
    for case, entry in entries.items():
        images, label = (entry.get("images"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        sound = isinstance(images, list) and images and all(isinstance(name, str) for name in images)
        if not sound or not isinstance(label, str | None):
            raise UserError(
                f'{source}: dataset: {case}: expected {{"images": [FILE, ...], "label": FILE}}, found {shown(entry)}'
            )
        paths = [_inside(name, source) for name in images]
        for path in paths:
            _case_id(path, source)
        inner = None if label is None else str(_inside(label, source))
        yield Case(id=case, images=tuple(map(str, paths)), label=inner, split="training")


def _label_beside(root: Path, folder: str, case: str) -> str | None:
    """The label map of a test case that dataset.json does not name, by the name of the case."""
    return next((f"{folder}/{name}" for name in sorted(_names(root / folder)) if stem_of(name) == case != name), None)


def _names(folder: Path) -> list[str]:
    """File names in a folder that may be absent, without hidden ones."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _inside(name: str, source: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    for part in path.parts[path.is_absolute() :]:
        require_file_name(part.replace("..", "-"), f"{source}: the file {shown(name)}")
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise UserError(f"{source}: the file '{name}' lies outside the dataset's folder; name files below it")
    return path


def _case_id(path: PurePosixPath, source: Path) -> str:
    """The name of a file without its ending, or of the folder of a DICOM series."""
    if (source.parent / path).is_dir():
        return path.name
    stem = stem_of(path.name)
    if stem in ("", path.name):
        raise UserError(
            f"{source}: the file '{path.name}' is of a kind that is not read; convert it to one of "
            f"{', '.join(SUFFIXES)}"
        )
    return stem
