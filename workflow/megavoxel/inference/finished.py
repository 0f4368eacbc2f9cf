"""Cases that are predicted already, for a run that is started again: the same networks predict none of them again.

A finished case is known by `key_of` what it was made from, so that it is made again where any of that has changed.
"""

from __future__ import annotations

import argparse
import glob
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import megavoxel
from megavoxel.errors import UserError
from megavoxel.files import (
    atomic_directory,
    content_hash,
    file_sha256,
    link_file,
    partial_prefix,
    read_json,
    write_json,
)
from megavoxel.planning.plan import Plan

MAPS, LOGITS, CONFIDENCE = "maps", "logits", "confidence"
"""Folders of what is made of a case. The first is always; the others are asked for by options of these names."""
CHECKSUMS = "checksums.json"


def key_of(facts: Sequence[object], files: Iterable[Path]) -> str:
    """A hash of all that a prediction depends on: facts that JSON can hold, and the contents of files."""
    return content_hash([*facts, *map(file_sha256, files)])


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The finished cases of a study: a folder for each, whose name has its key."""

    folder: Path
    """Where they are."""
    networks: str
    """Hash of plan, weights and program."""
    preprocessed: Path
    """Folder of the preprocessed cases."""
    stage1: tuple[Path, ...]
    """Folders with labels of the first stage."""
    products: tuple[str, ...] = (MAPS,)
    """What is made of each case."""

    @classmethod
    def of(cls, plan: Plan, arguments: argparse.Namespace) -> Finished:
        """Those of the stage's options; without `--resume` they lie in a folder of this process beside the output."""
        output, weights = Path(arguments.output), [path for path in arguments.weights if path.is_file()]
        return cls(
            folder=arguments.resume or output.with_name(f"{partial_prefix()}{output.name}"),
            networks=key_of([_program(), plan.prediction_hash], weights),
            preprocessed=arguments.preprocessed,
            stage1=tuple(arguments.stage1),
            products=(MAPS, *(name for name in (LOGITS, CONFIDENCE) if getattr(arguments, name) is not None)),
        )

    def has(self, name: str) -> bool:
        """Whether a case is finished, from what there is of it now, and its files are as they were written."""
        place = self._place(name)
        try:
            return place.is_dir() and read_json(place / CHECKSUMS, what="checksums") == _checksums(place)
        except UserError:
            return False

    @contextmanager
    def adding(self, name: str) -> Iterator[dict[str, Path]]:
        """A folder for each of the `products` of a case, which is finished when the block is."""
        with atomic_directory(self._place(name), replace=True) as partial:
            places = {product: partial / product for product in self.products}
            for place in places.values():
                place.mkdir()
            yield places
            write_json(partial / CHECKSUMS, _checksums(partial))

    def hand_over(self, name: str, folders: Mapping[str, Path]) -> None:
        """Puts the files of a finished case into the folders of all cases, which are named by product."""
        for product, target in folders.items():
            for path in sorted((self._place(name) / product).iterdir()):
                link_file(path, target / path.name)

    def forget(self, names: Sequence[str], *, linked: bool) -> None:
        """Removes what is kept of cases, of earlier networks as well.

        Args:
            linked: whether to keep those whose files are second names of handed over ones, which take no space.
        """
        for name in names:
            kept = self._place(name) if linked and self._takes_no_space(name) else None
            for place in self.folder.glob(f"*-{glob.escape(name)}"):
                if place != kept:
                    shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # another part still has cases there, or there never was one
            self.folder.rmdir()

    def _takes_no_space(self, name: str) -> bool:
        return all(path.stat().st_nlink > 1 for path in _made(self._place(name)))

    def _place(self, name: str) -> Path:
        read = [self.preprocessed / f"{name}.json", self.preprocessed / f"{name}.source"]
        read += [folder / f"{name}.stage1.b2nd" for folder in self.stage1]
        key = key_of([self.networks, *self.products], filter(Path.is_file, read))
        return self.folder / f"{key}-{name}"


def _made(place: Path) -> list[Path]:
    """All products of a finished case."""
    return sorted(path for path in place.glob("*/*") if path.is_file())


def _checksums(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): file_sha256(path) for path in _made(place)}


@cache
def _program() -> str:
    """Hash of this package and of PyTorch's version: another program may predict something else."""
    root = Path(megavoxel.__file__).parent
    return content_hash([version("torch"), *map(file_sha256, sorted(root.rglob("*.py")))])
