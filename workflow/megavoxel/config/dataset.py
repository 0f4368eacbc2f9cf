"""A dataset file: where the images come from, and what their own files do not say."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from megavoxel.config.fields import (
    Distinct,
    DistinctOrNone,
    Name,
    Patterns,
    Positive,
    Seed,
    Several,
    Spacing,
    Text,
    Triple,
    allows_only,
    between,
    forbids,
    needs,
    refuse,
    unique,
)
from megavoxel.config.records import from_file, record, rule
from megavoxel.config.regions import IGNORE, LabelScheme, label_scheme
from megavoxel.config.source import Blocks, Classification, Files, Patients, Source
from megavoxel.config.yaml_files import read_yaml
from megavoxel.errors import UserError

KEYS_OF_CLASSIFICATION = ("name", "source", "description", "reference", "licence", "exclude")
LabelValue = Annotated[int, between(0, 65535)]
Size = Triple[Annotated[int, between(1, 100_000)]]
"""Voxels per axis."""
PatternsByLabel = Annotated[dict[str, Patterns], Field(json_schema_extra={"minProperties": 1})]
GroupPattern = Annotated[
    str,
    Field(
        pattern=r"^[^{}/]*\{group\}[^{}/]*$",
        description="a pattern of case ids with {group} in it, such as {group}_scan*, or a table",
    ),
]


@record
class Hidden:
    """Annotations that a study on missing annotations keeps from training; scores still have them."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the annotated training cases in which a label is hidden, for each label; below 1, rounded to whole
    cases."""
    seed: Seed = 0
    """Same seed, same cases. A larger share hides what a smaller one does, and more."""


@record
class GroupTable:
    """A table of the group of each case."""

    table: Text
    """A CSV file with a line per case; a relative path is one below the working directory."""
    case: Text = "case"
    """Name of the column with the case's id."""
    group: Text = "group"
    """Name of the column with its group, such as the patient."""


@record
class PictureTable:
    """A table of cases, of which the report shows one for each value of a column."""

    table: Text
    """A CSV file with a line per case; a relative path is one below the working directory."""
    case: Text = "case"
    """Name of the column with the case's id."""
    column: Text
    """Name of the column whose values have a picture each, such as the phase of contrast."""


@record
class SubgroupTable:
    """A table of cases whose columns divide them into subgroups, each with scores of its own in the report."""

    table: Text
    """A CSV file with a line per case; a relative path is one below the working directory."""
    case: Text = "case"
    """Name of the column with the case's id."""
    columns: Distinct[Text]
    """Names of the columns, such as site, scanner and sex. A case without a value is in no subgroup of the column."""


@record
class Declared:
    """Published sizes of a dataset, with which a study can be planned before the download."""

    training_cases: Annotated[int, between(2, 1_000_000)]
    """Labelled cases for cross-validation."""
    shape: Size
    """Median voxels per axis z, y, x."""
    spacing: Spacing
    """Median spacing in mm along z, y, x."""
    largest_shape: Size | None = None
    """Most voxels along z, y, x, for settings whose patch is the whole image; None: not more than the median."""


@record
class Dataset:
    """Source of a dataset, and what its own files do not say."""

    name: Name
    """Folder below data/."""
    source: Source
    description: str = ""
    """Content of the images, for readers of the file."""
    reference: str = ""
    """Publication to cite."""
    licence: str = ""
    """Licence of the images, for readers of the file."""
    labels: Annotated[dict[str, LabelValue | Several[LabelValue]], Field(min_length=1)] | None = None
    """Label values by name, background left out or 0; None: as in dataset.json. A list of values is a region, which may
    overlap others: regions are then segmented and scored in place of labels. `ignore` names the value of voxels that
    nobody annotated: they count for nothing in training and in scores."""
    regions_class_order: Annotated[
        Several[LabelValue] | None, needs(labels="it also needs 'labels' in this file, with the regions")
    ] = None
    """For each region, in the order of `labels`, the value that a voxel of a predicted label map gets where no later
    region is present, as in nnU-Net; only with regions, and None: as in dataset.json."""
    background_values: Annotated[
        DistinctOrNone[Annotated[int, between(1, 65535)]],
        needs(labels="it also needs 'labels' in this file, those to be segmented"),
    ] = ()
    """Values of the label files that count as background, so that some labels can be segmented alone; needs
    `labels`."""
    channels: Several[Text] | None = None
    """Names of the channels; None: as in dataset.json."""
    nsd_tolerance_mm: Annotated[
        Positive | Annotated[dict[str, Positive], Field(min_length=1)],
        Field(description="one number in mm, or one per label name"),
    ] = 1.0
    """Tolerance of NSD in mm: one number, or one per label name."""
    include: DistinctOrNone[Text] = ()
    """Shell patterns of the case ids to keep, such as `amos_04*`; None: all cases are kept."""
    exclude: Annotated[tuple[str, ...], AfterValidator(unique)] = ()
    """Cases to leave out."""
    test_section: Literal["test", "validation", "none"] = "test"
    """What becomes the test split: the cases under `test` of dataset.json (imagesTs) or those under `validation`
    (imagesVa). The other section is not read. With `none` neither is, as where an archive has test images without
    labels that nobody wants predictions of."""
    test_cases: Annotated[
        tuple[str, ...],
        AfterValidator(unique),
        forbids(test_count="test_cases names the test cases already; leave one of them out"),
    ] = ()
    """Labelled cases kept out of all folds and scored as the test split."""
    test_count: Annotated[int, between(1, 1_000_000)] | None = None
    """In place of `test_cases`, how many labelled cases to draw at random for that; from the sorted ids, as by
    scikit-learn's `train_test_split(ids, test_size=test_count, random_state=test_seed)`."""
    test_seed: Annotated[Seed, needs(test_count="it draws cases only beside 'test_count', which is missing")] = 0
    """Same seed, same `test_count` cases."""
    groups: Annotated[
        GroupPattern | GroupTable | None,
        Field(description="a pattern of case ids with {group} in it, such as {group}_scan*, or a table"),
        forbids(blocks="blocks of a case lie in several folds; leave one of groups and blocks out"),
    ] = None
    """Cases that belong together, as the scans of a patient do: a pattern of their ids, in which `{group}` stands for
    as few characters as possible and `*` for anything, or a table. A group lies in one fold, or in the test split;
    intervals and tests draw groups. `test_count` then draws whole groups, and says of how many cases at least."""
    patients: Annotated[
        Patients | None,
        forbids(files="not beside 'patients'; leave one of them out"),
    ] = None
    """Layout of a source `folder` that has no dataset.json but a folder per patient."""
    files: Annotated[
        Files | None,
        needs(
            **{
                key: f"it also needs '{key}' in this file, which no dataset.json tells"
                for key in ("labels", "channels")
            }
        ),
    ] = None
    """File names in a source `folder` that has no dataset.json but an image and a label map per case."""
    blocks: Annotated[
        Blocks | None,
        forbids(
            files="not beside 'blocks'; leave one of them out",
            patients="they are not cut into blocks; leave one of patients and blocks out",
        ),
    ] = None
    """Cuts each training case when it is fetched. Block 0, 2, 3 (z, y, x) of the case `a` is the case `a-b0-2-3`: keys
    that name cases then name blocks."""
    modalities: Annotated[dict[Name, Patterns], Field(min_length=1)] | None = None
    """Shell patterns of case ids by modality, where one channel holds scans of several kinds; each case matches exactly
    one. `CT` is normalised by the foreground of its own cases, any other name by z-score, and each fold has its share
    of each modality."""
    pictures: PictureTable | None = None
    """A table of cases and its column by which the report chooses its pictures of a case: one for each value, of the
    cases that have it, such as one with contrast and one without. Cases without a value are in none. None: one for each
    modality, or one of all cases."""
    subgroups: SubgroupTable | None = None
    """A table of cases and its columns by which the report has scores of subgroups, such as the sites."""
    unannotated: PatternsByLabel = field(default_factory=dict)
    """Shell patterns of the case ids, by label name, in which nobody drew the label: it may be there all the same.
    Neither it nor the background teach the network in these cases, and its scores are left out and counted; None: all
    labels are annotated in all cases."""
    hidden: Hidden | None = None
    """Hides existing annotations from training, for a study on missing ones."""
    classification: Annotated[
        Classification | None,
        allows_only(KEYS_OF_CLASSIFICATION, "this key is for segmentation; leave it or 'classification' out"),
    ] = None
    """Makes it a dataset of images with a class each, for studies of `task: classification`."""
    declared: Annotated[
        Declared | None,
        needs(
            **{key: f"it also needs '{key}' in this file, which planning asks for" for key in ("labels", "channels")}
        ),
    ] = None
    """Size and spacing of the cases, with `labels` and `channels` enough to plan without the data."""

    @property
    def label_scheme(self) -> LabelScheme | None:
        """What `labels` says; None where dataset.json does.

        Raises:
            UserError: as `label_scheme`.
        """
        if self.labels is None:
            return None
        return label_scheme(self.labels, self.regions_class_order, f"dataset {self.name}")

    @property
    def task(self) -> str:
        """The task of studies on it: `segmentation` or `classification`."""
        return "segmentation" if self.classification is None else "classification"

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

    @rule
    def _layouts_are_of_folders(self) -> None:
        for key, what in (
            ("patients", "this layout is"),
            ("files", "this layout is"),
            ("classification", "images are"),
        ):
            if getattr(self, key) is not None and self.source.folder is None:
                refuse(f"{what} read from a folder; name it under source as 'folder'", key)
        if self.blocks is not None and self.source.phantom is not None:
            refuse("phantoms are not cut; say how many there are, and how large, under phantom", "blocks")

    @rule
    def _patients_have_one_channel(self) -> None:
        if self.patients is not None and len(self.channels or ()) != 1:
            refuse("it also needs 'channels' in this file, with the name of the one channel", "patients")

    @rule
    def _background_has_values_of_its_own(self) -> None:
        for name, value in (self.labels or {}).items():
            both = set(value if isinstance(value, tuple) else [value]) & set(self.background_values)
            if both:
                refuse(
                    f"{min(both)} is the value of the label '{name}'; remove it from one of them", "background_values"
                )

    @rule
    def _masks_make_labels_alone(self) -> None:
        if self.patients is None or self.patients.label_map is not None:
            return
        odd = [name for name, value in (self.labels or {}).items() if isinstance(value, tuple) or name == IGNORE]
        if odd:
            refuse(f"masks or structures become one label each, which '{odd[0]}' is not; leave it out", "labels")

    @rule
    def _patients_have_masks_of_all_labels(self) -> None:
        if self.patients is None:
            return
        if self.patients.label_map is not None:
            if not self.labels:
                refuse("it also needs 'labels' in this file, with the values of the label maps", "patients.label_map")
            return
        key = "structures" if self.patients.masks is None else "masks"
        odd = sorted(set(self.labels or ()) ^ set(self.patients.drawn))
        if odd:
            refuse(
                f"'labels' and '{key}' must have the same names; only one of them has {', '.join(odd)}",
                f"patients.{key}",
            )

    @rule
    def _files_are_of_all_channels(self) -> None:
        if self.files is None:
            return
        images, channels = self.files.images, self.channels
        if 1 < len(images) != len(channels):
            refuse(
                f"{len(images)} patterns for {len(channels)} channels ({', '.join(channels)}); give one pattern per "
                "channel",
                "files.images",
            )


def load_dataset(path: Path) -> Dataset:
    """Reads and checks a dataset file.

    Raises:
        UserError: one line that names the file, the key and the allowed values.
    """
    return from_file(Dataset, read_yaml(path), where=str(path))


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
