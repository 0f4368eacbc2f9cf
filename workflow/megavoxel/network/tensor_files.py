"""Files of PyTorch, looked into before PyTorch reads them.

PyTorch leaves out what its archives have for it: the checksum of every part, and the length of arrays. It takes flipped
bits for weights, and reads beyond the end of an array. Both are compared here.
"""

from __future__ import annotations

import re
import struct
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from megavoxel.files import FAILING_DISK, atomic_path, reading, writing
from megavoxel.network.pickles import KIND, SCALARS, storages_in

ARCHIVE = b"PK\x03\x04"
OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How the files of PyTorch before 1.6 begin, as which torchvision publishes some weights: a pickled number."""
PICKLES_OF_OLD = 3
"""In such a file: a number, the version and sizes of types, before the pickle of the content."""
MOST_PICKLED = 2**26
"""Bytes of the pickle in an archive, and of its table of contents."""
PART = re.compile(r"[ -~]+?/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/[a-z_]+|data/\d+)")
END, LOCATOR, END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
"""Records at the end of a zip archive (PKWARE's APPNOTE, 4.3.14 to 4.3.16)."""


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values, whole or not at all; equal content gives equal bytes.

    Raises:
        UserError: no space is left.
    """
    with atomic_path(path) as partial, writing(path):
        try:
            # PyTorch writes the name of the file into it; of an open file it does not know any.
            with partial.open("wb") as target:
                torch.save(content, target)
        except OSError as fault:
            raise RuntimeError(fault.strerror) from fault


def load_tensors(path: Path, *, of_others: bool = False) -> dict[str, Any]:
    """Reads tensors and plain values, and nothing that runs code, onto the CPU.

    Args:
        of_others: whether the file may be a checkpoint of nnU-Net, which holds numbers of NumPy besides.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the disk, or the connection to it, fails.
        ValueError: the file is no archive of PyTorch, or damaged, or no mapping, or holds what no network needs.
    """
    try:
        with reading(path), Path(path).open("rb") as source:
            _check(source, of_others=of_others)
        with _numbers_of_numpy() if of_others else nullcontext():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as fault:
        if isinstance(fault, OSError) and fault.errno in FAILING_DISK:
            raise  # a broken archive can raise nearly anything, also from the unpickler
        raise ValueError(one_line(fault)) from fault
    if not isinstance(content, dict):
        raise ValueError(f"it holds no mapping but {type(content).__name__}")
    return content


def one_line(fault: Exception) -> str:
    """What PyTorch says, in one line of at most 200 characters."""
    return " ".join(str(fault).split())[:200]


class _Kind:
    """Stands for NumPy's description of a number, in a file that `storages_in` has let through."""

    def __init__(self, code: str, *_: bool) -> None:
        self.code = f"<{code}"

    def __setstate__(self, _: tuple) -> None:
        pass


def _number(kind: _Kind, content: bytes) -> float | int | bool:
    return np.frombuffer(content, kind.code)[0].item()


def _numbers_of_numpy() -> AbstractContextManager:
    """Has PyTorch read single numbers of NumPy as plain ones; nothing of NumPy is called by the file."""
    names = {name.replace(" ", "."): _number for name in SCALARS} | {KIND.replace(" ", "."): _Kind}
    return torch.serialization.safe_globals([*((found, name) for name, found in names.items())])


def _check(source: BinaryIO, *, of_others: bool) -> None:
    head = source.read(len(OLD))
    source.seek(0)
    if head.startswith(ARCHIVE):
        _check_archive(source, of_others=of_others)
    elif head == OLD:
        _check_old(source)
    else:
        raise ValueError("no archive of PyTorch")


def _check_archive(source: BinaryIO, *, of_others: bool) -> None:
    _require_one_table(source)
    with zipfile.ZipFile(source) as archive:
        parts = {part.filename: part for part in archive.infolist()}
        roots = {name.split("/")[0] for name in parts}
        if len(parts) != len(archive.infolist()) or len(roots) != 1 or not all(map(PART.fullmatch, parts)):
            raise ValueError("its parts are not those of one archive of PyTorch")
        if any(
            part.compress_type or part.flag_bits & 1 or part.file_size != part.compress_size for part in parts.values()
        ):
            raise ValueError("its parts are packed, and unpack to more than the file; PyTorch packs none")
        (root,) = roots
        if parts[f"{root}/data.pkl"].file_size > MOST_PICKLED:
            raise ValueError("it holds more values than any network has")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"bits of its part {damaged} are not those that were written: the checksum differs")
        for key, size in storages_in(archive.read(f"{root}/data.pkl"), of_others=of_others).items():
            if parts[f"{root}/data/{key}"].file_size != size:
                raise ValueError(f"its array {key} is said to have {size} bytes, which is not its length")


def _require_one_table(source: BinaryIO) -> None:
    """Refuses an archive whose table of contents Python and PyTorch would look for in different places."""
    length = source.seek(0, 2)
    source.seek(max(0, length - END.size - LOCATOR.size - END_64.size))
    tail = source.read()
    sign, *_, size, start, comment = END.unpack(tail[-END.size :])
    end = length - END.size
    if sign != b"PK\x05\x06" or comment:
        raise ValueError("its end is missing")
    locator = LOCATOR.unpack(tail[-END.size - LOCATOR.size : -END.size])
    if locator[0] == b"PK\x06\x07":
        end -= LOCATOR.size + END_64.size
        sign, *_, size, start = END_64.unpack(tail[: END_64.size])
        if locator[2] != end or sign != b"PK\x06\x06":
            raise ValueError("its table of contents is damaged")
    if start + size != end or size > MOST_PICKLED:
        raise ValueError("its table of contents is damaged")


def _check_old(source: BinaryIO) -> None:
    for _ in range(PICKLES_OF_OLD):
        storages_in(source)
    needed = sum(storages_in(source).values())
    if needed > source.seek(0, 2):
        raise ValueError(f"its arrays are said to have {needed} bytes, more than the file")
