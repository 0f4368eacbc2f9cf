"""Peaks of memory are those of the process itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

MIB = 2**20
PEAK = "from megavoxel.network.host_memory import peak_resident_bytes; print(peak_resident_bytes())"


def test_the_peak_of_a_process_is_not_that_of_its_parent():
    held = np.ones(600 * MIB, dtype=np.uint8)
    peak = int(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout)
    assert held.nbytes > 2 * peak


def test_the_peak_stays_after_memory_is_given_back():
    code = f"{PEAK}; block = b'x' * (300 * {MIB}); del block; print(peak_resident_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 299 * MIB <= after - before < 310 * MIB
