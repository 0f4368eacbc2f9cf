"""The device guard of `guard.cpp`: compiled once for an installed PyTorch, and loaded before PyTorch is imported."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
CACHE = "REHEARSAL_CACHE"
"""Variable with the folder of the compiled guard; without it the system's folder of temporary files."""
LIBRARIES = ("libc10.so", "libtorch_cpu.so")


def built() -> Path:
    """The compiled guard, which is made where it is not there: by g++, in about 20 seconds.

    Raises:
        subprocess.CalledProcessError: it cannot be compiled.
    """
    torch = _folder_of_torch()
    content = SOURCE.read_text() + (torch / "version.py").read_text() + str(torch)
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    library = Path(os.environ.get(CACHE) or tempfile.gettempdir()) / f"megavoxel_guard_{os.getuid()}_{key}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{torch / 'include'}", str(SOURCE)]
        subprocess.run([*command, "-o", str(partial), f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
        partial.rename(library)
    return library


def load() -> ctypes.CDLL:
    """Loads the guard; PyTorch, which asks for CUDA's hooks only once, must not have been imported."""
    library, folder = built(), _folder_of_torch() / "lib"
    ctypes.CDLL(str(folder / "libtorch_global_deps.so"), mode=ctypes.RTLD_GLOBAL)
    for name in LIBRARIES:
        ctypes.CDLL(str(folder / name))
    return ctypes.CDLL(str(library))


def _folder_of_torch() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent
