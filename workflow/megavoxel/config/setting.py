"""A setting of segmentation: its patch and batch, preprocessing, network, training, augmentation and inference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from megavoxel.config.fields import (
    Batch,
    Channels,
    Count,
    CountOrNone,
    Distinct,
    DistinctOrNone,
    ExpansionOrder,
    Fusion,
    Interval,
    LongName,
    Name,
    Norm,
    Parts,
    Patch,
    Pooling,
    Positive,
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
)
from megavoxel.config.records import record, rule, rule_of_whole
from megavoxel.config.training import Augmentation, Training

Levels = Annotated[int, between(1, 9)]
PerLevel = Annotated[tuple[T, ...], Field(min_length=1, max_length=9)]
Factor = Annotated[float, between(1, 8)]


def _without_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _as_list(folds: Any) -> Any:
    return (folds,) if folds == ALL else folds


def _three(factor: Any) -> Any:
    return factor if isinstance(factor, tuple) else (factor,) * 3


def _two_or_more(phases: tuple) -> tuple:
    return refuse("there is one; a curriculum has two phases or more") if len(phases) == 1 else phases


ALL = "all"
"""The name of the network that is trained on all cases, among folds."""
FoldsAndAll = Annotated[
    Literal["all"] | Distinct[CountOrNone | Literal["all"]] | None,
    Field(description="all, or a list of numbers of folds, with or without all"),
    AfterValidator(_as_list),
]


@record
class IntensityRange:
    """A fixed range of intensities that becomes 0 to 1, whatever the dataset; what lies beyond is clipped."""

    range: Interval
    """Lower and upper end, in units of the image file. What lies outside of an image, where a patch reaches beyond it,
    is 0 as well: the lower end, such as air."""


Scaling = Literal["ct", "z-score", "rescale-0-1", "rgb-0-1", "unchanged"] | IntensityRange


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

    dimensions: Literal[2, 3] = 3
    """Dimensions of what the network sees. 2: nnU-Net's 2D configuration, planned, trained and predicted slice by slice
    across the first axis, along which each case keeps its own spacing; patches are [1, y, x]."""
    spacing: Spacing | None = None
    """Target spacing in mm per axis; None: nnU-Net's rule on the fingerprint. With `dimensions: 2` the first number
    says how the voxels of the dataset are counted, and no more."""
    resolution: Literal["full", "low"] = "full"
    """Resolution of the network's grid; `low` is the spacing of nnU-Net's low-resolution stage, for large cases. Not
    beside `spacing`."""
    transpose: Transposition | None = None
    """Order of axes: network axis n is axis transpose[n] of (z, y, x); None: the coarsest first, the others as they
    are."""
    normalisation: Annotated[
        Scaling | Several[Scaling] | None,
        Field(description="a scheme, a fixed range as in {range: [-21, 89]}, or a list with one of these per channel"),
    ] = None
    """Scaling of intensities: `ct` by the foreground of the whole dataset, `z-score` by mean and standard deviation of
    each image, `rescale-0-1` by the lowest and highest value of each image, `rgb-0-1` by 255, `unchanged`, or a fixed
    range as in `{range: [-21, 89]}`; a list has one of these per channel. None: by the channel's name, as in nnU-Net:
    `CT`, `zscore`, `rescale_to_0_1`, `rgb_to_0_1`, `noNorm`, and `z-score` for any other name."""
    mask_for_norm: bool | None = None
    """Whether `z-score` takes its statistics of the nonzero region alone and leaves 0 around it; None: where cropping
    to that region leaves less than 3/4 of the median image, as in nnU-Net."""

    @rule_of_whole
    def _slices_are_at_full_resolution(self) -> None:
        if self.dimensions == 2 and self.resolution == "low":
            refuse("'dimensions' is 2, and slices have full resolution alone; remove one of them", "resolution")


@record
class NetworkParts:
    """Keys of a network that a setting and its plan share."""

    architecture: Literal["unet", "residual"] = "unet"
    """Kind of network: the 3D U-Net, by default nnU-Net's, or one whose encoder is made of residual blocks: nnU-Net's
    ResEnc U-Net, see `preset`."""
    decoder_features: Several[Channels] | None = None
    """Channels per decoder level, full resolution first, one less than levels; None: those of the encoder."""
    norm: Norm = "instance"
    """Normalisation after each convolution: `instance` (nnU-Net) or `batch`, whose statistics are of the samples that
    go through together on one device: with accumulation, or several devices, they are not those of the whole batch."""
    pooling: Pooling = "stride"
    """Downsampling to the next level: the `stride` of its first convolution (nnU-Net), or `max` pooling before it, not
    of `residual`."""
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

    preset: Literal["M", "L", "XL"] | None = None
    """A preset of nnU-Net for `residual`: patch and batch are planned for 8 (M), 24 (L) or 40 GiB (XL) by its measure,
    or for `memory_gib` of the setting, and a batch may hold as many voxels as the dataset; None: as M, but for the
    memory of the device, and with 5 % of the dataset's voxels in a batch at most."""
    blocks: PerLevel[Annotated[int, between(1, 64)]] | None = None
    """Residual blocks per level of the encoder of `residual`, two convolutions each; None: 1, 3, 4, 6, 6, …"""
    convolutions_per_level: Annotated[int, between(1, 8)] | None = None
    """3D convolutions per level, of `residual` in the decoder alone; None: 2 in encoder and decoder of `unet`, 1 in the
    decoder of `residual`."""
    base_features: Annotated[int, between(1, 1024)] = 32
    """Channels of the first level; each level below doubles them."""
    max_features: Channels | None = None
    """Upper bound of the channels of a level; None: 320, or 512 with `preprocessing.dimensions: 2`, as in nnU-Net."""
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
        lists = (self.features, self.strides, self.kernels, self.blocks)
        return next((len(entries) for entries in lists if entries is not None), None)

    @rule_of_whole
    def _levels_agree(self) -> None:
        levels = self.fixed_levels
        if self.features is not None and len(self.features) != levels:
            refuse(f"{len(self.features)} numbers of channels, but levels is {levels}", "features")
        for key in ("strides", "kernels", "blocks"):
            entries = getattr(self, key)
            if entries is not None and len(entries) != levels:
                refuse(f"it has {len(entries)} entries for {levels} levels; give one for each", key)
        if self.strides is not None and self.for_patch is not None:
            refuse("'strides' say what it is there to say; remove one of them", "for_patch")

    @rule_of_whole
    def _architecture_has_the_keys(self) -> None:
        for key in ("preset", "blocks"):
            if self.architecture != "residual" and getattr(self, key) is not None:
                refuse("it is of residual encoders; give 'architecture: residual' beside it, or remove it", key)
        if self.architecture == "residual" and self.pooling == "max":
            refuse("residual blocks halve an axis by the stride of their first convolution; remove it", "pooling")

    @rule_of_whole
    def _decoder_fits(self) -> None:
        levels, features = self.fixed_levels, self.decoder_features
        if features is None or (levels is not None and len(features) == levels - 1):
            return
        wanted = "'levels' or 'features' beside it" if levels is None else f"{levels - 1} of them, one less than levels"
        refuse(f"{len(features)} numbers of channels; give {wanted}", "decoder_features")


Checkpointing = Literal["none", "norms", "blocks", "auto"] | Annotated[tuple[str, ...], Field(min_length=1)]
"""What is computed again in the backward pass; a tuple names blocks. A plan has no `auto`."""


@record
class Parallel:
    """How a training step is spread over devices and time. It changes neither the batch nor what is learnt."""

    data: Parts = 1
    """Devices, or groups of devices of a `pipeline` or of `space`, that share each batch."""
    pipeline: Parts = 1
    """Devices that share one network, a stage each."""
    space: Triple[Parts] = (1, 1, 1)
    """Tiles per axis (z, y, x) that each patch is cut into. Each is held by a device of its own; the devices exchange
    the rims of their tiles, and what is learnt is what one device would learn from whole patches."""
    micro_batches: Parts = 1
    """Equal parts in which a batch goes through the stages of a pipeline."""
    accumulate: Parts = 1
    """Equal parts of a device's share whose gradients are summed one after the other."""
    checkpointing: Checkpointing = "none"
    """What is computed again in the backward pass instead of being kept for it. `norms`: norms, activation functions
    and joins. `blocks`: also all convolutions but one per level of the encoder and of the decoder, or per residual
    block. A list of blocks: norms and the convolutions of these blocks. `auto`: as little as fits the device."""

    @property
    def devices(self) -> int:
        """Devices of a training job."""
        return self.data * self.devices_of_a_patch

    @property
    def tiles(self) -> int:
        """Devices that hold a patch together, a tile each."""
        return math.prod(self.space)

    @property
    def devices_of_a_patch(self) -> int:
        """Devices that hold a patch together: stages of a pipeline, or tiles."""
        return self.pipeline * self.tiles

    @property
    def parts(self) -> int:
        """Parts that a batch is cut into."""
        return self.data * self.accumulate * self.micro_batches


ParallelOrAuto = Annotated[Literal["auto"] | Parallel | None, AfterValidator(_without_auto)]


@record
class Inference:
    """Prediction of whole images by a sliding window."""

    window: Patch | None = None
    """Voxels per axis of a window; `whole`: one window that holds the whole image, and no less than the patch; None:
    the patch, or the whole image where `patch` is `whole`."""
    tiles: Triple[Parts] = (1, 1, 1)
    """Tiles per axis (z, y, x) in which one device works out each window, one after the other, where it has no room for
    the whole. Label maps are those of whole windows. Activations lie in host memory, and most convolutions are computed
    twice."""
    step: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest distance between two windows, as a fraction of the patch."""
    mirror: bool = True
    """Whether predictions are averaged over the mirrored axes of the augmentation."""
    weights: Literal["gaussian", "centre"] = "gaussian"
    """Weights of the voxels of a window: `gaussian`, or `centre`, doubled in the box that is the half of each axis
    around the centre."""
    logits_order: Annotated[int, between(0, 1)] = 1
    """Order of the interpolation that brings logits from the network's grid to the image's: 1, linear, as in nnU-Net,
    or 0, the nearest voxel. Where both grids are the same it makes no difference."""
    gaussian_sigma: Positive = 0.125
    """Sigma of `gaussian` weights, as a fraction of the patch."""
    cpu_layers: bool = True
    """Whether a CPU that predicts alone uses layers made for it: logits are those of the plain layers but for rounding,
    in less time and memory. A GPU has the plain ones."""


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
    """Order of passes. `sequential`: forward and backward pass of one patch, then of the other; `joint`: both forward,
    then both backward. The gradients are the same; sequential needs less memory."""


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


StartParts = Literal["encoder", "body", "all"]


@record
class StartFile:
    """Weights of another training, in a file, that this one begins with."""

    file: Text
    """An exported model or a trained folder of nnU-Net v2 (of which the network of the same fold is taken, else its
    first one), a `model.pt`, or a checkpoint of nnU-Net v2 or nnssl. A relative path is one below the working
    directory."""
    parts: StartParts = "body"
    """Parts of the network that are taken: the `encoder`, the encoder and decoder (`body`), or `all`, with the heads,
    for the same labels. Of a checkpoint of nnssl it is the encoder at most."""

    def of_fold(self, fold: int | str) -> Path:
        """The file of weights for a fold: of a folder the network of that fold, or the first one that is there."""
        folder = Path(self.file)
        for name in ("fold-{}.pt", "fold_{}/checkpoint_final.pth"):
            own, others = folder / name.format(fold), sorted(folder.glob(name.format("*")))
            if others:
                return own if own in others else others[0]
        return folder / f"fold-{fold}.pt" if folder.is_dir() else folder


Start = Annotated[
    LongName | StartFile | None, Field(description="the name of a setting, or a file, as in {file: models/NAME}")
]

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
    """Memory in GiB, of all devices together, that the planner aims at where patch or batch are left to it; None: that
    of `network.preset`, else of the study's device, or 8 (nnU-Net's reference) where the device states none."""
    folds: FoldsAndAll = None
    """The folds to train. `all` among them, or alone, also trains one network on all training cases: nothing of it is
    validated or scored, and it is there to be exported. None: all folds of the study, each on its own part."""
    seed: Seed | None = None
    """Seed of weights and patches, for repeats of a setting; None: that of the study."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    network: Network = field(default_factory=Network)
    parallel: ParallelOrAuto = field(default_factory=Parallel)
    """Distribution of a step over devices; `auto` (None in code): the cheapest way that fits the study's device."""
    expansion: Expansion | None = None
    """Trains on an expanded patch as well; None: on the patch alone."""
    phases: Curriculum = ()
    """A curriculum: parts of training with a patch and batch of their own, each with a new optimiser and from the last
    one's weights. Patch and batch of the last one are those of the trained setting."""
    start: Start = None
    """Setting whose trained weights of the same fold this one begins with: a curriculum whose parts are settings
    themselves, trained once and compared. Their networks have to be equal, see `for_patch`. Or a file, as in
    `{file: models/NAME}`, of whose network is taken what fits this one. None: random weights."""
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
    def start_setting(self) -> str | None:
        """The setting of the study that has to be trained before, for its weights."""
        return self.start if isinstance(self.start, str) else None

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

    @rule
    def _slices_are_one_voxel_thick(self) -> None:
        if self.preprocessing.dimensions == 3:
            return
        if self.stage1:
            refuse("a second stage sees volumes; remove it, or 'preprocessing.dimensions: 2'", "stage1")
        if self.augmentation.in_plane is False:
            refuse(
                "with 'preprocessing.dimensions: 2' patches are single slices, which turn in-plane; remove it",
                "augmentation.in_plane",
            )
        for key, sizes in self._sizes_per_axis():
            if not isinstance(sizes, str) and sizes[0] != 1:
                refuse(
                    f"{list(sizes)}: with 'preprocessing.dimensions: 2' the network sees single slices; give 1 as the "
                    "first number",
                    key,
                )

    def _sizes_per_axis(self) -> Iterator[tuple[str, Sequence[float] | str]]:
        """Keys that have a number per axis, each with its value."""
        network, parallel = self.network, self.parallel
        yield from (("phases", phase.patch) for phase in self.phases if phase.patch)
        yield from (("network.kernels", kernel) for kernel in network.kernels or ())
        yield from (("network.strides", stride) for stride in network.strides or ())
        single = {
            "patch": self.patch,
            "network.for_patch": network.for_patch,
            "parallel.space": parallel and parallel.space,
            "expansion.factor": self.expansion and self.expansion.factor,
            "inference.window": self.inference.window,
            "inference.tiles": self.inference.tiles,
        }
        yield from ((key, sizes) for key, sizes in single.items() if sizes is not None)

    @rule
    def _frozen_encoder_has_its_weights(self) -> None:
        if not self.training.freeze_encoder:
            return
        if self.start is None:
            refuse("its weights would stay random; give 'start' beside it, or remove it", "training.freeze_encoder")
        if self.expansion is not None or self.network.norm == "batch":
            what = "'expansion'" if self.expansion is not None else "'norm: batch'"
            refuse(f"it does not go with {what}; remove one of them", "training.freeze_encoder")


@record
class WrittenSetting(SettingKeys):
    """One row of the study's table, as a study file has it."""

    inherits: Name | None = None
    """A setting whose keys are taken first."""
    seeds: Distinct[Seed] | None = None
    """Repeats of the setting, one per seed; each becomes a setting NAME-seedN."""
