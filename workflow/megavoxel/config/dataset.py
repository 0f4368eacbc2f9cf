"""A dataset file: where the images come from, and what their own files do not say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megavoxel.config.records import from_plain
from megavoxel.config.schema import read_yaml, validate
from megavoxel.errors import UserError

KEYS_OF_CLASSIFICATION = {"name", "source", "description", "reference", "licence", "exclude", "classification"}


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A dataset of synthetic CT-like images that the workflow makes itself."""

    training_cases: int
    """Labelled cases for cross-validation."""
    test_cases: int = 0
    """Labelled cases kept out of all folds."""
    seed: int = 0
    """Same seed, same bytes."""
    shape: tuple[int, ...] = (40, 64, 64)
    """Mean voxels per axis z, y, x."""
    spacing: tuple[float, ...] = (3.0, 2.0, 2.0)
    """Mean spacing in mm along z, y, x."""
    noise: float = 25.0
    """Standard deviation of the noise in HU."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Exactly one of `url`, `folder` and `phantom` is set."""

    url: str | None = None
    """Address of a tar or zip archive with one dataset.json."""
    sha256: str | None = None
    """Its SHA-256, 64 hexadecimal digits."""
    md5: str | None = None
    """Its MD5, 32 hexadecimal digits, where the publisher gives no better one."""
    checksum: str | None = None
    """In place of both, where the publisher gives neither: the SHA-256 of the first download is recorded in
    data/archives.tsv, and later ones must have the same."""
    folder: str | None = None
    """A folder with dataset.json (Medical Segmentation Decathlon, nnU-Net), or one that `patients` or `files` describe;
    a relative one is looked for in the mirror, then in the working directory."""
    phantom: Phantom | None = None


@dataclass(frozen=True, kw_only=True)
class Patients:
    """How a source folder is laid out that has a folder per patient, with an image and a mask per label in it."""

    image: str
    """Shell pattern of the image's file, such as `img*`: .nrrd, .nii.gz, .nii, or .npy (z, y, x). The folder that holds
    it is a patient's, and its name the case's id."""
    masks: dict[str, str]
    """Shell patterns of the masks, by the names of all `labels`, below a patient's folder: `structures/Chiasm*`. Where
    masks overlap, the later one counts. A label without a mask is unannotated in that patient."""
    spacing: tuple[float, ...] | None = None
    """Voxel size in mm along z, y, x of .npy files, which do not say it."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where images and label maps lie in a source folder without dataset.json. `{case}` stands for the case's id, which
    has no slash, and is the same wherever it occurs; `*` stands for anything without a slash."""

    images: tuple[str, ...]
    """Patterns below the folder, one per channel: `sub-*/anat/{case}_T1w.nii.gz`. Files are NIfTI."""
    label: str
    """Pattern of the label maps: `derivatives/manual/sub-*/anat/{case}_dseg.nii.gz`."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How every training case is cut into blocks, which become cases of their own; test cases stay whole."""

    counts: tuple[int, ...]
    """Blocks along z, y, x."""
    margin: int | tuple[int, ...] = 0
    """Voxels left out between two neighbouring blocks, so that no voxel beside a training block is validated on: one
    number, or one each along z, y, x."""

    @property
    def margins(self) -> tuple[int, ...]:
        """Voxels left out between two blocks along z, y, x."""
        return (self.margin,) * 3 if isinstance(self.margin, int) else tuple(self.margin)


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Names of the columns of a table of images, where they are others."""

    file: str = "file"
    """Path of the image below the source folder; a bare name is found in whatever folder it lies."""
    label: str = "label"
    """Name of its class."""
    split: str = "split"
    """`training` or `test`; the column may be missing."""
    patient: str = "patient"
    """Whose image it is: a patient's images stay together. The column may be missing: each image is then a patient's
    own."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """How 2D images (JPEG or PNG, 8 bits) and their classes lie in a source folder without dataset.json: in a folder
    per class, or in a table."""

    classes: int | tuple[str, ...]
    """Names of the classes; or how many: those with most images, of equally many the first in the alphabet."""
    folder: str = "."
    """The folder that holds one per class, below the source folder; without `table`."""
    table: str | None = None
    """A CSV file below the source folder with a line per image; None: the folder of an image names its class. Lines of
    other classes are left out and counted."""
    columns: TableColumns = field(default_factory=TableColumns)
    """Its columns."""
    test_list: str | None = None
    """A text file below the source folder with the test images, a name per line; in place of a column `split`."""
    test_per_class: int | None = None
    """In place of both, how many images of each class to draw for the test split, by whole patients."""
    test_seed: int = 0
    """Same seed, same `test_per_class` images."""

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Annotations that a study on missing annotations keeps from training; scores still have them."""

    share: float
    """Of each label, the share of the annotated training cases that it is hidden in, below 1, rounded to whole
    cases."""
    seed: int = 0
    """Same seed, same cases. A larger share hides what a smaller one does, and more."""


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What is published of a dataset: enough to plan a study before the download."""

    training_cases: int
    """Labelled cases for cross-validation."""
    shape: tuple[int, ...]
    """Median voxels per axis z, y, x."""
    spacing: tuple[float, ...]
    """Median spacing in mm along z, y, x."""
    largest_shape: tuple[int, ...] | None = None
    """Most voxels along z, y, x, for settings whose patch is the whole image; None: not more than the median."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset file."""

    name: str
    """Folder below data/."""
    source: Source
    description: str = ""
    reference: str = ""
    """Publication to cite."""
    licence: str = ""
    labels: dict[str, int] | None = None
    """Label values by name, background left out or 0; None: as in dataset.json."""
    background_values: tuple[int, ...] = ()
    """Values of the label files that count as background, so that some labels can be segmented alone; needs
    `labels`."""
    channels: tuple[str, ...] | None = None
    """Names of the channels; None: as in dataset.json."""
    nsd_tolerance_mm: Any = 1.0
    """Tolerance of NSD in mm: one number, or one per label name."""
    include: tuple[str, ...] = ()
    """Shell patterns of the case ids to keep, such as `amos_04*`; None: all cases are kept."""
    exclude: tuple[str, ...] = ()
    """Cases to leave out."""
    test_section: str = "test"
    """What becomes the test split: the cases under `test` of dataset.json (imagesTs) or those under `validation`
    (imagesVa). The other section is not read. With `none` neither is, as where an archive has test images without
    labels that nobody wants predictions of."""
    test_cases: tuple[str, ...] = ()
    """Labelled cases kept out of all folds and scored as the test split."""
    test_count: int | None = None
    """In place of `test_cases`, how many labelled cases to draw at random for that; from the sorted ids, as by
    scikit-learn's `train_test_split(ids, test_size=test_count, random_state=test_seed)`."""
    test_seed: int = 0
    """Same seed, same `test_count` cases."""
    patients: Patients | None = None
    """Where the source `folder` has no dataset.json but a folder per patient: how they are laid out."""
    files: Files | None = None
    """Where the source `folder` has no dataset.json but an image and a label map per case: what they are called."""
    blocks: Blocks | None = None
    """Cuts each training case when it is fetched. Block 0, 2, 3 (z, y, x) of the case `a` is the case `a-b0-2-3`: keys
    that name cases then name blocks."""
    modalities: dict[str, tuple[str, ...]] | None = None
    """Shell patterns of case ids by modality, where one channel holds scans of several kinds; each case matches exactly
    one. `CT` is normalised by the foreground of its own cases, any other name by z-score, and each fold has its share
    of each modality."""
    unannotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Shell patterns of the case ids, by label name, in which nobody drew the label: it may be there all the same.
    Neither it nor the background teach the network in these cases, and its scores are left out and counted; None: all
    labels are annotated in all cases."""
    hidden: Hidden | None = None
    """Takes annotations that are there away from training, for a study on missing ones."""
    classification: Classification | None = None
    """Makes it a dataset of images with a class each, for studies of `task: classification`."""
    declared: Declared | None = None
    """Size and spacing of the cases, with `labels` and `channels` enough to plan without the data."""

    @property
    def known_ahead(self) -> bool:
        """Whether a study can be planned before the data is there: it is declared, made by the workflow, or says how
        many classes it has, which is all that networks of classification depend on."""
        return self.declared is not None or self.source.phantom is not None or self.classification is not None

    def tolerance(self, label: str) -> float:
        """NSD tolerance of a label in mm.

        Raises:
            UserError: tolerances are given per label, and this label has none.
        """
        if not isinstance(self.nsd_tolerance_mm, dict):
            return float(self.nsd_tolerance_mm)
        if label not in self.nsd_tolerance_mm:
            known = ", ".join(self.nsd_tolerance_mm)
            raise UserError(
                f"dataset {self.name}: nsd_tolerance_mm has no entry for the label '{label}'; it has: {known}"
            )
        return float(self.nsd_tolerance_mm[label])


def load_dataset(path: Path) -> Dataset:
    """Reads and checks a dataset file.

    Raises:
        UserError: one line that names the file, the key and the allowed values.
    """
    values = read_yaml(path)
    validate(values, "dataset", source=str(path))
    _check_together(values, str(path))
    return from_plain(Dataset, values, where=str(path))


def _check_together(values: dict[str, Any], source: str) -> None:
    """Refuses keys that need another one, or contradict one another."""
    missing = [key for key in ("labels", "channels") if "declared" in values and key not in values]
    if missing:
        raise UserError(f"{source}: declared: it also needs '{missing[0]}' in this file, which planning asks for")
    if "background_values" in values and "labels" not in values:
        raise UserError(f"{source}: background_values: it also needs 'labels' in this file, those to be segmented")
    for name, value in values.get("labels", {}).items():
        if value in values.get("background_values", ()):
            raise UserError(
                f"{source}: background_values: {value} is the value of the label '{name}'; remove it from one of them"
            )
    if "test_count" in values and "test_cases" in values:
        raise UserError(f"{source}: test_count: test_cases names the test cases already; leave one of them out")
    if "test_seed" in values and "test_count" not in values:
        raise UserError(f"{source}: test_seed: it draws cases only beside 'test_count', which is missing")
    if "patients" in values:
        _check_patients(values, source)
    if "classification" in values:
        _check_classification(values, source)
    if "files" in values:
        _check_files(values, source)
    if "blocks" in values and "phantom" in values["source"]:
        raise UserError(f"{source}: blocks: phantoms are not cut; say how many there are, and how large, under phantom")


def _check_patients(values: dict[str, Any], source: str) -> None:
    if "folder" not in values["source"]:
        raise UserError(f"{source}: patients: this layout is read from a folder; name it under source as 'folder'")
    if "blocks" in values:
        raise UserError(f"{source}: patients: they are not cut into blocks; leave one of patients and blocks out")
    if len(values.get("channels", ())) != 1:
        raise UserError(f"{source}: patients: it also needs 'channels' in this file, with the name of the one channel")
    labels, masks = (set(names) for names in (values.get("labels", {}), values["patients"]["masks"]))
    if labels != masks:
        odd = ", ".join(sorted(labels ^ masks))
        raise UserError(
            f"{source}: patients.masks: 'labels' and 'masks' must have the same names; only one of them has {odd}"
        )


def _check_classification(values: dict[str, Any], source: str) -> None:
    if "folder" not in values["source"]:
        raise UserError(f"{source}: classification: images are read from a folder; name it under source as 'folder'")
    odd = sorted(set(values) - KEYS_OF_CLASSIFICATION)
    if odd:
        raise UserError(f"{source}: {odd[0]}: this key is for segmentation; leave it or 'classification' out")
    keys = values["classification"]
    if "folder" in keys and "table" in keys:
        raise UserError(f"{source}: classification: images lie in a folder per class or in a table; keep one of them")
    if "columns" in keys and "table" not in keys:
        raise UserError(f"{source}: classification.columns: it needs 'table' beside it")
    if "test_list" in keys and "test_per_class" in keys:
        raise UserError(f"{source}: classification.test_list: it names the test images already; drop test_per_class")
    if "test_seed" in keys and "test_per_class" not in keys:
        raise UserError(f"{source}: classification.test_seed: it draws images only beside 'test_per_class'")


def _check_files(values: dict[str, Any], source: str) -> None:
    if "folder" not in values["source"]:
        raise UserError(f"{source}: files: this layout is read from a folder; name it under source as 'folder'")
    other = next((key for key in ("patients", "blocks") if key in values), None)
    if other is not None:
        raise UserError(f"{source}: files: not beside '{other}'; leave one of them out")
    missing = next((key for key in ("labels", "channels") if key not in values), None)
    if missing is not None:
        raise UserError(f"{source}: files: it also needs '{missing}' in this file, which no dataset.json tells")
    images, channels = values["files"]["images"], values["channels"]
    if len(images) > 1 and len(images) != len(channels):
        raise UserError(
            f"{source}: files.images: {len(images)} patterns for {len(channels)} channels ({', '.join(channels)}); "
            "give one pattern per channel"
        )


def dataset_path(name: str, folder: Path, *, source: str) -> Path:
    """The file of a dataset that a study names: a path that ends in .yaml, or a name in `folder`.

    Raises:
        UserError: there is no such file; the names that exist are listed.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(
            f"{source}: dataset: there is no file {path}; allowed: a path ending in .yaml, or one of {known}"
        )
    return path
