"""`plan.tsv`: one line per setting of a study, to decide by what to submit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas

from megavoxel.config.hardware import Device
from megavoxel.config.study import Setting, Study
from megavoxel.datasets.cases import Cases
from megavoxel.errors import UserError
from megavoxel.files import atomic_path
from megavoxel.forecast.choice import Choice, choose
from megavoxel.forecast.hours import Workload
from megavoxel.forecast.partition import Partition, partitions
from megavoxel.forecast.setting import Forecast, cut_of, describe_stages, forecast_setting
from megavoxel.parallel import map_cases
from megavoxel.planning.fingerprint import Fingerprint
from megavoxel.planning.plan import Plan
from megavoxel.planning.planner import plan_preprocessing, plan_setting
from megavoxel.planning.sizes import padding_notes

COLUMNS = (
    "setting", "patch", "batch", "gpus", "data", "pipeline", "accumulate", "checkpointing", "peak_gib",
    "hours_per_fold", "gpu_hours", "fits", "reason",
)  # fmt: skip
WHOLE_NUMBERS = ("batch", "gpus", "data", "pipeline", "accumulate")
FORECAST_NUMBERS = ("peak_gib", "hours_per_fold", "gpu_hours")
BLIND_SPOTS = (
    "peak_gib: weights, gradients, optimiser, activations and the larger of training and prediction, from the network "
    "itself on fake tensors, plus the device's overhead_gib (libraries, CUDA context) and workspace (memory of "
    "convolutions); it cannot see what cuDNN chooses, nor fragmentation; on a CPU, where training keeps freed memory, "
    "a process may hold twice that.\n"
    "hours_per_fold: training and prediction of the validation cases at the device's sustained rate, with data loading "
    "keeping up; gpu_hours: of all folds of the setting. Both rates and overheads come from config/hardware.yaml; "
    "'megavoxel calibrate' measures them."
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
        fingerprint: of the same.
        device: that the study names.
        processes: settings that are looked at at once; the result does not depend on it.
    """
    work = partial(_plan, study=study, cases=cases, fingerprint=fingerprint, device=device)
    return map_cases(
        work, study.settings, processes=processes, title="settings forecast", unit="setting", describe=_done
    )


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
    with atomic_path(path) as partial:
        rows.to_csv(partial, sep="\t", index=False)


def workload_of(study: Study, setting: Setting, cases: Cases) -> Workload:
    """What a fold of a setting trains on and predicts."""
    own = len(study.folds_of(setting))
    return Workload(training_cases=len(cases.of_split("training")), folds=study.folds, own_folds=own)


def _plan(setting: Setting, *, study: Study, cases: Cases, fingerprint: Fingerprint, device: Device) -> PlannedSetting:
    folds = len(study.folds_of(setting))
    try:
        preprocessing = plan_preprocessing(cases, fingerprint, setting.preprocessing)
        plan = plan_setting(cases, preprocessing, setting, study=study.name, seed=study.seed)
        workload = workload_of(study, setting, cases)
        plan, choice = spread(plan, setting, device, workload)
        remarks = (*padding_notes(plan), *_without_hours(choice.forecast))
        choice = replace(choice, reason="; ".join([choice.reason, *remarks]))
        found = partitions(plan, study.partitions, device, workload) if study.partitions else ()
    except UserError as error:
        fault = str(error).removeprefix(f"setting {setting.name}: ")
        return PlannedSetting(setting=setting, folds=folds, fault=fault)
    return PlannedSetting(setting=setting, folds=folds, plan=plan, choice=choice, partitions=tuple(found))


def _without_hours(forecast: Forecast) -> list[str]:
    """Why a forecast has no hours, where it has none."""
    if forecast.hours_per_fold is not None:
        return []
    rate = "float32" if forecast.precision == "float32" else "half"
    return [f"no hours: config/hardware.yaml has no {rate} rate (teraflops) for {forecast.device.name}"]


def _done(setting: Setting, planned: PlannedSetting) -> str:
    """A line while it goes on."""
    cuts = f" and {len(planned.partitions)} partitions" if planned.partitions else ""
    return f"{setting.name}: {'no plan' if planned.choice is None else 'forecast'}{cuts}"


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
        "pipeline": parallel.pipeline,
        "accumulate": parallel.accumulate,
        "checkpointing": "yes" if parallel.checkpointing else "no",
        "peak_gib": round(forecast.peak_gib, 1),
        "hours_per_fold": None if hours is None else float(f"{hours:.3g}"),
        "gpu_hours": None if device_hours is None or not gpu else float(f"{device_hours * planned.folds:.3g}"),
        "fits": "yes" if planned.choice.fits else "no",
        "reason": planned.choice.reason,
    }
