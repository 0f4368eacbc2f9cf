"""An exported model that nobody trained, for tests of what is done with models."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers import preprocessing_plan, tiny_plan
from megavoxel.files import file_sha256
from megavoxel.models.description import DatasetFacts, FoldFacts, ModelDescription, model_card, save_description
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import save_plan


def untrained_model(folder: Path) -> Path:
    """Writes a model of MR scans with voxels of 2 mm into a folder that exists; returns it."""
    rules = preprocessing_plan(channels=("MR",), spacing=(2.0, 2.0, 2.0))
    plan = tiny_plan(preprocessing=rules, patch=(8, 16, 16))
    torch.manual_seed(1)
    save_plan(folder / "plan.json", plan)
    save_weights(folder / "fold-0.pt", SegmentationNetwork(plan.network), plan_hash=plan.hash, precision="float32")
    fold = FoldFacts(
        fold=0, weights="fold-0.pt", training_cases=2, validation_cases=2, epochs=2, hours=1.0, seed=1,
        precision="float32", parameters=10, data_sha256=None, hardware="cpu", version="1", commit="0123456789abcdef",
        versions={},
    )  # fmt: skip
    description = ModelDescription(
        name="tiny", study="s", setting="t", channels=("MR",), labels=rules.labels, dataset=DatasetFacts(name="none"),
        folds=(fold,), sha256={path.name: file_sha256(path) for path in folder.iterdir()},
    )  # fmt: skip
    save_description(folder / "model.json", description)
    (folder / "README.md").write_text(model_card(description, plan, "usage"))
    return folder
