"""The memory of prediction: whether a whole image fits as one window, and what is said when memory ran out."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from megavoxel.config.hardware import Device
from megavoxel.distributed.group import local_device
from megavoxel.errors import UserError
from megavoxel.forecast.memory import advice_for_prediction, device_at_hand, explained_out_of_memory
from megavoxel.forecast.step import GIB
from megavoxel.forecast.ways import can_be, tilings
from megavoxel.forecast.window import bytes_beside, window_costs
from megavoxel.inference.predict import CasePredictor, open_predictor
from megavoxel.network.device import choose_device
from megavoxel.planning.patch import WHOLE, has_turns, predicting_devices, prediction_window
from megavoxel.planning.plan import Plan
from megavoxel.planning.spacing import times
from megavoxel.planning.topology import shape_of

LARGE_WINDOW = 2**27
"""Voxels of a window from which on it may be a mistake; a network for a patch of this size was planned on purpose."""

MOST_TURNS = 64
"""Tiles in turn that are tried for a window that does not fit."""


@dataclass(frozen=True, kw_only=True)
class WholeImages:
    """Checks images that a plan predicts in one window before they are predicted; of other windows only huge ones."""

    plan: Plan
    device: Device
    networks: int
    """Networks whose mean is taken."""
    precision: str
    """Number format of the forward pass."""

    @staticmethod
    def of(predictor: CasePredictor) -> WholeImages:
        """The check for the networks and the device of a predictor."""
        return WholeImages(
            plan=predictor.plan,
            device=device_at_hand(predictor.device, predictor.group.size),
            networks=len(predictor.networks),
            precision=predictor.precision.name,
        )

    def check(self, case: str, shape: Sequence[int]) -> None:
        """Refuses an image that cannot go through the network at once, where the plan wants it to.

        Args:
            shape: of the image (z, y, x), in network order.

        Raises:
            UserError: with what it needs and with a window that would fit.
        """
        if self.device.memory_gib is None:
            return
        size = prediction_window(self.plan, shape)
        if self.plan.inference.window != WHOLE:
            if math.prod(size) > LARGE_WINDOW:
                self._require_first_level(case, size)
            return
        needed = self.gib(size)
        if needed <= self.device.memory_gib:
            return
        tiles, smaller = self.fitting_tiles(size), self.fitting(size)
        options = [f"inference.tiles: {list(tiles)}"] if tiles else []
        options += [f"inference.window: {list(smaller)}"] if smaller else []
        advice = (
            f"what would fit: {' or '.join(options)}"
            if options
            else "not even a window of the patch fits; take a device with more memory"
        )
        raise UserError(
            f"setting {self.plan.setting}: case {case}: the whole image, a window of {times(size)} voxels, needs "
            f"{needed:.1f} GiB, more than {self.device.name} has ({self.device.memory_gib:g} GiB); {advice}"
        )

    def _require_first_level(self, case: str, size: Sequence[int]) -> None:
        """Refuses windows of which memory does not hold what the first level makes of them, in half precision."""
        network = self.plan.network
        least = 2 * math.prod(size) * (network.features[0] + network.classes) / GIB
        if least > self.device.memory_gib:
            raise UserError(
                f"setting {self.plan.setting}: case {case}: a window of {times(size)} voxels needs more than "
                f"{least:.0f} GiB, and {self.device.name} has {self.device.memory_gib:g} GiB; the plan was made for "
                "another machine, or is damaged: take a smaller patch, or a device with more memory"
            )

    def gib(self, size: Sequence[int]) -> float:
        """Peak memory in GiB of the fullest device for one window, with the sums of its logits on the first."""
        first, *others = window_costs(self.plan, size, networks=self.networks, precision=self.precision)
        sums = 4 * self.plan.network.classes * math.prod(size)
        sums = bytes_beside(first, sums, self.device)
        return max([first.peak_bytes + sums, *(other.peak_bytes for other in others)]) / GIB

    def fitting_tiles(self, size: Sequence[int]) -> tuple[int, ...] | None:
        """The fewest tiles in turn with which a window fits a GPU; None where it has turns already, or none fit."""
        if not self.device.gpus or has_turns(self.plan) or predicting_devices(self.plan) > 1:
            return None
        for tiles in tilings(replace(self.plan, patch=tuple(size)), MOST_TURNS):
            turned = replace(self.plan, inference=replace(self.plan.inference, tiles=tiles))
            if can_be(turned, turned.parallel) and replace(self, plan=turned).gib(size) <= self.device.memory_gib:
                return tiles
        return None

    def fitting(self, size: Sequence[int]) -> tuple[int, ...] | None:
        """A window that fits, no smaller than the patch: the side that is furthest from it is halved again and again.

        None where even the patch is too large.
        """
        shape, sides = shape_of(self.plan.network), list(size)
        smallest, strides = shape.padded(self.plan.patch), shape.divisor
        while self.gib(sides) > self.device.memory_gib:
            axis = max(range(len(sides)), key=lambda axis: sides[axis] / smallest[axis])
            if sides[axis] <= smallest[axis]:
                return None
            sides[axis] = max(smallest[axis], sides[axis] // strides[axis] // 2 * strides[axis])
        return tuple(sides)


@contextmanager
def explained_predictor(
    plan: Plan, weights: Sequence[Path], stage: str, arguments: argparse.Namespace
) -> Iterator[CasePredictor | None]:
    """Opens the predictor; while it is open, an error of memory ends in a line with the forecast and what would help.

    Raises:
        UserError: memory ran out, or as `open_predictor` says.
    """

    def advice() -> str:
        return advice_for_prediction(plan, len(weights), choose_device(local_device(arguments.device)))

    with explained_out_of_memory(plan.setting, advice), open_predictor(plan, weights, stage, arguments) as predictor:
        yield predictor
