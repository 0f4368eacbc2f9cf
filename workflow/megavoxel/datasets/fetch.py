"""Brings a dataset to its folder: made from a seed, linked or merged from a folder, or downloaded and extracted, then
cut."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from megavoxel.config.dataset import Dataset
from megavoxel.config.source import Source
from megavoxel.datasets.archive import extract_dataset
from megavoxel.datasets.blocks import cut_training_cases
from megavoxel.datasets.download import (
    RECORDS,
    archive_name,
    checksum_fault,
    download,
    record_checksum,
    recorded_checksum,
)
from megavoxel.datasets.folder import link_folder, replaced_folder, write_checksums
from megavoxel.datasets.pairs import link_pairs
from megavoxel.datasets.patients import write_patients
from megavoxel.datasets.phantom import write_phantoms
from megavoxel.errors import UserError
from megavoxel.files import write_json


def fetch(dataset: Dataset, output: Path, *, downloads: Path, mirror: Path | None = None, copy: bool = False) -> str:
    """Writes a dataset's folder with its checksums.tsv, whole or not at all.

    Where the publisher gives no checksum of an archive, the SHA-256 of the first one that could be extracted is
    recorded in archives.tsv beside the folder, and from then on the archive of that address must have it.

    Args:
        dataset: names the source, and the blocks that training cases are cut into, if any.
        output: the folder; one that an earlier fetch made is replaced.
        downloads: where archives are kept, each in a folder of its dataset's name.
        mirror: a folder that is looked at before any address: for the archive, then for a folder of the dataset's name.
        copy: copy the files of a folder instead of linking them.

    Returns:
        One line that says where the files came from.

    Raises:
        UserError: the source is missing, refuses, is not what its checksum says, or cannot be merged or cut.
        OSError: the disk is full; nothing of `output` is left behind.
    """
    if mirror is not None and not mirror.is_dir():
        raise UserError(f"mirror {mirror}: no such folder; give one that exists, or leave it out")
    records = output.parent / RECORDS
    origin = _find(dataset, downloads=downloads, mirror=mirror, records=records)
    if origin is not None and origin.is_dir():
        _refuse_overlap(origin, output)
    merged = None
    with replaced_folder(output) as folder:
        if origin is None:
            write_phantoms(folder, dataset.source.phantom, name=dataset.name)
        elif dataset.patients is not None:
            merged = write_patients(origin, folder, dataset)
        elif dataset.files is not None:
            merged = link_pairs(origin, folder, dataset, copy=copy)
        elif origin.is_dir():
            link_folder(origin, folder, copy=copy)
            if dataset.classification is not None:
                write_json(folder / "dataset.json", {"name": dataset.name, "task": "classification"})
        else:
            extract_dataset(origin, folder)
        cut = "" if dataset.blocks is None else f"; {cut_training_cases(folder, dataset)}"
        write_checksums(folder)
    if dataset.source.checksum is not None and origin.is_file():
        record_checksum(records, dataset.source.url, origin, beside=origin.is_relative_to(downloads))
    if origin is None:
        return f"phantoms of seed {dataset.source.phantom.seed}{cut}"
    if merged is not None:
        return f"{merged}, from {origin.resolve()}"
    if origin.is_dir():
        return f"{'copied from' if copy else 'links to'} {origin.resolve()}{cut}"
    return f"extracted from {origin}, which may be deleted now{cut}"


def _find(dataset: Dataset, *, downloads: Path, mirror: Path | None, records: Path) -> Path | None:
    """The folder or the verified archive with the dataset; None for phantoms."""
    if dataset.source.phantom is not None:
        return None
    if dataset.source.folder is not None:
        return _find_folder(dataset, mirror)
    source, remedy = _expectation(dataset.source, records)
    mirrored = _find_in_mirror(dataset.name, source, mirror, remedy) if mirror is not None else None
    return mirrored or download(source, downloads / dataset.name, remedy=remedy)


def _expectation(source: Source, records: Path) -> tuple[Source, str]:
    """The source with the checksum that its archive must have, if one is known, and what to do if it has another."""
    recorded = recorded_checksum(records, source.url) if source.checksum is not None else None
    if recorded is None:
        return source, "correct the checksum in the dataset file"
    return replace(source, sha256=recorded, checksum=None), (
        f"this address has another file now than when {records} recorded the checksum: to take the new file, remove "
        f"the line of the address from {records}"
    )


def _find_folder(dataset: Dataset, mirror: Path | None) -> Path:
    named = Path(dataset.source.folder).expanduser()
    places = [named] if named.is_absolute() else [*([mirror / named] if mirror is not None else []), named]
    for place in places:
        with suppress(OSError):  # a name that is longer than any file's
            if place.is_dir() if _is_described(dataset) else (place / "dataset.json").is_file():
                return place
    content = "" if _is_described(dataset) else "/dataset.json"
    looked = " nor ".join(f"{place.absolute()}{content}" for place in places)
    hint = "" if named.is_absolute() else "; give the folder it lies in by --config mirror=DIR (--mirror DIR here)"
    raise UserError(f"dataset {dataset.name}: its source folder was not found: there is no {looked}{hint}")


def _is_described(dataset: Dataset) -> bool:
    """Whether the dataset file says how a folder without dataset.json is laid out."""
    return any((dataset.patients, dataset.files, dataset.classification))


def _find_in_mirror(name: str, source: Source, mirror: Path, remedy: str) -> Path | None:
    archive, folder = mirror / archive_name(source.url), mirror / name
    if archive.is_file():
        fault = checksum_fault(archive, source)
        if fault is not None:
            raise UserError(
                f"{archive}: {fault}; bring a good copy to the mirror, or remove this one; if the copy is good, "
                f"{remedy}"
            )
        return archive
    return folder if (folder / "dataset.json").is_file() else None


def _refuse_overlap(origin: Path, output: Path) -> None:
    source, target = origin.resolve(), output.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise UserError(
            f"{output}: this output and the source {origin} lie in each other, and writing one would destroy the "
            "other; choose another output"
        )
