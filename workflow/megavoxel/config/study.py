"""A study of segmentation: the settings to compare, their folds, ensembles and sweeps."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from megavoxel.config.fields import (
    DatasetName,
    Distinct,
    LongName,
    Name,
    Positive,
    Seed,
    Several,
    Text,
    between,
    refuse,
)
from megavoxel.config.records import record, rule
from megavoxel.config.setting import ALL, Setting, WrittenSetting

Point = Annotated[
    str, Field(min_length=1, max_length=80, description="a text of 1 to 80 characters; numbers in quotes")
]


def _timing(value: Any) -> Any:
    return (Timing() if value else None) if isinstance(value, bool) else value


def _without_password(address: str) -> str:
    if re.search(r"//[^/@]*:[^/@]+@", address):
        refuse("it holds a password, which would end up in logs; write $NAME in its place, and set that variable")
    return address


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
    """Cases that are predicted; those of `validation` by the network of their fold."""


@record
class Tracking:
    """Where the curves of a study's runs go besides, when Snakemake ends; nothing of the study waits for it."""

    mlflow: Annotated[Text, AfterValidator(_without_password)] | None = None
    """Address of an MLflow server or database, such as `http://host:5000` or `sqlite:///runs.db`; variables of the
    environment as in `$MLFLOW_TRACKING_URI` are replaced. It must not hold a password: MLflow reads
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    wandb: Text | None = None
    """Folder for offline runs of Weights & Biases, which `wandb sync` sends."""

    @rule
    def _goes_somewhere(self) -> None:
        if self.mlflow is None and self.wandb is None:
            refuse("give mlflow, wandb, or both")


@record
class StudyKeys:
    """Keys of a study of either task."""

    dataset: DatasetName
    """A name in config/datasets/ or the path of a dataset file."""
    hardware: Name = "cpu"
    """A name in config/hardware.yaml."""
    baseline: LongName | None = None
    """The setting that the report compares the others with."""
    tracking: Tracking | None = None
    """Programs that track experiments; None: there is none."""


@record
class GivenByCommand:
    """Keys that are usually given as `--config KEY=VALUE`: rules read them, a study does not hold them."""

    mirror: Text | None = None
    """A folder that is looked at before any URL; usually given as --config mirror=DIR."""
    device: Literal["auto", "cpu"] = "auto"
    """Where jobs of the study's device compute: a study for GPUs that is tried on the processor is given --config
    device=cpu. Without it, such jobs end with an error where PyTorch sees no GPU."""
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

    @property
    def validates(self) -> bool:
        """Whether folds leave cases out of training for validation."""
        return self.folds > 1

    def folds_of(self, setting: Any) -> tuple[int, ...]:
        """The folds that a setting is trained and validated on; none where it has the network of all cases alone."""
        folds = range(self.folds) if setting.folds is None else setting.folds
        return tuple(fold for fold in folds if fold != ALL)

    def networks_of(self, setting: Any) -> tuple[int | str, ...]:
        """The folds of the networks that are trained of a setting, `all` among them where one is of all cases."""
        return (*self.folds_of(setting), *([ALL] if ALL in (setting.folds or ()) else []))

    def folds_of_ensemble(self, ensemble: Any) -> tuple[int, ...]:
        """The folds of an ensemble: those of its members, which agree."""
        return self.folds_of(self.setting(ensemble.members[0]))


@record
class SegmentationKeys(StudyKeys):
    """Keys of a segmentation study that apply to all of its settings."""

    task: Literal["segmentation", "classification"] = "segmentation"
    """What the networks learn; a study of `classification` has other keys than these."""
    folds: Annotated[int, between(1, 20)] = 5
    """Parts into which the training cases are divided for cross-validation; each is validated once. 1: none, all
    training cases train, and only the test split is scored; with a file of one fold (`splits`) that is validated."""
    seed: Seed = 12345
    """Seed of the splits, of the weights and of every random patch."""
    splits: Text | None = None
    """A file with folds in place of random ones: nnU-Net's splits_final.json, or a splits.json; as many as `folds`. A
    relative path is one below the working directory."""
    shards: Annotated[int, between(1, 1000)] | None = None
    """Jobs among which the cases of one preprocessing are divided, and the test cases of one setting; None: one for
    up to 50 cases and two for more, or where the number of cases is not known yet. What is finished keeps its
    number."""
    keep_logits: bool = True
    """Whether `state/` keeps the logits of the members of ensembles, so that a change of one member does not predict
    the others again; `false`: they are removed as soon as the ensembles are made."""
    partitions: Partitions | None = None
    """Lists how the networks would be cut into pipelines; None: only those that settings train through."""
    metrics: Distinct[Name] | dict[Text, Distinct[Name]] = ("dsc", "nsd")
    """Metrics of label maps: names of the table in `docs/scores.md`, such as `dsc`, `nsd` and `hd95`. Or by label, with
    `default` for all labels that are not named: `{default: [dsc, nsd], vessel: [cldice, nsd]}`. The first one ranks
    models and cases, and stands against cost."""
    confidence: bool = False
    """Whether the report says how far probabilities can be trusted: a temperature of each setting, calibration errors
    by label, and, where folds are averaged, how their disagreement goes with the scores of the test cases."""
    timing: Annotated[bool | Timing | None, AfterValidator(_timing)] = None
    """Measures seconds per image of every setting; `true` stands for the defaults; None: nothing is timed."""


@record
class Study(SegmentationKeys, Compared):
    """A study with its defaults, inheritance and repeats resolved."""

    name: Name
    settings: tuple[Setting, ...]
    ensembles: tuple[Ensemble, ...] = ()
    sweeps: tuple[Sweep, ...] = ()

    @property
    def validates(self) -> bool:
        """As of any study; a file of one fold has validation cases as well."""
        return super().validates or self.splits is not None


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
