"""How the network of a setting would be cut for pipelines of some lengths, and into which memory that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas

from megavoxel.config.hardware import Device
from megavoxel.config.study import Parallel, Partitions
from megavoxel.forecast.hours import Workload
from megavoxel.forecast.setting import cut_of, forecast_setting, most_stages
from megavoxel.network.unet import unet_blocks
from megavoxel.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A network in the stages of a pipeline."""

    setting: str
    gpus: int
    """Stages, one on each."""
    micro_batches: int
    checkpointing: bool
    first_blocks: tuple[str, ...]
    """Of each stage."""
    stage_gib: tuple[float, ...]
    """Tensors of a training step in each stage."""
    peak_gib: float
    """Of the fullest stage, with overhead and workspace of the device."""
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
            "checkpointing": "yes" if self.checkpointing else "no",
            "stage_gib": " ".join(f"{gib:.3g}" for gib in self.stage_gib),
            "fullest_of_mean": round(self.fullest_of_mean, 2),
            "peak_gib": round(self.peak_gib, 1),
            "fits_gib": " ".join(f"{gib:g}" for gib in self.fits_gib) or "none",
            "first_blocks": " ".join(self.first_blocks),
        }


def partitions(plan: Plan, keys: Partitions, device: Device, workload: Workload) -> list[Partition]:
    """For each number of GPUs the network's stages, and once more with checkpointing where a memory is too small.

    Args:
        plan: the setting; its own `parallel` does not count.
        keys: numbers of GPUs and memories; a number above that of the network's blocks is passed over.
        device: whose overheads and precision count.
        workload: cases and folds.
    """
    found = []
    for gpus in sorted(set(keys.gpus)):
        if gpus > most_stages(plan) or plan.expanded_patch is not None:
            continue
        for checkpointing in (False, True):
            found.append(_partition(plan, keys, device, workload, gpus, checkpointing))
            if found[-1].fits_gib == tuple(sorted(keys.memory_gib)):
                break
    return found


def partition_table(found: Sequence[Partition]) -> pandas.DataFrame:
    """The rows of `partitions.tsv`."""
    return pandas.DataFrame([partition.plain() for partition in found])


def _partition(
    plan: Plan, keys: Partitions, device: Device, workload: Workload, gpus: int, checkpointing: bool
) -> Partition:
    batch = plan.common_batch
    parts = max(parts for parts in range(1, min(batch, 2 * gpus) + 1) if batch % parts == 0)
    parallel = Parallel(pipeline=gpus, micro_batches=parts, checkpointing=checkpointing)
    begins = cut_of(plan, parallel, device)
    forecast = forecast_setting(replace(plan, stages=begins), parallel, device, workload)
    blocks = unet_blocks(plan.network)
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
