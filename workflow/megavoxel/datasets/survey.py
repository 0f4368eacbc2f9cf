"""What a folder of images and label maps holds: its layout, its labels, and what its files say when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pandas

from megavoxel.config.dataset import Dataset
from megavoxel.config.regions import LabelScheme, Regions
from megavoxel.config.source import Files, Source
from megavoxel.datasets.cases import Case, naming_case
from megavoxel.datasets.dicom_naming import folder_of_patients, guess_dicom, has_dicom
from megavoxel.datasets.folder import unused_files, visible_files
from megavoxel.datasets.groups import guess_groups
from megavoxel.datasets.layout import read_layout
from megavoxel.datasets.naming import guess_files
from megavoxel.datasets.pairs import listed, pairs
from megavoxel.datasets.patient_naming import guess_patients
from megavoxel.datasets.patient_survey import survey_patients
from megavoxel.datasets.surveyed import (
    Asked,
    Survey,
    channel_names,
    made_up,
    refuse_images,
    refuse_unnamed,
    sizes_of,
)
from megavoxel.errors import UserError, faults_listed
from megavoxel.files import read_json
from megavoxel.parallel import map_cases
from megavoxel.volumes.checks import grid_faults, values_of
from megavoxel.volumes.no_scans import is_link_to_nothing
from megavoxel.volumes.open import SUFFIXES, open_volume, suffix_of

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """A folder's cases before anybody has looked into the files."""

    root: Path
    name: str
    files: Files | None
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: dict[str, int] | None
    regions: Regions | None = None
    ignore_value: int | None = None

    def scheme_of(self, labels: dict[str, int]) -> LabelScheme:
        """What the values of label maps mean, with the labels that were asked for or found."""
        if labels is not self.labels:
            return LabelScheme(labels=labels)
        return LabelScheme(labels=labels, regions=self.regions, ignore_value=self.ignore_value)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the files of a case say."""

    shape: tuple[int, ...] = ()
    """Voxels along z, y, x; empty: a file cannot be read."""
    spacing: tuple[float, ...] = ()
    values: frozenset[int] = frozenset()
    faults: tuple[str, ...] = ()


def survey(folder: Path, asked: Asked, *, processes: int = 1) -> Survey:
    """Looks at a folder: a Decathlon or nnU-Net dataset, BIDS with derivatives, images and label maps, or a folder per
    patient with a mask per label or with DICOM.

    Args:
        folder: nothing in it is changed.
        asked: what the user says of it.

    Raises:
        UserError: there are no images or no label maps, several would do, label maps hold values that have no name, or
            cases lack a file or have a faulty one; lists all of these.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with images and label maps")
    root = _described_root(folder) if not (asked.images or asked.label) else None
    names = [] if root else [path.as_posix() for path in visible_files(folder) if suffix_of(path.name)]
    if root is None and asked.label is None and len(asked.images) <= 1:
        patients = _naming(folder, partial(guess_patients, names, image=next(iter(asked.images), None)))
        if patients is not None:
            return survey_patients(folder, patients, asked, processes=processes)
    try:
        found = _paired(folder, names, asked) if root is None else _described(root, asked)
    except UserError:
        if root is None and not asked.images and has_dicom(folder):
            return _survey_dicom(folder, asked, processes)
        raise
    return _survey_pairs(found, asked, processes)


def _survey_dicom(folder: Path, asked: Asked, processes: int) -> Survey:
    root = folder_of_patients(folder)
    return survey_patients(root, guess_dicom(root, label=asked.label, processes=processes), asked, processes=processes)


def _survey_pairs(found: _Layout, asked: Asked, processes: int) -> Survey:
    absent = {case.id: names for case in found.cases if (names := _absent(found.root, case))}
    unlabelled = tuple(case.id for case in found.cases if case.split == "training" and case.label is None)
    lacking = {*unlabelled, *absent}
    present = [case for case in found.cases if case.split == "training" and case.id not in lacking]
    if not present and not absent:
        raise UserError(f"{found.root}: no image has a label map, so that there is nothing to train on")
    look = partial(_looked_at, found.root, found.channels)
    looked = map_cases(look, present, processes=processes, title="reading images and label maps")
    if not (asked.labels or found.labels):
        refuse_images({value for one in looked for value in one.values}, found.root)
    faulty = {case.id for case, one in zip(present, looked, strict=True) if one.faults}
    faults = [*_lacking(found, absent, unlabelled), *chain(*(one.faults for one in looked))]
    training = [case for case in present if case.id not in faulty]
    if faults and not (asked.leave_out and training):
        raise faults_listed(str(found.root), faults, "or leave these cases out by --leave-out")
    excluded = {*lacking, *faulty}
    seen = [one for one in looked if not one.faults]
    values = {value: case.id for case, one in reversed(list(zip(training, seen, strict=True))) for value in one.values}
    labels = asked.labels or found.labels
    if labels is not None:
        refuse_unnamed(values, found.scheme_of(labels), found.root)
    named = made_up(values, found.root) if labels is None else _sorted(labels, values, found)
    return Survey(
        root=found.root.resolve(),
        layout=found.name,
        files=found.files,
        channels=found.channels,
        scheme=replace(found.scheme_of(labels or {}), labels=named),
        splits=_splits_beside(found),
        unnamed=labels is None,
        excluded=tuple(sorted(excluded)),
        unused=unused_files(found.root, found.cases),
        groups=guess_groups(sorted({case.id for case in found.cases if case.id not in excluded})),
        label_maps=tuple(found.root / case.label for case in training),
        training_cases=len(training),
        test_cases=sum(case.split == "test" and case.id not in excluded for case in found.cases),
        **sizes_of([(one.shape, one.spacing) for one in seen]),
    )


def _lacking(found: _Layout, absent: dict[str, list[str]], unlabelled: Sequence[str]) -> list[str]:
    """Files that are not there or links to nothing, and images without a label map, in a sentence each."""
    faults, names = [], list(chain(*absent.values()))
    links = [name for name in names if is_link_to_nothing(found.root / name)]
    if links:
        faults.append(
            f"these files are links to nothing: {listed(links)}; bring what they lead to, as by 'git annex get' or "
            "'datalad get'"
        )
    missing = sorted(set(names) - set(links))
    if missing:
        several = len(found.channels) > 1
        channels = f"; every case needs all channels ({', '.join(found.channels)})" if several else ""
        faults.append(
            f"its dataset.json and file names ask for files that are not there: {listed(missing)}{channels}; bring "
            "these files"
        )
    if unlabelled:
        faults.append(f"{len(unlabelled)} images have no label map: {listed(unlabelled)}; bring the label maps")
    return faults


def _described_root(folder: Path) -> Path | None:
    """The folder with dataset.json: this one, or the only one in it that has one; None: there is none."""
    if (folder / "dataset.json").is_file():
        return folder
    inner = sorted(path.parent for path in folder.glob("*/dataset.json") if not path.parent.name.startswith("."))
    if len(inner) > 1:
        raise UserError(
            f"{folder}: several datasets lie in it ({', '.join(path.name for path in inner)}); name one of them"
        )
    return inner[0] if inner else None


def _described(root: Path, asked: Asked) -> _Layout:
    content = read_json(root / "dataset.json", what="dataset description")
    is_decathlon = isinstance(content, dict) and "channel_names" not in content and "file_ending" not in content
    dataset = Dataset(
        name="init", source=Source(folder=str(root)), labels=asked.labels or None, channels=asked.channels or None
    )
    layout = read_layout(root, dataset)
    return _Layout(
        root=root,
        name="Medical Segmentation Decathlon" if is_decathlon else "nnU-Net raw",
        files=None,
        cases=layout.cases,
        channels=layout.channels,
        labels=layout.scheme.labels,
        regions=layout.scheme.regions,
        ignore_value=layout.scheme.ignore_value,
    )


def _require_volumes(folder: Path, names: Sequence[str]) -> None:
    if not names:
        visible = visible_files(folder)
        kinds = sorted({path.suffix for path in visible if path.suffix})[:8]
        there = f"; it has files of the kinds {', '.join(kinds)}, to be converted" if kinds else ""
        raise UserError(
            f"{folder}: no images are found: there is no file that ends in {' or '.join(SUFFIXES)}, nor DICOM{there}"
        )


def _naming(folder: Path, work: Callable[[], Result]) -> Result:
    """`work()`; what goes wrong in it names the folder."""
    try:
        return work()
    except UserError as fault:
        raise fault if str(fault).startswith(str(folder)) else UserError(f"{folder}: {fault}") from None


def _paired(folder: Path, names: Sequence[str], asked: Asked) -> _Layout:
    _require_volumes(folder, names)
    guess = _naming(folder, partial(guess_files, names, images=asked.images, label=asked.label))
    images, labels = _naming(folder, partial(pairs, folder, guess.files))
    cases = tuple(
        Case(id=case, images=tuple(found[case] for found in images), label=labels.get(case)) for case in images[0]
    )
    return _Layout(
        root=folder,
        name="BIDS with derivatives" if guess.is_bids else "images and label maps",
        files=guess.files,
        cases=cases,
        channels=asked.channels or _channel_names(folder, guess.files, cases),
        labels=_names_of_bids(folder, labels.values()) if guess.is_bids else None,
    )


def _absent(root: Path, case: Case) -> list[str]:
    """Files of a case that are not there, or are links to nothing."""
    return [name for name in (*case.images, case.label) if name and not (root / name).exists()]


def _channel_names(folder: Path, files: Files, cases: Sequence[Case]) -> tuple[str, ...]:
    case = next((case for case in cases if not _absent(folder, case)), None)
    if case is None:
        return ("image",) * len(files.images)
    return channel_names([(pattern, folder / image) for pattern, image in zip(files.images, case.images, strict=True)])


def _names_of_bids(folder: Path, labels: Sequence[str]) -> dict[str, int] | None:
    """Names from the tables `*dseg.tsv` (columns index, name) in the folders above the label maps; None: no table.

    Raises:
        UserError: a table has other columns, or two tables name a value differently.
    """
    above = {parent for label in labels for parent in PurePosixPath(label).parents}
    tables = sorted(path for parent in above for path in (folder / parent).glob("*dseg.tsv"))
    names: dict[int, str] = {}
    for path in tables:
        for value, name in _read_names(path).items():
            if names.setdefault(value, name) != name:
                raise UserError(f"{path}: the value {value} is '{name}' here and '{names[value]}' in another table")
    return {name: value for value, name in names.items() if value > 0} or None


def _read_names(path: Path) -> dict[int, str]:
    try:
        table = pandas.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
        table.columns = [column.strip().lower() for column in table.columns]
        named = zip(table["index"], table["name"], strict=True)
        return {_whole_value(value): name.strip() for value, name in named if value.strip() and name.strip()}
    except (KeyError, ValueError, OSError) as fault:
        raise UserError(
            f"{path}: expected the columns 'index' and 'name' of BIDS, separated by tabs ({fault})"
        ) from None


def _whole_value(text: str) -> int:
    if not float(text).is_integer():
        raise ValueError(f"the index {text} is no whole number")
    return int(float(text))


def _looked_at(root: Path, channels: tuple[str, ...], case: Case) -> _Seen:
    """What a case's files say, and what is wrong with them."""
    try:
        return naming_case(partial(_look, root, channels), case)
    except UserError as fault:
        return _Seen(faults=(str(fault),))


def _look(root: Path, channels: tuple[str, ...], case: Case) -> _Seen:
    volumes = {name: open_volume(root / name) for name in case.images}
    stored = {name: volume.channels for name, volume in volumes.items()}
    if sum(stored.values()) != len(channels):
        _refuse_volumes(stored, channels)
    grid = volumes[case.images[0]].geometry
    label = open_volume(root / case.label)
    values = values_of(label)
    return _Seen(
        shape=grid.canonical_shape,
        spacing=grid.spacing,
        values=frozenset(values - {0}),
        faults=tuple(f"case {case.id}: {message}" for _, message in grid_faults({**volumes, case.label: label})),
    )


def _refuse_volumes(stored: dict[str, int], channels: tuple[str, ...]) -> None:
    several = {name: volumes for name, volumes in stored.items() if volumes > 1}
    total = sum(stored.values())
    if several:
        name, volumes = next(iter(several.items()))
        raise UserError(
            f"{name} has four dimensions, with {volumes} volumes; {len(channels)} channels are named "
            f"({', '.join(channels)}): if the volumes are channels, name them all by --channels, {total} in all; a "
            "series over time has to be cut into files of one volume each"
        )
    raise UserError(
        f"{total} images for {len(channels)} channels ({', '.join(channels)}); name as many as there are by --channels"
    )


def _splits_beside(found: _Layout) -> Path | None:
    """nnU-Net's file of folds beside dataset.json; None: there is none."""
    path = found.root.resolve() / "splits_final.json"
    return path if found.files is None and path.is_file() else None


def _sorted(labels: dict[str, int], values: dict[int, str], found: _Layout) -> dict[str, int]:
    """In ascending order of the values; of the many that a table of BIDS may name, those that occur."""
    kept = {name: value for name, value in labels.items() if found.files is None or value in values}
    return dict(sorted(kept.items(), key=lambda item: item[1]))
