"""How a program is cut into stages: what each holds, what travels, and which cut is the best."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import tiny_plan
from megavoxel.config.setting import Parallel
from megavoxel.forecast.pipeline import least_cut, least_peak_cut, stage_costs
from megavoxel.network.architectures import whole_program
from megavoxel.network.device import Precision
from megavoxel.network.partition import ACTIVATION, Transfer, cut_into_stages, tensor_of, transfer_specs
from megavoxel.network.segmentation import SegmentationNetwork, entering_state

CPU = torch.device("cpu")
FLOAT32 = Precision(name="float32", reason="test")
NETWORK = replace(
    tiny_plan().network, features=(4, 8, 16), kernels=((3, 3, 3),) * 3, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2))
)
"""Blocks 0 to 5: encoder; 6 to 8: decoder level 1; 9 to 12: level 0 and its head."""


def test_a_skip_goes_straight_to_the_stage_that_pops_it():
    stages = cut_into_stages(whole_program(NETWORK), (0, 3, 6, 9))
    assert [(stage.blocks.start, stage.blocks.stop) for stage in stages] == [(0, 3), (3, 6), (6, 9), (9, 13)]
    forward = [Transfer(source=number, target=number + 1, name=ACTIVATION) for number in range(3)]
    first, second = Transfer(source=0, target=3, name="skip0"), Transfer(source=1, target=2, name="skip1")
    assert [set(stage.sends) for stage in stages] == [{forward[0], first}, {forward[1], second}, {forward[2]}, set()]
    assert [set(stage.receives) for stage in stages] == [
        set(), {forward[0]}, {forward[1], second}, {forward[2], first}
    ]  # fmt: skip


def test_transfers_are_in_the_order_in_which_a_backward_pass_wants_their_gradients():
    sender, receiver = cut_into_stages(whole_program(NETWORK), (0, 6))
    assert [transfer.name for transfer in sender.sends] == [ACTIVATION, "skip1", "skip0"]
    assert receiver.receives == sender.sends
    stages = cut_into_stages(whole_program(NETWORK), (0, 2, 6, 8, 10))
    for source, target in itertools.combinations(stages, 2):
        assert [way for way in source.sends if way.target == target.number] == [
            way for way in target.receives if way.source == source.number
        ]


def test_labels_of_a_first_stage_leave_from_the_stage_that_is_given_them():
    network = replace(NETWORK, prior_channels=2, fusion="post")
    stages = cut_into_stages(whole_program(network), (0, 8))
    names = {transfer.name for transfer in stages[0].sends}
    assert names == {ACTIVATION, "skip0", "prior0"}
    assert stages[0].inputs == ("prior0", "prior1")


@pytest.mark.parametrize("begins", [(1, 3), (0, 3, 3), (0, 13)])
def test_stages_without_blocks_are_no_cut(begins):
    with pytest.raises(ValueError, match="stages that begin at"):
        cut_into_stages(whole_program(NETWORK), begins)


@pytest.mark.parametrize("begins", [(0,), (0, 5), (0, 4, 8), (0, 3, 6, 9), tuple(range(13))])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_travels_looks_as_foretold_and_gives_the_logits_of_the_whole(begins, precision):
    torch.manual_seed(0)
    kind = replace(FLOAT32, name=precision)
    network = SegmentationNetwork(NETWORK).eval()
    program, image = network.program, torch.randn(2, 1, 6, 10, 12)
    specs = transfer_specs(NETWORK, begins, image.shape, kind, CPU)
    stages, sent, logits = cut_into_stages(program, begins), {}, {}
    with kind.autocast(CPU):
        whole = network.program(network.pad(image))
        for stage in stages:
            state = entering_state(NETWORK, network.pad(image))
            arrived = {way.name: sent.pop(way) for way in stage.receives}
            state.activation = arrived.pop(ACTIVATION, state.activation)
            state.stashed |= arrived
            state = stage.part_of(program).run(state)
            sent |= {way: tensor_of(state, way.name) for way in stage.sends}
            for way in stage.sends:
                tensor = sent[way]
                assert (specs[way].shape, specs[way].dtype) == (tuple(tensor.shape), tensor.dtype)
                assert specs[way].needs_gradient == tensor.requires_grad
            logits |= state.logits
    assert not sent
    assert logits.keys() == whole.keys()
    for name, found in logits.items():
        torch.testing.assert_close(found, whole[name], atol=0, rtol=0)


WEIGHTS = (3, 1, 4, 1, 5, 9, 2, 6)


def over_stages(of: Callable[[int, int], float], begins: tuple[int, ...]) -> list[float]:
    return [of(*ends) for ends in itertools.pairwise((*begins, len(WEIGHTS)))]


@pytest.mark.parametrize("share", [0, 0.6, 1])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
def test_the_cheapest_of_the_cuts_with_the_least_peak_is_found(stages, share):
    """Against all cuts, with peaks that add up, costs of any kind, and bounds that know nothing, something and all."""
    table = np.random.default_rng(stages).integers(0, 20, (len(WEIGHTS), len(WEIGHTS) + 1)).tolist()
    asked = []

    def peak(begin: int, end: int) -> float:
        asked.append((begin, end))
        return sum(WEIGHTS[begin:end])

    def bound(begin: int, end: int) -> float:
        return share * sum(WEIGHTS[begin:end])

    def cost(begin: int, end: int) -> float:
        return table[begin][end]

    found = least_cut(peak, bound, cost, len(WEIGHTS), stages)
    assert len(asked) == len(set(asked))
    assert share < 1 or len(asked) == stages
    cuts = [(0, *inner) for inner in itertools.combinations(range(1, len(WEIGHTS)), stages - 1)]
    least = min(max(over_stages(peak, begins)) for begins in cuts)
    allowed = [begins for begins in cuts if max(over_stages(peak, begins)) == least]
    assert found in allowed
    assert sum(over_stages(cost, found)) == min(sum(over_stages(cost, begins)) for begins in allowed)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 3])
def test_no_other_cut_has_a_smaller_peak(stages):
    plan = replace(tiny_plan(patch=(16, 32, 32), batch=2), network=NETWORK)
    parallel = Parallel(pipeline=stages, micro_batches=2)

    def peak(begins: tuple[int, ...]) -> int:
        return max(cost.peak_bytes for cost in stage_costs(plan, parallel, "float32", begins))

    cuts = [(0, *cuts) for cuts in itertools.combinations(range(1, len(whole_program(NETWORK))), stages - 1)]
    peaks = {begins: peak(begins) for begins in cuts}
    found = least_peak_cut(plan, parallel, "float32")
    assert peaks[found] == min(peaks.values())
    sent = {begins: bytes_sent(begins) for begins in cuts if peaks[begins] == peaks[found]}
    assert sent[found] == min(sent.values())


def bytes_sent(begins: tuple[int, ...]) -> int:
    """Of a micro-batch of one sample, forward."""
    return sum(spec.nbytes for spec in transfer_specs(NETWORK, begins, (1, 1, 16, 32, 32), FLOAT32, CPU).values())
