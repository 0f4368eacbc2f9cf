"""The GPU of `make test-gpu`; what its tests and their rehearsal share lies beside this file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megavoxel.errors import UserError
from megavoxel.network.device import choose_device


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first GPU; tests are skipped, with PyTorch's reason, where there is none that it can use."""
    try:
        choose_device("cuda")
    except UserError as reason:
        pytest.skip(str(reason).partition(";")[0])
    return torch.device("cuda:0")


@pytest.fixture
def exact(gpu) -> Iterator[torch.device]:
    """The GPU without TF32, and with the same kernels in every run."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield gpu
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
