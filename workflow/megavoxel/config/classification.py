"""A study of image classification: the settings to compare, or a grid of them, and their ensembles."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from megavoxel.config.fields import (
    Batch,
    Count,
    Distinct,
    DistinctOrNone,
    Folds,
    Fraction,
    LongName,
    Name,
    NotNegative,
    OneOrMore,
    Positive,
    Range,
    Seed,
    Several,
    Text,
    between,
    refuse,
)
from megavoxel.config.records import record, rule
from megavoxel.config.setting import Parallel
from megavoxel.config.study import Compared, GivenByCommand, StudyKeys
from megavoxel.config.training import Optimisation

SMALL = "small"
"""The network of ours that a CPU can train; no weights of it are published."""
PRIVATE, SHARED = "private", "shared"
PublishedNetwork = Literal["vgg16", "resnet50", "densenet169"]
ImageNetwork = Literal["vgg16", "resnet50", "densenet169", "small"]
Resolution = Annotated[int, between(32, 8192)]
Workers = Annotated[int, between(1, 1024)]
DataPartition = Literal["private", "shared"]


@record
class PublishedWeights:
    """ImageNet weights of a network, in the layout that torchvision publishes; exactly one of `file` and `url`."""

    file: Text | None = None
    """A file on this machine."""
    url: (
        Annotated[
            str,
            Field(pattern="^https?://", description="allowed: addresses that begin with https:// or http://"),
        ]
        | None
    ) = None
    """Address to download it from."""
    sha256: (
        Annotated[
            str,
            Field(pattern="^[0-9a-f]{8,64}$", description="allowed: 8 to 64 hexadecimal digits in lower case"),
        ]
        | None
    ) = None
    """Its SHA-256, or at least the first 8 hexadecimal digits, which stand in the names of torchvision's own files;
    needed beside `url`."""

    @rule
    def _one_place(self) -> None:
        if (self.file is None) == (self.url is None) or (self.url is not None and self.sha256 is None):
            refuse("exactly one of file and url, the latter with sha256")


@record
class ClassifierTraining(Optimisation):
    """Budget and optimiser of a run."""

    epochs: Count = 50
    """Epochs; in each one every training image is seen once."""
    optimizer: Literal["sgd", "adamw", "adam", "rmsprop"] = "adam"
    learning_rate: Positive = 1e-5
    search: DistinctOrNone[Positive] = ()
    """Learning rates to search, in place of `learning_rate`: one training with each, one after the other. The one whose
    last epoch has the best accuracy on the fold's validation images is kept, of equal ones that with the lower loss;
    `manifest.json` has them all. It needs `folds` of 2 or more, as a single fold has no validation images."""
    learning_rate_batch: Count = 5
    schedule: Literal["poly", "cosine", "constant"] = "constant"
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0
    precision: Literal["float32", "bfloat16", "auto"] = "auto"
    """Numbers in which the network computes. `auto`: bfloat16 on a GPU that has it, else float32."""
    loaders: Annotated[int, between(0, 256)] = 2
    """Processes that decode and augment images, for each worker; 0: the training process itself."""

    @property
    def patience(self) -> None:
        """A classifier trains all of its epochs."""
        return


@record
class ClassifierAugmentation:
    """Random changes of training images, drawn for every image and epoch."""

    flip_horizontal: Fraction = 0.5
    """Probability that left and right are exchanged."""
    flip_vertical: Fraction = 0.0
    """Probability that top and bottom are exchanged."""
    rotation_degrees: Annotated[float, between(0, 180)] = 15.0
    """Largest angle to either side."""
    zoom_range: Range[Positive] = (0.9, 1.1)
    """Smallest and largest zoom factor."""
    shift: Fraction = 0.05
    """Largest shift along each axis, as a fraction of the side."""
    brightness_range: Range[NotNegative] = (0.8, 1.2)
    """Range of the factor of all intensities."""
    contrast_range: Range[NotNegative] = (0.8, 1.2)
    """Range of the factor of the distance to the image's mean."""
    saturation_range: Range[NotNegative] = (0.8, 1.2)
    """Range of the factor of the distance to grey; grey images stay as they are."""


@record
class Classifier:
    """Keys that a classification setting and its plan share."""

    network: ImageNetwork = "resnet50"
    """Architecture of the classifier; `small` has nine convolutions and can be trained on a CPU."""
    pretrained: bool = False
    """Whether it begins with the study's `weights` of its network, all but the last layer; else with random ones."""
    resolution: Resolution = 224
    """Pixels of each side that images are brought to; the aspect ratio is not kept."""
    images_per_class: Count | None = None
    """Training images of each class, drawn by the seed: with the same seed, more images hold all of the fewer ones.
    None: all that the fold has, as many as they are."""
    batch: Batch = 5
    """Images of an optimiser step on each worker."""
    workers: Workers = 1
    """Processes that train one network together, a device each: 1 is serial training."""
    data_partition: DataPartition = "private"
    """Images that each of several workers sees: `private`, its own fixed share of the images, which no other process
    opens, by whole patients, the same for all settings of a seed and a number of workers; or `shared`, another part of
    all images in every epoch."""
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    augmentation: ClassifierAugmentation = field(default_factory=ClassifierAugmentation)


@record
class ClassifierKeys(Classifier):
    """Keys of a setting of classification."""

    folds: Folds | None = None
    """The folds to train; None: all of the study."""
    seed: Seed | None = None
    """Seed of weights, drawn images, order and augmentation, for repeats of a setting; None: that of the study."""


@record
class ClassifierSetting(ClassifierKeys):
    """One row of the study's table, with the study's defaults and what it inherits."""

    name: LongName
    """It becomes a folder."""

    @property
    def parallel(self) -> Parallel:
        """The devices of a training job, in the words of a segmentation setting."""
        return Parallel(data=self.workers)


@record
class WrittenClassifier(ClassifierKeys):
    """One row of the study's table, as a study file has it."""

    inherits: Name | None = None
    """A setting whose keys are taken first."""
    seeds: Distinct[Seed] | None = None
    """Repeats of the setting, one per seed; each becomes a setting NAME-seedN."""


@record
class Cells(ClassifierKeys):
    """Settings by all combinations of its lists; other keys are those of a setting."""

    network: OneOrMore[ImageNetwork] = "resnet50"
    resolution: OneOrMore[Resolution] = 224
    images_per_class: OneOrMore[Count] | None = None
    workers: OneOrMore[Workers] = 1
    data_partition: OneOrMore[DataPartition] = "private"
    learning_rate: OneOrMore[Positive] | None = None
    """Learning rate in place of that of `training`."""
    seeds: Distinct[Seed] | None = None
    """Repeats of the setting, one per seed; each becomes a setting NAME-seedN."""


@record
class ClassifierEnsembleKeys:
    """Settings whose probabilities are averaged."""

    members: Distinct[LongName]
    """Names of settings, at least two, or one that has repeats."""


@record
class ClassifierEnsemble(ClassifierEnsembleKeys):
    """An ensemble of a study."""

    name: LongName
    """It becomes a folder."""


@record
class ClassificationKeys(StudyKeys):
    """Keys of a classification study that apply to all of its settings."""

    task: Literal["classification"] = "classification"
    """Makes it a study of images with a class each."""
    folds: Annotated[int, between(1, 20)] = 1
    """Cross-validation folds; 1: none, all training images train, and only the test split is scored."""
    seed: Seed = 12345
    """Seed of the folds, and of settings that say none."""
    baseline: LongName | None = None
    """The setting that the report compares the others with: its name as in the file or the grid, without a seed."""
    weights: dict[PublishedNetwork, PublishedWeights] = field(default_factory=dict)
    """Published weights by network, for settings with `pretrained`."""


@record
class ClassificationStudy(ClassificationKeys, Compared):
    """A study of classification with its defaults, grid, inheritance and repeats resolved."""

    name: Name
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


@record
class ClassificationFile(GivenByCommand, ClassificationKeys):
    """What to compare in a study of image classification: a dataset, settings or a grid of them, ensembles."""

    study: Name
    """Name of the study: its folder below results/, state/ and logs/."""
    task: Literal["classification"]
    """Makes it a study of images with a class each."""
    defaults: WrittenClassifier = field(default_factory=WrittenClassifier)
    """Keys that all settings share; where a setting says something else, the setting counts."""
    settings: Annotated[dict[Name, WrittenClassifier | None], Field(min_length=1)] | None = None
    """Settings to compare, by name; `settings` or `grid` is needed."""
    grid: Several[Cells] = ()
    """Settings by the combinations of lists: network, resolution, images_per_class, workers, data_partition and
    learning_rate may be lists. Their names are NETWORK-RESOLUTION-IMAGESpc-WORKERSw."""
    ensembles: dict[Name, ClassifierEnsembleKeys] = field(default_factory=dict)
    """Ensembles of settings, by name."""
