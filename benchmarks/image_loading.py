"""Images per second that one process decodes and augments, against three times what a training step of `small` takes.

One thread each, in turns. Images are grey JPEGs of 1024 x 1024 pixels and about 140 KB, much like the radiographs of
the small study; decoding, augmentation and normalisation are those of training.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from benchmarks.measure import Row, in_process, larger_is_better, paired_seconds
from megavoxel.classification.cases import ImageCase, ImageCases
from megavoxel.classification.networks import build_network
from megavoxel.classification.plan import ClassifierPlan, classifier_plan
from megavoxel.classification.samples import TrainingImages
from megavoxel.classification.step import ClassifierRun, train_step
from megavoxel.config.classification import ClassifierSetting
from megavoxel.network.device import Precision
from megavoxel.training.optimizer import build_optimizer

RESOLUTIONS = (224, 512)
SIDE, FILES, BATCH, STEPS, REPEATS = 1024, 8, 5, 4, 5
BOUND = 3
"""Loading must be so many times as fast as training, for decoding never to be what training waits for."""
CLASSES = ("a", "b")


def run() -> list[Row]:
    """One row per resolution."""
    rows = []
    for resolution in RESOLUTIONS:
        loading, training = in_process(seconds, resolution)
        title = f"images loaded, {SIDE} to {resolution} pixels, network small"
        images = BATCH * STEPS
        rows.append(
            larger_is_better(title, f"{BOUND} x the training step", images / loading, BOUND * images / training, "1/s")
        )
    return rows


def seconds(resolution: int) -> tuple[float, float]:
    """Seconds of loading and of training on as many images."""
    torch.set_num_threads(1)
    setting = ClassifierSetting(name="a", network="small", resolution=resolution, batch=BATCH)
    plan = classifier_plan(setting, study="benchmark", dataset="noise", classes=CLASSES, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        return paired_seconds(loader(plan, Path(folder)), trainer(plan), repeats=REPEATS)


def loader(plan: ClassifierPlan, folder: Path) -> Callable[[], None]:
    """A function that makes the images of so many steps."""
    cases = tuple(ImageCase(id=f"{number}.jpg", label=CLASSES[number % 2]) for number in range(FILES))
    for number, case in enumerate(cases):
        write_jpeg(folder / case.id, number)
    found = ImageCases(dataset="noise", root=str(folder), classes=CLASSES, cases=cases)
    images, epochs = TrainingImages(plan, found, cases, fold=0), itertools.count()

    def work() -> None:
        epoch = next(epochs)
        for number in range(BATCH * STEPS):
            images[epoch, number % FILES]

    return work


def trainer(plan: ClassifierPlan) -> Callable[[], None]:
    """A function that takes so many steps."""
    network = build_network(plan.network, len(CLASSES)).to(memory_format=torch.channels_last).train()
    run = ClassifierRun(
        plan=plan,
        device=torch.device("cpu"),
        precision=Precision(name="float32", reason="benchmark"),
        network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
    )
    image = torch.randn(BATCH, 3, plan.resolution, plan.resolution).to(memory_format=torch.channels_last)
    target = torch.arange(BATCH) % 2

    def work() -> None:
        for _ in range(STEPS):
            train_step(run, image, target)

    return work


def write_jpeg(path: Path, seed: int) -> None:
    """Smooth structures and fine grain, which make a file of about the size of a radiograph's."""
    random = np.random.default_rng(seed)
    structures = ndimage.gaussian_filter(random.normal(size=(SIDE, SIDE)), 24)
    grain = ndimage.gaussian_filter(random.normal(size=(SIDE, SIDE)), 1.2)
    pixels = 128 + 45 * structures / structures.std() + 2.7 * grain / grain.std()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
