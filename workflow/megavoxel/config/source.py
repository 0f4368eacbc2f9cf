"""Where the images of a dataset come from, and how they lie there."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from megavoxel.config.fields import (
    Count,
    Distinct,
    NotNegative,
    Seed,
    Spacing,
    Text,
    Triple,
    between,
    forbids,
    needs,
    refuse,
    unique,
)
from megavoxel.config.records import record, rule


def _of_a_volume(pattern: str) -> str:
    """Refuses a pattern without the ending of a format that is read, in small letters or capitals.

    `.nii*` stands for all endings that begin so.
    """
    from megavoxel.volumes.open import SUFFIXES  # which loads the modules of all formats

    shared = [suffix for suffix in SUFFIXES if any(other.startswith(suffix) for other in set(SUFFIXES) - {suffix})]
    endings = (*SUFFIXES, *(f"{suffix}*" for suffix in shared))
    if not pattern.lower().endswith(endings):
        refuse(f"{pattern!r} is not allowed; a pattern that ends in {', '.join(endings[:-1])} or {endings[-1]}")
    return pattern


Address = Annotated[
    str,
    Field(
        pattern=r"^https?://[^\s]+$",
        description="allowed: addresses that begin with https:// or http://, without blanks",
    ),
]
FilePattern = Annotated[
    str,
    Field(
        pattern=r"^([^/].*)?\{case\}.*\.[^/]+$",
        description="allowed: a pattern below the source folder with {case} in it and the ending of an image file, "
        "such as labels/{case}.nii.gz",
    ),
    AfterValidator(_of_a_volume),
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="allowed: 64 hexadecimal digits in lower case")]
Md5 = Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="allowed: 32 hexadecimal digits in lower case")]
Margin = Annotated[int, between(0, 100_000)]
OneOrMoreTexts = Annotated[Text | Distinct[Text], Field(description="a text, or a list of texts that differ")]


@record
class Phantom:
    """A dataset of synthetic CT-like images that the workflow makes itself."""

    training_cases: Annotated[int, between(2, 100_000)]
    """Labelled cases for cross-validation."""
    test_cases: Annotated[int, between(0, 100_000)] = 0
    """Labelled cases kept out of all folds."""
    seed: Seed = 0
    """Same seed, same bytes."""
    shape: Triple[Annotated[int, between(16, 2048)]] = (40, 64, 64)
    """Mean voxels per axis z, y, x."""
    spacing: Spacing = (3.0, 2.0, 2.0)
    """Mean spacing in mm along z, y, x."""
    noise: NotNegative = 25.0
    """Standard deviation of the noise in HU."""


@record
class Source:
    """Exactly one of `url`, `folder` and `phantom` is set."""

    url: Address | None = None
    """Address of a tar or zip archive with one dataset.json."""
    sha256: Sha256 | None = None
    """SHA-256 of the archive at `url`."""
    md5: Md5 | None = None
    """MD5 of the archive, where the publisher gives no better checksum."""
    checksum: Literal["unpublished"] | None = None
    """In place of both, where the publisher gives neither: the SHA-256 of the first download is recorded in
    data/archives.tsv, and later ones must have the same."""
    folder: Text | None = None
    """A folder with dataset.json (Medical Segmentation Decathlon, nnU-Net), or one that `patients` or `files` describe;
    a relative one is looked for in the mirror, then in the working directory."""
    phantom: Phantom | None = None

    @rule
    def _one_place(self) -> None:
        places = [key for key in ("url", "folder", "phantom") if getattr(self, key) is not None]
        sums = [key for key in ("sha256", "md5", "checksum") if getattr(self, key) is not None]
        allowed = (["sha256"], ["md5"], ["sha256", "md5"], ["checksum"]) if places == ["url"] else ([],)
        if len(places) != 1 or sums not in allowed:
            refuse(
                "exactly one of url (with sha256 or md5), folder, phantom is allowed; a url whose publisher gives "
                "neither checksum needs 'checksum: unpublished'"
            )


@record
class Patients:
    """Layout of a source folder that has a folder per patient, with an image and a mask per label in it."""

    image: Annotated[
        str, Field(pattern="^[^/]+$", description="shell pattern of the image's file in a patient's folder, or DICOM")
    ]
    """Shell pattern of the image's file, such as `img*`: .nii.gz, .nii, .nrrd, .mha, or .npy (z, y, x). The folder that
    holds it is a patient's, and its name the case's id, for which `{case}` stands in patterns. `DICOM`:
    the image is a DICOM series at any depth of a patient's folder, and patients are the folders directly below the
    source folder; among several series it is the one that the structures were drawn in."""
    masks: Annotated[dict[str, OneOrMoreTexts], Field(min_length=1)] | None = None
    """Shell patterns of the masks, one or several each, by the names of all `labels`, below a patient's folder:
    `structures/Chiasm*`. Where masks overlap, the later one counts. A label without a mask is unannotated in that
    patient."""
    structures: Annotated[dict[str, OneOrMoreTexts], Field(min_length=1)] | None = None
    """In place of masks, names of segments (DICOM SEG) or structures (RTSTRUCT), one or several each, by the names of
    all `labels`; overlaps and labels that are missing as for masks."""
    label_map: Text | None = None
    """In place of masks, shell pattern of one label map with the values of `labels`."""
    spacing: Spacing | None = None
    """Voxel size in mm along z, y, x of .npy files, which do not say it."""

    @property
    def is_dicom(self) -> bool:
        """Whether the image is a DICOM series."""
        return self.image == "DICOM"

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the labels that have a mask or structure each, in the order in which they are drawn."""
        return tuple(self.masks or self.structures or ())

    @rule
    def _one_source_of_labels(self) -> None:
        given = [key for key in ("masks", "structures", "label_map") if getattr(self, key) is not None]
        if len(given) != 1:
            refuse(f"exactly one of masks, structures, label_map is allowed; found {' and '.join(given) or 'none'}")


@record
class Files:
    """Where images and label maps lie in a source folder without dataset.json. `{case}` stands for the case's id, which
    has no slash, and is the same wherever it occurs; `*` stands for anything without a slash."""

    images: Distinct[FilePattern]
    """Patterns below the folder, one per channel: `sub-*/anat/{case}_T1w.nii.gz`. Files are NIfTI, NRRD,
    MetaImage or TIFF."""
    label: FilePattern
    """Pattern of the label maps: `derivatives/manual/sub-*/anat/{case}_dseg.nii.gz`."""


@record
class Blocks:
    """Cuts every training case into blocks, which become cases of their own; test cases stay whole."""

    counts: Triple[Annotated[int, between(1, 1000)]]
    """Blocks along z, y, x."""
    margin: Annotated[
        Margin | Triple[Margin],
        Field(description="voxels left out between two neighbouring blocks, one number or one each along z, y, x"),
    ] = 0
    """Voxels left out between two neighbouring blocks, so that no voxel beside a training block is validated on: one
    number, or one each along z, y, x."""

    @property
    def margins(self) -> tuple[int, ...]:
        """Voxels left out between two blocks along z, y, x."""
        return (self.margin,) * 3 if isinstance(self.margin, int) else tuple(self.margin)


@record
class TableColumns:
    """Names of the columns of a table of images, where they are others."""

    file: Text = "file"
    """Path of the image below the source folder; a bare name is found in whatever folder it lies."""
    label: Text = "label"
    """Name of its class."""
    split: Text = "split"
    """Its split, `training` or `test`; the column may be missing."""
    patient: Text = "patient"
    """The patient of the image. Images of a patient stay together. Without this column, each image is a patient's
    own."""


@record
class Classification:
    """How 2D images (JPEG or PNG, 8 bits) and their classes lie in a source folder without dataset.json: in a folder
    per class, or in a table."""

    classes: (
        Annotated[int, between(2, 10000)]
        | Annotated[
            tuple[Text, ...], Field(min_length=2, json_schema_extra={"uniqueItems": True}), AfterValidator(unique)
        ]
    )
    """Names of the classes; or how many: those with most images, of equally many the first in the alphabet."""
    folder: Text = "."
    """The folder that holds one per class, below the source folder; without `table`."""
    table: Annotated[
        Text | None, forbids(folder="images lie in a folder per class or in a table; keep one of them")
    ] = None
    """A CSV file below the source folder with a line per image; None: the folder of an image names its class. Lines of
    other classes are left out and counted."""
    columns: Annotated[TableColumns, needs(table="it needs 'table' beside it")] = field(default_factory=TableColumns)
    """Names of the columns of the table."""
    test_list: Text | None = None
    """A text file below the source folder with the test images, a name per line; in place of a column `split`."""
    test_per_class: Annotated[
        Count | None, forbids(test_list="it names the test images already; drop test_per_class")
    ] = None
    """In place of both, how many images of each class to draw for the test split, by whole patients."""
    test_seed: Annotated[Seed, needs(test_per_class="it draws images only beside 'test_per_class'")] = 0
    """Same seed, same `test_per_class` images."""

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)
