"""Host memory of this process: how much it held, and what the C library does with freed memory."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
SMALL_BYTES, LARGE_BYTES = 64 * 2**10, 2 * 2**20
STATUS = Path("/proc/self/status")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far.

    Linux's high-water mark of the process's own address space: `ru_maxrss`, which stands in elsewhere, begins with what
    the parent held when it started the process.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    if found:
        return int(found[1]) * 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Keeps what is freed for the next allocation, for good; without effect where the C library is not glibc.

    By default a large tensor's memory goes back to the system when it is freed, and the next one is filled with zeros
    page by page: about a third of a training step. Costs memory, since kept pieces do not always fit
    (`docs/performance.md` has both figures).
    """
    _set_parameters({MMAP_MAX: 0, TRIM_THRESHOLD: -1})


def return_freed_memory() -> None:
    """Returns what is freed to the system at once, for good: the process then holds what is in use, without gaps."""
    _set_parameters({MMAP_THRESHOLD: SMALL_BYTES, TRIM_THRESHOLD: 0})


def return_large_tensors() -> None:
    """Returns large tensors to the system when they are freed, for good, so that no gaps stay between those in use.

    New pages cost time, as much as half of a forward pass in pages of 4 KiB. So it is done only where Linux hands out
    huge pages on demand, which PyTorch asks for where this is called before its first tensor (`c10/core/impl/
    alloc_cpu.cpp`). Very large tensors, which glibc returns by itself, then come faster than without (both figures:
    docs/performance.md).
    """
    if HUGE_PAGES.is_file() and "[never]" not in HUGE_PAGES.read_text():
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
        _set_parameters({MMAP_THRESHOLD: LARGE_BYTES})


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
