"""Processes that hold the tiles of a patch train what one process trains from whole patches, over gloo."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import space_worker
from megavoxel.distributed.group import Group
from space_worker import BATCH, WAYS, plan_of, step_of, tile_of
from stage_server import run_group

STATISTICS_OF_WHOLE_BATCH = 1
"""Replicas for which the running statistics of batch norm are those of the whole batch."""


@cache
def alone(way: str, kind: torch.dtype = torch.float64) -> dict:
    """What one process does with whole patches."""
    return step_of(plan_of(way), Group(), kind)


def run_workers(folder: Path, space: tuple[int, ...], data: int) -> list[dict]:
    count = data * space[0] * space[1] * space[2]
    run_group(space_worker.__file__, folder, ",".join(map(str, space)), data, processes=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def relative(found: torch.Tensor, wanted: torch.Tensor, scale: float) -> float:
    return float((found - wanted).abs().max()) / scale


def compare(found: dict, wanted: dict, way: str, rank: int, space: tuple[int, ...], data: int) -> None:
    largest = max(float(gradient.abs().max()) for gradient in wanted["gradients"].values())
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-13, abs=1e-13), way
    for name, gradient in wanted["gradients"].items():
        assert relative(found["gradients"][name], gradient, largest) <= 1e-12, f"{way}: {name}"
    tiles, share = space[0] * space[1] * space[2], BATCH // data
    samples = slice(rank // tiles * share, (rank // tiles + 1) * share)
    part = wanted["logits"][(samples, slice(None), *tile_of(plan_of(way, space=space), rank))]
    assert relative(found["logits"], part, float(part.abs().max())) <= 1e-12, way
    for name, statistic in wanted["statistics"].items():
        torch.testing.assert_close(found["statistics"][name], statistic, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "data"), [((2, 1, 1), 1), ((1, 1, 2), 1), ((1, 2, 2), 1), ((2, 2, 2), 1), ((1, 2, 1), 2)], ids=str
)
def test_tiles_take_the_step_of_the_whole_patch(tmp_path, space, data):
    processes = run_workers(tmp_path, space, data)
    for rank, results in enumerate(processes):
        for way in WAYS:
            if data > 1 and WAYS[way].get("network", {}).get("norm") == "batch":
                continue  # a replica normalises with its own samples
            if data > 1 and "accumulate" in WAYS[way].get("parallel", {}):
                continue
            compare(results[way], alone(way), way, rank, space, data)
        single = alone("plain", torch.float32)
        assert results["float32"]["loss"] == pytest.approx(single["loss"], rel=1e-5)
