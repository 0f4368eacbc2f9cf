"""`plan.json`: everything that training and prediction need, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from megavoxel.config.fields import (
    Channels,
    Count,
    ExpansionOrder,
    Fusion,
    NotNegative,
    Positive,
    Seed,
    Several,
    Shape,
    Spacing,
    Transposition,
    Triple,
    between,
    refuse,
)
from megavoxel.config.records import deviations, read_record, record, rule, to_plain
from megavoxel.config.regions import Regions, structures_of
from megavoxel.config.setting import Inference, Interpolation, NetworkParts, Parallel, StartFile
from megavoxel.config.training import Augmentation, Training
from megavoxel.errors import UserError
from megavoxel.files import content_hash, write_json
from megavoxel.planning.needs import Needs
from megavoxel.planning.spacing import times
from megavoxel.volumes.grid import AXES

NEEDED = {"ct": ("mean", "std", "lower", "upper"), "range": ("lower", "upper")}
"""What a normalisation must say, by its scheme; others need nothing."""
LabelValue = Annotated[int, between(1, 65535)]


@record
class ChannelNormalisation:
    """Normalisation of the intensities of one channel."""

    scheme: Literal["ct", "z-score", "rescale-0-1", "rgb-0-1", "unchanged", "range"]
    """`ct`: clip to [lower, upper], subtract mean, divide by std, all four from the dataset's foreground.
    `z-score`: subtract the image's own mean and divide by its own standard deviation.
    `rescale-0-1`: bring the image's own lowest and highest value to 0 and 1.
    `rgb-0-1`: divide by 255; values below 0 or above 255 are refused.
    `unchanged`: the values of the file.
    `range`: clip to [lower, upper], both from the study, and bring that to [0, 1]."""
    mean: float | None = None
    std: NotNegative | None = None
    lower: float | None = None
    """`ct`: 0.5 percentile."""
    upper: float | None = None
    """`ct`: 99.5 percentile."""
    inside_nonzero: bool = False
    """z-score: statistics of the nonzero region only, 0 elsewhere."""

    @rule
    def _scheme_has_its_numbers(self) -> None:
        needed = NEEDED.get(self.scheme, ())
        if any(getattr(self, key) is None for key in needed):
            refuse(f"expected {' and '.join(needed)} for {self.scheme}")
        if self.scheme == "range" and self.lower >= self.upper:
            refuse("expected lower below upper")


@record
class PreprocessingPlan(Interpolation):
    """Resampling and normalisation of every case; shared by all settings with the same `preprocessing` keys."""

    channels: Several[str]
    """Names of the image channels."""
    dimensions: Literal[2, 3] = 3
    """2: for networks that see slices across the first axis, along which cases keep their own spacing."""
    labels: Annotated[dict[str, LabelValue], Field(min_length=1)]
    """Values in the label files by name, in ascending order; their position plus one is the network's class."""
    background_values: tuple[LabelValue, ...] = ()
    """Values in the label files that count as background, like 0."""
    regions: Regions | None = None
    """What the network segments in place of the labels; None: the labels."""
    ignore_value: LabelValue | None = None
    """Value in the label files of voxels that nobody annotated; None: there is none."""
    transpose: Transposition
    """Network axis n is canonical axis transpose[n] (canonical: z, y, x)."""
    axes: Annotated[str, Field(pattern=AXES)] = "RAS"
    """Where the canonical axes x, y and z run to; other than RAS in models that were trained elsewhere."""
    spacing: Spacing
    """Target spacing in mm, network order; see `spacing_for`."""
    median_shape: Triple[Positive]
    """Median voxels per axis after cropping and resampling to `spacing`, network order; halves come from an even number
    of cases. By them nnU-Net counts the voxels of a dataset, also where it keeps slices."""
    normalisation: tuple[ChannelNormalisation, ...]
    """One per channel; none where the dataset has modalities."""
    normalisation_by_modality: dict[str, tuple[ChannelNormalisation, ...]] = field(default_factory=dict)
    """For a dataset with modalities: by modality, one per channel."""
    largest_shape: Shape | None = None
    """Most voxels of a training case per axis, network order; None: not known."""
    notes: tuple[str, ...] = ()
    """Decisions of the planner and their reasons, for readers."""

    @property
    def hash(self) -> str:
        """Short hash of everything that a preprocessed case depends on; it is kept with every case."""
        unread = ("notes", "median_shape", "largest_shape")
        return content_hash({key: value for key, value in self.hashed.items() if key not in unread})

    @property
    def hashed(self) -> dict[str, Any]:
        """What hashes see of this plan."""
        plain = deviations(self)
        if self.regions is not None:  # their order is that of the outputs, and a hash does not see the order of keys
            plain["regions"]["values"] = list(plain["regions"]["values"].items())
        return plain

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What the network segments by name, with its values in label maps: the regions, else the labels."""
        return structures_of(self.labels, self.regions)

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The classes of label maps that each structure is made of."""
        class_of = {value: number for number, value in enumerate(self.labels.values(), start=1)}
        return tuple(tuple(class_of[value] for value in values) for values in self.structures.values())

    @property
    def label_classes(self) -> int:
        """Classes of a label map, background counted, and voxels that nobody annotated left out."""
        return len(self.labels) + 1

    @property
    def ignored_class(self) -> int | None:
        """Class of voxels that nobody annotated, behind all others; None: there are none."""
        return None if self.ignore_value is None else self.label_classes

    @property
    def outputs(self) -> int:
        """Outputs of the network: one per class, background counted, or one per region."""
        return self.label_classes if self.regions is None else len(self.regions.values)

    @rule
    def _labels_have_values_of_their_own(self) -> None:
        ignored = () if self.ignore_value is None else (self.ignore_value,)
        values = [*self.labels.values(), *self.background_values, *ignored]
        if len(set(values)) < len(values):
            refuse("expected a value of its own for each, those of the background among them", "labels")
        if self.regions and {value for own in self.structures.values() for value in own} != set(self.labels.values()):
            refuse("expected values of the labels, all of them", "regions")

    @rule
    def _channels_are_normalised(self) -> None:
        for channels in self.normalisation_by_modality.values() or [self.normalisation]:
            if len(channels) != len(self.channels):
                refuse(f"expected one per channel ({', '.join(self.channels)})", "normalisation")

    @property
    def shown_spacing(self) -> str:
        """Target spacing in mm for a reader; `own` across slices, where cases keep theirs."""
        return times(self.spacing) if self.dimensions == 3 else f"own × {times(self.spacing[1:])}"

    def spacing_for(self, spacing: Sequence[float]) -> tuple[float, ...]:
        """What a case of a spacing is brought to, in mm per axis, network order; across slices it keeps its own."""
        return self.spacing if self.dimensions == 3 else (spacing[0], *self.spacing[1:])

    def normalisation_of(self, case_id: str, modality: str | None) -> tuple[ChannelNormalisation, ...]:
        """The normalisation of each channel of a case.

        Raises:
            UserError: the plan has modalities, and the case has none or another one.
        """
        if not self.normalisation_by_modality:
            return self.normalisation
        if modality not in self.normalisation_by_modality:
            known = ", ".join(self.normalisation_by_modality)
            raise UserError(
                f"case {case_id}: its modality is {modality or 'not known'}; the plan normalises {known}, each in its "
                "own way: name one of them, or run 'megavoxel check' and 'megavoxel plan-preprocessing' again"
            )
        return self.normalisation_by_modality[modality]


@record
class NetworkPlan(NetworkParts):
    """A network of levels; level 0 is the finest, the last one the bottleneck."""

    channels: Count
    """Channels of the image."""
    classes: Count
    """Outputs: classes, background counted, or regions."""
    features: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=16)]
    """Channels per level."""
    kernels: tuple[Triple[Annotated[int, between(1, 64)]], ...]
    """Convolution kernel per level and axis."""
    strides: tuple[Triple[Annotated[int, between(1, 64)]], ...]
    """Stride of the first convolution per level and axis; with other than ones level 0 is coarser than the image."""
    convolutions_per_level: Annotated[int, between(1, 8)] = 2
    """3D convolutions per level of the decoder and, where it has no residual blocks, of the encoder."""
    blocks: tuple[Annotated[int, between(1, 64)], ...] = ()
    """Residual blocks per level of the encoder; empty for an architecture without them."""
    prior_channels: Annotated[int, between(0, 65536)] = 0
    """Channels behind those of the image that hold a first stage's labels, one-hot, branch after branch without the
    background."""
    fusion: Fusion = "post"
    """Place where the prior channels are joined: `post`, at the start of every decoder level, or `pre`, at the first
    convolution."""
    expanded_head: bool = False
    """Whether the second decoder level has a head for an expanded patch."""

    @rule
    def _levels_agree(self) -> None:
        levels = len(self.features)
        if self.decoder_features is not None and len(self.decoder_features) != levels - 1:
            refuse(f"expected {levels - 1}, one less than features", "decoder_features")
        for key in ("kernels", "strides"):
            if len(getattr(self, key)) != levels:
                refuse(f"expected three whole numbers above 0 per level, of which features has {levels}", key)
        if len(self.blocks) != (levels if self.architecture == "residual" else 0):
            refuse("expected a number for each level of residual, and none for other architectures", "blocks")
        if not all(size % 2 for kernel in self.kernels for size in kernel):
            refuse("expected odd numbers", "kernels")

    @property
    def input_channels(self) -> int:
        """Channels of the tensor that the network is given."""
        return self.channels + self.prior_channels


@record
class PhasePlan:
    """One part of a curriculum."""

    patch: Shape
    batch: Count
    epochs: Count
    learning_rate: Positive


@record
class Plan:
    """A setting, ready to train."""

    study: str
    setting: str
    dataset: str
    seed: Seed
    preprocessing: PreprocessingPlan
    patch: Shape
    """Voxels per axis, network order; need not be a multiple of the network's stride."""
    batch: Count
    """Samples per optimiser step, over all devices together."""
    network: NetworkPlan
    training: Training
    augmentation: Augmentation
    inference: Inference
    expanded_patch: Shape | None = None
    """Voxels per axis of the expanded patch around the patch, by an even number larger per axis; None: none."""
    expansion_order: ExpansionOrder = "sequential"
    """`sequential` or `joint`: how patch and expanded patch go through the network in a step."""
    stage1: tuple[str, ...] = ()
    """Names of the first-stage settings whose label maps the network is given, in the order of their channels."""
    unannotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By training case, names of the labels that training takes for not annotated in it: those that are not, and hidden
    ones. Cases with all labels are left out."""
    phases: tuple[PhasePlan, ...] = ()
    """A curriculum, of whose last phase `patch`, `batch` and `training` are; empty without one."""
    start: str | StartFile | None = None
    """Setting of the study, or file, whose weights training begins with; None: random weights."""
    parallel: Parallel = field(default_factory=Parallel)
    """Distribution of a training step over devices."""
    stages: tuple[int, ...] = ()
    """Number of the first block of each stage of a pipeline; empty without one."""
    needs: Needs | None = None
    """Needs of jobs on the device that the setting was planned for; None: not known."""
    notes: tuple[str, ...] = ()
    """Decisions of the planner and their reasons, for readers."""

    @property
    def sampled_patch(self) -> tuple[int, ...]:
        """Voxels per axis of what is read for a training sample: the expanded patch where there is one."""
        return self.patch if self.expanded_patch is None else self.expanded_patch

    @property
    def common_batch(self) -> int:
        """Equal parts into which the batches of all phases can be cut: the batch where there is no curriculum."""
        return math.gcd(*(phase.batch for phase in self.by_phase()))

    def by_phase(self) -> list[Plan]:
        """A plan without a curriculum for each phase, in order; without a curriculum the plan itself."""
        if not self.phases:
            return [self]
        return [
            replace(
                self,
                phases=(),
                patch=phase.patch,
                batch=phase.batch,
                training=replace(self.training, epochs=phase.epochs, learning_rate=phase.learning_rate),
            )
            for phase in self.phases
        ]

    @property
    def hash(self) -> str:
        """Short hash of everything that training depends on; training states are kept under it.

        Not on `parallel` and `stages`: they spread the same steps, so that a run may go on with more devices or fewer.
        Not on `needs`: what jobs ask for changes nothing that they do. Not on `training.workers`: a patch is a function
        of its number.
        """
        plain = deviations(self)
        unread = ("notes", "inference", "parallel", "stages", "needs", "study", "setting")
        relevant = {key: value for key, value in plain.items() if key not in unread}
        relevant["preprocessing"] = {
            key: value for key, value in self.preprocessing.hashed.items() if key not in ("notes", "largest_shape")
        }
        relevant["training"] = {key: value for key, value in plain["training"].items() if key != "workers"}
        return content_hash(relevant)

    @property
    def prediction_hash(self) -> str:
        """Short hash of everything in the plan that predictions depend on."""
        return content_hash([self.hash, deviations(self.inference)])

    @rule
    def _network_has_the_channels_and_classes(self) -> None:
        channels, classes = len(self.preprocessing.channels), self.preprocessing.outputs
        if self.network.channels != channels:
            refuse(f"expected {channels}, those of the image", "network.channels")
        if self.network.classes != classes:
            what = "the labels and the background" if self.preprocessing.regions is None else "one per region"
            refuse(f"expected {classes}, {what}", "network.classes")

    @rule
    def _slices_are_one_voxel_thick(self) -> None:
        if self.preprocessing.dimensions == 3:
            return
        window = (1,) if self.inference.window in (None, "whole") else self.inference.window
        sizes = [self.sampled_patch, window, *(phase.patch for phase in self.phases)]
        if any(size[0] != 1 for size in (*sizes, *self.network.kernels, *self.network.strides)):
            refuse("expected patches, window, kernels and strides of 1 along the first axis, across slices", "patch")


def save_plan(path: Path, plan: Plan | PreprocessingPlan) -> None:
    """Writes a plan."""
    write_json(path, to_plain(plan))


def load_plan(path: Path) -> Plan:
    """Reads a setting's `plan.json`.

    Raises:
        UserError: the file is missing or not what `megavoxel plan` writes.
    """
    return read_record(Plan, path, what="plan")


def load_preprocessing_plan(path: Path) -> PreprocessingPlan:
    """Reads the `plan.json` of a preprocessing.

    Raises:
        UserError: the file is missing or not what `megavoxel plan-preprocessing` writes.
    """
    return read_record(PreprocessingPlan, path, what="preprocessing plan")


def require_first_stage(plan: Plan, folders: Sequence[Path], *, option: str) -> None:
    """Refuses a second stage without its first stage's labels, and such labels where there is no first stage.

    Raises:
        UserError: with the option that is missing or too much.
    """
    if plan.stage1 and not folders:
        raise UserError(
            f"setting {plan.setting}: it is the second stage after {' and '.join(plan.stage1)}; give {option} with the "
            "folders of the first stage's labels"
        )
    if folders and not plan.stage1:
        raise UserError(f"{option}: setting {plan.setting} has no first stage; leave it out")
