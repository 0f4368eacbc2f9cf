"""Images per second that one process decodes and augments, against three times what a training step takes.

One thread each, in turns, with the small network and, at 512 pixels, with ResNet50. Images are grey JPEGs of 1024²
pixels and about 140 KB, much like the radiographs of the small study, the same as PNG, and colour JPEGs of 1640²
pixels; decoding, augmentation and normalisation are those of training. In the first epoch images are decoded, in
later ones their pixels are there.
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
from megavoxel.config.classification import ClassifierSetting
from megavoxel.network.device import Precision
from megavoxel.tasks.classification.cases import ImageCase, ImageCases
from megavoxel.tasks.classification.networks import build_network
from megavoxel.tasks.classification.plan import ClassifierPlan, classifier_plan
from megavoxel.tasks.classification.samples import TrainingImages
from megavoxel.tasks.classification.training import train_step
from megavoxel.training.optimizer import build_optimizer
from megavoxel.training.run import Run

RESOLUTIONS = (224, 512)
KINDS = {"grey JPEG": ("jpg", "L", 1024), "grey PNG": ("png", "L", 1024), "colour JPEG": ("jpg", "RGB", 1640)}
"""Suffix, mode and side of the files."""
FIRST, LATER = "first epoch", "later epochs"
FILES, BATCH, REPEATS = 20, 5, 5
STEPS = {"small": 4, "resnet50": 1}
"""Steps that are timed, by network."""
BOUND = 3
"""Loading must be so many times as fast as training, for decoding never to be what training waits for."""
CLASSES = ("a", "b")


def run() -> list[Row]:
    """One row per resolution, kind of file, and epochs."""
    small = [("small", *rest) for rest in itertools.product(RESOLUTIONS, KINDS, (FIRST, LATER))]
    large = [("resnet50", max(RESOLUTIONS), kind, FIRST) for kind in KINDS]
    return [row(*cell) for cell in (*small, *large)]


def row(network: str, resolution: int, kind: str, epochs: str) -> Row:
    """Images per second of both, the bound in those of training."""
    loading, training = in_process(seconds, network, resolution, kind, epochs)
    title = f"{kind}s loaded, {KINDS[kind][2]} to {resolution} pixels, {epochs}, network {network}"
    images = BATCH * STEPS[network]
    return larger_is_better(title, f"{BOUND} x the training step", images / loading, BOUND * images / training, "1/s")


def seconds(network: str, resolution: int, kind: str, epochs: str) -> tuple[float, float]:
    """Seconds of loading and of training on as many images."""
    torch.set_num_threads(1)
    setting = ClassifierSetting(name="a", network=network, resolution=resolution, batch=BATCH)
    plan = classifier_plan(setting, study="benchmark", dataset="noise", classes=CLASSES, seed=1)
    steps = STEPS[network]
    with tempfile.TemporaryDirectory() as folder:
        load = loader(plan, Path(folder), kind, epochs, images=BATCH * steps)
        return paired_seconds(load, trainer(plan, steps), repeats=REPEATS)


def loader(plan: ClassifierPlan, folder: Path, kind: str, epochs: str, *, images: int) -> Callable[[], None]:
    """A function that makes so many images, from files or as they were left by an earlier epoch."""
    suffix, mode, side = KINDS[kind]
    cases = tuple(ImageCase(id=f"{number}.{suffix}", label=CLASSES[number % 2]) for number in range(FILES))
    for number, case in enumerate(cases):
        write_image(folder / case.id, number, mode, side)
    found = ImageCases(dataset="noise", root=str(folder), classes=CLASSES, cases=cases)
    kept, counter = TrainingImages(plan, found, cases, fold=0), itertools.count()

    def work() -> None:
        epoch = next(counter)
        dataset = kept if epochs == LATER else TrainingImages(plan, found, cases, fold=0)
        for number in range(images):
            dataset[epoch, number]

    return work


def trainer(plan: ClassifierPlan, steps: int) -> Callable[[], None]:
    """A function that takes so many steps."""
    network = build_network(plan.network, len(CLASSES)).to(memory_format=torch.channels_last).train()
    run = Run(
        plan=plan,
        device=torch.device("cpu"),
        precision=Precision(name="float32", reason="benchmark"),
        network=network,
        optimizer=build_optimizer(network.parameters(), plan.training),
    )
    image = torch.randn(BATCH, 3, plan.resolution, plan.resolution).to(memory_format=torch.channels_last)
    target = torch.arange(BATCH) % 2

    def work() -> None:
        for _ in range(steps):
            train_step(run, image, target)

    return work


def write_image(path: Path, seed: int, mode: str, side: int) -> None:
    """Smooth structures and fine grain, which make a file of about the size of a radiograph's."""
    random = np.random.default_rng(seed)
    shape, wide, fine = ((side, side), 24, 1.2) if mode == "L" else ((side, side, 3), (24, 24, 0), (1.2, 1.2, 0))
    structures = ndimage.gaussian_filter(random.normal(size=shape), wide)
    grain = ndimage.gaussian_filter(random.normal(size=shape), fine)
    pixels = 128 + 45 * structures / structures.std() + 2.7 * grain / grain.std()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
