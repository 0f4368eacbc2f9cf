"""Cases: what `check` found sound, in one file (`cases.json`) that every later stage reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.regions import Regions, structures_of
from megavoxel.errors import UserError, expect
from megavoxel.files import read_json, require_file_name, write_json
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.open import open_volume, read_geometry
from megavoxel.volumes.volume import Volume, joined_image

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One patient or scan."""

    id: str
    """Name of its files without suffix."""
    images: tuple[str, ...]
    """One file (3D, or 4D with the channels last) or one file per channel, below the dataset's folder."""
    label: str | None = None
    """Label map below the dataset's folder; None: unlabelled."""
    split: str = "training"
    """`training` or `test`."""
    modality: str | None = None
    """Name of the modality that it is normalised with; None: the dataset has no modalities."""
    unannotated: tuple[str, ...] = ()
    """Names of the labels that nobody drew in it, though they may be there. The key is not written where there are
    none."""
    hidden: tuple[str, ...] = ()
    """Names of the labels whose annotation is kept from training and not from scores. Written as `unannotated` is."""
    group: str | None = None
    """Group of cases, usually a patient, that no fold divides; None: the dataset has no groups. Written as
    `unannotated` is."""
    picture: str | None = None
    """Name of the report's picture that it can be chosen for, where the dataset file has a table of that. Written as
    `unannotated` is."""
    subgroups: dict[str, str] = field(default_factory=dict)
    """Values by column of the table of subgroups, where the dataset file names one. Written as `unannotated` is."""

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of the labels that nothing which shapes a prediction may take from its label map."""
        return tuple(sorted({*self.unannotated, *self.hidden}))


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The sound cases of a dataset."""

    dataset: str
    """Name of the dataset."""
    root: str
    """The dataset's folder."""
    channels: tuple[str, ...]
    """Names of the image channels."""
    labels: dict[str, int]
    """Values 1 and up by name; background is left out."""
    nsd_tolerance_mm: dict[str, float]
    """Tolerance of NSD per label name in mm."""
    cases: tuple[Case, ...]
    background_values: tuple[int, ...] = ()
    """Values of the label files that count as background. The key is not written where there are none."""
    regions: Regions | None = None
    """What is segmented and scored in place of the labels. Written as `background_values` is."""
    ignore_value: int | None = None
    """Value of voxels that nobody annotated. Written as `background_values` is."""

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is segmented and scored, with its values in label maps: the regions, else the labels."""
        return structures_of(self.labels, self.regions)

    @property
    def unlabelled_values(self) -> tuple[int, ...]:
        """Values of label maps besides 0 that are of no label: background, and voxels that nobody annotated."""
        return (*self.background_values, *(() if self.ignore_value is None else (self.ignore_value,)))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities in alphabetical order; none where the cases have none."""
        return tuple(sorted({case.modality for case in self.cases if case.modality is not None}))

    @property
    def pictures(self) -> dict[str, list[str]]:
        """Ids of the cases that each picture of a case can show, by its name: those that the dataset file names, else
        the modalities; none where there are neither."""
        named = any(case.picture is not None for case in self.cases)
        found: dict[str, list[str]] = {}
        for case in self.cases:
            name = case.picture if named else case.modality
            if name is not None:
                found.setdefault(name, []).append(case.id)
        return dict(sorted(found.items()))

    def of_split(self, split: str) -> tuple[Case, ...]:
        """The cases of `training` or `test`, in order of their ids."""
        return tuple(sorted((case for case in self.cases if case.split == split), key=lambda case: case.id))

    def case(self, name: str) -> Case:
        """The case of that id.

        Raises:
            UserError: there is none.
        """
        for case in self.cases:
            if case.id == name:
                return case
        raise UserError(f"dataset {self.dataset}: there is no case '{name}' among the {len(self.cases)} checked ones")

    def open_images(self, case: Case) -> list[Volume]:
        """The files of a case's image, opened: one with all channels, or one per channel."""
        return [open_volume(Path(self.root) / name) for name in case.images]

    def open_labels(self, case: Case) -> Volume:
        """The label map of a case, opened.

        Raises:
            UserError: the case has no label map.
        """
        if case.label is None:
            raise UserError(f"case {case.id}: it has no label map")
        return open_volume(Path(self.root) / case.label)

    def read_image(self, case: Case) -> tuple[np.ndarray, Geometry]:
        """Image of a case as float32 (channels, z, y, x) in canonical order, and its grid on disk."""
        volumes = self.open_images(case)
        return joined_image(volumes), volumes[0].geometry

    def read_labels(self, case: Case) -> np.ndarray:
        """Label map of a case (z, y, x) in canonical order, with 0 for all `background_values`; voxels that nobody
        annotated keep their value.

        Raises:
            UserError: the case has no label map.
        """
        labels = self.open_labels(case).labels()
        if self.background_values:
            labels[np.isin(labels, self.background_values)] = 0
        return labels

    def read_annotation(self, case: Case) -> np.ndarray:
        """As `read_labels`, with 0 for voxels that nobody annotated: what can be shown of it."""
        labels = self.read_labels(case)
        if self.ignore_value is not None:
            labels[labels == self.ignore_value] = 0
        return labels

    def read_geometry(self, case: Case) -> Geometry:
        """Grid of a case on disk, from the header alone."""
        return read_geometry(Path(self.root) / case.images[0])


def together(cases: Iterable[Case]) -> list[list[Case]]:
    """The cases of each group, groups in order of their names; without groups, each case by itself."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.id if case.group is None else case.group, []).append(case)
    return [found[name] for name in sorted(found)]


def save_cases(path: Path, cases: Any) -> None:
    """Writes `cases.json`, of either task; `background_values`, `regions`, `ignore_value`, and `unannotated`, `hidden`,
    `group`, `picture` and `subgroups` of a case, only where there are some.
    """
    plain = _without_empty(to_plain(cases), "background_values", "regions", "ignore_value")
    optional = ("unannotated", "hidden", "group", "picture", "subgroups")
    write_json(path, plain | {"cases": [_without_empty(case, *optional) for case in plain["cases"]]})


def load_cases(path: Path) -> Cases:
    """Reads `cases.json`.

    Raises:
        UserError: the file is missing or not what `megavoxel check` writes.
    """
    cases = from_plain(Cases, read_json(path, what="list of cases"), where=str(path))
    _check(cases, str(path))
    return cases


def _check(cases: Cases, where: str) -> None:
    """Refuses what `megavoxel check` never writes: names that lead elsewhere, or labels without a value."""
    values = [*cases.labels.values()]
    expect(len(cases.channels) > 0, f"{where}: channels", "one name or more")
    expect(len(values) > 0 and len(set(values)) == len(values), f"{where}: labels", "a value of its own for each")
    expect(all(0 < value <= 65535 for value in values), f"{where}: labels", "values from 1 to 65535")
    expect(
        set(cases.structures) <= set(cases.nsd_tolerance_mm), f"{where}: nsd_tolerance_mm", "a number for each label"
    )
    known = {value for values in cases.structures.values() for value in values}
    expect(known == set(values), f"{where}: regions", "values of the labels, all of them")
    expect(
        all(value >= 0 for value in cases.nsd_tolerance_mm.values()), f"{where}: nsd_tolerance_mm", "no negative one"
    )
    expect(len({case.id for case in cases.cases}) == len(cases.cases), f"{where}: cases", "each id once")
    for case in cases.cases:
        require_file_name(case.id, f"{where}: cases")
        if case.picture is not None:
            require_file_name(case.picture, f"{where}: case {case.id}: picture")
        files = [PurePosixPath(name) for name in (*case.images, *filter(None, [case.label]))]
        is_inside = all(not file.is_absolute() and ".." not in file.parts for file in files)
        expect(is_inside and len(case.images) > 0, f"{where}: case {case.id}", "files below the dataset's folder")
        expect(case.split in ("training", "test"), f"{where}: case {case.id}: split", "training or test")
        expect(set(case.unseen) <= set(cases.labels), f"{where}: case {case.id}: unannotated", "names of labels")


def _without_empty(plain: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if value or key not in keys}


def case_generator(case_id: str) -> np.random.Generator:
    """Random numbers that depend on a case's id alone."""
    return np.random.default_rng(list(case_id.encode()))


def naming_case(work: Callable[[Case], Result], case: Case) -> Result:
    """`work(case)`; what goes wrong in it names the case.

    Raises:
        UserError: what `work` raised, or memory ran out.
    """
    try:
        return work(case)
    except UserError as error:
        named = str(error).startswith(f"case {case.id}:")
        raise error if named else UserError(f"case {case.id}: {error}") from None
    except MemoryError:
        raise UserError(f"case {case.id}: memory ran out; run with fewer --processes, or more memory") from None
    except Exception as fault:
        fault.add_note(f"while working on case {case.id}")
        raise
