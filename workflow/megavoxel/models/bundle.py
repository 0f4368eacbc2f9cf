"""A model as a MONAI Bundle: metadata, a configuration for inference, weights, and a card to read.

Specification: https://docs.monai.io/en/stable/mb_specification.html. The bundle's configuration imports megavoxel:
MONAI has neither its resampling (splines, anisotropic axes apart) nor its way back, so that label maps of MONAI's own
transforms would not be the same in every voxel.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megavoxel import __version__
from megavoxel.errors import UserError
from megavoxel.files import atomic_directory, file_sha256, write_json, write_text
from megavoxel.models.description import INTENDED_USE, NOT_STATED, ModelDescription, model_card, save_description
from megavoxel.models.directory import DESCRIPTION, PLAN, POSTPROCESSING
from megavoxel.models.gather import Runs
from megavoxel.models.prepare import dicom_code
from megavoxel.network.tensor_files import save_tensors
from megavoxel.network.weights import load_weights
from megavoxel.planning.plan import Plan

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
VERSION = "1.0.0"
USAGE = f"""\
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCANS

from the bundle's folder: SCANS is a folder of scans, and label maps appear in `eval/`, or where `--output_dir` says. It
needs megavoxel with its extra `bundle`, as `pip install 'megavoxel-{__version__}-py3-none-any.whl[bundle]'`: reading,
resampling and the way back to the scan's grid are megavoxel's own, so that label maps are those of `megavoxel predict`
in every voxel. `network_def` alone takes
preprocessed windows."""


def write_bundle(runs: Runs, description: ModelDescription, target: Path) -> None:
    """Writes a bundle, whole or not at all.

    Raises:
        UserError: the model segments regions or is a cascade, there is content at `target`, or weights are damaged or
            of another plan.
    """
    if description.regions is not None:
        raise UserError(
            f"{description.name}: a MONAI Bundle names one class per output, and this model segments regions that may "
            "overlap; leave out --format bundle, and take the exported model itself"
        )
    if runs.first_stage:
        raise UserError(
            f"{description.name}: it is the second stage of a cascade, and a MONAI Bundle has the networks of one; "
            "leave out --format bundle, and take the exported model itself"
        )
    with atomic_directory(target) as folder:
        for name in ("configs", "models", "docs"):
            (folder / name).mkdir()
        shutil.copyfile(runs.setting / "plan.json", folder / "configs" / PLAN)
        if runs.postprocessing:
            shutil.copyfile(runs.postprocessing, folder / "configs" / POSTPROCESSING)
        _write_weights(runs, folder / "models" / "model.pt")
        write_json(folder / "configs" / "metadata.json", metadata(description, runs.plan))
        write_json(folder / "configs" / "inference.json", inference_config())
        paths = [path for path in sorted(folder.rglob("*")) if path.name in (PLAN, POSTPROCESSING, "model.pt")]
        sums = {path.name: file_sha256(path) for path in paths}
        save_description(folder / "configs" / DESCRIPTION, replace(description, sha256=sums))
        write_text(folder / "docs" / "README.md", model_card(description, runs.plan, USAGE))


def metadata(model: ModelDescription, plan: Plan) -> dict[str, Any]:
    """The content of metadata.json."""
    data = model.dataset
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "exported by megavoxel"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.split("+", maxsplit=1)[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"megavoxel": __version__, "nibabel": version("nibabel")},
        "supported_apps": {},
        "name": model.name,
        "task": f"Segmentation of {', '.join(model.labels)}",
        "description": f"A {plan.preprocessing.dimensions}D U-Net of megavoxel that segments "
        f"{', '.join(model.labels)} in {', '.join(model.channels)}; "
        f"the logits of {len(model.folds)} networks are averaged",
        "authors": model.authors or NOT_STATED,
        "copyright": f"of the data: {data.licence or NOT_STATED}",
        "data_source": f"{data.name}. {data.description} {data.reference}".strip(),
        "data_type": "nibabel",
        "intended_use": INTENDED_USE,
        "references": [data.reference] if data.reference else [],
        "eval_metrics": _metrics(model),
        "network_data_format": _network_data_format(model, plan),
    }


def inference_config() -> dict[str, Any]:
    """The content of inference.json."""
    parts = "megavoxel.models.bundle_parts"
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/eval'",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "configs": "$@bundle_root + '/configs'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "modality": None,
        "probabilities": False,
        "network_def": {"_target_": f"{parts}.FoldEnsemble", "configs": "@configs"},
        "inferer": {
            "_target_": f"{parts}.WindowInferer",
            "network": "@network_def",
            "ckpt_path": "@ckpt_path",
            "device": "@device",
        },
        "dataset": {"_target_": f"{parts}.scans_in", "dataset_dir": "@dataset_dir"},
        "evaluator": {
            "_target_": f"{parts}.Labeller",
            "inferer": "@inferer",
            "dataset": "@dataset",
            "configs": "@configs",
            "output_dir": "@output_dir",
            "modality": "@modality",
            "probabilities": "@probabilities",
        },
        "run": ["$@evaluator.run()"],
    }


def _write_weights(runs: Runs, target: Path) -> None:
    """The weights of `bundle_parts.FoldEnsemble`: those of all folds, one behind the other."""
    joined = {}
    for number, fold in enumerate(runs.folds):
        content = load_weights(runs.folder(fold) / "model.pt", plan_hash=runs.plan.hash)
        joined |= {f"networks.{number}.{name}": value for name, value in content["weights"].items()}
    save_tensors(target, joined)


def _metrics(model: ModelDescription) -> dict[str, float]:
    return {
        f"{mean.split}_mean_{mean.metric.lower()}": round(mean.mean, 4) for mean in model.scores if mean.label is None
    }


def _network_data_format(model: ModelDescription, plan: Plan) -> dict[str, Any]:
    names = model.modalities or model.channels
    codes = {dicom_code(name) or name for name in names}
    shared = {"type": "image", "dtype": "float32", "value_range": [], "is_patch_data": True}
    shape = {"spatial_shape": list(plan.patch)}
    classes = {"0": "background"} | {str(number): name for number, name in enumerate(model.labels, start=1)}
    image = {
        "format": "magnitude",
        "modality": codes.pop() if len(codes) == 1 else "n/a",
        "num_channels": len(model.channels),
        **shape,
        "channel_def": {str(number): name for number, name in enumerate(model.channels)},
    }
    prediction = {"format": "labels", "num_channels": len(classes), **shape, "channel_def": classes}
    return {"inputs": {"image": shared | image}, "outputs": {"pred": shared | prediction}}
