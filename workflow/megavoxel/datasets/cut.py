"""Cuts the training cases of a dataset's folder into blocks, each with the files of a case of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from megavoxel.config.dataset import Blocks, Dataset
from megavoxel.datasets.blocks import Block, blocks_of, in_file_order
from megavoxel.datasets.cases import Case, naming_case
from megavoxel.datasets.check import compare_grids
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.files import read_json, write_json
from megavoxel.volumes.nifti import UNREADABLE, Geometry, read_geometry, unreadable


def cut_training_cases(folder: Path, dataset: Dataset) -> str:
    """Puts the blocks of every training case in the place of its files, and into dataset.json where that lists cases.

    A block's files lie beside those that they are cut from, their names are those with `-bZ-Y-X` after the id of the
    case: `a_0001.nii.gz` becomes `a-b0-2-3_0001.nii.gz`. Stored numbers, type, scaling, intent and the rest of the
    header stay, and the affine has the block's own origin. Test cases stay as they are.

    Args:
        folder: of the dataset; links in it are replaced, what they lead to is left alone.
        dataset: names the blocks. Its keys that name cases are left out of account: they name blocks.

    Returns:
        What was cut, for the reader.

    Raises:
        UserError: the folder cannot be read, a block would be empty, or the files of a case lie on different grids.
        OSError: the disk is full.
    """
    # Patterns of the dataset file are of blocks, which are not there yet.
    whole = replace(
        dataset, include=(), exclude=(), test_cases=(), test_count=None, modalities=None, unannotated={}, hidden=None
    )
    cases = [case for case in read_layout(folder, whole).cases if case.split == "training"]
    work = partial(naming_case, partial(_cut_case, folder=folder, blocks=dataset.blocks))
    cut = list(chain.from_iterable(map(work, cases)))
    for name in {name for case in cases for name in _files(case)}:
        (folder / name).unlink()
    list_cases(folder / "dataset.json", cut)
    return f"training cases are cut into blocks, {len(cut)} from {len(cases)}"


def _files(case: Case) -> tuple[str, ...]:
    return case.images if case.label is None else (*case.images, case.label)


def _cut_case(case: Case, *, folder: Path, blocks: Blocks) -> list[Case]:
    """Writes the files of all blocks of a case."""
    grids = {name: read_geometry(folder / name) for name in _files(case)}
    first = case.images[0]
    for name, grid in grids.items():
        for _, message in compare_grids(grids[first], grid):
            raise UserError(f"{first} and {name} lie on different grids: {message}; mend the files, then fetch again")
    found = blocks_of(grids[first].canonical_shape, blocks)
    for name, grid in grids.items():
        _cut_file(name, grid, case.id, folder=folder, blocks=found)
    return [
        replace(
            case,
            id=f"{case.id}-{block.name}",
            images=tuple(_block_file(name, case.id, block) for name in case.images),
            label=None if case.label is None else _block_file(case.label, case.id, block),
        )
        for block in found
    ]


def _block_file(name: str, case_id: str, block: Block) -> str:
    path = PurePosixPath(name)
    rest = path.name.removeprefix(case_id)
    if rest == path.name:  # a label map may have another name than its image
        rest = ".nii" if path.suffix == ".nii" else ".nii.gz"
    return str(path.with_name(f"{case_id}-{block.name}{rest}"))


def _cut_file(name: str, grid: Geometry, case_id: str, *, folder: Path, blocks: tuple[Block, ...]) -> None:
    """Writes the blocks of one file, 3D or 4D; no more than one block of it is held in memory."""
    volume = nibabel.load(folder / name)
    stored = volume.dataobj
    unscaled = ArrayProxy(str(folder / name), (stored.shape, stored.dtype, stored.offset))
    for block in blocks:
        slices = in_file_order(block.box, grid)
        try:
            voxels = np.asarray(unscaled[slices])
        except UNREADABLE as fault:
            raise unreadable(folder / name, fault) from None
        image = type(volume)(voxels, volume.slicer.slice_affine(slices), volume.header)
        if (stored.slope, stored.inter) != (1, 0):
            image.header.set_slope_inter(stored.slope, stored.inter)
        _keep_codes(volume.header, image.header, [part.start for part in slices])
        image.to_filename(folder / _block_file(name, case_id, block))


def _keep_codes(whole: nibabel.Nifti1Header, block: nibabel.Nifti1Header, start: list[int]) -> None:
    """Gives a block both affines of its volume, moved, with what their codes say: programs differ in which they read.

    A block whose volume has neither keeps the one that it was made with.
    """
    moved = np.eye(4)
    moved[:3, 3] = start
    for form in ("qform", "sform"):
        affine, code = getattr(whole, f"get_{form}")(coded=True)
        if affine is not None:
            getattr(block, f"set_{form}")(affine @ moved, int(code))


def list_cases(description: Path, cases: list[Case]) -> None:
    """Rewrites what dataset.json says of the training cases; where it has no list of them, their number alone.

    Raises:
        UserError: it has a value that cannot be written back.
    """
    content = read_json(description, what="dataset description")
    if "training" in content:
        content["training"] = [
            {"image": case.images[0]} | ({} if case.label is None else {"label": case.label}) for case in cases
        ]
    if "unannotated" in content:
        labels = content["unannotated"]
        content["unannotated"] = {label: [case.id for case in cases if label in case.unannotated] for label in labels}
    if "numTraining" in content:
        content["numTraining"] = len(cases)
    try:
        write_json(description, content)
    except ValueError:
        raise UserError(f"{description}: has NaN or Infinity as a value, which JSON does not know; remove it") from None
