"""Variants of a plan that are trained on a GPU, a real or a pretended one, and the cases that they are trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers import RESIDUAL, store_case, tiny_plan
from megavoxel.config.training import Augmentation
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.checksums import write_checksums
from megavoxel.preprocessing.store import save_array
from megavoxel.tasks.segmentation.data import VolumeData

SHAPE = (20, 40, 40)
PATCH = (16, 32, 32)
BRANCHES = ("coarse", "wide")
SMALL = {"patch": (8, 16, 16)}
"""A CPU takes long for convolutions in float16."""
POST = {"stage1": BRANCHES, "network": {"prior_channels": 4, "fusion": "post"}}
EXPANDED = {"expanded_patch": (20, 40, 40), "network": {"expanded_head": True}}
CHANGED = dict.fromkeys(
    ("rotation", "scaling", "shear", "elastic", "shift", "quarter_turn", "noise", "blur", "brightness", "contrast",
     "low_resolution", "gamma", "gamma_inverted"), 1.0,
)  # fmt: skip
ON_DEVICE = {"augmentation": Augmentation(**CHANGED, elastic_magnitude=(60, 60), on_device=True)}
"""Every transform in every sample."""
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"training": {"precision": "bfloat16"}},
    "float16": {**SMALL, "training": {"precision": "float16"}},
    "V100": {**SMALL, "training": {"precision": "auto"}},
    "accumulation": {"parallel": {"accumulate": 2}},
    "accumulation in float16": {**SMALL, "parallel": {"accumulate": 2}, "training": {"precision": "float16"}},
    "checkpointing of norms": {"parallel": {"checkpointing": "norms"}},
    "checkpointing of blocks": {"parallel": {"checkpointing": "blocks"}},
    "checkpointing in bfloat16": {"parallel": {"checkpointing": "blocks"}, "training": {"precision": "bfloat16"}},
    "batch Dice": {"training": {"batch_dice": True}},
    "batch Dice, accumulation": {"training": {"batch_dice": True}, "parallel": {"accumulate": 2}},
    "expansion": EXPANDED,
    "expansion at once, accumulation": {**EXPANDED, "expansion_order": "joint", "parallel": {"accumulate": 2}},
    "expansion in slabs": {**EXPANDED, "network": {**EXPANDED["network"], "norm": "batch", "pooling": "max"}},
    "cascade before": {**POST, "network": {"prior_channels": 4, "fusion": "pre"}},
    "cascade behind": POST,
    "excitation": {"network": {"squeeze_excitation": 4}},
    "residual, checkpointing": {
        "network": RESIDUAL | {"features": (8, 16, 16)},
        "parallel": {"checkpointing": "blocks"},
    },
    "masked labels": {"unannotated": {"case0": ("cube",)}},
    "masked labels, batch Dice": {"unannotated": {"case0": ("cube",)}, "training": {"batch_dice": True}},
    "augmentation on the device": ON_DEVICE,
    "augmentation on the device, in-plane, accumulation": {
        **ON_DEVICE,
        "patch": (8, 32, 32),
        "parallel": {"accumulate": 2},
    },
    "augmentation on the device, cascade, masked labels": {**POST, **ON_DEVICE, "unannotated": {"case0": ("cube",)}},
    "focal loss, class weights": {"training": {"loss": "dice_focal", "class_weights": (0.5, 1.0, 2.0)}},
    "top k": {"training": {"loss": "dice_topk"}},
    "perimeter": {"training": {"loss": "dice_perimeter"}},
    "batch norm, max pooling, nearest": {"network": {"norm": "batch", "pooling": "max", "upsampling": "nearest"}},
    "coarse first level": {"network": {"strides": ((2, 2, 2), (2, 2, 2), (1, 2, 2))}},
    "AdamW": {"training": {"optimizer": "adamw", "learning_rate": 1e-3}},
    "RMSProp": {"training": {"optimizer": "rmsprop", "learning_rate": 1e-4}},
}


def plan_of(changes: dict[str, Any]) -> Plan:
    """A plan whose tensors are large enough that memory is not made of weights."""
    other = {key: value for key, value in changes.items() if key not in ("network", "parallel", "training")}
    plan = tiny_plan(**{"patch": PATCH, "batch": 2, **other}, training=changes.get("training"))
    network = replace(plan.network, **{"features": (8, 16, 16), **changes.get("network", {})})
    return replace(plan, network=network, parallel=replace(plan.parallel, **changes.get("parallel", {})))


def stored_fold(folder: Path) -> VolumeData:
    """Two cases to train and one to validate, with the labels of two first stages."""
    cases, first = folder / "cases", folder / "first-stage"
    first.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        store_case(cases, f"case{number}", seed=number, shape=SHAPE)
        labels = np.random.default_rng(number).integers(0, 3, (len(BRANCHES), *SHAPE), dtype=np.uint8)
        path = first / f"case{number}.stage1.b2nd"
        save_array(path, labels, (8, 12, 12))
        write_checksums(path.with_suffix(".sha256"), [path], {})
    return VolumeData(
        number=0, preprocessed=cases, training=("case0", "case1"), validation=("case2",), first_stage=(first,)
    )
