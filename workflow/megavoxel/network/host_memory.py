"""What the C library does with memory that PyTorch frees on the CPU; without effect where it is not glibc."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
SMALL_BYTES = 64 * 2**10


def keep_freed_memory() -> None:
    """Keeps what is freed for the next allocation, for good.

    By default a large tensor's memory goes back to the system when it is freed, and the next one is filled with zeros
    page by page: about a third of a training step. Costs memory, since kept pieces do not always fit
    (`docs/performance.md` has both figures).
    """
    _set_parameters({MMAP_MAX: 0, TRIM_THRESHOLD: -1})


def return_freed_memory() -> None:
    """Returns what is freed to the system at once, for good: the process then holds what is in use, without gaps."""
    _set_parameters({MMAP_THRESHOLD: SMALL_BYTES, TRIM_THRESHOLD: 0})


def release_unused_memory() -> None:
    """Returns to the system what is free now."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):
            library.malloc_trim(0)


def _set_parameters(values: dict[int, int]) -> None:
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in values.items():
            library.mallopt(parameter, value)
