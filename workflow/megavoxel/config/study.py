"""A study: the settings to compare, their folds and ensembles. One dataclass per concept; units in the docstrings."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class IntensityRange:
    """A fixed range of intensities that becomes 0 to 1, whatever the dataset; what lies beyond is clipped."""

    range: tuple[float, ...]
    """Lower and upper end, in units of the image file. What lies outside of an image, where a patch reaches beyond it,
    is 0 as well: the lower end, such as air."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How cases are brought to one grid. Axes are in network order: the coarsest first (axial scans: z, y, x)."""

    spacing: tuple[float, ...] | None = None
    """Target spacing in mm per axis; None: nnU-Net's rule on the fingerprint."""
    resolution: str = "full"
    """`full`, or `low`: the spacing of nnU-Net's low-resolution stage, for large cases; not beside `spacing`."""
    transpose: tuple[int, ...] | None = None
    """Order of axes: network axis n is axis transpose[n] of (z, y, x); None: the coarsest first, the others as they
    are."""
    normalisation: str | IntensityRange | None = None
    """`ct` (foreground percentiles of the dataset), `z-score` (of each image), or a fixed range as in `{range: [-21,
    89]}`; None: by the channel's name."""
    image_order: int = 3
    """Spline order for images, 0 to 5."""
    label_order: int = 1
    """Spline order for the 0/1 mask of each label, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The 3D U-Net; None means: by the planner."""

    base_features: int = 32
    """Channels of the first level; each level below doubles them."""
    max_features: int = 320
    """Upper bound of the channels of a level."""
    features: tuple[int, ...] | None = None
    """Channels per level, the bottleneck last, as many as there are levels; None: by `base_features`."""
    decoder_features: tuple[int, ...] | None = None
    """Channels per decoder level, full resolution first, one less than levels; None: those of the encoder."""
    for_patch: tuple[int, ...] | None = None
    """Patch that levels, strides and kernels are made for; None: the setting's own, or the smallest of its phases. For
    settings that are to have the same network whatever their patch."""
    levels: int | None = None
    """Resolution levels, the bottleneck counted; None: as many as patch and spacing allow."""
    strides: tuple[tuple[int, ...], ...] | None = None
    """Stride from the level above per level and axis; None: by `for_patch`. With other than `[1, 1, 1]` the first level
    is coarser than the image, and what it makes is brought back to all voxels before the head: less memory, for
    outlines from a coarser grid (the networks of LAMP begin with `[2, 2, 2]`)."""
    kernels: tuple[tuple[int, ...], ...] | None = None
    """Odd extent of the convolutions per level and axis; None: 3, or 1 along an axis until the others have become as
    coarse."""
    convolutions_per_level: int = 2
    """3D convolutions per level, in the encoder and in the decoder."""
    norm: str = "instance"
    """`instance` (nnU-Net) or `batch`, whose statistics are of the samples that go through together on one device: with
    accumulation, or several devices, they are not those of the whole batch."""
    pooling: str = "stride"
    """What makes a level coarser: the `stride` of its first convolution (nnU-Net), or `max` pooling before it."""
    upsampling: str = "transposed"
    """What makes a decoder level finer: a `transposed` convolution (nnU-Net), or the `nearest` voxel."""
    squeeze_excitation: int | None = None
    """Makes it an SE-U-Net: at the end of every level of encoder and decoder, each channel is weighted by a number from
    0 to 1 that two linear layers work out from the means of all channels over the patch. The key is the reduction
    ratio: between these layers are channels / ratio units, at least 1 (usual: 16); None: the plain U-Net."""
    deep_supervision: bool = True
    """Whether decoder levels below the first carry a head with a loss of their own."""

    @property
    def fixed_levels(self) -> int | None:
        """Levels that the study asks for, by number or by a list with an entry for each; None: by the planner."""
        lists = (self.features, self.strides, self.kernels)
        return (
            next((len(entries) for entries in lists if entries is not None), None)
            if self.levels is None
            else self.levels
        )


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a training step is spread over devices and time. It changes neither the batch nor what is learnt."""

    data: int = 1
    """Devices, or groups of `pipeline` devices, that share each batch."""
    pipeline: int = 1
    """Devices that share one network, a stage each."""
    micro_batches: int = 1
    """Equal parts in which a batch goes through the stages of a pipeline."""
    accumulate: int = 1
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


@dataclass(frozen=True, kw_only=True)
class Training:
    """Budget, optimiser and loss of a run."""

    epochs: int = 1000
    """Epochs; after each one the validation patches are scored and the learning rate is set."""
    iterations_per_epoch: int = 250
    """Optimiser steps per epoch; where `samples` is given, the planner sets them."""
    samples: int | None = None
    """Training patches of the whole run, so that batches compare at equal work; None: as many as the steps take."""
    validation_iterations: int = 50
    """Validation batches per epoch."""
    optimizer: str = "sgd"
    """`sgd` (Nesterov), `adamw`, `adam` or `rmsprop`."""
    learning_rate: float = 0.01
    """Initial learning rate."""
    learning_rate_rule: str = "constant"
    """How it goes with the batch: `constant`, `linear` or `sqrt` in batch / learning_rate_batch."""
    learning_rate_batch: int = 2
    """The batch that `learning_rate` is meant for; only `linear` and `sqrt` look at it."""
    schedule: str = "poly"
    """`poly` (1 - epoch/epochs)^0.9, `cosine` or `constant`; stepped per epoch."""
    warmup_epochs: int = 0
    """Epochs of linear rise to the initial learning rate."""
    momentum: float = 0.99
    """Nesterov momentum of `sgd`."""
    weight_decay: float = 3e-5
    """Decoupled decay (`adamw`), or L2 penalty (all others)."""
    gradient_clip: float = 12.0
    """Largest L2 norm of all gradients together."""
    loss: str = "dice_ce"
    """`dice_ce`, `dice_focal`, `dice_topk`, `dice_perimeter`, `dice` or `cross_entropy`."""
    focal_gamma: float = 2.0
    """Exponent of `dice_focal`."""
    topk_percent: float = 10.0
    """Share of the worst voxels of each sample that `dice_topk` counts, in percent."""
    class_weights: str | tuple[float, ...] = "none"
    """Weights of the classes in the cross-entropy of `dice_ce` and `cross_entropy`, and in the focal loss of
    `dice_focal`: `none`; `softmax_of_inverse`, the softmax over classes of all voxels / voxels of the class in the
    fold's training cases; `inverse_frequency`, those ratios divided by the number of classes; or one number per class,
    background first, the labels in ascending order of their values."""
    batch_dice: bool | None = None
    """Whether Dice sums run over the whole batch, of all devices, instead of over each sample; None: nnU-Net's rule,
    at full resolution of a dataset that has a low-resolution stage: its patches often lack labels."""
    sampling: str = "foreground"
    """How patches are drawn: `foreground`, some of them centred on a foreground voxel (nnU-Net), or `roulette`, from
    half-overlapping positions, where those with little foreground are accepted now and then."""
    foreground_fraction: float = 0.33
    """Probability that a patch of `foreground` sampling is centred on a foreground voxel."""
    roulette_threshold: float = 0.01
    """Share of foreground voxels from which on a patch of `roulette` sampling is always accepted."""
    roulette_acceptance: float = 0.1
    """Probability that any other patch of `roulette` sampling is accepted."""
    patience: int | None = None
    """Epochs without a better pseudo-Dice after which training stops, with the weights of its last epoch; the learning
    rate falls as over all `epochs`. None: it takes all of them."""
    precision: str = "auto"
    """`float32`, `bfloat16`, `float16` or `auto` (a short measurement on the CPU; bfloat16 where a GPU has it)."""
    workers: int = 2
    """Processes that load and augment patches; 0: the training process itself."""
    checkpoint_minutes: float = 2.0
    """Time between two checkpoints in minutes; 0: after every epoch."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of training patches, applied in this order; probabilities are per sample."""

    rotation: float = 0.2
    """Probability of a rotation."""
    rotation_degrees: float | None = None
    """Largest angle per axis in degrees; None: 30, or 180 where one axis is coarse, and patches turn in-plane only."""
    scaling: float = 0.2
    """Probability of zooming."""
    scaling_range: tuple[float, ...] = (0.7, 1.4)
    """Smallest and largest zoom factor."""
    noise: float = 0.1
    """Probability of Gaussian noise."""
    noise_std: tuple[float, ...] = (0.0, 0.1)
    """Range of its standard deviation, in units of the normalised image."""
    blur: float = 0.2
    """Probability of Gaussian blur; each channel then with probability 0.5."""
    blur_sigma: tuple[float, ...] = (0.5, 1.0)
    """Range of its sigma in voxels."""
    brightness: float = 0.15
    """Probability of multiplying the intensities."""
    brightness_range: tuple[float, ...] = (0.75, 1.25)
    """Range of that factor."""
    contrast: float = 0.15
    """Probability of scaling around the mean, clipped to the patch's own range."""
    contrast_range: tuple[float, ...] = (0.75, 1.25)
    """Range of that factor."""
    low_resolution: float = 0.25
    """Probability of simulated low resolution; each channel then with probability 0.5."""
    low_resolution_zoom: tuple[float, ...] = (0.5, 1.0)
    """Range of the zoom."""
    gamma: float = 0.3
    """Probability of a gamma curve."""
    gamma_inverted: float = 0.1
    """Probability of a gamma curve on the inverted image."""
    gamma_range: tuple[float, ...] = (0.7, 1.5)
    """Range of the exponent; mean and standard deviation are restored."""
    stage1_morphology: float = 0.4
    """Probability that the first stage's labels are dilated, eroded, opened or closed; each label then with
    probability 0.5. Only a setting with `stage1` looks at it."""
    stage1_removal: float = 0.2
    """Probability that a small component of the first stage's labels is removed; each label then with probability 0.5.
    Only a setting with `stage1` looks at it."""
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    """Axes that are mirrored, each with probability 0.5; prediction averages over the same axes."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The sliding window."""

    window: tuple[int, ...] | str | None = None
    """Voxels per axis of a window; `whole`: one window that holds the whole image, and no less than the patch; None:
    the patch, or the whole image where `patch` is `whole`."""
    step: float = 0.5
    """Largest distance between two windows, as a fraction of the patch."""
    mirror: bool = True
    """Whether predictions are averaged over the mirrored axes of the augmentation."""
    weights: str = "gaussian"
    """How the voxels of a window count: `gaussian`, or `centre`, twice in the box that is the half of each axis around
    the centre."""
    gaussian_sigma: float = 0.125
    """Sigma of `gaussian` weights, as a fraction of the patch."""


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """A second, larger patch around the patch, which trains all levels but the first (meU-net)."""

    factor: tuple[float, ...]
    """Size of the expanded patch per axis, as a multiple of the patch; one number stands for all axes."""
    order: str = "sequential"
    """`sequential`: forward and backward pass of one patch, then of the other; `joint`: both forward, then both
    backward. The gradients are the same; sequential needs less memory."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One part of a curriculum; None stands for what the setting says."""

    patch: tuple[int, ...] | str | None = None
    """Voxels per axis in network order, or `whole`."""
    batch: int | None = None
    """Samples per optimiser step."""
    epochs: int | None = None
    """Epochs of this phase."""
    learning_rate: float | None = None
    """Initial learning rate; the schedule runs once in each phase."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the study's table."""

    name: str
    """Letters, digits, '-' and '_': it becomes a folder."""
    patch: tuple[int, ...] | str | None = None
    """Voxels per axis in network order; `whole`: the largest training case, with all others padded to it with 0, which
    counts as background like everything that a patch holds beyond its case; None: by the planner."""
    batch: int | None = None
    """Samples per optimiser step; None: by the planner."""
    memory_gib: float | None = None
    """Memory in GiB that the planner aims at where patch or batch are left to it; None: that of the study's device,
    or 8 (nnU-Net's reference) where the device states none."""
    folds: tuple[int, ...] | None = None
    """The folds to train; None: all of the study."""
    seed: int | None = None
    """Seed of weights and patches, for repeats of a setting; None: that of the study."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    network: Network = field(default_factory=Network)
    parallel: Parallel | None = field(default_factory=Parallel)
    """How a step is spread over devices; `auto`: the cheapest way that fits the study's device. None stands for it."""
    expansion: Expansion | None = None
    """Trains on an expanded patch as well; None: on the patch alone."""
    phases: tuple[Phase, ...] = ()
    """A curriculum: parts of training with a patch and batch of their own, each with a new optimiser and from the last
    one's weights. Patch and batch of the last one are those of the trained setting."""
    start: str | None = None
    """Setting whose trained weights of the same fold this one begins with: a curriculum whose parts are settings
    themselves, trained once and compared. Their networks have to be equal, see `for_patch`. None: random weights."""
    stage1: tuple[str, ...] = ()
    """Settings whose predictions the network is given beside the image: the first stage of a cascade."""
    fusion: str = "post"
    """Where a setting with `stage1` joins them: `post`, at the start of every decoder level, or `pre`, to the image."""
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    inference: Inference = field(default_factory=Inference)
    postprocess: bool = True
    """Whether the largest component is kept where cross-validation says that it helps."""

    @property
    def last_patch(self) -> tuple[int, ...] | str | None:
        """The patch that training ends with."""
        return (self.phases[-1].patch if self.phases else None) or self.patch


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Settings whose probabilities are averaged, each after its own post-processing."""

    name: str
    """Letters, digits, '-' and '_': it becomes a folder."""
    members: tuple[str, ...]
    """Names of settings, at least two."""
    postprocess: bool = False
    """Whether the ensemble's own output is post-processed once more."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Points that the report compares with one another, such as patch sizes: one of the study's tables."""

    name: str
    """Letters, digits, '-' and '_': it becomes part of a file's name."""
    title: str
    """What stands above the table."""
    points: dict[str, tuple[str, ...]]
    """What is compared, in this order; the first point is the baseline of the sweep. Each is a setting or an ensemble,
    or a list of those that are repeats of one another, such as runs that differ in their seed alone."""


@dataclass(frozen=True, kw_only=True)
class Partitions:
    """Pipelines whose stages `snakemake plan` lists for every setting, whether it trains through one or not."""

    gpus: tuple[int, ...] = (2, 4, 8)
    """Numbers of GPUs, each of which holds a stage."""
    memory_gib: tuple[float, ...] = (16.0, 32.0)
    """Memories of a GPU in GiB that they are held against."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long the prediction of a case takes, from its preprocessed image to its logits."""

    repeats: int = 3
    """Times that every case is predicted."""
    warm_up: int = 1
    """Predictions of the first case before the clock is read."""
    split: str = "test"
    """`test`, or `validation`: the cases of each fold by its own network."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file with its defaults applied."""

    name: str
    dataset: str
    """A name in config/datasets/ or the path of a dataset file."""
    task: str = "segmentation"
    """`segmentation`; a study of `classification` has keys of its own."""
    hardware: str = "cpu"
    """A name in config/hardware.yaml."""
    folds: int = 5
    """Cross-validation folds."""
    seed: int = 12345
    """Seed of the splits, of the weights and of every random patch."""
    shards: int = 1
    """Jobs among which the cases of one preprocessing are divided."""
    baseline: str | None = None
    """The setting that the others are held against in the report."""
    partitions: Partitions | None = None
    """Lists how the networks would be cut into pipelines; None: only those that settings train through."""
    timing: Timing | None = None
    """Measures seconds per image of every setting; None: nothing is timed."""
    settings: tuple[Setting, ...]
    ensembles: tuple[Ensemble, ...] = ()
    sweeps: tuple[Sweep, ...] = ()

    def setting(self, name: str) -> Setting:
        """The setting of that name; KeyError where there is none."""
        return {setting.name: setting for setting in self.settings}[name]

    def folds_of(self, setting: Setting) -> tuple[int, ...]:
        """The folds that a setting is trained on."""
        return setting.folds if setting.folds is not None else tuple(range(self.folds))

    def folds_of_ensemble(self, ensemble: Ensemble) -> tuple[int, ...]:
        """The folds of an ensemble: those of its members, which agree."""
        return self.folds_of(self.setting(ensemble.members[0]))
