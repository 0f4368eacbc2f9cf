"""Training of a run: its budget, optimiser and loss, and the random changes of its patches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from megavoxel.config.fields import (
    Count,
    CountOrNone,
    Fraction,
    NotNegative,
    Positive,
    Range,
    between,
    refuse,
    unique,
)
from megavoxel.config.records import record, rule_of_whole

WEIGHTED_LOSSES = ("dice_ce", "dice_focal", "cross_entropy")
"""Losses with a cross-entropy or focal loss whose classes can be weighted."""
KEYS_OF_DICE = ("dice_background", "dice_class_weights")


@record
class Optimisation:
    """Budget and optimiser of a run, of segmentation and of classification alike."""

    epochs: Count = 1000
    """Epochs; after each one the validation patches are scored and the learning rate is set."""
    optimizer: Literal["sgd", "adamw", "adam", "rmsprop"] = "sgd"
    """Rule by which a step changes the weights, of PyTorch; `sgd` has Nesterov momentum, as in nnU-Net."""
    learning_rate: Positive = 0.01
    """Initial learning rate."""
    learning_rate_rule: Literal["constant", "linear", "sqrt"] = "constant"
    """How the learning rate depends on the batch of all devices: not at all, or times (batch / learning_rate_batch) or
    the square root of that."""
    learning_rate_batch: Count = 2
    """The batch that `learning_rate` is meant for; only `linear` and `sqrt` look at it."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    """Course of the learning rate over the epochs: `poly` falls as (1 - epoch / epochs)^0.9, `cosine` as half a cosine
    wave, both to 0."""
    warmup_epochs: CountOrNone = 0
    """Epochs of linear rise to the initial learning rate."""
    optimizer_kernels: Literal["auto", "loop", "foreach", "fused"] = "auto"
    """How a step goes over the weights: tensor by tensor (`loop`), each operation over all of them (`foreach`, which
    copies the gradients where there is weight decay), or all operations at once (`fused`, not of `rmsprop`). `auto`:
    on a GPU the faster of `foreach` and `fused` by a short measurement, for classifiers and where it is not measured
    `foreach`; on a CPU `loop`. Weights are the same but for rounding."""
    momentum: Fraction = 0.99
    """Nesterov momentum of `sgd`."""
    weight_decay: NotNegative = 3e-5
    """Decoupled decay (`adamw`), or L2 penalty (all others)."""
    checkpoint_minutes: NotNegative = 2.0
    """Time between two checkpoints in minutes; 0: after every epoch."""

    @rule_of_whole
    def _optimizer_has_such_kernels(self) -> None:
        if self.optimizer_kernels == "fused" and self.optimizer == "rmsprop":
            refuse(
                "PyTorch has no such rmsprop; allowed: auto, loop, foreach, or another optimizer", "optimizer_kernels"
            )


@record
class Training(Optimisation):
    """Budget, optimiser and loss of a run."""

    iterations_per_epoch: Count = 250
    """Optimiser steps per epoch; where `samples` is given, the planner sets them."""
    samples: Count | None = None
    """Training patches of the whole run, so that batches compare at equal work; None: as many as the steps take."""
    validation_iterations: CountOrNone = 50
    """Validation batches per epoch."""
    freeze_encoder: bool = False
    """Whether the encoder keeps the weights that it begins with, see `start`: it needs no gradients, which saves memory
    and time. Not in a pipeline, with an expanded patch or with batch norm."""
    encoder_rate_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from one level of the network to the next one down the way to the image: the lowest
    level of the encoder has the learning rate times this, the level above it times its square, and so on up to the
    first one; the decoder has the whole learning rate. 1: all have it."""
    gradient_clip: Positive | None = 12.0
    """Largest L2 norm of all gradients together, as in nnU-Net; null: gradients are taken as they are."""
    loss: Literal["dice_ce", "dice_focal", "dice_topk", "dice_perimeter", "dice", "cross_entropy"] = "dice_ce"
    """Function that training minimises: Dice alone, cross-entropy alone (`ce`), or the sum of Dice and another: focal
    loss, cross-entropy of the worst voxels, difference of surface areas. In a dataset with regions the cross-entropy is
    the binary one of each region, and only `dice_ce`, `dice` and `cross_entropy` are allowed."""
    focal_gamma: NotNegative = 2.0
    """Exponent of `dice_focal`."""
    focal_weight: Positive = 1.0
    """Factor of the focal loss in `dice_focal`. That loss is a mean over voxels: where another program takes the mean
    over classes as well, as LAMP and MONAI do, its factor has to be divided by the number of classes."""
    dice_background: bool = False
    """Whether Dice counts the background as one more label. It is left out, as unannotated labels are, of a sample that
    lacks the annotation of a label. Not in a dataset with regions."""
    dice_class_weights: bool = False
    """Whether `class_weights` are factors of the terms of Dice as well, as in AnatomyNet and LAMP: the loss of a sample
    is the sum over labels of weight × (1 − Dice), 0 where a label is not annotated, over the number of labels."""
    topk_percent: Annotated[float, Field(gt=0, le=100)] = 10.0
    """Share of the worst voxels of each sample that `dice_topk` counts, in percent."""
    class_weights: (
        Literal["none", "softmax_of_inverse", "inverse_square_root", "inverse_frequency"]
        | Annotated[tuple[NotNegative, ...], Field(min_length=2)]
    ) = "none"
    """Weights of the classes in the cross-entropy of `dice_ce` and `cross_entropy`, in the focal loss of `dice_focal`
    and, with `dice_class_weights`, in Dice: `none`; `softmax_of_inverse`, the softmax over classes of all voxels /
    voxels of the class in the fold's training cases, which leaves all weight to the rarest class unless all have some
    percent of the voxels; `inverse_square_root`, the softmax of half the logarithm of these ratios, in which all
    classes count; `inverse_frequency`, the ratios divided by the number of classes; or one number per class, background
    first, the labels in ascending order of their values."""
    batch_dice: bool | None = None
    """Whether Dice sums run over the whole batch, of all devices, instead of over each sample; None: nnU-Net's rule,
    at full resolution of a dataset that has a low-resolution stage: its patches often lack labels."""
    sampling: Literal["foreground", "roulette"] = "foreground"
    """Drawing of patches: `foreground`, some of them centred on a foreground voxel (nnU-Net), or `roulette`, from
    half-overlapping positions, where those with little foreground are accepted now and then."""
    foreground_fraction: Fraction = 0.33
    """Share of the patches of `foreground` sampling that are centred on a foreground voxel: the last ones of each
    batch, as many as come nearest (0.33: one of 2, one of 4, three of 8), as in nnU-Net; at batch 1, the probability
    of each."""
    roulette_threshold: Fraction = 0.01
    """Share of foreground voxels from which on a patch of `roulette` sampling is always accepted."""
    roulette_acceptance: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Probability that any other patch of `roulette` sampling is accepted."""
    patience: Count | None = None
    """Epochs without a better pseudo-Dice after which training stops, with the weights of its last epoch; the learning
    rate falls as over all `epochs`. None: it takes all of them."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers in which convolutions compute. `auto`: bfloat16 on a GPU that has it, float16 on others; on a CPU the
    faster one by a short measurement."""
    memory_layout: Literal["auto", "channels_last", "channels_first"] = "auto"
    """Order in which activations and weights lie in memory. `auto`: on a GPU the faster one by a short measurement when
    training or prediction starts; `channels_last` on a CPU, in a pipeline and in tiles."""
    cudnn_benchmark: bool | None = None
    """Whether cuDNN tries its algorithms for each shape before it settles; null: on a GPU what is faster by the same
    measurement, else false."""
    tf32: bool = True
    """Whether a GPU may round the factors of float32 convolutions to TF32, as PyTorch does by default."""
    compile: bool | None = None
    """Whether `torch.compile` compiles instance norms with the activation functions behind them, for which the first
    step takes a minute or more; not in tiles, nor with batch norm. It needs g++ on a CPU, and gcc or clang on a GPU.
    null: on a GPU what is faster by a short measurement, if the training takes more than half an hour; else false."""
    workers: Literal["auto"] | Annotated[int, between(0, 64)] = "auto"
    """Processes that load and augment patches for each device; 0: the training process itself. `auto`: as many as the
    hardware file gives the device (`workers` there)."""

    def loaders(self, of_device: int) -> int:
        """Processes that load patches for a device, of which the hardware file gives it so many; 0: the training
        process itself."""
        return of_device if self.workers == "auto" else self.workers

    @rule_of_whole
    def _weights_have_a_loss(self) -> None:
        weights = self.class_weights
        if weights != "none" and self.loss not in WEIGHTED_LOSSES and not self.dice_class_weights:
            refuse(
                f"'{weights}' weights a cross-entropy or focal loss, which the loss '{self.loss}' has not; allowed: "
                f"loss {' or '.join(WEIGHTED_LOSSES)}, or class_weights none",
                "class_weights",
            )
        if not isinstance(weights, str) and not any(weights):
            refuse("all of them are 0, so that no voxel counts; give one that is above", "class_weights")

    @rule_of_whole
    def _keys_of_dice_have_their_loss(self) -> None:
        for key in KEYS_OF_DICE:
            if getattr(self, key) and "dice" not in self.loss:
                refuse(f"the loss '{self.loss}' has no Dice; remove it, or take a loss with one", key)
        if self.dice_class_weights and self.class_weights == "none":
            refuse("there are none; give 'class_weights' beside it, or remove it", "dice_class_weights")

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

    on_device: bool = False
    """Whether the device that trains makes the changes, instead of the processes that load patches: for a GPU that
    waits for these. Patches are the same but for rounding."""
    rotation: Fraction = 0.2
    """Probability of a rotation."""
    rotation_degrees: Annotated[float, between(0, 180)] | None = None
    """Largest angle per axis in degrees; None: 30, or 180 where patches turn in-plane only, see `in_plane`."""
    in_plane: bool | None = None
    """Whether patches are turned, scaled, sheared and deformed in-plane only, which leaves their first axis as it is;
    None: nnU-Net's rule, where the longest side is more than three times the first one. For settings that are to have
    the same augmentation whatever their patch."""
    scaling: Fraction = 0.2
    """Probability of zooming."""
    scaling_range: Range[Positive] = (0.7, 1.4)
    """Smallest and largest zoom factor."""
    scaling_per_axis: bool = False
    """Whether each axis has a zoom factor of its own."""
    shear: Fraction = 0.0
    """Probability of a shear along all axes."""
    shear_limit: Annotated[float, between(0, 0.4)] = 0.15
    """Most voxels that a shear moves along an axis per voxel along each other axis, forwards or backwards."""
    elastic: Fraction = 0.0
    """Probability of an elastic deformation: noise from -1 to 1, smoothed by a Gaussian and multiplied by a magnitude,
    says by how many voxels each voxel moves along each axis, as in MONAI's `Rand3DElastic`."""
    elastic_sigma: Range[Annotated[float, Field(ge=1)]] = (10.0, 50.0)
    """Range of that Gaussian's sigma in voxels."""
    elastic_magnitude: Range[NotNegative] = (600.0, 1200.0)
    """Range of that magnitude. The standard deviation of a displacement is magnitude / (11.6 sigma^1.5) voxels,
    in-plane magnitude / (6.14 sigma): 2.7 voxels by a magnitude of 1000 and a sigma of 10. None is above five of it."""
    shift: Fraction = 0.0
    """Probability of a shift by whole voxels."""
    shift_limit: Fraction = 0.05
    """Largest shift along each axis, forwards or backwards, as a fraction of the patch."""
    quarter_turn: Fraction = 0.0
    """Probability of one to three turns by 90 degrees in the plane of the last two axes."""
    noise: Fraction = 0.1
    """Probability of noise."""
    noise_distribution: Literal["gaussian", "uniform"] = "gaussian"
    """Distribution of the noise at each voxel; `uniform` noise is at most 1.732 times its standard deviation."""
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
    """Axes that are mirrored, each with `mirror_probability`; prediction averages over the same axes."""
    mirror_probability: Fraction = 0.5
    """Probability that an axis of `mirror_axes` is mirrored."""
