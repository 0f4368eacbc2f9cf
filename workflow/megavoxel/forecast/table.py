"""`plan.tsv` and `partitions.tsv`: what the settings of a study need, to decide by before anything is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas

from megavoxel.config.hardware import Device
from megavoxel.config.setting import Checkpointing, Parallel, Setting
from megavoxel.config.study import Partitions, Study
from megavoxel.csv_files import write_csv
from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.forecast.choice import Choice, choose
from megavoxel.forecast.duration import Workload
from megavoxel.forecast.pipeline_step import fake_network
from megavoxel.forecast.setting import Forecast, cut_of, describe_stages, forecast_setting, most_stages
from megavoxel.forecast.step import gib
from megavoxel.forecast.ways import LESS_AND_LESS, describe_checkpointing
from megavoxel.parallel import map_cases
from megavoxel.planning.fingerprint import Fingerprint
from megavoxel.planning.patch import padding_notes
from megavoxel.planning.plan import Plan
from megavoxel.planning.planner import class_weight_notes, plan_preprocessing, plan_setting
from megavoxel.training.start import require_fitting_start

COLUMNS = (
    "setting", "patch", "batch", "gpus", "data", "space", "pipeline", "accumulate", "checkpointing", "peak_gib",
    "epoch_seconds", "hours_per_fold", "gpu_hours", "fits", "reason",
)  # fmt: skip
WHOLE_NUMBERS = ("batch", "gpus", "data", "pipeline", "accumulate")
HOURS = {"hours_per_fold": "h:min_per_fold", "gpu_hours": "gpu_h:min"}
"""Columns of hours, and what they are called where they are shown as h:min."""
FORECAST_NUMBERS = ("peak_gib", "epoch_seconds", "hours_per_fold", "gpu_hours")
BLIND_SPOTS = (
    "peak_gib: weights, gradients, optimiser, activations and the larger of training and prediction, from the network "
    "itself on fake tensors, plus the device's overhead_gib (libraries, CUDA context) and workspace (memory of "
    "convolutions); it cannot see what cuDNN chooses, nor fragmentation; on a CPU, where training keeps freed memory, "
    "a process may hold twice that.\n"
    "epoch_seconds: training steps and validation of an epoch, at the device's sustained rate or at that of the "
    "processes that load patches, where these are slower, without what augmentation.on_device takes; hours_per_fold: "
    "of all epochs, and prediction of the validation cases; gpu_hours: of all folds of the setting. Rates and "
    "overheads come from config/hardware.yaml; 'megavoxel calibrate' measures them."
)

WHAT_IT_LEAVES_OUT = (
    "Forecasts; 'megavoxel estimate --explain' says how they come about, the column 'reason' of plan.tsv why a setting "
    "is run as it is."
)


@dataclass(frozen=True, kw_only=True)
class PlannedSetting:
    """A setting with its plan and forecast, or why there is none."""

    setting: Setting
    folds: int
    """Folds that the setting is trained on."""
    plan: Plan | None = None
    choice: Choice | None = None
    fault: str = ""
    """The planner's message where no plan could be made."""
    partitions: tuple[Partition, ...] = ()
    """Pipelines that the study asks to see."""


def plan_study(
    study: Study, cases: Cases, fingerprint: Fingerprint, device: Device, *, processes: int = 1
) -> list[PlannedSetting]:
    """Plans and forecasts of all settings, in the order of the study.

    Args:
        study: with the device's memory in its settings (`with_memory`).
        cases: the dataset, or what is declared of it.
        processes: settings that are looked at at once; the result does not depend on it.
    """
    work = partial(_plan, study=study, cases=cases, fingerprint=fingerprint, device=device)
    return map_cases(work, study.settings, processes=processes, title="settings forecast", unit="setting")


def spread(plan: Plan, setting: Setting, device: Device, workload: Workload) -> tuple[Plan, Choice]:
    """The plan with the way of running it that the study fixes, or the cheapest that fits, and a note that says why.

    A pipeline's network is cut into stages.

    Raises:
        UserError: the study fixes a way that cannot be.
    """
    choice = choose(plan, device, workload, fixed=setting.parallel)
    parallel, notes = choice.forecast.parallel, list(plan.notes)
    if setting.parallel is None or not choice.fits:
        notes.append(f"parallel: {choice.reason}")
    notes += [*_across_nodes(choice.forecast), *_slow(choice.forecast)]
    if parallel.pipeline > 1:
        plan = replace(plan, stages=cut_of(plan, parallel, device))
        forecast = forecast_setting(plan, parallel, device, workload)
        choice = replace(choice, forecast=forecast)
        notes.append(describe_stages(plan, forecast))
    return replace(plan, parallel=parallel, notes=tuple(notes)), choice


def table(planned: Sequence[PlannedSetting]) -> pandas.DataFrame:
    """The rows of `plan.tsv`."""
    rows = pandas.DataFrame([_row(setting) for setting in planned], columns=COLUMNS)
    # Types of their own for what a row may lack: whole numbers stay whole.
    return rows.astype(dict.fromkeys(WHOLE_NUMBERS, "Int64") | dict.fromkeys(FORECAST_NUMBERS, "Float64"))


def shown(rows: pandas.DataFrame) -> str:
    """The rows of `plan.tsv` for the reader: hours as h:min, and reasons only of settings that do not fit."""
    printed = rows.drop(columns="reason").astype(object)
    for column in HOURS:
        printed[column] = [_clock(hours) for hours in rows[column]]
    text = printed.fillna("").rename(columns=HOURS).to_string(index=False)
    unfit = rows[rows["fits"] == "no"]
    return "\n".join([text, *(f"{row.setting}: {row.reason}" for row in unfit.itertuples())])


def _clock(hours: float | None) -> str:
    """Hours as h:min; empty where they are not known."""
    if pandas.isna(hours):
        return ""
    minutes = round(float(hours) * 60)
    return f"{minutes // 60}:{minutes % 60:02}" if minutes else "<0:01"


def describe(planned: PlannedSetting) -> str:
    """A line for the reader: why the setting is run as it is, and how much of `peak_gib` are tensors of training, and
    how many operations a step takes."""
    name = planned.setting.name
    if planned.choice is None:
        return f"{name}: {planned.fault}"
    forecast = planned.choice.forecast
    step = (
        f"tensors of a training step: {forecast.certain_gib:.3g} GiB, its operations: {forecast.flops / 1e12:.3g} TFLOP"
    )
    return f"{name}: {planned.choice.reason}; {step}"


def save_table(path: Path, rows: pandas.DataFrame) -> None:
    """Writes `plan.tsv` or `partitions.tsv`."""
    write_csv(path, rows)


def workload_of(study: Study, setting: Setting, cases: Cases) -> Workload:
    """What a fold of a setting trains on and predicts."""
    own = max(1, len(study.folds_of(setting)))
    return Workload(training_cases=len(cases.of_split("training")), folds=study.folds, own_folds=own)


def _plan(setting: Setting, *, study: Study, cases: Cases, fingerprint: Fingerprint, device: Device) -> PlannedSetting:
    folds = len(study.networks_of(setting))
    try:
        preprocessing = plan_preprocessing(cases, fingerprint, setting.preprocessing)
        plan = plan_setting(cases, preprocessing, setting, study=study.name, seed=study.seed)
        require_fitting_start(plan, study.networks_of(setting), is_there=False)
        workload = workload_of(study, setting, cases)
        plan, choice = spread(plan, setting, device, workload)
        forecast = choice.forecast
        remarks = (
            *padding_notes(plan), *class_weight_notes(plan.training), *_across_nodes(forecast), *_slow(forecast),
            *_without_hours(forecast),
        )  # fmt: skip
        choice = replace(choice, reason="; ".join([choice.reason, *remarks]))
        found = partitions(plan, study.partitions, device, workload) if study.partitions else ()
    except UserError as error:
        fault = str(error).removeprefix(f"setting {setting.name}: ")
        return PlannedSetting(setting=setting, folds=folds, fault=fault)
    return PlannedSetting(setting=setting, folds=folds, plan=plan, choice=choice, partitions=tuple(found))


def _across_nodes(forecast: Forecast) -> list[str]:
    """What the tiles of a patch exchange, where they do not lie on one node."""
    parallel, device = forecast.parallel, forecast.device
    nodes = device.nodes(parallel.tiles)
    if nodes == 1:
        return []
    return [
        f"the {parallel.tiles} tiles of a patch lie on {nodes} nodes, and each device sends "
        f"{gib(forecast.exchanged_gib)} to its neighbours in a step: this needs a link between nodes as fast as "
        f"link_gib_per_second of {device.name} says ({device.link_gib_per_second:g})"
    ]


def _slow(forecast: Forecast) -> list[str]:
    """That a GPU waits for its patches, where it does."""
    return [] if forecast.slow_loading is None else [forecast.slow_loading]


def _without_hours(forecast: Forecast) -> list[str]:
    """Why a forecast has no hours, where it has none."""
    if forecast.hours_per_fold is not None:
        return []
    rate = "float32" if forecast.precision == "float32" else "half"
    return [f"no hours: config/hardware.yaml has no {rate} rate (teraflops) for {forecast.device.name}"]


def _row(planned: PlannedSetting) -> dict[str, object]:
    if planned.choice is None:
        return {"setting": planned.setting.name, "fits": "no", "reason": planned.fault}
    plan, forecast = planned.plan, planned.choice.forecast
    parallel, gpu = forecast.parallel, forecast.device.kind == "gpu"
    hours, device_hours = forecast.hours_per_fold, forecast.gpu_hours_per_fold
    return {
        "setting": plan.setting,
        "patch": "x".join(map(str, plan.patch)),
        "batch": plan.batch,
        "gpus": parallel.devices if gpu else 0,
        "data": parallel.data,
        "space": "x".join(map(str, parallel.space)),
        "pipeline": parallel.pipeline,
        "accumulate": parallel.accumulate,
        "checkpointing": describe_checkpointing(parallel.checkpointing),
        "peak_gib": round(forecast.peak_gib, 1),
        "epoch_seconds": None if forecast.epoch_seconds is None else float(f"{forecast.epoch_seconds:.3g}"),
        "hours_per_fold": None if hours is None else float(f"{hours:.3g}"),
        "gpu_hours": None if device_hours is None or not gpu else float(f"{device_hours * planned.folds:.3g}"),
        "fits": "yes" if planned.choice.fits else "no",
        "reason": planned.choice.reason,
    }


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A network in the stages of a pipeline."""

    setting: str
    gpus: int
    """Stages, one on each."""
    micro_batches: int
    checkpointing: Checkpointing
    first_blocks: tuple[str, ...]
    """Name of the first block of each stage."""
    stage_gib: tuple[float, ...]
    """Tensors of a training step in each stage."""
    peak_gib: float
    """Memory of the fullest stage, with overhead and workspace of the device."""
    fits_gib: tuple[float, ...]
    """Memories of a GPU into which all stages fit."""

    @property
    def fullest_of_mean(self) -> float:
        """Tensors of the fullest stage over those of the mean one; 1 is even."""
        return max(self.stage_gib) / (sum(self.stage_gib) / len(self.stage_gib))

    def plain(self) -> dict[str, object]:
        """A row of `partitions.tsv`."""
        return {
            "setting": self.setting,
            "gpus": self.gpus,
            "micro_batches": self.micro_batches,
            "checkpointing": describe_checkpointing(self.checkpointing),
            "stage_gib": " ".join(f"{gib:.3g}" for gib in self.stage_gib),
            "fullest_of_mean": round(self.fullest_of_mean, 2),
            "peak_gib": round(self.peak_gib, 1),
            "fits_gib": " ".join(f"{gib:g}" for gib in self.fits_gib) or "none",
            "first_blocks": " ".join(self.first_blocks),
        }


def partitions(plan: Plan, keys: Partitions, device: Device, workload: Workload) -> list[Partition]:
    """For each number of GPUs the network's stages, and again with checkpointing as long as a memory is too small.

    Args:
        plan: the setting; its own `parallel` does not count.
        keys: numbers of GPUs and memories; a number above that of the network's blocks is passed over.
        device: whose overheads and precision count.
    """
    found = []
    for gpus in sorted(set(keys.gpus)):
        if gpus > most_stages(plan) or plan.expanded_patch is not None:
            continue
        for checkpointing in LESS_AND_LESS:
            found.append(_partition(plan, keys, device, workload, gpus, checkpointing))
            if found[-1].fits_gib == tuple(sorted(keys.memory_gib)):
                break
    return found


def partition_table(found: Sequence[Partition]) -> pandas.DataFrame:
    """The rows of `partitions.tsv`."""
    return pandas.DataFrame([partition.plain() for partition in found])


def _partition(
    plan: Plan, keys: Partitions, device: Device, workload: Workload, gpus: int, checkpointing: Checkpointing
) -> Partition:
    batch = plan.common_batch
    parts = max(parts for parts in range(1, min(batch, 2 * gpus) + 1) if batch % parts == 0)
    parallel = Parallel(pipeline=gpus, micro_batches=parts, checkpointing=checkpointing)
    begins = cut_of(plan, parallel, device)
    forecast = forecast_setting(replace(plan, stages=begins), parallel, device, workload)
    blocks = list(fake_network(plan.network).program)
    return Partition(
        setting=plan.setting,
        gpus=gpus,
        micro_batches=parts,
        checkpointing=checkpointing,
        first_blocks=tuple(blocks[begin].name for begin in begins),
        stage_gib=forecast.stage_gib,
        peak_gib=forecast.training_gib,
        fits_gib=tuple(gib for gib in sorted(keys.memory_gib) if forecast.training_gib <= gib),
    )
