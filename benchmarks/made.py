"""Helpers of several benchmarks: commands of this environment, plans of shipped studies, and made-up plans."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY
from megavoxel.config.dataset import dataset_path, load_dataset
from megavoxel.config.setting import Inference
from megavoxel.config.study_file import load_study
from megavoxel.config.training import Augmentation, Training
from megavoxel.planning.declared import declared_dataset
from megavoxel.planning.plan import ChannelNormalisation, NetworkPlan, Plan, PreprocessingPlan
from megavoxel.planning.planner import plan_preprocessing, plan_setting

CONFIG = REPOSITORY / "config"


def call(program: str, *words: object, folder: Path = REPOSITORY, environment: Mapping[str, str] | None = None) -> str:
    """Runs `snakemake`, `megavoxel` or `python` of this environment; returns what it prints.

    Args:
        program: its name.
        words: its arguments.
        folder: the working directory.
        environment: all of its variables; None: those of this process.

    Raises:
        RuntimeError: it failed; the message is what it wrote to standard error.
    """
    command = [str(Path(sys.executable).with_name(program)), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


@cache
def plan_of_study(study: str, setting: str) -> Plan:
    """The plan of a setting of config/studies/STUDY.yaml on its declared dataset, not yet spread over devices."""
    path = CONFIG / "studies" / f"{study}.yaml"
    parsed = load_study(path)
    dataset = load_dataset(dataset_path(parsed.dataset, CONFIG / "datasets", source=str(path)))
    cases, fingerprint = declared_dataset(dataset)
    keys = parsed.setting(setting)
    preprocessing = plan_preprocessing(cases, fingerprint, keys.preprocessing)
    return plan_setting(cases, preprocessing, keys, study=parsed.name, seed=parsed.seed)


def halving_network(classes: int, features: tuple[int, ...], **keys: Any) -> NetworkPlan:
    """A network of one channel with kernels of 3³, whose levels halve the resolution; `keys` of `NetworkPlan`."""
    levels = len(features)
    strides = ((1, 1, 1), *((2, 2, 2),) * (levels - 1))
    return NetworkPlan(
        channels=1, classes=classes, features=features, kernels=((3, 3, 3),) * levels, strides=strides, **keys
    )


def made_plan(
    name: str,
    *,
    patch: tuple[int, ...],
    labels: Mapping[str, int],
    features: tuple[int, ...],
    batch: int = 1,
    training: Training | None = None,
    inference: Inference | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Plan:
    """A plan of one CT channel without deep supervision.

    Args:
        name: the name of its setting.
        patch: voxels (z, y, x).
        labels: values by name, without background.
        features: channels of each level.
        batch: samples.
        training: keys that differ from the defaults.
        inference: keys that differ from the defaults.
        preprocessing: fields of `PreprocessingPlan` that differ from voxels of 1 mm and volumes of one patch.
    """
    fields = {
        "channels": ("CT",), "labels": dict(labels), "transpose": (0, 1, 2), "spacing": (1.0,) * 3,
        "median_shape": tuple(map(float, patch)), "normalisation": (ChannelNormalisation(scheme="z-score"),),
    }  # fmt: skip
    return Plan(
        study="benchmark", setting=name, dataset="made", seed=0,
        preprocessing=PreprocessingPlan(**(fields | dict(preprocessing or {}))),
        patch=patch, batch=batch, network=halving_network(len(labels) + 1, features, deep_supervision=False),
        training=training or Training(), augmentation=Augmentation(), inference=inference or Inference(),
    )  # fmt: skip
