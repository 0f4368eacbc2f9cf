"""Seconds per image: how long a network takes from a preprocessed image to its logits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from megavoxel.inference.predict import CasePredictor
from megavoxel.planning.patch import WHOLE, prediction_window


@dataclass(frozen=True, kw_only=True)
class Duration:
    """One prediction of a case."""

    case: str
    repeat: int
    """Counted from 1."""
    seconds: float
    window: str
    """Voxels per axis of the sliding window, `64x64x64`, or `whole`."""


def time_cases(
    predictor: CasePredictor, cases: Iterable[tuple[str, object]], *, repeats: int, warm_up: int
) -> Iterator[Duration]:
    """Predicts every case `repeats` times.

    The clock runs from the image in the host's memory to its last logits on the device, resampling and files left out.
    Before it is read, the device has finished what it was given. The first case with a window of its shape is predicted
    `warm_up` times before: kernels are chosen and memory is asked for when they are first needed. Whole images may each
    have a shape of their own.

    Args:
        predictor: one network or several, with the setting's window and mirror images.
        cases: names and preprocessed images (channels, network grid).
        repeats: of each case.
        warm_up: predictions of the first case of a window's shape that are not timed.
    """
    warm: set[tuple[int, ...]] = set()
    for name, stored in cases:
        image = stored[:]
        window = predictor.plan.inference.window
        size = WHOLE if window == WHOLE else "x".join(map(str, window or predictor.plan.patch))

        def predict(image=image) -> None:
            for slab in predictor.slabs(image):
                del slab

        shape = prediction_window(predictor.plan, image.shape[1:])
        for _ in range(0 if shape in warm else warm_up):
            _seconds(predict, predictor.device)
        warm.add(shape)
        for repeat in range(1, repeats + 1):
            yield Duration(case=name, repeat=repeat, seconds=_seconds(predict, predictor.device), window=size)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _wait_for(device)
    begin = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - begin


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
