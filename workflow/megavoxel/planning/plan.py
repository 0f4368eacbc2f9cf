"""`plan.json`: everything that training and prediction need, and nothing else. Nobody derives any of it again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.study import Augmentation, Inference, Parallel, Training
from megavoxel.errors import UserError
from megavoxel.files import content_hash, read_json, write_json
from megavoxel.planning.needs import Needs
from megavoxel.planning.soundness import check_plan, check_preprocessing_plan


@dataclass(frozen=True, kw_only=True)
class ChannelNormalisation:
    """What is done to the intensities of one channel."""

    scheme: str
    """`ct`: clip to [lower, upper], subtract mean, divide by std, all four from the dataset's foreground.
    `z-score`: subtract the image's own mean and divide by its own standard deviation.
    `range`: clip to [lower, upper], both from the study, and bring that to [0, 1]."""
    mean: float | None = None
    std: float | None = None
    lower: float | None = None
    """`ct`: 0.5 percentile."""
    upper: float | None = None
    """`ct`: 99.5 percentile."""
    inside_nonzero: bool = False
    """z-score: statistics of the nonzero region only, 0 elsewhere."""


@dataclass(frozen=True, kw_only=True)
class PreprocessingPlan:
    """How every case comes to the network's grid; shared by all settings with the same `preprocessing` keys."""

    channels: tuple[str, ...]
    """Names of the image channels."""
    labels: dict[str, int]
    """Values in the label files by name, in ascending order; their position plus one is the network's class."""
    background_values: tuple[int, ...] = ()
    """Values in the label files that count as background, like 0. The key is not written where there are none."""
    transpose: tuple[int, ...]
    """Network axis n is canonical axis transpose[n] (canonical: z, y, x)."""
    spacing: tuple[float, ...]
    """Target spacing in mm, network order."""
    median_shape: tuple[float, ...]
    """Median voxels per axis after cropping and resampling, network order; halves come from an even number of cases."""
    normalisation: tuple[ChannelNormalisation, ...]
    """One per channel; none where the dataset has modalities."""
    normalisation_by_modality: dict[str, tuple[ChannelNormalisation, ...]] = field(default_factory=dict)
    """Where the dataset has modalities: by modality, one per channel. The key is not written where it has none."""
    largest_shape: tuple[int, ...] | None = None
    """Most voxels of a training case per axis, network order. The key is not written where it is not known."""
    image_order: int = 3
    """Spline order for images."""
    label_order: int = 1
    """Spline order for the mask of each label."""
    notes: tuple[str, ...] = ()
    """What the planner decided and why, for the reader."""

    @property
    def hash(self) -> str:
        """Short hash of everything that a preprocessed case depends on; it is kept with every case."""
        unread = ("notes", "median_shape", "largest_shape")
        return content_hash({key: value for key, value in _plain(self).items() if key not in unread})

    def normalisation_of(self, case_id: str, modality: str | None) -> tuple[ChannelNormalisation, ...]:
        """What is done to the channels of a case.

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


MOST_RESTORED_FEATURES = 32


@dataclass(frozen=True, kw_only=True)
class NetworkPlan:
    """A 3D U-Net; level 0 is the finest, the last level the bottleneck."""

    channels: int
    """Channels of the image."""
    classes: int
    """Output classes, background counted."""
    features: tuple[int, ...]
    """Channels per level."""
    kernels: tuple[tuple[int, ...], ...]
    """Convolution kernel per level and axis."""
    strides: tuple[tuple[int, ...], ...]
    """Stride of the first convolution per level and axis; with other than ones level 0 is coarser than the image."""
    decoder_features: tuple[int, ...] | None = None
    """Channels per decoder level, full resolution first; None: those of the encoder."""
    convolutions_per_level: int = 2
    deep_supervision: bool = True
    norm: str = "instance"
    """`instance` or `batch`."""
    pooling: str = "stride"
    """`stride` of the level's first convolution, or `max` pooling before it."""
    upsampling: str = "transposed"
    """`transposed` convolution or `nearest` voxel."""
    prior_channels: int = 0
    """Channels behind those of the image that hold a first stage's labels, one-hot, branch after branch without the
    background."""
    fusion: str = "post"
    """Where they are joined: `post`, at the start of every decoder level, or `pre`, at the first convolution."""
    expanded_head: bool = False
    """Whether the second decoder level has a head for an expanded patch."""
    squeeze_excitation: int | None = None
    """Reduction ratio of the squeeze-and-excitation at the end of every level; None: there is none. The key is not
    written where there is none."""

    @property
    def input_channels(self) -> int:
        """Channels of the tensor that the network is given."""
        return self.channels + self.prior_channels

    @property
    def decoder(self) -> tuple[int, ...]:
        """Channels per decoder level, full resolution first."""
        return self.features[:-1] if self.decoder_features is None else self.decoder_features

    @property
    def decoder_and_bottleneck(self) -> tuple[int, ...]:
        """Channels of the activation that each level hands upwards, the bottleneck last."""
        return (*self.decoder, self.features[-1])

    @property
    def restored_features(self) -> int | None:
        """Channels at the image's resolution behind a first level that is coarser; None where it is not.

        Half those of the level and at most 32, as in the code published with LAMP (Zhu et al., MICCAI 2020).
        """
        if max(self.strides[0]) == 1:
            return None
        features = self.decoder_and_bottleneck[0]
        return features if self.upsampling == "nearest" else min(max(1, features // 2), MOST_RESTORED_FEATURES)


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One part of a curriculum."""

    patch: tuple[int, ...]
    batch: int
    epochs: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A setting, ready to train."""

    study: str
    setting: str
    dataset: str
    seed: int
    preprocessing: PreprocessingPlan
    patch: tuple[int, ...]
    """Voxels per axis, network order; need not be a multiple of the network's stride."""
    batch: int
    """Samples per optimiser step, over all devices together."""
    network: NetworkPlan
    training: Training
    augmentation: Augmentation
    inference: Inference
    expanded_patch: tuple[int, ...] | None = None
    """Voxels per axis of the expanded patch around the patch, by an even number larger per axis; None: none."""
    expansion_order: str = "sequential"
    """`sequential` or `joint`: how patch and expanded patch go through the network in a step."""
    stage1: tuple[str, ...] = ()
    """Names of the first-stage settings whose label maps the network is given, in the order of their channels."""
    unannotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By training case, names of the labels that training takes for not annotated in it: those that are not, and hidden
    ones. Cases with all labels are left out, and the key is not written where there are no others."""
    phases: tuple[PhasePlan, ...] = ()
    """A curriculum, of whose last phase `patch`, `batch` and `training` are; the key is not written where there is
    none."""
    start: str | None = None
    """Setting of the study whose weights training begins with; the key is not written where there is none."""
    parallel: Parallel = field(default_factory=Parallel)
    """How a training step is spread over devices."""
    stages: tuple[int, ...] = ()
    """Number of the first block of each stage of a pipeline; empty without one."""
    needs: Needs | None = None
    """What jobs need on the device that the setting was planned for; the key is not written where it is not known."""
    notes: tuple[str, ...] = ()
    """What the planner decided and why, for the reader."""

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
        Not on `needs`: what jobs ask for changes nothing that they do.
        """
        plain = _plain(self)
        unread = ("notes", "inference", "parallel", "stages", "needs", "study", "setting")
        relevant = {key: value for key, value in plain.items() if key not in unread}
        relevant["preprocessing"] = {
            key: value for key, value in plain["preprocessing"].items() if key not in ("notes", "largest_shape")
        }
        return content_hash(relevant)


def save_plan(path: Path, plan: Plan | PreprocessingPlan) -> None:
    """Writes a plan."""
    write_json(path, _plain(plan))


def _plain(plan: Plan | PreprocessingPlan) -> dict[str, Any]:
    """Plain data, without the newer keys where there is nothing in them: files and hashes stay what they were before
    there were such keys."""
    plain = to_plain(plan)
    if isinstance(plan, Plan):
        _drop_empty(plain, ("unannotated", "stages", "phases", "start", "needs"))
        _drop_empty(plain["network"], ("squeeze_excitation",))
        _drop_empty(plain["inference"], ("window",))
    preprocessing = plain["preprocessing"] if isinstance(plan, Plan) else plain
    _drop_empty(preprocessing, ("normalisation_by_modality", "background_values", "largest_shape"))
    return plain


def _drop_empty(plain: dict[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if not plain[key]:
            del plain[key]


def load_plan(path: Path) -> Plan:
    """Reads a setting's `plan.json`.

    Raises:
        UserError: the file is missing or not what `megavoxel plan` writes.
    """
    plan = from_plain(Plan, read_json(path, what="plan"), where=str(path))
    check_plan(plan, str(path))
    return plan


def load_preprocessing_plan(path: Path) -> PreprocessingPlan:
    """Reads the `plan.json` of a preprocessing.

    Raises:
        UserError: the file is missing or not what `megavoxel plan-preprocessing` writes.
    """
    plan = from_plain(PreprocessingPlan, read_json(path, what="preprocessing plan"), where=str(path))
    check_preprocessing_plan(plan, str(path))
    return plan


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
