"""The temperature of a setting: the number that its logits are divided by before they become probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megavoxel.config.records import from_plain, to_plain
from megavoxel.errors import UserError, expect
from megavoxel.files import read_json, write_json
from megavoxel.inference.confidence import TEMPERATURES, UNCHANGED, Confidence, best_temperature, together


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """`temperature.json`."""

    temperature: float
    """That which the cases of all folds ask for."""
    cases: int
    voxels: int
    nll: float
    """Mean negative log-likelihood of a voxel at temperature 1, in nats."""
    of_other_folds: dict[str, float] = field(default_factory=dict)
    """By fold, the temperature that the other folds alone ask for; empty where there is one fold."""
    held_out_nll: float | None = None
    """As `nll`, each fold at the temperature of the others; None where there is one fold."""


def fitted(folds: Mapping[str, Sequence[Confidence]]) -> Temperature:
    """The temperature by the cases of each fold, which its network did not see.

    Args:
        folds: cases by the name of the fold.

    Raises:
        UserError: no voxel is counted.
    """
    sums = [together(cases) for cases in folds.values()]
    whole = together(sums)
    if not whole.voxels:
        raise UserError("no case counts: each lacks the annotation of a label, or has no voxel that somebody annotated")
    others = [_of_others(sums, number) for number in range(len(sums))] if len(sums) > 1 else []
    held_out = sum(own.nll[place] for own, place in zip(sums, others, strict=True)) if others else None
    return Temperature(
        temperature=TEMPERATURES[best_temperature(whole)],
        cases=sum(map(len, folds.values())),
        voxels=whole.voxels,
        nll=whole.nll[UNCHANGED] / whole.voxels,
        of_other_folds={name: TEMPERATURES[place] for name, place in zip(folds, others, strict=False)},
        held_out_nll=None if held_out is None else held_out / whole.voxels,
    )


def _of_others(sums: Sequence[Confidence], number: int) -> int:
    return best_temperature(together([*sums[:number], *sums[number + 1 :]]))


def read_confidence(folder: Path) -> dict[str, Confidence]:
    """By case, what `predict --confidence` wrote.

    Raises:
        UserError: there is none in the folder, or a file is damaged.
    """
    paths = {path.stem: path for path in sorted(folder.glob("*.json"))}
    if not paths:
        raise UserError(f"{folder}: there is no CASE.json in it; name a folder of 'megavoxel predict --confidence'")
    return {case: _read(path) for case, path in paths.items()}


def _read(path: Path) -> Confidence:
    found = from_plain(Confidence, read_json(path, what="confidence of a case"), where=str(path))
    tables = [table for own in found.structures.values() for table in (own.voxels, own.probability, own.hits)]
    expect(all(len(rows) == len(TEMPERATURES) for rows in (found.nll, *tables)), str(path), f"{len(TEMPERATURES)} rows")
    return found


def save_temperature(path: Path, temperature: Temperature) -> None:
    """Writes `temperature.json`."""
    write_json(path, to_plain(temperature))


def load_temperature(path: Path) -> Temperature:
    """Reads `temperature.json`.

    Raises:
        UserError: the file is missing or damaged, or no temperature of ours.
    """
    found = from_plain(Temperature, read_json(path, what="temperature of a setting"), where=str(path))
    lowest, highest = TEMPERATURES[0], TEMPERATURES[-1]
    expect(lowest <= found.temperature <= highest, f"{path}: temperature", f"{lowest:g} to {highest:g}")
    return found
