"""Small image datasets and plans for tests of classification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from megavoxel.config.classification import ClassifierAugmentation, ClassifierTraining
from megavoxel.tasks.classification.cases import ImageCase, ImageCases
from megavoxel.tasks.classification.plan import ClassifierPlan

CLASSES = ("bright", "dark")
LEVELS = {"bright": 180, "dark": 70}


def write_image(path: Path, label: str, number: int, side: int = 40, mode: str = "L") -> None:
    """A noisy image whose mean tells its class."""
    random = np.random.default_rng((number, LEVELS[label]))
    shape = (side, side) if mode == "L" else (side, side, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(random.normal(LEVELS[label], 40, shape), 0, 255).astype(np.uint8)).save(path)


def write_folders(root: Path, per_class: int, **keys: object) -> None:
    """A folder of images for each class: root/bright/0.png and so on."""
    for label in CLASSES:
        for number in range(per_class):
            write_image(root / label / f"{number}.png", label, number, **keys)


def image_cases(root: Path, per_class: int, images_per_patient: int = 1) -> ImageCases:
    """The cases of such folders."""
    return ImageCases(
        dataset="small",
        root=str(root),
        classes=CLASSES,
        cases=tuple(
            ImageCase(id=f"{label}/{number}.png", label=label, patient=f"{label}{number // images_per_patient}")
            for label in CLASSES
            for number in range(per_class)
        ),
    )


def classifier(**changes: object) -> ClassifierPlan:
    """A plan that trains in a second."""
    training = {"epochs": 3, "learning_rate": 0.01, "loaders": 0, "checkpoint_minutes": 0, "precision": "float32"}
    keys = {
        "study": "s", "setting": "a", "dataset": "small", "seed": 7, "classes": CLASSES, "network": "small",
        "pretrained": False, "resolution": 32, "images_per_class": None, "batch": 4, "workers": 1,
        "data_partition": "private", "augmentation": ClassifierAugmentation(),
    } | changes  # fmt: skip
    return ClassifierPlan(**keys | {"training": ClassifierTraining(**training | keys.get("training", {}))})
