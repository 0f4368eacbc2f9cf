"""The guard that lets a CPU build of PyTorch pretend to have GPUs, compiled once."""

from __future__ import annotations

import shutil
from pathlib import Path

import guard
import pytest
import torch


@pytest.fixture(scope="session")
def guard_cache(request) -> Path:
    """Folder of the compiled guard; the test is skipped where it cannot be made."""
    if torch.version.cuda or torch.version.hip:
        pytest.skip("this build of PyTorch knows GPUs itself: make test-gpu")
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to compile the pretended GPU; on Debian: apt-get install g++")
    folder = request.config.cache.mkdir("rehearsal")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(guard.CACHE, str(folder))
        guard.built()
    return folder
