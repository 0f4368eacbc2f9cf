"""Forecast and measured peak memory of training steps, and the time that a study's forecast takes.

Each step runs in a process of its own that returns freed memory at once, so that gaps left by the C library do not
count. The measured value is the most memory that it held, without that of its libraries. The forecast is that of
activations, weights and optimiser on fake tensors, and of the workspace of convolutions with the factor of device `cpu`
in config/hardware.yaml.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.made import call
from benchmarks.measure import REPOSITORY, Row, in_process, larger_is_better, seconds_of, smaller_is_better
from megavoxel.config.setting import Checkpointing

LEAST, MOST = 0.85, 1.15
SETTINGS, BOUND_SECONDS = 20, 30.0


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A training step."""

    name: str
    size: int
    """Voxels per axis."""
    batch: int
    levels: int
    features: int
    precision: str
    checkpointing: Checkpointing

    @property
    def title(self) -> str:
        """One line of the table."""
        extra = "" if self.checkpointing == "none" else f", checkpointing of {self.checkpointing}"
        return f"forecast of peak memory: {self.name}, {self.size}³ x {self.batch}, {self.precision}{extra}"


CONFIGURATIONS = [
    Configuration(
        name=name, size=size, batch=2, levels=levels, features=features, precision=precision, checkpointing=way
    )
    for (name, levels, features), size, precision, way in itertools.product(
        (("shallow (3 levels, 32 features)", 3, 32), ("deep (5 levels, 16 features)", 5, 16)),
        (48, 64),
        ("float32", "bfloat16"),
        ("none", "norms", "blocks"),
    )
]


def run() -> list[Row]:
    """One row per configuration, then how many lie between the bounds, then the time of a study."""
    rows = []
    for configuration in CONFIGURATIONS:
        forecast, measured = in_process(forecast_and_measured, configuration)
        rows.append(
            Row(
                benchmark=configuration.title, peer="measured process", ours=forecast / 2**20, theirs=measured / 2**20,
                ratio=forecast / measured, unit="MiB",
            )
        )  # fmt: skip
    inside = sum(LEAST <= row.ratio <= MOST for row in rows)
    title = f"forecasts of peak memory between {LEAST} and {MOST} of the measured"
    rows.append(larger_is_better(title, "all configurations", float(inside), float(len(rows)), "configurations"))
    title = f"forecast of a study of {SETTINGS} settings"
    rows.append(smaller_is_better(title, "own bound", study_seconds(), BOUND_SECONDS, "s"))
    return rows


def forecast_and_measured(configuration: Configuration) -> tuple[float, float]:
    """Bytes of the step, forecast and measured in this process, which should be a fresh one."""
    import torch

    from megavoxel.config.hardware import load_device
    from megavoxel.config.setting import Parallel
    from megavoxel.forecast.calibration import SMALL, Probe, measure
    from megavoxel.network.host_memory import return_freed_memory

    cpu = torch.device("cpu")
    return_freed_memory()
    measure(SMALL, configuration.precision, cpu)
    probe = Probe(
        patch=(configuration.size,) * 3,
        batch=configuration.batch,
        levels=configuration.levels,
        base_features=configuration.features,
    )
    parallel = Parallel(checkpointing=configuration.checkpointing)
    step = measure(probe, configuration.precision, cpu, parallel=parallel, repeats=1)
    workspace = load_device(REPOSITORY / "config/hardware.yaml", "cpu", source="benchmark").workspace
    return step.forecast.peak_bytes + workspace * step.forecast.workspace_bytes, step.peak_bytes


def study_seconds() -> float:
    """Wall time of `megavoxel estimate` on a study like the first paper's, on a dataset that is only declared."""
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder))
        words = ["estimate", "--study", study, "--datasets", folder, "--hardware", REPOSITORY / "config/hardware.yaml"]
        return seconds_of(lambda: call("megavoxel", *words, "--processes", len(os.sched_getaffinity(0))))


def write_study(folder: Path) -> Path:
    """Patches and batches of an abdominal CT study, half of them with the parallelism left to the planner."""
    labels = {f"organ_{value}": value for value in range(1, 16)}
    declared = {"training_cases": 200, "shape": [104, 512, 512], "spacing": [5.0, 0.7, 0.7]}
    dataset = {"name": "abdomen", "source": {"folder": "nowhere"}, "channels": ["CT"], "labels": labels}
    (folder / "abdomen.yaml").write_text(yaml.safe_dump({**dataset, "declared": declared}))
    patches = [(64, 160, 160), (64, 224, 224), (64, 288, 288), (64, 354, 354), (64, 384, 384)]
    settings = {
        f"patch{patch[1]}-batch{batch}-{name}": {"patch": list(patch), "batch": batch, "parallel": way}
        for patch, batch, (name, way) in itertools.product(patches, (2, 8), (("plain", {}), ("auto", "auto")))
    }
    assert len(settings) == SETTINGS
    study = {
        "study": "ahead",
        "dataset": "abdomen",
        "hardware": "v100-32",
        "defaults": {"preprocessing": {"spacing": [2.0, 0.688, 0.688]}},
        "settings": settings,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path
