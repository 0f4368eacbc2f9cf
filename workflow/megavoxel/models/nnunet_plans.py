"""nnU-Net's plans.json and dataset.json as a plan of ours: the same preprocessing, network and prediction.

Whatever has no counterpart is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.regions import IGNORE, LabelScheme, label_scheme
from megavoxel.errors import UserError
from megavoxel.files import read_json
from megavoxel.planning.plan import Plan

PLANS, DATASET = "plans.json", "dataset.json"
RESAMPLING = "resample_data_or_seg_to_shape"
ORDERS = {"order_z": 0, "force_separate_z": None}
"""How its resampling is called in all plans that its planners write, beside the order of the spline."""
LINEAR = 1
"""Order in which our logits are brought to the grid of an image."""
PLAIN_SCHEMES = {
    "NoNormalization": "unchanged", "RescaleTo01Normalization": "rescale-0-1", "RGBTo01Normalization": "rgb-0-1",
}  # fmt: skip
"""Normalisations that need no numbers, by nnU-Net's name."""
NETWORKS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "residual"}
LAYERS = {
    "conv_op": ("torch.nn.modules.conv.Conv3d", "torch.nn.modules.conv.Conv2d"),
    "norm_op": ("torch.nn.modules.instancenorm.InstanceNorm3d", "torch.nn.modules.instancenorm.InstanceNorm2d"),
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "conv_bias": True,
    "dropout_op": None,
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
}
"""What layers of a network may be."""
READERS = ("SimpleITKIO", "NibabelIO")
"""Readers that take the axes of an image as they lie in its file."""
READER_OF_RAS = "NibabelIOWithReorient"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained folder of nnU-Net, by its files."""

    folder: Path
    configuration: str
    """Its name, such as 3d_fullres."""
    keys: Mapping[str, Any]
    """The configuration."""
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]

    def fault(self, file: str, reason: str) -> UserError:
        """An error about one of its files."""
        return UserError(f"{self.folder / file}: {reason}")

    @contextmanager
    def as_written(self) -> Iterator[None]:
        """Within a `with` block, values of another form than nnU-Net writes are an error about its plans."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as fault:
            raise self.fault(PLANS, f"{self.configuration}: not as nnU-Net writes it ({fault!r})") from None

    @property
    def ending(self) -> str:
        """Ending of the names of images and label maps."""
        ending = str(self.dataset.get("file_ending"))
        return ending if re.fullmatch(r"(\.[A-Za-z0-9]+)+", ending) else ".nii.gz"

    @property
    def dimensions(self) -> int:
        """2 for a network that sees slices across the first axis."""
        return len(self.keys["patch_size"])

    def whole(self, sizes: Sequence[Any], first: Any = 1) -> list[Any]:
        """Sizes of three axes; of slices, which have two, with that of the first axis."""
        return list(sizes) if self.dimensions == 3 else [first, *sizes]

    @property
    def reader(self) -> str:
        """The class that reads images."""
        return str(self.plans.get("image_reader_writer", READERS[0]))


def read_trained(folder: Path) -> Trained:
    """Reads plans.json and dataset.json of a folder TRAINER__PLANS__CONFIGURATION.

    Raises:
        UserError: it is no such folder, or of a configuration that is not imported.
    """
    plans, dataset = (read_json(folder / name, what=f"nnU-Net's {name}") for name in (PLANS, DATASET))
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    name = folder.resolve().name.split("__")[-1]
    if not isinstance(configurations, dict) or not isinstance(dataset, dict):
        raise UserError(f"{folder / PLANS}: no 'configurations' in it; expected the plans of nnU-Net v2")
    if name not in configurations:
        raise UserError(
            f"{folder}: its name ends in '{name}', which plans.json does not have; allowed: TRAINER__PLANS__ and one "
            f"of {', '.join(configurations)}"
        )
    keys = _inherited(configurations, name, folder / PLANS)
    trained = Trained(folder=folder, configuration=name, keys=keys, plans=plans, dataset=dataset)
    with trained.as_written():
        _require_imported(trained)
    return trained


def _inherited(configurations: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for _ in range(len(configurations)):
        own = configurations.get(name) if isinstance(name, str) else None
        if not isinstance(own, dict):
            break
        keys = {**own, **keys}
        if "inherits_from" not in own:
            return keys
        name = own["inherits_from"]
    raise UserError(f"{where}: configurations.{name}: missing, or it inherits from itself")


def _require_imported(trained: Trained) -> None:
    name, keys = trained.configuration, trained.keys
    if keys.get("previous_stage"):
        raise trained.fault(PLANS, f"{name} is the second stage of a cascade, which is not imported; take 3d_fullres")
    if len(keys.get("patch_size", ())) not in (2, 3):
        raise trained.fault(PLANS, f"{name} is neither in two nor in three dimensions, which is not imported")
    if keys.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
        raise trained.fault(PLANS, f"preprocessor_name is {keys['preprocessor_name']}, which is not imported")
    if trained.reader not in (*READERS, READER_OF_RAS):
        raise trained.fault(PLANS, f"images are read by {trained.reader}, which is not imported")
    for part in ("data", "probabilities"):
        function, options = keys.get(f"resampling_fn_{part}"), keys.get(f"resampling_fn_{part}_kwargs", {})
        if function != RESAMPLING or any(options.get(key) != value for key, value in ORDERS.items()):
            found = " ".join([str(function), *(f"{key}={options.get(key)}" for key in ORDERS)])
            raise trained.fault(PLANS, f"resampling_fn_{part} is {found}; only {RESAMPLING} as by default is known")
    if keys["resampling_fn_probabilities_kwargs"].get("order") != LINEAR:
        raise trained.fault(PLANS, "resampling_fn_probabilities_kwargs.order is not 1; only linear resampling is known")


def plan_of(trained: Trained, *, axes: str, turned: Sequence[int], mirrored: Sequence[int], epochs: int) -> Plan:
    """The plan by which our network predicts as nnU-Net's.

    Args:
        axes: where x, y and z run in its images.
        turned: for each axis of its arrays, our canonical axis (0: z).
        mirrored: axes over which it averages mirrored predictions.
        epochs: that it was trained.

    Raises:
        UserError: a value is missing or wrong, or something in it is not known.
    """
    keys, plans = trained.keys, trained.plans
    with trained.as_written():
        scheme = _labels(trained)
        channels = _channels(trained)
        rules = _normalisation(trained, channels)
        values = {
            "study": "nnU-Net",
            "setting": trained.configuration,
            "dataset": str(plans["dataset_name"]),
            "seed": 0,
            "preprocessing": {
                "channels": channels,
                "labels": scheme.labels,
                "regions": None if scheme.regions is None else to_plain(scheme.regions),
                "axes": axes,
                "transpose": [turned[axis] for axis in plans["transpose_forward"]],
                "dimensions": trained.dimensions,
                "spacing": trained.whole(keys["spacing"], plans["original_median_spacing_after_transp"][0]),
                "median_shape": trained.whole(
                    keys["median_image_size_in_voxels"], plans["original_median_shape_after_transp"][0]
                ),
                "normalisation": rules,
                "image_order": keys["resampling_fn_data_kwargs"]["order"],
            },
            "patch": trained.whole(keys["patch_size"]),
            "batch": keys["batch_size"],
            "network": {"channels": len(channels), "classes": _outputs(scheme), **_network(trained)},
            "training": {"epochs": max(1, epochs), "batch_dice": bool(keys["batch_dice"])},
            "augmentation": {"mirror_axes": [axis + 3 - trained.dimensions for axis in mirrored]},
            "inference": {"mirror": bool(mirrored)},
        }
    return from_plain(Plan, values, where=str(trained.folder / PLANS))


def _labels(trained: Trained) -> LabelScheme:
    """What the network segments. A value `ignore` is left out, for no network predicts it."""
    entries = {name: value for name, value in trained.dataset["labels"].items() if name != IGNORE}
    where = str(trained.folder / DATASET)
    scheme = label_scheme(entries, trained.dataset.get("regions_class_order"), where)
    values = list(scheme.labels.values())
    if scheme.regions is None and values != list(range(1, len(values) + 1)):
        raise UserError(f"{where}: labels: expected the values 1 to {len(values)}, found {values}")
    return scheme


def _outputs(scheme: LabelScheme) -> int:
    """Outputs of the network: one per region, or one per label and one for the background."""
    return len(scheme.structures) + (scheme.regions is None)


def _channels(trained: Trained) -> list[str]:
    names = trained.dataset.get("channel_names", trained.dataset.get("modality"))
    return [str(names[str(number)]) for number in range(len(names))]


def _normalisation(trained: Trained, channels: Sequence[str]) -> list[dict[str, Any]]:
    schemes, masked = trained.keys["normalization_schemes"], trained.keys["use_mask_for_norm"]
    if len(schemes) != len(channels):
        raise trained.fault(PLANS, f"{len(schemes)} normalization_schemes for {len(channels)} channels of dataset.json")
    properties, rules = trained.plans["foreground_intensity_properties_per_channel"], []
    for number, scheme in enumerate(schemes):
        if scheme == "ZScoreNormalization":
            rules.append({"scheme": "z-score", "inside_nonzero": bool(masked[number])})
        elif scheme == "CTNormalization":
            own = properties[str(number)]
            percentiles = {"lower": own["percentile_00_5"], "upper": own["percentile_99_5"]}
            rules.append({"scheme": "ct", "mean": own["mean"], "std": own["std"], **percentiles})
        elif scheme in PLAIN_SCHEMES:
            rules.append({"scheme": PLAIN_SCHEMES[scheme]})
        else:
            raise trained.fault(PLANS, f"channel {channels[number]} has {scheme}, which is not imported")
    return rules


def _network(trained: Trained) -> dict[str, Any]:
    """Keys of the network, from plans of today or from those before nnU-Net 2.2."""
    keys = trained.keys
    if "architecture" not in keys:
        return _network_before(trained)
    kind = _kind(trained, keys["architecture"]["network_class_name"])
    given = keys["architecture"]["arch_kwargs"]
    for key, allowed in LAYERS.items():
        if given.get(key) != allowed and not (isinstance(allowed, tuple) and given.get(key) in allowed):
            raise trained.fault(PLANS, f"{key} of the network is {given.get(key)}, which is not imported")
    if (given.get("nonlin_kwargs") or {}).get("negative_slope", 0.01) != 0.01:
        raise trained.fault(PLANS, "negative_slope of the network is not 0.01, which is not imported")
    encoder = given["n_blocks_per_stage" if kind == "residual" else "n_conv_per_stage"]
    return _shape(
        trained, kind, given["features_per_stage"], given["strides"], given["kernel_sizes"], encoder,
        given["n_conv_per_stage_decoder"],
    )  # fmt: skip


def _network_before(trained: Trained) -> dict[str, Any]:
    keys = trained.keys
    kind = _kind(trained, keys["UNet_class_name"])
    strides = keys["pool_op_kernel_sizes"]
    most = keys.get("unet_max_num_features", 320)
    features = [min(keys["UNet_base_num_features"] * 2**level, most) for level in range(len(strides))]
    encoder, decoder = keys["n_conv_per_stage_encoder"], keys["n_conv_per_stage_decoder"]
    return _shape(trained, kind, features, strides, keys["conv_kernel_sizes"], encoder, decoder)


def _kind(trained: Trained, name: str) -> str:
    kind = NETWORKS.get(name.rpartition(".")[2])
    if kind is None:
        raise trained.fault(PLANS, f"the network is {name}, which is not imported; allowed: {', '.join(NETWORKS)}")
    return kind


def _shape(
    trained: Trained,
    kind: str,
    features: Sequence[int],
    strides: Sequence[Any],
    kernels: Sequence[Any],
    encoder: Sequence[int],
    decoder: Sequence[int],
) -> dict[str, Any]:
    convolutions = {*decoder, *(encoder if kind == "unet" else ())}
    if len(convolutions) != 1:
        raise trained.fault(PLANS, f"levels have {sorted(convolutions)} convolutions, which is not imported")
    if math.prod(strides[0]) != 1:
        raise trained.fault(PLANS, f"the first level has the stride {strides[0]}, which is not imported")
    return {
        "architecture": kind,
        "features": list(features),
        "strides": [trained.whole(stride) for stride in strides],
        "kernels": [trained.whole(kernel) for kernel in kernels],
        "convolutions_per_level": convolutions.pop(),
        "blocks": list(encoder) if kind == "residual" else [],
    }
