"""The first dataset file and study file of a folder: YAML with comments, for people to go on with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import yaml

from megavoxel.config.dataset import Declared
from megavoxel.config.hardware import Device
from megavoxel.config.regions import IGNORE, LabelScheme
from megavoxel.config.source import Files, Patients

MOST_FOLDS = 5
SIDES = re.compile(r"(^|[^a-z])(left|right|l|r)([^a-z]|$)")
CAPITAL = re.compile("(?<=[a-z])(?=[A-Z])")
"""Where a word begins within a name, as in LeftParotid."""

GPU_SETTING = """\
defaults:
  # The cheapest way that fits the GPU: plain, accumulation, several GPUs, checkpointing, a pipeline.
  parallel: auto
  training:
    epochs: 250 # of 250 steps; nnU-Net's own training has 1000
{augmentation}
settings:
  # Patch, batch and network are chosen by nnU-Net's rules for the memory of the GPU.
  default: {{}}
  # nnU-Net's recommended preset of residual encoders, planned for 24 GiB.
  # residual: {{network: {{architecture: residual, preset: L}}}}
{larger}"""
LARGER = """\
  # What to compare it with: a larger patch than the rules choose, spread over GPUs if it has to be. This one has
  # {words}.
  # large-patch: {{patch: {patch}, batch: 2}}
"""
NO_LARGER = """\
  # The patch that the rules choose holds the median image already: a larger one would show the network no more.
"""
CPU_SETTING = """\
defaults:
  # The cheapest way that fits this computer.
  parallel: auto
  # One fold first; remove this line for all of them.
  folds: [0]
{augmentation}
settings:
  # A small network and a short schedule that a few CPU cores can train. A GPU takes far more:
  # 'megavoxel init PATH --gpu NAME --force' writes a setting for one.
  small:
    memory_gib: 1 # patch and network by nnU-Net's rules, as for a GPU of that size
    batch: 2
    network:
      base_features: 16
    training:
      epochs: 20
      iterations_per_epoch: 50
      validation_iterations: 5
      optimizer: adamw
      learning_rate: 0.003
      schedule: cosine
      warmup_epochs: 1
"""


def dataset_text(
    *,
    name: str,
    origin: str,
    layout: str,
    files: Files | None,
    patients: Patients | None,
    channels: Sequence[str],
    scheme: LabelScheme,
    unnamed: bool,
    excluded: Sequence[str],
    groups: str | None,
    tolerance: float,
    declared: Declared,
) -> str:
    """A dataset file with comments.

    Args:
        layout: what its layout is called.
        files: what images and label maps are called; None: `patients` or dataset.json tells.
        patients: what images and masks in folders of patients are called.
        channels: their names.
        scheme: what the values of label maps mean.
        unnamed: whether the names of the labels are made up.
        excluded: cases that are left out.
        groups: pattern of the cases that belong together.
        tolerance: of NSD in mm.
        declared: size and number of the cases.
    """
    lines = [
        f"# Written by 'megavoxel init' for {origin}: {layout}.",
        '# Nothing was copied. Every key is explained in config/README.md, "A dataset file".',
        _key("name", name),
        'description: "" # what is shown, and on which scans',
        'reference: "" # the publication or address to cite',
        'licence: ""',
        "source:",
        f"  {_key('folder', origin)}",
    ]
    if files is not None:
        lines += ["files: # {case} stands for a case's id, * for anything within a name"]
        lines += ["  images: # one pattern per channel", *(f"    - {_flow(pattern)}" for pattern in files.images)]
        lines += [f"  {_key('label', files.label)}"]
    lines += _lines_of_patients(patients) if patients is not None else []
    lines += [
        f"{_key('channels', list(channels))} # names decide how intensities are scaled: CT as CT, others by z-score"
    ]
    lines += _lines_of_labels(scheme, unnamed=unnamed)
    lines += [
        "# How far apart two good readers draw a surface, one number or one per label; about twice the finest voxel.",
        _key("nsd_tolerance_mm", tolerance),
    ]
    if excluded:
        lines += ["exclude: # cases with a missing or faulty file", *(f"  - {_flow(case)}" for case in excluded)]
    if groups is not None:
        lines += ["# Cases of one patient, by their ids: no fold divides them.", _key("groups", groups)]
    lines += [
        "# test_count: 5 # labelled cases to keep out of all folds, drawn at random",
        "declared: # medians as found by 'megavoxel init', so that 'snakemake plan' needs no data",
        f"  training_cases: {declared.training_cases}",
        f"  {_key('shape', list(declared.shape))} # z, y, x",
        f"  {_key('largest_shape', list(declared.largest_shape))}",
        f"  {_key('spacing', list(declared.spacing))} # mm",
    ]
    return "\n".join(lines) + "\n"


def _lines_of_labels(scheme: LabelScheme, *, unnamed: bool) -> list[str]:
    lines = ["labels: # no file says what these values are: give them names" if unnamed else "labels:"]
    lines += [f"  {_flow(label)}: {_values(values)}" for label, values in scheme.structures.items()]
    if scheme.ignore_value is not None:
        lines += [f"  {IGNORE}: {scheme.ignore_value} # voxels that nobody annotated; they count for nothing"]
    if scheme.regions is not None:
        order = _key("regions_class_order", list(scheme.regions.class_order))
        lines += ["# The value that a predicted voxel gets if no later region has it, one per region.", order]
    return lines


def _values(values: tuple[int, ...]) -> str:
    return str(values[0]) if len(values) == 1 else _flow(list(values))


def _lines_of_patients(patients: Patients) -> list[str]:
    lines = ["patients: # a folder each, whose name is the case's id", f"  {_key('image', patients.image)}"]
    if patients.label_map is not None:
        return [*lines, f"  {_key('label_map', patients.label_map)} # a shell pattern below a patient's folder"]
    what = "Shell patterns below a patient's folder" if patients.masks else "Names in DICOM SEG or RTSTRUCT files"
    lines += [f"  # {what}, the largest first: where two overlap, the later one counts."]
    lines += ["  # A label that a patient does not have is unannotated there: it may be there, and nobody drew it."]
    drawn = patients.masks or patients.structures
    lines += ["  masks:" if patients.masks else "  structures:"]
    return [*lines, *(f"    {_key(_flow(label), _plain(names))}" for label, names in drawn.items())]


def study_text(
    *,
    name: str,
    dataset: str,
    device: Device,
    path: str,
    cases: int,
    labels: Sequence[str],
    shapes: Mapping[str, str] = MappingProxyType({}),
    metrics: Mapping[str, Sequence[str]] | None = None,
    splits: tuple[str, int] | None = None,
    larger: tuple[Sequence[int], str] | None = None,
) -> str:
    """A first study with one setting that suits a device.

    Args:
        name: of the study.
        shapes: what labels are that other metrics than DSC and NSD suit, by name.
        metrics: those that suit; None: the usual ones.
        splits: a file with folds, and how many they are; None: they are drawn at random.
        larger: a patch to compare with that of the rules, and what it is in relation to the images; None: that of the
            rules holds them already.
        labels: their names: left and right ones are told apart by their side, so that nothing is mirrored.
    """
    sided = any(SIDES.search(CAPITAL.sub(" ", label).lower()) for label in labels)
    augmentation = (
        "  augmentation:\n    mirror_axes: [] # left and right are told apart by their side\n" if sided else ""
    )
    setting = GPU_SETTING if device.gpus else CPU_SETTING
    head = [
        "# A first study. Every key is explained in config/README.md.",
        f"#   snakemake plan --configfile {path}    # memory and hours, before anything runs",
        f"#   snakemake --configfile {path}",
        f"#   megavoxel status --study {path}    # how far it is",
        _key("study", name),
        _key("dataset", dataset),
        f"{_key('hardware', device.name)} # a name in config/hardware.yaml",
        f"folds: {min(MOST_FOLDS, cases)}" if splits is None else f"folds: {splits[1]} # as many as the file has",
        *([] if splits is None else [_key("splits", splits[0])]),
        "seed: 12345",
        f"baseline: {'default' if device.gpus else 'small'}",
        *([] if metrics is None else _lines_of_metrics(shapes, metrics)),
    ]
    proposed = NO_LARGER if larger is None else LARGER.format(patch=list(larger[0]), words=larger[1])
    return "\n".join(head) + "\n\n" + setting.format(augmentation=augmentation, larger=proposed)


def _lines_of_metrics(shapes: Mapping[str, str], metrics: Mapping[str, Sequence[str]]) -> list[str]:
    """A proposal that changes nothing until its comment sign is removed."""
    told = ", ".join(f"{name} is {kind}" for name, kind in shapes.items())
    return [
        f"# Metrics that suit the labels, after Metrics Reloaded (Maier-Hein et al. 2024): {told}.",
        "# The first one ranks the models; docs/scores.md defines all of them.",
        f"# {_key('metrics', {name: list(keys) for name, keys in metrics.items()})}",
    ]


def _key(key: str, value: Any) -> str:
    return f"{key}: {_flow(value)}"


def _plain(patterns: str | Sequence[str]) -> str | list[str]:
    return patterns if isinstance(patterns, str) else list(patterns)


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
