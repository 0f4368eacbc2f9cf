"""New scans that several GPUs share: a process for each GPU labels its share of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megavoxel.distributed.group import is_member
from megavoxel.distributed.launch import gpus_here
from megavoxel.forecast.prediction import explained_predictor
from megavoxel.inference.predict import require_weights
from megavoxel.models.label import Labelled, Labelling, gathered, label_each
from megavoxel.models.scans import Scan
from megavoxel.network.device import usable_threads
from megavoxel.parallel import all_at_once
from megavoxel.planning.patch import predicting_devices
from megavoxel.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process labels, and by what."""

    plan: Plan
    weights: tuple[Path, ...]
    labelling: Labelling
    scans: tuple[Scan, ...]
    device: str
    threads: int


def sharing_devices(plan: Plan, device: str | None, scans: int) -> list[str]:
    """The GPUs that share scans, no more than there are scans: all that PyTorch sees, if the user has named none.

    Empty where one device labels them: there is no second, or a network needs several for one scan.
    """
    if device not in (None, "auto", "cuda") or is_member() or predicting_devices(plan) > 1:
        return []
    gpus = min(gpus_here(device) or 1, scans)
    return [f"cuda:{number}" for number in range(gpus)] if gpus > 1 else []


def label_by_devices(
    scans: Sequence[Scan],
    plan: Plan,
    weights: Sequence[Path],
    labelling: Labelling,
    devices: Sequence[str],
    threads: int | None,
) -> None:
    """Labels scans by several devices; every device gets as many, give or take one.

    Args:
        threads: of all processes together; None: all that this one may use.

    Raises:
        UserError: the faults of all scans that could not be labelled, after the others were; a process was killed; or
            as `explained_predictor` says.
    """
    require_weights(plan, weights)  # before anything is written
    each = max(1, usable_threads(threads) // len(devices))
    shares = [
        Share(
            plan=plan, weights=tuple(weights), labelling=labelling, scans=tuple(scans[number :: len(devices)]),
            device=device, threads=each,
        )
        for number, device in enumerate(devices)
    ]  # fmt: skip
    print(f"{len(devices)} GPUs share {len(scans)} cases; to use one of them: --device {devices[0]}", flush=True)
    with gathered(scans, labelling) as gather:
        all_at_once(_label_share, shares, heard=gather, title="predict")


def _label_share(share: Share, tell: Callable[[Labelled], None]) -> None:
    options = argparse.Namespace(device=share.device, threads=share.threads)
    with explained_predictor(share.plan, share.weights, "predict", options) as predictor:
        label_each(share.scans, predictor, share.labelling, tell)
