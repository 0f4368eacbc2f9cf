"""Cuts the training cases of a dataset's folder into blocks, each with the files of a case of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path, PurePosixPath

from nibabel.orientations import io_orientation

from megavoxel.config.dataset import Dataset
from megavoxel.config.source import Blocks
from megavoxel.datasets.cases import Case, naming_case
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.files import read_json, write_json
from megavoxel.volumes.grid import Geometry, compare_grids
from megavoxel.volumes.open import open_volume, suffix_of
from megavoxel.volumes.volume import Volume

AXES = ("z", "y", "x")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A box of a volume that becomes a case of its own."""

    name: str
    """`b` and its place along z, y, x, such as `b0-2-3`; names sort as places do."""
    box: tuple[tuple[int, int], ...]
    """Per canonical axis (z, y, x): first voxel of the block and first voxel after it."""


def blocks_of(shape: Sequence[int], blocks: Blocks) -> tuple[Block, ...]:
    """The blocks of a volume in order of their places, x fastest.

    No voxel lies in two blocks, and every voxel lies in a block or in a margin between two.

    Args:
        shape: voxels of the volume along z, y, x.
        blocks: how many blocks along each axis, and the margins between them.

    Raises:
        UserError: a block would have no voxel; names the axis.
    """
    sides = [
        _cut(size, count, margin, axis)
        for size, count, margin, axis in zip(shape, blocks.counts, blocks.margins, AXES, strict=True)
    ]
    return tuple(
        Block(
            name="b" + "-".join(_number(place, side) for place, side in zip(places, sides, strict=True)),
            box=tuple(side[place] for place, side in zip(places, sides, strict=True)),
        )
        for places in product(*(range(len(side)) for side in sides))
    )


def in_file_order(box: Sequence[tuple[int, int]], geometry: Geometry) -> tuple[slice, ...]:
    """Where a canonical box (z, y, x) lies in the array of a file (i, j, k), which may run the other way."""
    slices = []
    for size, (world, direction) in zip(geometry.shape, io_orientation(geometry.affine), strict=True):
        start, stop = box[2 - int(world)]
        slices.append(slice(start, stop) if direction > 0 else slice(size - stop, size - start))
    return tuple(slices)


def _cut(size: int, count: int, margin: int, axis: str) -> list[tuple[int, int]]:
    """First voxel and first voxel after each block of one axis; sizes differ by one voxel at most, the larger first."""
    left = size - margin * (count - 1)
    if left < count:
        raise UserError(
            f"{size} voxels along {axis} are too few for {count} blocks with a margin of {margin} voxels between two: "
            f"a block would be empty; lower 'counts' or 'margin' of {axis} under 'blocks' of the dataset file"
        )
    side, longer = divmod(left, count)
    starts = [number * (side + margin) + min(number, longer) for number in range(count)]
    return [(start, start + side + (number < longer)) for number, start in enumerate(starts)]


def _number(place: int, side: Sequence[object]) -> str:
    """A place with as many digits as the last one of its axis, so that names sort as numbers do."""
    return f"{place:0{len(str(len(side) - 1))}}"


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
    volumes = {name: open_volume(folder / name) for name in _files(case)}
    first, grid = case.images[0], volumes[case.images[0]].geometry
    for name, volume in volumes.items():
        for _, message in compare_grids(grid, volume.geometry):
            raise UserError(f"{first} and {name} lie on different grids: {message}; mend the files, then fetch again")
    found = blocks_of(grid.canonical_shape, blocks)
    for name, volume in volumes.items():
        _cut_file(name, volume, case.id, folder=folder, blocks=found)
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
        rest = suffix_of(path.name)
    return str(path.with_name(f"{case_id}-{block.name}{rest}"))


def _cut_file(name: str, volume: Volume, case_id: str, *, folder: Path, blocks: Sequence[Block]) -> None:
    if volume.cut is None:
        raise UserError(f"{name}: files of this kind cannot be cut into blocks; convert them to NIfTI")
    boxes = [in_file_order(block.box, volume.geometry) for block in blocks]
    targets = [folder / _block_file(name, case_id, block) for block in blocks]
    volume.cut(list(zip(boxes, targets, strict=True)))


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
