"""nnU-Net v2 on one of our dataset folders: every call in a process of its own, all its files in one folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import in_process

NAME = "Dataset001_peer"
FOLDERS = {key: key.removeprefix("nnUNet_") for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
"""Folder below `home` per environment variable."""
READER = "SimpleITKIO"
"""Its own choice for NIfTI files; it leaves their orientation as it is."""
REORIENTING_READER = "NibabelIOWithReorient"
"""Another one of its own, which turns images to RAS, as we do."""


def data_folder() -> Path:
    """The folder with real labelled images."""
    return Path(os.environ.get("MEGAVOXEL_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()


@dataclass(frozen=True, kw_only=True)
class Made:
    """A dataset that exists as a fingerprint only."""

    spacings: np.ndarray
    """mm (cases, 3)."""
    shapes: np.ndarray
    """Voxels (cases, 3), after cropping."""
    labels: dict[str, int]
    """Without background."""
    memory_gib: float
    """Memory for which it is planned."""
    preset: str | None = None
    """Name of nnU-Net's preset of residual encoders; None: the plain network."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """nnU-Net's three folders for one dataset."""

    home: Path
    """An empty folder of ours."""
    reader: str = READER
    """nnU-Net's class that reads images."""

    def link(self, source: Path, channel: str) -> None:
        """Makes nnU-Net's raw dataset of a folder in the layout of the Medical Segmentation Decathlon, with links."""
        content = json.loads((source / "dataset.json").read_text())
        for pair in content["training"]:
            case = Path(pair["image"]).name.removesuffix(".nii.gz")
            for file, name in (
                (pair["image"], f"imagesTr/{case}_0000.nii.gz"),
                (pair["label"], f"labelsTr/{case}.nii.gz"),
            ):
                target = self.raw / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to((source / file).resolve())
        labels = {name: int(value) for value, name in content["labels"].items()}
        self.describe(channel, labels, len(content["training"]))

    def describe(self, channel: str, labels: dict[str, int], cases: int) -> None:
        """Writes nnU-Net's dataset.json; `labels` has the background as 0."""
        for folder in FOLDERS.values():
            (self.home / folder / NAME).mkdir(parents=True, exist_ok=True)
        content = {
            "channel_names": {"0": channel},
            "labels": labels,
            "numTraining": cases,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": self.reader,
        }
        (self.raw / "dataset.json").write_text(json.dumps(content))

    @property
    def raw(self) -> Path:
        """The raw dataset."""
        return self.home / "raw" / NAME

    def images(self, case: str) -> tuple[str, str]:
        """Image and label map of a case."""
        return str(self.raw / f"imagesTr/{case}_0000.nii.gz"), str(self.raw / f"labelsTr/{case}.nii.gz")

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work(home, *arguments)` in a fresh process in which nnU-Net's environment variables are set."""
        return in_process(_call, str(self.home), work, arguments)

    def plan(self) -> dict[str, Any]:
        """nnU-Net's fingerprint and plans of the raw dataset, for 8 GiB."""
        self.call(_fingerprint, 1)
        return self.call(_plan, 8.0)

    def plan_made(self, datasets: Sequence[Made]) -> list[dict[str, Any]]:
        """nnU-Net's plans of datasets that exist as fingerprints only."""
        return self.call(_plan_made, tuple(datasets))

    def arrays(self, configuration: str, cases: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Preprocessed image and labels of cases, under the plans that `plan` has written."""
        self.call(_preprocess, configuration, tuple(cases))
        return {
            case: tuple(np.load(self.home / f"{case}.{kind}.npy") for kind in ("image", "labels")) for case in cases
        }


def preprocessor(home: str, configuration: str) -> tuple[Any, tuple[Any, Any, dict]]:
    """nnU-Net's preprocessor and what its methods want after the files of a case."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = Path(home) / "preprocessed" / NAME
    plans = PlansManager(str(folder / "nnUNetPlans.json"))
    description = json.loads((folder / "dataset.json").read_text())
    return DefaultPreprocessor(verbose=False), (plans, plans.get_configuration(configuration), description)


def _call(home: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ.update({key: str(Path(home) / folder) for key, folder in FOLDERS.items()})
    with contextlib.redirect_stdout(io.StringIO()):
        return work(home, *arguments)


def _fingerprint(_home: str, processes: int) -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    extractor = DatasetFingerprintExtractor(NAME, num_processes=processes)
    extractor.show_progress_bar = False
    extractor.run()


def _plan(home: str, memory_gib: float, preset: str | None = None) -> dict[str, Any]:
    import torch
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    named = None if preset is None else getattr(residual_encoder_unet_planners, f"nnUNetPlannerResEnc{preset}")
    planner = (named or ExperimentPlanner)(NAME, gpu_memory_target_in_gb=memory_gib)
    with torch.device("meta"):  # it makes whole networks to count their outputs; weights play no part in that
        planner.plan_experiment()
    return json.loads((Path(home) / "preprocessed" / NAME / f"{planner.plans_identifier}.json").read_text())


def _plan_made(home: str, datasets: tuple[Made, ...]) -> list[dict[str, Any]]:
    files = Peer(home=Path(home))
    files.describe("MRI", {}, 0)
    for name in files.images("c"):  # looked for by name; nobody opens them
        Path(name).parent.mkdir()
        Path(name).touch()
    plans = []
    for made in datasets:
        files.describe("MRI", {"background": 0, **made.labels}, len(made.shapes))
        found = {
            "spacings": made.spacings.tolist(),
            "shapes_after_crop": made.shapes.tolist(),
            "median_relative_size_after_cropping": 1.0,
            "foreground_intensity_properties_per_channel": {"0": {}},
        }
        folder = files.home / "preprocessed" / NAME
        (folder / "dataset_fingerprint.json").write_text(json.dumps(found))
        for older in folder.glob("nnUNet*Plans.json"):  # they would keep configurations of the one before
            older.unlink()
        plans.append(_plan(home, made.memory_gib, made.preset))
    return plans


def _preprocess(home: str, configuration: str, cases: tuple[str, ...]) -> None:
    work, context = preprocessor(home, configuration)
    peer = Peer(home=Path(home))
    for case in cases:
        image, labels = peer.images(case)
        array, segmentation, _ = work.run_case([image], labels, *context)
        np.save(peer.home / f"{case}.image.npy", array)
        np.save(peer.home / f"{case}.labels.npy", np.maximum(segmentation[0], 0).astype(np.uint8))  # -1: outside
