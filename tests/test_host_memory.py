"""Peaks of memory are those of the process itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from megavoxel.network.host_memory import HUGE_PAGES

MIB = 2**20
PEAK = "from megavoxel.network.host_memory import peak_resident_bytes; print(peak_resident_bytes())"


@pytest.mark.slow
def test_the_peak_of_a_process_is_not_that_of_its_parent():
    held = np.ones(600 * MIB, dtype=np.uint8)
    peak = int(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout)
    assert held.nbytes > 2 * peak


def test_the_peak_stays_after_memory_is_given_back():
    code = f"{PEAK}; block = b'x' * (300 * {MIB}); del block; print(peak_resident_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 299 * MIB <= after - before < 310 * MIB


GAPS = """
import re
import torch
from megavoxel.network.host_memory import STATUS, return_large_tensors
if {asked}:
    return_large_tensors()
def held():
    return int(re.search(r"VmRSS:\\s+(\\d+)", STATUS.read_text())[1]) // 2**10
torch.ones(8 * 2**20).sum()
before = held()
for size in (30, 20, 10) * 4:  # MiB; the large ones raise what glibc keeps for itself
    torch.ones(size * 2**18)
large = [torch.ones(12 * 2**18) for _ in range(40)]
del large[::2]
print(held() - before - 20 * 12)
"""


@pytest.mark.slow
def test_freed_tensors_leave_no_gaps_where_large_ones_are_returned():
    if not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text():
        pytest.skip("this kernel hands out no huge pages on demand")
    left = [
        int(subprocess.run([sys.executable, "-c", GAPS.format(asked=asked)], capture_output=True, check=True).stdout)
        for asked in (False, True)
    ]
    assert left[1] < 20 < left[0]
