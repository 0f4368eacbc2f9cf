"""Processes that hold the tiles of a patch train what one process trains from whole patches, over gloo."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import space_worker
from helpers import three_cases
from megavoxel.distributed.group import Group
from megavoxel.forecast.step import largest_tiling, training_step
from megavoxel.planning.plan import Plan
from space_worker import BATCH, WAYS, WAYS_OF_16_BITS, loader_of, plan_of, step_of, tile_of
from stage_server import run_group
from training_jobs import check_that_all_end_with_one, check_that_it_goes_on, training_command


@cache
def alone(way: str, kind: torch.dtype = torch.float64) -> dict:
    """What one process does with whole patches."""
    return step_of(plan_of(way), Group(), kind)


def run_workers(folder: Path, space: tuple[int, ...], data: int) -> list[dict]:
    count = data * space[0] * space[1] * space[2]
    three_cases(folder)
    run_group(space_worker.__file__, folder, ",".join(map(str, space)), data, processes=count)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def relative(found: torch.Tensor, wanted: torch.Tensor, scale: float) -> float:
    return float((found - wanted).abs().max()) / scale


def compare(found: dict, wanted: dict, way: str, rank: int, space: tuple[int, ...], data: int) -> None:
    largest = max(float(gradient.abs().max()) for gradient in wanted["gradients"].values())
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-13, abs=1e-13), way
    for name, gradient in wanted["gradients"].items():
        assert relative(found["gradients"][name], gradient, largest) <= 1e-12, f"{way}: {name}"
    part = own_logits(wanted["logits"], way, rank, space, data)
    assert relative(found["logits"], part, float(part.abs().max())) <= 1e-12, way
    for name, statistic in wanted["statistics"].items():
        torch.testing.assert_close(found["statistics"][name], statistic, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("space", "data"), [((2, 1, 1), 1), ((1, 2, 2), 1), ((2, 2, 2), 1), ((1, 2, 1), 2)], ids=str)
def test_tiles_take_the_step_of_the_whole_patch(tmp_path, space, data):
    processes = run_workers(tmp_path, space, data)
    for rank, results in enumerate(processes):
        for way in results.keys() & WAYS.keys():
            if data > 1 and WAYS[way].get("network", {}).get("norm") == "batch":
                continue  # a replica normalises with its own samples
            if data > 1 and "accumulate" in WAYS[way].get("parallel", {}):
                continue
            compare(results[way], alone(way), way, rank, space, data)
        compare_in_float32(results["float32"], rank, space, data)
        for way in WAYS_OF_16_BITS:
            assert rounding_of(results[way]) <= 1.3 * rounding_of(alone(way, torch.float32)), way
        compare_with_forecast(results, rank, space, data)
        compare_samples(results["samples"], tmp_path / "cases", rank, space, data)


def compare_in_float32(found: dict, rank: int, space: tuple[int, ...], data: int) -> None:
    """Loss and logits; gradients depend there on which side of 0 rounding puts a voxel."""
    wanted = alone("plain", torch.float32)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    part = own_logits(wanted["logits"], "plain", rank, space, data)
    assert relative(found["logits"], part, float(part.abs().max())) <= 1e-5


def own_logits(logits: torch.Tensor, way: str, rank: int, space: tuple[int, ...], data: int) -> torch.Tensor:
    """A process's part of the logits of whole patches."""
    tiles, share = space[0] * space[1] * space[2], BATCH // data
    samples = slice(rank // tiles * share, (rank // tiles + 1) * share)
    return logits[(samples, slice(None), *tile_of(plan_of(way, space=space), rank))]


def compare_with_forecast(results: dict, rank: int, space: tuple[int, ...], data: int) -> None:
    """Of the process with the largest tile, what it sent, and what its tensors took."""
    for way, precision in (("float32", "float32"), ("bfloat16, norms again", "bfloat16")):
        plan = plan_of("plain" if way == "float32" else way, space=space, data=data)
        cost = training_step(plan, samples=BATCH // data, parallel=plan.parallel, precision=precision)
        if rank % plan.parallel.tiles == largest_tiling(plan, plan.parallel).rank:
            assert results[way]["peak"] == pytest.approx(cost.peak_bytes, rel=0.05), way
            assert results[way]["sent"] >= cost.exchanged_bytes > 0.9 * results[way]["sent"], way


def rounding_of(found: dict) -> float:
    """How far 16 bits move the gradients of weights, as a share of them."""
    exact = alone("of bfloat16 in float32", torch.float32)["gradients"]
    names = [name for name in exact if name.endswith("weight")]
    apart = sum(float((found["gradients"][name] - exact[name]).square().sum()) for name in names)
    return (apart / sum(float(exact[name].square().sum()) for name in names)) ** 0.5


def compare_samples(tiles: list[tuple[torch.Tensor, torch.Tensor]], cases: Path, rank: int, space, data: int) -> None:
    """With augmented whole patches, cut."""
    plan = plan_of("padded", space=space)
    patches, share = list(loader_of(plan, cases)), BATCH // data
    assert len(tiles) == len(patches) == 4
    first = rank // plan.parallel.tiles * share
    part = (slice(first, first + share), ..., *tile_of(plan, rank))
    for tile, patch in zip(tiles, patches, strict=True):
        for own, whole in zip(tile, patch, strict=True):
            assert own.dtype == whole.dtype
            assert torch.equal(own, whole[part])


def plan_to_train(space: tuple[int, ...] = (1, 1, 1), **keys) -> Plan:
    plan = plan_of("plain", space=space)
    return replace(plan, parallel=replace(plan.parallel, **keys), training=replace(plan.training, gradient_clip=0.5))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_tiles(tmp_path):
    ways = ({"space": (2, 1, 1), "checkpointing": "norms"}, {"space": (1, 2, 1), "data": 2}, {})
    check_that_it_goes_on(tmp_path, plan_to_train(), [plan_to_train(**keys) for keys in ways])


@pytest.mark.slow
def test_a_process_that_dies_in_an_exchange_ends_the_job(tmp_path):
    plan = plan_to_train((1, 1, 2))
    plan = replace(plan, training=replace(plan.training, epochs=10_000))
    check_that_all_end_with_one([*training_command(tmp_path, plan), "--output", "out"], tmp_path, processes=2)
