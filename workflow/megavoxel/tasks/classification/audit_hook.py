"""An audit hook of Python that keeps a worker with private data to its own files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from megavoxel.errors import UserError

PROGRAMS = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "pty.spawn"}
"""Audit events of starting another program, which would run without the hook."""
DESCRIPTORS = Path("/dev/fd")
"""A folder with all that this process holds open."""
Identity = tuple[int, int]
"""Device and inode of a file, the same by whatever name it is opened."""


class ForeignFileError(UserError):
    """A worker opened a file of the dataset that is not in its private share, or started a program that could."""


def refuse_foreign_files(root: Path, own: Iterable[Path], images: Iterable[Path]) -> None:
    """From now on, and to its end, this process opens no file below a dataset's folder but its own ones.

    An audit hook looks at every file that Python code opens, by whatever library and name: other links to the
    dataset's images are known by their inodes. Processes that are forked inherit it; other programs cannot be started.
    Compiled code that opens a file by itself, without Python's `open`, is not seen (`torch.from_file`, readers of
    medical images); the images of training come through Python's.

    Args:
        own: the files of this worker.
        images: all images of the dataset, wherever links lead; those that are not on this machine are passed over.
    """
    allowed = {identity for path in own if (identity := _identity(path))}
    foreign = {identity for path in images if (identity := _identity(path))} - allowed
    folder = root.resolve()

    def look(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            for path in _places(Path(os.fsdecode(arguments[0])), by_descriptor=arguments[1] is None):
                identity = _identity(path)
                if identity in foreign or (identity not in allowed and _is_file_below(path, folder)):
                    raise ForeignFileError(
                        f"{path}: is not in this worker's private share (data_partition: private); this worker must "
                        "not open it"
                    )
        elif event in PROGRAMS:
            raise ForeignFileError(
                f"{event}: a worker with private data (data_partition: private) starts no other program, which could "
                "open the files of others"
            )

    sys.addaudithook(look)


def _places(path: Path, *, by_descriptor: bool) -> Iterator[Path]:
    """Where a path may lead: `os.open` does not tell the audit hook the folder that `dir_fd` holds open."""
    yield path
    if by_descriptor and not path.is_absolute():
        yield from (descriptor / path for descriptor in DESCRIPTORS.iterdir())


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _is_file_below(path: Path, folder: Path) -> bool:
    """Whether a file, one that is to be made among them, lies there once links are followed."""
    real = Path(os.path.realpath(path))
    return real.is_relative_to(folder) and not real.is_dir()
