"""Tiles in turn on a pretended GPU: what lies where, what they predict, and the memory that they take."""

from __future__ import annotations

import pytest
from rehearsal import told_by

pytestmark = pytest.mark.slow


def test_tiles_in_turn_lie_on_the_gpu_one_at_a_time_and_all_else_in_host_memory(guard_cache, tmp_path):
    told = told_by("turns.py", tmp_path, guard_cache)
    assert set(told) == {"float32", "bfloat16"}
    for found in told.values():
        assert found["on_gpu"]
        assert found["on_host"]
    assert told["float32"]["apart"] <= 1e-5
    assert told["float32"]["bytes"] == pytest.approx(told["float32"]["foretold"], rel=0.02)
    # A CPU, which forecasts stand for, copies up to a million voxels for the moments of 16 bits.
    assert 0.85 * told["bfloat16"]["foretold"] <= told["bfloat16"]["bytes"] <= 1.02 * told["bfloat16"]["foretold"]
    assert told["bfloat16"]["apart"] <= 0.03
