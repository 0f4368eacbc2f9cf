"""The cheapest way of running a setting that fits its device, and why the cheaper ones do not."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.pipeline import blocks_by_saving
from megavoxel.forecast.setting import Forecast, forecast_setting, most_stages
from megavoxel.forecast.step import gib
from megavoxel.forecast.ways import (
    LESS_AND_LESS,
    can_be,
    check_parallel,
    describe,
    effort,
    needs_whole_batch,
    recomputed,
    tilings,
)
from megavoxel.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The way that was chosen."""

    forecast: Forecast
    fits: bool
    """Whether the device's memory will do."""
    reason: str
    """Why this one; where nothing fits, by how much and what would."""
    next_option: str
    """What to try should memory run out all the same."""


def choose(plan: Plan, device: Device, workload: Workload, *, fixed: Parallel | None) -> Choice:
    """Forecasts the way that a study fixes, or finds the cheapest one that fits.

    Cheap is what takes few device-hours; of equals, what takes few devices. A way that needs longer than a job on the
    device may run comes after all that do not. Tiles are looked at where nothing else fits, and pipelines, which idle
    while they fill and run dry, where tiles do not either.

    A way that the study fixes is refused where it takes more GPUs than a job on the device may have; processes on a
    CPU are only those of `parallel`.

    Args:
        fixed: what the study says; None: the planner chooses.

    Raises:
        UserError: the parts do not divide the batch, or the network has fewer blocks than stages are asked for.
    """
    search = Search(plan, device, workload)
    if fixed is None:
        return search.cheapest()
    check_parallel(plan, fixed)
    forecast = search.with_least_recomputation(fixed)
    fixed = forecast.parallel
    too_many = device.kind == "gpu" and fixed.devices > device.most_devices
    if fits(forecast) and not too_many:
        return Choice(
            forecast=forecast,
            fits=True,
            reason=f"as the study says{several_jobs(forecast)}",
            next_option=next_option(plan, fixed, device),
        )
    if too_many:
        reason = too_many_devices(forecast)
    else:
        other = search.cheapest()
        reason = too_large(forecast, other.forecast if other.fits else None)
    return Choice(forecast=forecast, fits=False, reason=reason, next_option="")


class Search:
    """The ways of running a setting, from cheap to dear, each looked at once."""

    def __init__(self, plan: Plan, device: Device, workload: Workload) -> None:
        self.plan, self.device, self.workload = plan, device, workload
        self.seen: list[Forecast] = []

    def cheapest(self) -> Choice:
        """The first way that fits."""
        plain = self._look(Parallel())
        if fits(plain) and not late(plain):
            best = plain
        else:
            ways = (self._by_data(), self._by_space(), self._pipelines())
            best = next(filter(None, map(self._first_that_fits, ways)), None)
        if best is not None and best.parallel.checkpointing == "blocks":
            best = self._with_fewest_blocks(best)
        if best is None:
            least = min(self.seen, key=lambda forecast: forecast.peak_gib)
            return Choice(forecast=least, fits=False, reason=too_large(least, None), next_option="")
        option = next_option(self.plan, best.parallel, self.device)
        return Choice(forecast=best, fits=True, reason=why(best, self.seen), next_option=option)

    def with_least_recomputation(self, fixed: Parallel) -> Forecast:
        """The way that a study fixes; of `checkpointing: auto` the least that fits, or all where nothing fits."""
        if fixed.checkpointing != "auto":
            return self._look(fixed)
        for checkpointing in LESS_AND_LESS:
            forecast = self._look(replace(fixed, checkpointing=checkpointing))
            if fits(forecast):
                break
        return self._with_fewest_blocks(forecast) if forecast.parallel.checkpointing == "blocks" else forecast

    def _with_fewest_blocks(self, whole: Forecast) -> Forecast:
        """The way that recomputes the fewest blocks and fits, where `whole` recomputes all of them.

        Blocks are taken in the order of the bytes that this saves.
        """
        names = blocks_by_saving(self.plan, whole.parallel, whole.precision)
        ways = [replace(whole.parallel, checkpointing=tuple(names[:count])) for count in range(1, len(names))]
        place = bisect_left(ways, True, key=lambda way: fits(self._look(way)))
        return self._look(ways[place]) if place < len(ways) else whole

    def _look(self, parallel: Parallel) -> Forecast:
        forecast = forecast_setting(self.plan, parallel, self.device, self.workload)
        self.seen = [other for other in self.seen if other.parallel != parallel] + [forecast]
        return forecast

    def _first_that_fits(self, ways: Iterable[Parallel]) -> Forecast | None:
        """The first that fits and ends in time; where none ends in time, the cheapest that fits."""
        fitting = []
        for parallel in ways:
            forecast = self._look(parallel)
            if fits(forecast):
                fitting.append(forecast)
                if not late(forecast):
                    break
        return min(fitting, key=cost, default=None)

    def _by_data(self) -> Iterator[Parallel]:
        """One device, then several by data; each without checkpointing and with it, in the fewest parts that fit."""
        devices = [count for count in powers_of_two(self.device.most_devices) if self.plan.common_batch % count == 0]
        for data, checkpointing in itertools.product(devices, LESS_AND_LESS):
            yield self._with_fewest_parts(Parallel(data=data, checkpointing=checkpointing))

    def _with_fewest_parts(self, whole: Parallel) -> Parallel:
        """A device's share in the fewest parts that fit; in the most parts where none fit.

        The search begins at what one sample needs, which is near, and goes on by what each number of parts needs.
        """
        share = self.plan.common_batch // whole.data
        ways = [replace(whole, accumulate=parts) for parts in range(1, share + 1) if share % parts == 0]
        place = self._estimated(ways, share)
        while place > 0 and fits(self._look(ways[place - 1])):
            place -= 1
        while place + 1 < len(ways) and not fits(self._look(ways[place])):
            place += 1
        return ways[place]

    def _estimated(self, ways: Sequence[Parallel], share: int) -> int:
        """Position of the way with the fewest parts, by what one sample needs and the memory that there is."""
        sample = forecast_setting(self.plan, ways[-1], self.device, self.workload)
        room = (math.inf if self.device.limit_gib is None else self.device.limit_gib) - sample.training_gib
        samples = 1 + max(0, math.floor(room / sample.sample_gib)) if room < math.inf else share
        return next(place for place, way in enumerate(ways) if share // way.accumulate <= samples)

    def _by_space(self) -> Iterator[Parallel]:
        """Tiles on more and more devices, with a sample in them at a time; without checkpointing and with it."""
        for space, checkpointing in itertools.product(tilings(self.plan, self.device.most_devices), LESS_AND_LESS):
            way = Parallel(space=space, checkpointing=checkpointing)
            if can_be(self.plan, way):
                yield self._with_fewest_parts(way)

    def _pipelines(self) -> Iterator[Parallel]:
        """Pipelines with up to twice as many micro-batches as stages, and fewer where memory does not hold these."""
        batch = self.plan.common_batch
        whole = self.plan.expanded_patch is not None
        stages = powers_of_two(1 if whole else min(self.device.most_devices, most_stages(self.plan)))[1:]
        for count, checkpointing in itertools.product(stages, LESS_AND_LESS):
            for parts in (parts for parts in range(min(batch, 2 * count), 0, -1) if batch % parts == 0):
                accumulate = batch // parts
                if accumulate > 1 and needs_whole_batch(self.plan):
                    continue  # its sums would not be those of the whole batch
                yield Parallel(pipeline=count, micro_batches=parts, accumulate=accumulate, checkpointing=checkpointing)


def fits(forecast: Forecast) -> bool:
    """Whether the device has the memory."""
    return forecast.missing_gib == 0


def late(forecast: Forecast) -> bool:
    """Whether a fold takes longer than a job on the device may run."""
    hours = forecast.hours_per_fold
    return hours is not None and hours * 60 > forecast.device.runtime_minutes


def cost(forecast: Forecast) -> tuple:
    """Order of ways: jobs that end in time first, then device-hours to three digits, then devices and effort."""
    if forecast.gpu_hours_per_fold is None:
        return (False, 0.0, *effort(forecast.parallel))
    # Among those that are late it is the time that counts.
    hours = forecast.hours_per_fold if late(forecast) else forecast.gpu_hours_per_fold
    return (late(forecast), float(f"{hours:.3g}"), *effort(forecast.parallel))


def why(best: Forecast, seen: Sequence[Forecast]) -> str:
    """Says why the ways that were looked at before were not taken."""
    refused = []
    for other in seen:
        if other.parallel == best.parallel or _is_slower_twin(other, seen):
            continue
        if not fits(other):
            refused.append(f"{describe(other.parallel)} needs {gib(other.peak_gib)}")
        elif late(other) and cost(other) > cost(best):
            limit = other.device.runtime_minutes / 60
            refused.append(
                f"{describe(other.parallel)} takes {other.hours_per_fold:.0f} h a fold, a job has {limit:g} h"
            )
    if not refused:
        return f"{describe(best.parallel)} training fits{several_jobs(best)}"
    memory = f"a device has {gib(best.device.limit_gib)}" if best.device.limit_gib else "no memory is stated"
    return f"{describe(best.parallel)}: {'; '.join(dict.fromkeys(refused))}; {memory}{several_jobs(best)}"


def several_jobs(forecast: Forecast) -> str:
    """The end of a reason where a fold takes longer than a job may run; else nothing."""
    if not late(forecast):
        return ""
    return f"; longer than a job's {forecast.device.runtime_minutes / 60:g} h, so it will need several"


def _is_slower_twin(forecast: Forecast, seen: Sequence[Forecast]) -> bool:
    """Whether a way with checkpointing has a twin with less of it that fits."""
    same = [other for other in seen if other.parallel.data == forecast.parallel.data and fits(other)]
    return any(recomputed(other.parallel) < recomputed(forecast.parallel) for other in same)


def too_large(forecast: Forecast, other: Forecast | None) -> str:
    """Says by how much memory a way does not fit, and what would fit."""
    device = forecast.device
    part = "training" if forecast.training_gib >= forecast.prediction_gib else "prediction"
    short = (
        f"{part} needs {gib(forecast.peak_gib)} as {describe(forecast.parallel)}, {gib(forecast.missing_gib)} more "
        f"than {_has(device)}"
    )
    if other is not None:
        return f"{short}; what would fit: {describe(other.parallel)} ({gib(other.peak_gib)})"
    # Activations go with the volume of the patch, overhead does not.
    share = (device.limit_gib - device.overhead_gib) / (forecast.peak_gib - device.overhead_gib)
    if share <= 0:
        return f"{short}; nothing fits into that; take a device with more memory"
    devices = f"up to {device.most_devices} devices" if device.most_devices > 1 else "one device"
    return (
        f"{short}; no way on {devices} fits; what would: a patch of about "
        f"{share ** (1 / 3):.0%} of each side, or a device with {math.ceil(forecast.peak_gib)} GiB"
    )


def too_many_devices(forecast: Forecast) -> str:
    """Says that a way takes more devices than a job may have."""
    asked, device = forecast.parallel.devices, forecast.device
    return (
        f"{describe(forecast.parallel)} takes {asked} devices, a job on {device.name} has {device.most_devices} at "
        "most (most_devices in config/hardware.yaml)"
    )


def _has(device: Device) -> str:
    if device.memory_gib is None:
        return f"host_memory_mb of {device.name} allows ({gib(device.limit_gib)})"
    return f"{device.name} has ({gib(device.limit_gib)})"


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, … up to `most`."""
    return [2**power for power in range(most.bit_length())]


def next_option(plan: Plan, parallel: Parallel, device: Device) -> str:
    """What to try where memory ran out, in keys of the study: the mildest that can be run and a job may ask for."""
    for key, value in _with_less_memory(plan, parallel):
        option = replace(parallel, **{key: value})
        if option.devices <= max(device.most_devices, parallel.devices) and can_be(plan, option):
            return f"parallel.{key}: {list(value) if isinstance(value, tuple) else value}"
    return "a smaller patch"


def _with_less_memory(plan: Plan, parallel: Parallel) -> Iterator[tuple[str, int | str | tuple[int, ...]]]:
    """Single keys of `parallel` that lower what a device needs, from mild to harsh; not all of them can be."""
    samples = plan.common_batch // parallel.parts
    factor = next((factor for factor in range(2, samples + 1) if samples % factor == 0), None)
    if factor is not None:
        yield "accumulate", parallel.accumulate * factor
    if parallel.checkpointing != "blocks":
        yield "checkpointing", "norms" if parallel.checkpointing == "none" else "blocks"
    if factor is not None:
        yield "micro_batches", parallel.micro_batches * factor
    more = parallel.tiles * 2
    yield from (("space", space) for space in tilings(plan, more) if math.prod(space) == more)
    yield "pipeline", parallel.pipeline * 2
