"""Checkpoints and trained folders in the layout of nnU-Net v2, made from networks of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.plan import NetworkPlan
from test_residual import peer_name


def their_name(name: str, plan: NetworkPlan) -> str:
    """nnU-Net's name of one of our parameters, in a plain or residual U-Net."""
    match = re.match(r"program\.blocks\.(encoder|decoder)(\d)_convolution(\d)\.module\.(\d)\.(\w+)", name)
    if match is None or plan.architecture == "residual":
        return peer_name(name, plan)
    side, level, index, layer, kind = match.groups()
    part = ("conv", "norm")[int(layer)]
    if side == "encoder":
        return f"encoder.stages.{level}.0.convs.{index}.{part}.{kind}"
    return f"decoder.stages.{len(plan.features) - 2 - int(level)}.convs.{index}.{part}.{kind}"


def is_flat(network: SegmentationNetwork) -> bool:
    """Whether it sees slices: nnU-Net's own has two axes then."""
    return all(kernel[0] == 1 for kernel in network.plan.kernels)


def checkpoint(network: SegmentationNetwork, **changes: Any) -> dict[str, Any]:
    """What nnU-Net writes at the end of a training: every layer under several names, a log with numbers of NumPy."""
    weights = {}
    for name, own in network.state_dict().items():
        tensor = own.squeeze(2) if is_flat(network) and own.dim() == 5 else own
        theirs = their_name(name, network.plan)
        again = theirs.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        weights |= dict.fromkeys((theirs, again), tensor)
        if theirs.startswith("encoder."):
            weights |= dict.fromkeys((f"decoder.{theirs}", f"decoder.{again}"), tensor)
    lowest = (network.plan.classes, network.plan.features[-2], *(1, 1, 1)[is_flat(network) :])
    weights.setdefault("decoder.seg_layers.0.weight", torch.ones(lowest))
    weights.setdefault("decoder.seg_layers.0.bias", torch.zeros(lowest[0]))
    log = {"train_losses": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.25)], "lrs": [0.01]}
    content = {
        "network_weights": weights, "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None, "logging": log, "_best_ema": np.float64(0.25), "current_epoch": 3,
        "init_args": {"fold": 0, "configuration": "3d_fullres", "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": (0, 1, 2)[: 3 - is_flat(network)],
    }  # fmt: skip
    return {**content, **changes}


def saved(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


INTENSITIES = {"mean": 0.1, "std": 0.5, "percentile_00_5": -1.0, "percentile_99_5": 1.0}
Keys = Mapping[str, Any]
NONE: Keys = MappingProxyType({})


def trained_folder(
    folder: Path, network: SegmentationNetwork, *, keys: Keys = NONE, plans: Keys = NONE, described: Keys = NONE
) -> Path:
    """What nnU-Net leaves of a training: plans.json, dataset.json and the checkpoint of fold 0.

    Args:
        keys: of the configuration, that differ.
        plans: keys beside the configurations, that differ.
        described: keys of dataset.json, that differ.
    """
    plan, levels = network.plan, len(network.plan.features)
    residual, first = plan.architecture == "residual", int(is_flat(network))
    axes = 3 - first
    linear = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    layers = {
        "n_stages": levels, "features_per_stage": list(plan.features), "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [sizes[first:] for sizes in plan.kernels],
        "strides": [sizes[first:] for sizes in plan.strides],
        "n_conv_per_stage_decoder": [plan.convolutions_per_level] * (levels - 1), "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        **({"n_blocks_per_stage": plan.blocks} if residual else {"n_conv_per_stage": [2] * levels}),
    }  # fmt: skip
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    configuration = {
        "data_identifier": "d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": [16] * axes,
        "median_image_size_in_voxels": [20.0] * axes, "spacing": [1.0] * axes, "batch_dice": False,
        "normalization_schemes": ["ZScoreNormalization"] * plan.channels, "use_mask_for_norm": [False] * plan.channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": {**linear, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_seg_kwargs": {**linear, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape", "resampling_fn_probabilities_kwargs": linear,
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}", "arch_kwargs": layers,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **keys,
    }  # fmt: skip
    written = {
        "dataset_name": "Dataset001_Made", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "original_median_spacing_after_transp": [1.0] * 3, "original_median_shape_after_transp": [20] * 3,
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {str(number): INTENSITIES for number in range(plan.channels)},
        "configurations": {"3d_fullres": configuration}, **plans,
    }  # fmt: skip
    dataset = {
        "channel_names": {str(number): "MRI" for number in range(plan.channels)}, "numTraining": 3,
        "labels": {"background": 0, **{f"label{n}": n for n in range(1, plan.classes)}}, "file_ending": ".nii.gz",
        **described,
    }  # fmt: skip
    folder = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    saved(folder / "fold_0/checkpoint_final.pth", checkpoint(network))
    (folder / "plans.json").write_text(json.dumps(written))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder
