"""`model.json`: what a model takes and gives, on what it was trained and with what, and how good it was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megavoxel.config.records import from_plain, to_plain
from megavoxel.errors import UserError, expect
from megavoxel.files import read_json, write_json

FORMAT = 1
"""Of model.json; a reader takes no other."""


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """The data of the training, as its dataset file has them; empty where that says nothing."""

    name: str
    description: str = ""
    licence: str = ""
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class FoldFacts:
    """One network."""

    fold: int
    weights: str
    """Its file."""
    training_cases: int
    validation_cases: int
    """Cases that it did not see, by which it was scored."""
    epochs: int
    hours: float
    """Of training."""
    seed: int
    precision: str
    parameters: int
    data_sha256: str | None
    """Of the dataset's checksums."""
    hardware: str
    version: str
    """Of megavoxel."""
    commit: str | None
    """Of its source."""
    versions: dict[str, str]
    """Of the packages that shape results."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean of scores."""

    split: str
    """`validation` or `test`."""
    label: str | None
    """None: the mean over labels was taken first, within each case."""
    metric: str
    """Its name, such as DSC (`megavoxel.evaluation.metrics`)."""
    mean: float
    cases: int
    """That have a value."""
    tolerance_mm: float | None = None
    """Of a metric that takes one, where it is one for all that was averaged."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model to take away."""

    format: int = FORMAT
    name: str
    study: str
    setting: str
    channels: tuple[str, ...]
    modalities: tuple[str, ...] = ()
    """Where the dataset has several in one channel."""
    labels: dict[str, int]
    """Values in label maps by name."""
    dataset: DatasetFacts
    folds: tuple[FoldFacts, ...]
    scores: tuple[Mean, ...] = ()
    postprocessed: bool = False
    """Whether largest components are kept."""
    authors: str = ""
    sha256: dict[str, str]
    """Of the other files of the model, by name."""


def save_description(path: Path, description: ModelDescription) -> None:
    """Writes `model.json`."""
    write_json(path, to_plain(description))


def load_description(path: Path) -> ModelDescription:
    """Reads `model.json`.

    Raises:
        UserError: the file is missing, of another format, or not what `megavoxel export` writes.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file, so {path.parent} is no model; name a folder that 'megavoxel export' wrote"
        )
    values = read_json(path, what="description of a model")
    if isinstance(values, dict) and values.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {values.get('format')}, and this version of megavoxel reads {FORMAT}; take the version "
            "that the file names, or export the model again"
        )
    found = from_plain(ModelDescription, values, where=str(path))
    expect(len(found.folds) > 0, f"{path}: folds", "one or more")
    for name in (*found.sha256, *(fold.weights for fold in found.folds)):
        expect(Path(name).name == name, f"{path}: sha256", "names of files beside it")
    return found
