"""Several processes train what one trains, and end together, over gloo."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace

import pytest
import torch

import group_worker
import late_state_worker
from group_worker import BATCH, CPU, steps_of, ways
from helpers import tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.distributed.group import Group
from megavoxel.errors import UserError
from megavoxel.forecast.ways import check_parallel
from megavoxel.network.tensor_files import load_tensors
from megavoxel.training.patches import SampleNumbers, Share
from megavoxel.training.states.checkpoint import save_state
from stage_server import run_group
from training_jobs import check_that_all_end_with_one, training_command

TOLERANCE = {"atol": 2e-6, "rtol": 1e-4}
"""Of gradients up to 0.5: sums in another order, in float32."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected() -> dict[str, dict]:
    """What a single process does with the whole batch at once."""
    plans = {name: replace(plan, parallel=Parallel()) for name, plan in ways(1).items() if "accumulate 1" in name}
    return {name.rpartition(",")[0]: steps_of(plan, Group()) for name, plan in plans.items()}


def compare(results: dict[str, dict], expected: dict[str, dict]) -> None:
    for name, found in results.items():
        single = expected[name.rpartition(",")[0]]
        assert found["loss"] == pytest.approx(single["loss"], abs=1e-5), name
        for key in ("gradients", "weights"):
            for ours, theirs in zip(found[key], single[key], strict=True):
                torch.testing.assert_close(ours, theirs, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_take_the_steps_of_a_single_one(tmp_path, expected, processes):
    said = run_group(group_worker.__file__, tmp_path / "steps.pt", processes=processes)
    assert "Warning" not in said
    compare(torch.load(tmp_path / "steps.pt", weights_only=True), expected)


def test_accumulation_takes_the_steps_of_the_whole_batch(expected):
    compare({name: steps_of(plan, Group()) for name, plan in ways(1).items()}, expected)


def test_the_comparison_sees_sums_that_are_not_shared(expected):
    """Per-sample and whole-batch Dice differ far more than the tolerance on this batch."""
    apart, together = (expected[f"dice_ce, batch_dice {batch_dice}"]["gradients"] for batch_dice in (False, True))
    assert max((a - b).abs().max() for a, b in zip(apart, together, strict=True)) > 1e-3


def test_shares_lie_in_a_batch_side_by_side():
    numbers = [list(SampleNumbers(Share(batch=6, rank=rank, ranks=3), 12)) for rank in range(3)]
    assert numbers == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert list(SampleNumbers(Share(batch=6, rank=2, ranks=3, first_iteration=1), 12)) == [10, 11]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": 3}, "batch 8 cannot be cut into data 3 .* equal parts; allowed: a product that divides 8"),
        ({"data": 16}, "16 devices cannot share a batch of 8: each needs a sample of its own; allowed: 1 to 8"),
    ],
)
def test_shares_that_cannot_be_equal_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        check_parallel(tiny_plan(batch=BATCH), Parallel(**keys))


def test_the_stage_starts_its_processes_and_trains_what_one_trains(tmp_path):
    plan = tiny_plan(batch=4, training={"epochs": 2, "batch_dice": True})
    models = []
    for data in (1, 2):
        command = training_command(tmp_path, replace(plan, parallel=Parallel(data=data)), forked=True)
        output = tmp_path / f"data{data}"
        state = ["--state", f"state{data}"]
        subprocess.run([*command, *state, "--output", str(output)], check=True, cwd=tmp_path)
        models.append(load_tensors(output / "model.pt")["weights"])
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["devices"] == data
        memory = manifest["peak_memory"]
        assert memory["gib"] == pytest.approx(memory["forecast_gib"], rel=0.03)
    for name, ours in models[1].items():
        torch.testing.assert_close(ours, models[0][name], atol=1e-5, rtol=1e-3)


def test_a_process_that_dies_ends_the_job(tmp_path):
    plan = tiny_plan(batch=4, training={"epochs": 10_000})
    command = training_command(tmp_path, replace(plan, parallel=Parallel(data=2)))
    check_that_all_end_with_one([*command, "--output", "out"], tmp_path, processes=2)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([(3, 5), (3, 5)], "goes on"),
        ([(3, 0), (2, 0)], r"see different values of the epoch in .*: 3, 2; .* run the stage again"),
        ([(3, 5), (3, 2)], r"see different values of the step of the epoch in .*: 5, 2; .* run the stage again"),
        ([(1, 0), None], r"see different values of the epoch in .*: 1, 0; .* run the stage again"),
    ],
)
def test_processes_that_see_a_state_late_do_not_go_on_from_different_ones(tmp_path, states, said):
    for rank, state in enumerate(states):
        if state is not None:
            epoch, steps = state
            content = {"key": "some", "epoch": epoch, "losses": [0.0] * steps}
            save_state(tmp_path / f"seen-by-{rank}", content)
    run_group(late_state_worker.__file__, tmp_path / "said.txt", processes=2)
    assert re.search(said, (tmp_path / "said.txt").read_text())


def test_a_single_process_asks_nobody():
    group = Group()
    assert group.leads
    assert group.all(3.0) == [3.0]
    assert torch.equal(group.sum(torch.ones(2, device=CPU)), torch.ones(2))
