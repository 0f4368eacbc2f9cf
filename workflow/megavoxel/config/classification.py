"""A study of image classification: the settings to compare. One dataclass per concept; units in the docstrings."""

from __future__ import annotations

from dataclasses import dataclass, field

from megavoxel.config.study import Parallel

NETWORKS = ("vgg16", "resnet50", "densenet169", "small")
SMALL = "small"
"""The network of ours that a CPU can train; no weights of it are published."""
PRIVATE, SHARED = "private", "shared"


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """ImageNet weights of a network, in the layout that torchvision publishes; exactly one of `file` and `url`."""

    file: str | None = None
    """A file on this machine."""
    url: str | None = None
    """Where it is fetched from."""
    sha256: str | None = None
    """Its SHA-256, or at least the first 8 hexadecimal digits, which stand in the names of torchvision's own files;
    needed beside `url`."""


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """Budget and optimiser of a run."""

    epochs: int = 50
    """Epochs; in each one every training image is seen once."""
    optimizer: str = "adam"
    """`sgd` (Nesterov), `adamw`, `adam` or `rmsprop`."""
    learning_rate: float = 1e-5
    """Initial learning rate."""
    learning_rate_rule: str = "constant"
    """How it goes with the batch of all workers together: `constant`, `linear` or `sqrt` in batch /
    learning_rate_batch."""
    learning_rate_batch: int = 5
    """The batch that `learning_rate` is meant for; only `linear` and `sqrt` look at it."""
    schedule: str = "constant"
    """`poly` (1 - epoch/epochs)^0.9, `cosine` or `constant`; stepped per epoch."""
    warmup_epochs: int = 0
    """Epochs of linear rise to the initial learning rate."""
    momentum: float = 0.9
    """Nesterov momentum of `sgd`."""
    weight_decay: float = 0.0
    """Decoupled decay (`adamw`), or L2 penalty (all others)."""
    precision: str = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 where a GPU has it, else float32."""
    loaders: int = 2
    """Processes that decode and augment images, for each worker; 0: the training process itself."""
    checkpoint_minutes: float = 2.0
    """Time between two checkpoints in minutes; 0: after every epoch."""

    @property
    def patience(self) -> None:
        """A classifier trains all of its epochs."""
        return


@dataclass(frozen=True, kw_only=True)
class ClassifierAugmentation:
    """Random changes of training images, drawn for every image and epoch."""

    flip_horizontal: float = 0.5
    """Probability that left and right are exchanged."""
    flip_vertical: float = 0.0
    """Probability that top and bottom are exchanged."""
    rotation_degrees: float = 15.0
    """Largest angle to either side."""
    zoom_range: tuple[float, ...] = (0.9, 1.1)
    """Smallest and largest zoom factor."""
    shift: float = 0.05
    """Largest shift along each axis, as a fraction of the side."""
    brightness_range: tuple[float, ...] = (0.8, 1.2)
    """Range of the factor of all intensities."""
    contrast_range: tuple[float, ...] = (0.8, 1.2)
    """Range of the factor of the distance to the image's mean."""
    saturation_range: tuple[float, ...] = (0.8, 1.2)
    """Range of the factor of the distance to grey; grey images stay as they are."""


@dataclass(frozen=True, kw_only=True)
class ClassifierSetting:
    """One row of the study's table."""

    name: str
    """Letters, digits, '-' and '_': it becomes a folder."""
    network: str = "resnet50"
    """`vgg16`, `resnet50`, `densenet169`, or `small`, a network of nine convolutions that a CPU can train."""
    pretrained: bool = False
    """Whether it begins with the study's `weights` of its network, all but the last layer; else with random ones."""
    resolution: int = 224
    """Pixels of each side that images are brought to; the aspect ratio is not kept."""
    images_per_class: int | None = None
    """Training images of each class, drawn by the seed: with the same seed, more images hold all of the fewer ones.
    None: all that the fold has, as many as they are."""
    batch: int = 5
    """Images of an optimiser step on each worker."""
    workers: int = 1
    """Processes that train one network together, a device each: 1 is serial training."""
    data_partition: str = "private"
    """What a worker sees where there are several: `private`, its own fixed share of the images, which no other process
    opens, by whole patients, the same for all settings of a seed and a number of workers; or `shared`, another part of
    all images in every epoch."""
    folds: tuple[int, ...] | None = None
    """The folds to train; None: all of the study."""
    seed: int | None = None
    """Seed of weights, drawn images, order and augmentation, for repeats of a setting; None: that of the study."""
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    augmentation: ClassifierAugmentation = field(default_factory=ClassifierAugmentation)

    @property
    def parallel(self) -> Parallel:
        """The devices of a training job, in the words of a segmentation setting."""
        return Parallel(data=self.workers)


@dataclass(frozen=True, kw_only=True)
class ClassifierEnsemble:
    """Settings whose probabilities are averaged."""

    name: str
    """Letters, digits, '-' and '_': it becomes a folder."""
    members: tuple[str, ...]
    """Names of settings, at least two."""


@dataclass(frozen=True, kw_only=True)
class ClassificationStudy:
    """A study file of `task: classification` with its defaults applied."""

    name: str
    dataset: str
    """A name in config/datasets/ or the path of a dataset file, one with `classification`."""
    task: str = "classification"
    """`classification`."""
    hardware: str = "cpu"
    """A name in config/hardware.yaml."""
    folds: int = 1
    """Cross-validation folds; 1: none, all training images train, and only the test split is scored."""
    seed: int = 12345
    """Seed of the folds, and of settings that say none."""
    baseline: str | None = None
    """The cell that the others are held against in the report: a setting's name as the file or its grid has it, without
    a seed."""
    weights: dict[str, PublishedWeights] = field(default_factory=dict)
    """Published weights by network, for settings with `pretrained`."""
    settings: tuple[ClassifierSetting, ...]
    ensembles: tuple[ClassifierEnsemble, ...] = ()

    @property
    def cells(self) -> dict[str, tuple[str, ...]]:
        """Settings that are repeats of one another (NAME-seedN), by the name that the study file gave them."""
        names = {setting.name for setting in self.settings}
        found: dict[str, tuple[str, ...]] = {}
        for setting in self.settings:
            family = setting.name.removesuffix(f"-seed{setting.seed}")
            cell = setting.name if family in names else family
            found[cell] = (*found.get(cell, ()), setting.name)
        return found

    def setting(self, name: str) -> ClassifierSetting:
        """The setting of that name; KeyError where there is none."""
        return {setting.name: setting for setting in self.settings}[name]

    def folds_of(self, setting: ClassifierSetting) -> tuple[int, ...]:
        """The folds that a setting is trained on."""
        return setting.folds if setting.folds is not None else tuple(range(self.folds))

    def folds_of_ensemble(self, ensemble: ClassifierEnsemble) -> tuple[int, ...]:
        """The folds of an ensemble: those of its members, which agree."""
        return self.folds_of(self.setting(ensemble.members[0]))
