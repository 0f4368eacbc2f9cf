"""A study of segmentation: the settings to compare, their folds, ensembles and sweeps."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from megavoxel.config.fields import (
    Batch,
    Channels,
    Count,
    CountOrNone,
    DatasetName,
    Distinct,
    DistinctOrNone,
    ExpansionOrder,
    Folds,
    Fraction,
    Fusion,
    Interval,
    LongName,
    Name,
    Norm,
    NotNegative,
    Parts,
    Patch,
    Pooling,
    Positive,
    Range,
    Seed,
    Several,
    Spacing,
    T,
    Text,
    Transposition,
    Triple,
    Upsampling,
    Voxels,
    between,
    refuse,
    unique,
)
from megavoxel.config.records import record, rule, rule_of_whole

WEIGHTED_LOSSES = ("dice_ce", "dice_focal", "cross_entropy")
"""Losses with a cross-entropy or focal loss whose classes can be weighted."""
Levels = Annotated[int, between(1, 9)]
PerLevel = Annotated[tuple[T, ...], Field(min_length=1, max_length=9)]
Factor = Annotated[float, between(1, 8)]
Point = Annotated[
    str, Field(min_length=1, max_length=80, description="a text of 1 to 80 characters; numbers in quotes")
]


def _without_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _three(factor: Any) -> Any:
    return factor if isinstance(factor, tuple) else (factor,) * 3


def _two_or_more(phases: tuple) -> tuple:
    return refuse("there is one; a curriculum has two phases or more") if len(phases) == 1 else phases


def _timing(value: Any) -> Any:
    return (Timing() if value else None) if isinstance(value, bool) else value


@record
class IntensityRange:
    """A fixed range of intensities that becomes 0 to 1, whatever the dataset; what lies beyond is clipped."""

    range: Interval
    """Lower and upper end, in units of the image file. What lies outside of an image, where a patch reaches beyond it,
    is 0 as well: the lower end, such as air."""


@record
class Interpolation:
    """Interpolation of images and labels on another grid."""

    image_order: Annotated[int, between(0, 5)] = 3
    """Spline order for images."""
    label_order: Annotated[int, between(0, 1)] = 1
    """Spline order for the 0/1 mask of each label."""


@record
class Preprocessing(Interpolation):
    """How cases are brought to one grid. Axes are in network order: the coarsest first (axial scans: z, y, x)."""

    spacing: Spacing | None = None
    """Target spacing in mm per axis; None: nnU-Net's rule on the fingerprint."""
    resolution: Literal["full", "low"] = "full"
    """`full`, or `low`: the spacing of nnU-Net's low-resolution stage, for large cases; not beside `spacing`."""
    transpose: Transposition | None = None
    """Order of axes: network axis n is axis transpose[n] of (z, y, x); None: the coarsest first, the others as they
    are."""
    normalisation: Annotated[
        Literal["ct", "z-score"] | IntensityRange | None,
        Field(description="ct, z-score, or a fixed range as in {range: [-21, 89]}"),
    ] = None
    """`ct` (foreground percentiles of the dataset), `z-score` (of each image), or a fixed range as in `{range: [-21,
    89]}`; None: by the channel's name."""


@record
class NetworkParts:
    """Keys of a network that a setting and its plan share."""

    architecture: Literal["unet"] = "unet"
    """Name of the architecture: `unet`, the 3D U-Net, by default nnU-Net's."""
    decoder_features: Several[Channels] | None = None
    """Channels per decoder level, full resolution first, one less than levels; None: those of the encoder."""
    convolutions_per_level: Annotated[int, between(1, 8)] = 2
    """3D convolutions per level, in the encoder and in the decoder."""
    norm: Norm = "instance"
    """`instance` (nnU-Net) or `batch`, whose statistics are of the samples that go through together on one device: with
    accumulation, or several devices, they are not those of the whole batch."""
    pooling: Pooling = "stride"
    """Downsampling to the next level: the `stride` of its first convolution (nnU-Net), or `max` pooling before it."""
    upsampling: Upsampling = "transposed"
    """Upsampling to the next decoder level: a `transposed` convolution (nnU-Net), or the `nearest` voxel."""
    squeeze_excitation: Channels | None = None
    """Makes it an SE-U-Net: at the end of every level of encoder and decoder, each channel is weighted by a number from
    0 to 1 that two linear layers work out from the means of all channels over the patch. The key is the reduction
    ratio: between these layers are channels / ratio units, at least 1 (usual: 16); None: the plain U-Net."""
    deep_supervision: bool = True
    """Whether decoder levels below the first carry a head with a loss of their own."""


@record
class Network(NetworkParts):
    """The network; None means: by the planner."""

    base_features: Annotated[int, between(1, 1024)] = 32
    """Channels of the first level; each level below doubles them."""
    max_features: Channels = 320
    """Upper bound of the channels of a level."""
    features: PerLevel[Channels] | None = None
    """Channels per level, the bottleneck last, as many as there are levels; None: by `base_features`."""
    for_patch: Voxels | None = None
    """Patch that levels, strides and kernels are made for; None: the setting's own, or the smallest of its phases. For
    settings that are to have the same network whatever their patch."""
    levels: Levels | None = None
    """Resolution levels, the bottleneck counted; None: as many as patch and spacing allow."""
    strides: PerLevel[Triple[Annotated[int, between(1, 8)]]] | None = None
    """Stride from the level above per level and axis; None: by `for_patch`. With other than `[1, 1, 1]` the first level
    is coarser than the image, and what it makes is brought back to all voxels before the head: less memory, for
    outlines from a coarser grid (the networks of LAMP begin with `[2, 2, 2]`)."""
    kernels: PerLevel[Triple[Literal[1, 3, 5, 7, 9, 11]]] | None = None
    """Odd extent of the convolutions per level and axis; None: 3, or 1 along an axis until the others have become as
    coarse."""

    @property
    def fixed_levels(self) -> int | None:
        """Levels that the study asks for, by number or by a list with an entry for each; None: by the planner."""
        if self.levels is not None:
            return self.levels
        lists = (self.features, self.strides, self.kernels)
        return next((len(entries) for entries in lists if entries is not None), None)

    @rule_of_whole
    def _levels_agree(self) -> None:
        levels = self.fixed_levels
        if self.features is not None and len(self.features) != levels:
            refuse(f"{len(self.features)} numbers of channels, but levels is {levels}", "features")
        for key in ("strides", "kernels"):
            entries = getattr(self, key)
            if entries is not None and len(entries) != levels:
                refuse(f"it has {len(entries)} entries for {levels} levels; give one for each", key)
        if self.strides is not None and self.for_patch is not None:
            refuse("'strides' say what it is there to say; remove one of them", "for_patch")

    @rule_of_whole
    def _decoder_fits(self) -> None:
        levels, features = self.fixed_levels, self.decoder_features
        if features is None or (levels is not None and len(features) == levels - 1):
            return
        wanted = "'levels' or 'features' beside it" if levels is None else f"{levels - 1} of them, one less than levels"
        refuse(f"{len(features)} numbers of channels; give {wanted}", "decoder_features")


@record
class Parallel:
    """How a training step is spread over devices and time. It changes neither the batch nor what is learnt."""

    data: Parts = 1
    """Devices, or groups of `pipeline` devices, that share each batch."""
    pipeline: Parts = 1
    """Devices that share one network, a stage each."""
    micro_batches: Parts = 1
    """Equal parts in which a batch goes through the stages of a pipeline."""
    accumulate: Parts = 1
    """Equal parts of a device's share whose gradients are summed one after the other."""
    checkpointing: bool = False
    """Whether blocks are run again in the backward pass instead of keeping their activations."""

    @property
    def devices(self) -> int:
        """Devices of a training job."""
        return self.data * self.pipeline

    @property
    def parts(self) -> int:
        """Parts that a batch is cut into."""
        return self.data * self.accumulate * self.micro_batches


ParallelOrAuto = Annotated[
    Literal["auto"] | Parallel | None,
    AfterValidator(_without_auto),
]


@record
class Optimisation:
    """Budget and optimiser of a run, of segmentation and of classification alike."""

    epochs: Count = 1000
    """Epochs; after each one the validation patches are scored and the learning rate is set."""
    optimizer: Literal["sgd", "adamw", "adam", "rmsprop"] = "sgd"
    """`sgd` (Nesterov), `adamw`, `adam` or `rmsprop`."""
    learning_rate: Positive = 0.01
    """Initial learning rate."""
    learning_rate_rule: Literal["constant", "linear", "sqrt"] = "constant"
    """Scaling of the learning rate with the batch of all devices: `constant`, or `linear` or `sqrt` in batch /
    learning_rate_batch."""
    learning_rate_batch: Count = 2
    """The batch that `learning_rate` is meant for; only `linear` and `sqrt` look at it."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    """`poly` (1 - epoch/epochs)^0.9, `cosine` or `constant`; stepped per epoch."""
    warmup_epochs: CountOrNone = 0
    """Epochs of linear rise to the initial learning rate."""
    momentum: Fraction = 0.99
    """Nesterov momentum of `sgd`."""
    weight_decay: NotNegative = 3e-5
    """Decoupled decay (`adamw`), or L2 penalty (all others)."""
    checkpoint_minutes: NotNegative = 2.0
    """Time between two checkpoints in minutes; 0: after every epoch."""


@record
class Training(Optimisation):
    """Budget, optimiser and loss of a run."""

    iterations_per_epoch: Count = 250
    """Optimiser steps per epoch; where `samples` is given, the planner sets them."""
    samples: Count | None = None
    """Training patches of the whole run, so that batches compare at equal work; None: as many as the steps take."""
    validation_iterations: CountOrNone = 50
    """Validation batches per epoch."""
    gradient_clip: Positive = 12.0
    """Largest L2 norm of all gradients together."""
    loss: Literal["dice_ce", "dice_focal", "dice_topk", "dice_perimeter", "dice", "cross_entropy"] = "dice_ce"
    """`dice_ce`, `dice_focal`, `dice_topk`, `dice_perimeter`, `dice` or `cross_entropy`."""
    focal_gamma: NotNegative = 2.0
    """Exponent of `dice_focal`."""
    topk_percent: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Share of the worst voxels of each sample that `dice_topk` counts, in percent."""
    class_weights: (
        Literal["none", "softmax_of_inverse", "inverse_frequency"]
        | Annotated[tuple[NotNegative, ...], Field(min_length=2)]
    ) = "none"
    """Weights of the classes in the cross-entropy of `dice_ce` and `cross_entropy`, and in the focal loss of
    `dice_focal`: `none`; `softmax_of_inverse`, the softmax over classes of all voxels / voxels of the class in the
    fold's training cases; `inverse_frequency`, those ratios divided by the number of classes; or one number per class,
    background first, the labels in ascending order of their values."""
    batch_dice: bool | None = None
    """Whether Dice sums run over the whole batch, of all devices, instead of over each sample; None: nnU-Net's rule,
    at full resolution of a dataset that has a low-resolution stage: its patches often lack labels."""
    sampling: Literal["foreground", "roulette"] = "foreground"
    """Drawing of patches: `foreground`, some of them centred on a foreground voxel (nnU-Net), or `roulette`, from
    half-overlapping positions, where those with little foreground are accepted now and then."""
    foreground_fraction: Fraction = 0.33
    """Probability that a patch of `foreground` sampling is centred on a foreground voxel."""
    roulette_threshold: Fraction = 0.01
    """Share of foreground voxels from which on a patch of `roulette` sampling is always accepted."""
    roulette_acceptance: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Probability that any other patch of `roulette` sampling is accepted."""
    patience: Count | None = None
    """Epochs without a better pseudo-Dice after which training stops, with the weights of its last epoch; the learning
    rate falls as over all `epochs`. None: it takes all of them."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`float32`, `bfloat16`, `float16` or `auto` (a short measurement on the CPU; bfloat16 where a GPU has it)."""
    workers: Annotated[int, between(0, 64)] = 2
    """Processes that load and augment patches; 0: the training process itself."""

    @rule_of_whole
    def _weights_have_a_loss(self) -> None:
        weights = self.class_weights
        if weights != "none" and self.loss not in WEIGHTED_LOSSES:
            refuse(
                f"'{weights}' weights a cross-entropy or focal loss, which the loss '{self.loss}' has not; allowed: "
                f"loss {' or '.join(WEIGHTED_LOSSES)}, or class_weights none",
                "class_weights",
            )
        if not isinstance(weights, str) and not any(weights):
            refuse("all of them are 0, so that no voxel counts; give one that is above", "class_weights")

    @rule_of_whole
    def _patience_is_validated(self) -> None:
        if self.patience is not None and self.validation_iterations == 0:
            refuse(
                "it looks at the pseudo-Dice of validation patches, and validation_iterations is 0; set that to 1 or "
                "more, or remove patience",
                "patience",
            )


@record
class Augmentation:
    """Random changes of training patches, applied in this order; probabilities are per sample."""

    rotation: Fraction = 0.2
    """Probability of a rotation."""
    rotation_degrees: Annotated[float, between(0, 180)] | None = None
    """Largest angle per axis in degrees; None: 30, or 180 where one axis is coarse, and patches turn in-plane only."""
    scaling: Fraction = 0.2
    """Probability of zooming."""
    scaling_range: Range[Positive] = (0.7, 1.4)
    """Smallest and largest zoom factor."""
    noise: Fraction = 0.1
    """Probability of Gaussian noise."""
    noise_std: Range[NotNegative] = (0.0, 0.1)
    """Range of its standard deviation, in units of the normalised image."""
    blur: Fraction = 0.2
    """Probability of Gaussian blur; each channel then with probability 0.5."""
    blur_sigma: Range[NotNegative] = (0.5, 1.0)
    """Range of its sigma in voxels."""
    brightness: Fraction = 0.15
    """Probability of multiplying the intensities."""
    brightness_range: Range[NotNegative] = (0.75, 1.25)
    """Range of that factor."""
    contrast: Fraction = 0.15
    """Probability of scaling around the mean, clipped to the patch's own range."""
    contrast_range: Range[NotNegative] = (0.75, 1.25)
    """Range of that factor."""
    low_resolution: Fraction = 0.25
    """Probability of simulated low resolution; each channel then with probability 0.5."""
    low_resolution_zoom: Range[Annotated[float, Field(gt=0, le=1)]] = (0.5, 1.0)
    """Range of the zoom."""
    gamma: Fraction = 0.3
    """Probability of a gamma curve."""
    gamma_inverted: Fraction = 0.1
    """Probability of a gamma curve on the inverted image."""
    gamma_range: Range[NotNegative] = (0.7, 1.5)
    """Range of the exponent; mean and standard deviation are restored."""
    stage1_morphology: Fraction = 0.4
    """Probability that the first stage's labels are dilated, eroded, opened or closed; each label then with
    probability 0.5. Only a setting with `stage1` looks at it."""
    stage1_removal: Fraction = 0.2
    """Probability that a small component of the first stage's labels is removed; each label then with probability 0.5.
    Only a setting with `stage1` looks at it."""
    mirror_axes: Annotated[tuple[Literal[0, 1, 2], ...], AfterValidator(unique)] = (0, 1, 2)
    """Axes that are mirrored, each with probability 0.5; prediction averages over the same axes."""


@record
class Inference:
    """The sliding window."""

    window: Patch | None = None
    """Voxels per axis of a window; `whole`: one window that holds the whole image, and no less than the patch; None:
    the patch, or the whole image where `patch` is `whole`."""
    step: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest distance between two windows, as a fraction of the patch."""
    mirror: bool = True
    """Whether predictions are averaged over the mirrored axes of the augmentation."""
    weights: Literal["gaussian", "centre"] = "gaussian"
    """Weights of the voxels of a window: `gaussian`, or `centre`, doubled in the box that is the half of each axis
    around the centre."""
    gaussian_sigma: Positive = 0.125
    """Sigma of `gaussian` weights, as a fraction of the patch."""


@record
class Expansion:
    """A second, larger patch around the patch, which trains all levels but the first (meU-net)."""

    factor: Annotated[
        Factor | Triple[Factor],
        Field(description="one number from 1 to 8, or one per axis, coarsest axis first"),
        AfterValidator(_three),
    ]
    """Size of the expanded patch per axis, as a multiple of the patch; one number stands for all axes."""
    order: ExpansionOrder = "sequential"
    """`sequential`: forward and backward pass of one patch, then of the other; `joint`: both forward, then both
    backward. The gradients are the same; sequential needs less memory."""


@record
class Phase:
    """One part of a curriculum; None stands for what the setting says."""

    patch: Patch | None = None
    """Voxels per axis in network order, or `whole`."""
    batch: Batch | None = None
    """Samples per optimiser step."""
    epochs: Count | None = None
    """Epochs of this phase."""
    learning_rate: Positive | None = None
    """Initial learning rate; the schedule runs once in each phase."""


Curriculum = Annotated[
    tuple[Phase, ...],
    Field(max_length=20, json_schema_extra={"minItems": 2}),
    AfterValidator(_two_or_more),
]


@record
class SettingKeys:
    """One row of the study's table."""

    patch: Patch | None = None
    """Voxels per axis in network order; `whole`: the largest training case, with all others padded to it with 0, which
    counts as background like everything that a patch holds beyond its case; None: by the planner."""
    batch: Batch | None = None
    """Samples per optimiser step; None: by the planner."""
    memory_gib: Positive | None = None
    """Memory in GiB that the planner aims at where patch or batch are left to it; None: that of the study's device,
    or 8 (nnU-Net's reference) where the device states none."""
    folds: Folds | None = None
    """The folds to train; None: all of the study."""
    seed: Seed | None = None
    """Seed of weights and patches, for repeats of a setting; None: that of the study."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    network: Network = field(default_factory=Network)
    parallel: Annotated[Literal["auto"] | Parallel | None, AfterValidator(_without_auto)] = field(
        default_factory=Parallel
    )
    """Distribution of a step over devices; `auto` (None in code): the cheapest way that fits the study's device."""
    expansion: Expansion | None = None
    """Trains on an expanded patch as well; None: on the patch alone."""
    phases: Annotated[
        tuple[Phase, ...], Field(max_length=20, json_schema_extra={"minItems": 2}), AfterValidator(_two_or_more)
    ] = ()
    """A curriculum: parts of training with a patch and batch of their own, each with a new optimiser and from the last
    one's weights. Patch and batch of the last one are those of the trained setting."""
    start: LongName | None = None
    """Setting whose trained weights of the same fold this one begins with: a curriculum whose parts are settings
    themselves, trained once and compared. Their networks have to be equal, see `for_patch`. None: random weights."""
    stage1: DistinctOrNone[LongName] = ()
    """Settings whose predictions the network is given beside the image: the first stage of a cascade."""
    fusion: Fusion = "post"
    """Place where a setting with `stage1` joins their labels: `post`, at the start of every decoder level, or `pre`, to
    the image."""
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    inference: Inference = field(default_factory=Inference)
    postprocess: bool = True
    """Whether the largest component is kept where cross-validation says that it helps."""


@record
class Setting(SettingKeys):
    """One row of the study's table, with the study's defaults and what it inherits."""

    name: LongName
    """It becomes a folder."""

    @property
    def last_patch(self) -> tuple[int, ...] | str | None:
        """The patch that training ends with."""
        return (self.phases[-1].patch if self.phases else None) or self.patch

    @rule
    def _phases_have_their_steps(self) -> None:
        if self.phases and self.training.samples is not None:
            refuse(
                "phases have batches of their own, so that the samples of the whole run do not say how many steps each "
                "phase takes; give epochs and iterations_per_epoch instead",
                "training.samples",
            )
        if self.phases and self.expansion is not None:
            refuse("a setting with 'expansion' trains on one pair of patches; remove one of them", "phases")


@record
class WrittenSetting(SettingKeys):
    """One row of the study's table, as a study file has it."""

    inherits: Name | None = None
    """A setting whose keys are taken first."""
    seeds: Distinct[Seed] | None = None
    """Repeats of the setting, one per seed; each becomes a setting NAME-seedN."""


@record
class EnsembleKeys:
    """Settings whose probabilities are averaged, each after its own post-processing."""

    members: Annotated[Distinct[LongName], Field(min_length=2, description="names of two or more settings")]
    """Names of settings, at least two."""
    postprocess: bool = False
    """Whether the ensemble's own output is post-processed once more."""


@record
class Ensemble(EnsembleKeys):
    """An ensemble of a study."""

    name: LongName
    """It becomes a folder."""


@record
class SweepKeys:
    """Points that the report compares with one another, such as patch sizes: one of the study's tables."""

    title: Annotated[str, Field(min_length=1, max_length=200)]
    """Heading of the table."""
    points: Annotated[dict[Point, LongName | Distinct[LongName]], Field(min_length=2, description="two points or more")]
    """Points to compare, in this order; the first one is the baseline of the sweep. Each is a setting or an ensemble,
    or a list of those that are repeats of one another, such as runs that differ in their seed alone."""


@record
class Sweep:
    """A sweep of a study, with all repeats by name."""

    name: Name
    """It becomes part of a file's name."""
    title: str
    points: dict[str, tuple[str, ...]]


@record
class Partitions:
    """Pipelines whose stages `snakemake plan` lists for every setting, whether it trains through one or not."""

    gpus: Several[Annotated[int, between(2, 64)]] = (2, 4, 8)
    """Numbers of GPUs, each of which holds a stage."""
    memory_gib: Several[Positive] = (16.0, 32.0)
    """Memories of a GPU in GiB that they are held against."""


@record
class Timing:
    """Measures the time that the prediction of a case takes, from its preprocessed image to its logits."""

    repeats: Annotated[int, between(1, 1000)] = 3
    """Times that every case is predicted."""
    warm_up: Annotated[int, between(0, 1000)] = 1
    """Predictions of the first case before the clock is read."""
    split: Literal["test", "validation"] = "test"
    """`test`, or `validation`: the cases of each fold by its own network."""


@record
class StudyKeys:
    """Keys of a study of either task."""

    dataset: DatasetName
    """A name in config/datasets/ or the path of a dataset file."""
    hardware: Name = "cpu"
    """A name in config/hardware.yaml."""
    baseline: LongName | None = None
    """The setting that the report compares the others with."""


@record
class GivenByCommand:
    """Keys that are usually given as `--config KEY=VALUE`: rules read them, a study does not hold them."""

    mirror: Text | None = None
    """A folder that is looked at before any URL; usually given as --config mirror=DIR."""
    debian_mirror: Text | None = None
    """Address of a Debian mirror for `snakemake images`, given as --config debian_mirror=ADDRESS; without it, where a
    Debian machine's own packages come from."""
    cpu_index: Text | None = None
    """For `snakemake images`, an address or folder in which pip looks as well for the packages of the CPU image; given
    as --config cpu_index=ADDRESS."""
    gpu_index: Text | None = None
    """Address or folder in which pip also looks for the packages of the GPU image, as --config gpu_index=ADDRESS."""


class Compared:
    """Settings and ensembles of a study, by name."""

    def setting(self, name: str) -> Any:
        """The setting of that name; KeyError where there is none."""
        return {setting.name: setting for setting in self.settings}[name]

    def folds_of(self, setting: Any) -> tuple[int, ...]:
        """The folds that a setting is trained on."""
        return setting.folds if setting.folds is not None else tuple(range(self.folds))

    def folds_of_ensemble(self, ensemble: Any) -> tuple[int, ...]:
        """The folds of an ensemble: those of its members, which agree."""
        return self.folds_of(self.setting(ensemble.members[0]))


@record
class SegmentationKeys(StudyKeys):
    """Keys of a segmentation study that apply to all of its settings."""

    task: Literal["segmentation", "classification"] = "segmentation"
    """`segmentation`; a study of `classification` has keys of its own."""
    folds: Annotated[int, between(2, 20)] = 5
    """Cross-validation folds."""
    seed: Seed = 12345
    """Seed of the splits, of the weights and of every random patch."""
    shards: Annotated[int, between(1, 1000)] = 1
    """Jobs among which the cases of one preprocessing are divided."""
    partitions: Partitions | None = None
    """Lists how the networks would be cut into pipelines; None: only those that settings train through."""
    metrics: Distinct[Name] = ("dsc", "nsd")
    """Metrics of label maps: names from `evaluation/metrics.py`, such as `dsc`, `nsd` and `hd95`. The first one
    ranks cases, and stands against cost."""
    timing: Annotated[bool | Timing | None, AfterValidator(_timing)] = None
    """Measures seconds per image of every setting; `true` stands for the defaults; None: nothing is timed."""


@record
class Study(SegmentationKeys, Compared):
    """A study with its defaults, inheritance and repeats resolved."""

    name: Name
    settings: tuple[Setting, ...]
    ensembles: tuple[Ensemble, ...] = ()
    sweeps: tuple[Sweep, ...] = ()


@record
class StudyFile(GivenByCommand, SegmentationKeys):
    """What to compare: a dataset, settings, folds and ensembles."""

    study: Name
    """Name of the study: its folder below results/, state/ and logs/."""
    defaults: WrittenSetting = field(default_factory=WrittenSetting)
    """Keys that all settings share; where a setting says something else, the setting counts."""
    settings: Annotated[dict[Name, WrittenSetting | None], Field(min_length=1)]
    """Settings to compare, by name."""
    ensembles: dict[Name, EnsembleKeys] = field(default_factory=dict)
    """Ensembles of settings, by name."""
    sweeps: dict[Name, SweepKeys] = field(default_factory=dict)
    """Tables of the report that compare some of the settings, by name."""
