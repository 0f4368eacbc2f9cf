"""The forecast of a setting on a device: memory, hours, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megavoxel.config.hardware import Device
from megavoxel.config.setting import Parallel
from megavoxel.forecast.duration import Workload, prediction_seconds, speed_of, step_seconds, validation_seconds
from megavoxel.forecast.loading import loading_of, slow_loading
from megavoxel.forecast.pipeline import begins_of, largest_phase, least_peak_cut, stage_costs
from megavoxel.forecast.pipeline_step import fake_network
from megavoxel.forecast.step import GIB, StepCost, largest_share, repeated, training_step
from megavoxel.forecast.window import bytes_beside, window_costs
from megavoxel.inference.sliding_window import SLAB_BYTES, widest_strip
from megavoxel.planning.patch import has_turns, predicting_devices, prediction_window
from megavoxel.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Memory and time that one way of running a setting needs."""

    parallel: Parallel
    device: Device
    precision: str
    """Number format of training and prediction."""
    training_gib: float
    """Peak memory of the fullest device in training, with overhead and workspace."""
    certain_gib: float
    """The part of it that PyTorch itself allocates: without overhead and workspace."""
    prediction_gib: float
    """Peak memory of a device that predicts with the networks of all folds, with overhead and workspace."""
    prediction_host_gib: float
    """Host memory that it takes beside that, where tiles of windows are worked out in turn on a GPU."""
    training_hours: float | None
    """Training of a fold; None: the device has no rate for the precision."""
    epoch_seconds: float | None
    """An epoch of training with its validation, of a curriculum of its last phase; None likewise."""
    slow_loading: str | None
    """What to say where a GPU waits for training patches; None: it does not, or that is not known."""
    case_hours: float | None
    """Prediction of a case by one network; None likewise."""
    prediction_hours: float | None
    """Prediction of a fold's validation cases; None likewise."""
    gpu_hours_per_fold: float | None
    """Both, times the devices that each part keeps busy."""
    flops: int
    """Operations of a training step, over all devices."""
    stage_gib: tuple[float, ...]
    """What PyTorch allocates in each stage of a pipeline; one figure without a pipeline."""
    exchanged_gib: float
    """What a device sends to those that hold the other tiles of its patches, in a training step."""
    sample_gib: float
    """Memory of the fullest device that goes with the samples in it, per sample."""

    @property
    def peak_gib(self) -> float:
        """The larger of training and prediction."""
        return max(self.training_gib, self.prediction_gib)

    @property
    def hours_per_fold(self) -> float | None:
        """Training of a fold and prediction of its validation cases."""
        return None if self.training_hours is None else self.training_hours + self.prediction_hours

    @property
    def missing_gib(self) -> float:
        """Memory that is lacking; 0 where it fits or nothing says how much memory there is."""
        memory = self.device.limit_gib
        return 0.0 if memory is None else max(0.0, self.peak_gib - memory)


def forecast_setting(plan: Plan, parallel: Parallel, device: Device, workload: Workload) -> Forecast:
    """The forecast of `plan`, run as `parallel` says.

    Args:
        plan: the setting; its own `parallel` does not count.
        parallel: its parts divide the batch (`check_parallel`).
        device: one of the devices of the job.
    """
    precision = precision_on(plan, device)
    steps = [(phase, step_costs(phase, parallel, precision)) for phase in plan.by_phase()]
    fullest, stages = max(steps, key=lambda step: max(stage.peak_bytes for stage in step[1]))
    own = replace(plan, parallel=parallel)
    epochs = _epochs(own, device, steps, precision)
    training = case = prediction = None
    if epochs is not None:
        training = sum(phase.training.epochs * epoch.seconds for (phase, _), epoch in zip(steps, epochs, strict=True))
        case = prediction_seconds(own, speed_of(device, precision), precision)
        prediction = case * workload.validation_cases
    busy = parallel.tiles if predicting_devices(own) > 1 else 1  # of a pipeline, one stage at a time
    return Forecast(
        parallel=parallel,
        device=device,
        precision=precision,
        training_gib=max(peak_gib(stage, device) for stage in stages) + connections_gib(parallel, device),
        certain_gib=max(stage.peak_bytes for stage in stages) / GIB,
        stage_gib=tuple(stage.peak_bytes / GIB for stage in stages),
        prediction_gib=prediction_gib(own, device, workload.networks, precision),
        prediction_host_gib=prediction_host_gib(own, precision) if device.gpus else 0.0,
        training_hours=None if epochs is None else training / 3600,
        epoch_seconds=None if epochs is None else epochs[-1].seconds,
        slow_loading=next((epoch.slow_loading for epoch in epochs or () if epoch.slow_loading), None),
        case_hours=None if epochs is None else case / 3600,
        prediction_hours=None if epochs is None else prediction / 3600,
        gpu_hours_per_fold=None if epochs is None else (training * parallel.devices + prediction * busy) / 3600,
        flops=round(sum(stage.flops for stage in stages) * parallel.data / largest_share(fullest, parallel)),
        exchanged_gib=max(stage.exchanged_bytes for stage in stages) / GIB,
        sample_gib=max(_growing_bytes(stage, device) for stage in stages) / GIB / (fullest.batch // parallel.parts),
    )


def prediction_gib(plan: Plan, device: Device, networks: int, precision: str) -> float:
    """Peak memory in GiB of the fullest device that predicts the largest case, with overhead and workspace.

    Of several devices the first sums the logits.

    Args:
        plan: the setting, with its `parallel`.
        device: whose overhead and workspace count.
        networks: whose mean is taken.
        precision: of the forward pass.
    """
    size = prediction_window(plan, largest_case(plan))
    slab = _slab_bytes(plan, size, on_host=not device.gpus)
    first, *others = window_costs(plan, size, networks=networks, precision=precision)
    slab = bytes_beside(first, slab, device)
    return max([peak_gib(first, device, extra=slab), *(peak_gib(other, device) for other in others)])


def prediction_host_gib(plan: Plan, precision: str) -> float:
    """Host memory in GiB for the largest case where its activations lie there; else 0."""
    if not has_turns(plan):
        return 0.0
    size = prediction_window(plan, largest_case(plan))
    (cost,) = window_costs(plan, size, networks=1, precision=precision)
    return (cost.host_bytes + _slab_bytes(plan, size, on_host=True)) / GIB


def largest_case(plan: Plan) -> tuple[float, ...]:
    """Voxels per axis of the largest training case; of the median case where the largest is not known."""
    return plan.preprocessing.largest_shape or plan.preprocessing.median_shape


def cut_of(plan: Plan, parallel: Parallel, device: Device) -> tuple[int, ...]:
    """First block of each stage of a pipeline, for the smallest peak memory of the fullest one.

    In a curriculum the phase with the most voxels in a step counts.
    """
    return least_peak_cut(largest_phase(plan), parallel, precision_on(plan, device))


def describe_stages(plan: Plan, forecast: Forecast) -> str:
    """A line for the reader: the first block of each stage and its memory, and how even they are."""
    names = [block.name for block in fake_network(plan.network).program]
    stages = [f"{names[begin]} {gib:.3g} GiB" for begin, gib in zip(plan.stages, forecast.stage_gib, strict=True)]
    mean = sum(forecast.stage_gib) / len(forecast.stage_gib)
    return (
        f"pipeline: stages from {', '.join(stages)}; the fullest has {max(forecast.stage_gib) / mean:.2f} of the mean"
    )


def precision_on(plan: Plan, device: Device) -> str:
    """The precision that training will choose there: on a GPU a half one, on the CPU the faster one."""
    wanted = plan.training.precision
    if wanted != "auto":
        return wanted
    rates = device.teraflops
    faster = rates.get("half", 0.0) > rates.get("float32", 0.0)
    return "bfloat16" if device.kind == "gpu" or faster else "float32"


def most_stages(plan: Plan) -> int:
    """Stages that the network of a plan can be cut into at most."""
    return len(fake_network(plan.network).program)


def step_costs(plan: Plan, parallel: Parallel, precision: str) -> list[StepCost]:
    """The cost of a training step on each device of a pipeline, or on the one that there is; see `forecast_setting`."""
    if parallel.pipeline == 1:
        samples = plan.batch // parallel.parts
        return [training_step(plan, samples=samples, parallel=parallel, precision=precision)]
    costs = stage_costs(plan, parallel, precision, begins_of(plan, parallel, precision))
    return [repeated(cost, parallel) for cost in costs]


def _slab_bytes(plan: Plan, size: tuple[int, ...], *, on_host: bool) -> int:
    """Sums of one strip of windows, in float32, and a finished slab of them (`inference/sliding_window.py`)."""
    sizes = zip(plan.preprocessing.median_shape, size, strict=True)
    columns, line = [max(round(voxels), extent) for voxels, extent in sizes][1:]
    widest = widest_strip(plan.network.classes, size, line, on_host=on_host)
    return 4 * plan.network.classes * size[0] * min(columns, max(widest, size[1])) * line + SLAB_BYTES


def peak_gib(cost: StepCost, device: Device, *, extra: int = 0) -> float:
    """Peak memory of a device in GiB, with its overhead and workspace."""
    return (cost.peak_bytes + device.workspace * cost.workspace_bytes + extra) / GIB + device.overhead_gib


def connections_gib(parallel: Parallel, device: Device) -> float:
    """What NCCL's connections take of a device, beside all of what PyTorch counts.

    There is one of all processes together, one with each other stage of a pipeline, and one of the processes that hold
    the same stage or the same tile.
    """
    if not device.gpus or parallel.devices == 1:
        return 0.0
    alike = 1 if 1 < parallel.devices // parallel.data < parallel.devices else 0
    return device.connection_gib * (parallel.pipeline + alike)


def counted_gib(cost: StepCost, device: Device | None) -> float:
    """The part of it that PyTorch counts: tensors, and on a GPU the workspace, for which cuDNN asks PyTorch."""
    workspace = device.workspace * cost.workspace_bytes if device is not None and device.gpus else 0.0
    return (cost.peak_bytes + workspace) / GIB


def _growing_bytes(cost: StepCost, device: Device) -> float:
    return cost.peak_bytes - cost.resident_bytes + device.workspace * cost.workspace_bytes


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    seconds: float
    slow_loading: str | None


def _epochs(
    plan: Plan, device: Device, steps: list[tuple[Plan, list[StepCost]]], precision: str
) -> list[_Epoch] | None:
    """An epoch of each phase; None where the hardware file gives no rate."""
    speed = speed_of(device, precision)
    if speed is None:
        return None
    parallel, epochs = plan.parallel, []
    for phase, stages in steps:
        largest = max(stage.parameter_bytes for stage in stages)
        sent = max(stage.exchanged_bytes for stage in stages)
        step = step_seconds(speed, parallel, [speed.operations(stage) for stage in stages], largest, sent)
        loading = loading_of(phase, parallel, device)
        check, keys = validation_seconds(phase, speed, parallel, precision), phase.training
        seconds = keys.iterations_per_epoch * loading.pace(step) + keys.validation_iterations * check
        epochs.append(_Epoch(seconds=seconds, slow_loading=slow_loading(loading, step)))
    return epochs
