"""Images with a class each: `cases.json` of a classification study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from megavoxel.config.records import from_plain
from megavoxel.errors import UserError
from megavoxel.files import read_json

TASK = "classification"


@dataclass(frozen=True, kw_only=True)
class ImageCase:
    """One image."""

    id: str
    """Path of its file below the dataset's folder."""
    label: str
    """Name of its class."""
    split: str = "training"
    """`training` or `test`."""
    patient: str | None = None
    """Patient of the image; None: the image is its own patient."""

    @property
    def owner(self) -> str:
        """The patient, or what stands for one."""
        return f"image {self.id}" if self.patient is None else f"patient {self.patient}"


@dataclass(frozen=True, kw_only=True)
class ImageCases:
    """The sound images of a dataset."""

    dataset: str
    """Name of the dataset."""
    root: str
    """The dataset's folder."""
    classes: tuple[str, ...]
    """Names in the order of the network's outputs."""
    cases: tuple[ImageCase, ...]
    task: str = TASK

    def of_split(self, split: str) -> tuple[ImageCase, ...]:
        """The cases of `training` or `test`, in order of their ids."""
        return tuple(sorted((case for case in self.cases if case.split == split), key=lambda case: case.id))

    def select(self, names: Sequence[str]) -> tuple[ImageCase, ...]:
        """The cases of some ids, in that order.

        Raises:
            UserError: one is unknown.
        """
        known = {case.id: case for case in self.cases}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(f"dataset {self.dataset}: there is no image '{unknown[0]}' among the checked ones")
        return tuple(known[name] for name in names)

    def path(self, case: ImageCase) -> Path:
        """The file of a case."""
        return Path(self.root) / case.id

    def target(self, case: ImageCase) -> int:
        """Number of a case's class."""
        return self.classes.index(case.label)


def load_image_cases(path: Path) -> ImageCases:
    """Reads `cases.json`.

    Raises:
        UserError: the file is missing, or not what `megavoxel check` writes of a classification dataset.
    """
    content = read_json(path, what="list of cases")
    if not isinstance(content, dict) or content.get("task") != TASK:
        raise UserError(f"{path}: these cases are volumes to be segmented; the study says 'task: classification'")
    cases = from_plain(ImageCases, content, where=str(path))
    for case in cases.cases:
        if PurePosixPath(case.id).is_absolute() or ".." in PurePosixPath(case.id).parts:
            raise UserError(f"{path}: {case.id!r} leads out of the dataset's folder; run 'megavoxel check' again")
    return cases
