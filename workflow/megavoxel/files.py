"""Files that are written whole or not at all, and the JSON that stages exchange."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from megavoxel.errors import UserError, shown
from megavoxel.processes import began, has_ended, this_host

FAILING_DISK = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO)
"""What the system says where a disk, or the connection to one, fails: nothing is wrong with the file."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` on success and removed on an exception.

    The temporary path ends like `path`, because some writers choose the format by the suffix (``.nii.gz``, ``.png``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_what_was_left(path.parent)
    partial = path.with_name(f"{partial_prefix()}{path.name}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which becomes `path` on success and is removed on an exception.

    Args:
        path: the folder to make.
        replace: whether a folder that is already there, with its content, is replaced.

    Raises:
        UserError: there is content at `path`, and `replace` is false.
    """
    path = Path(path)
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: has content already and is not replaced; name a new folder, or empty this one")
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(path.parent) as private:
        # Only the user can read it; a folder inside it gets the permissions of the umask.
        partial = private / path.name
        partial.mkdir()
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)


@contextmanager
def scratch_directory(folder: Path) -> Iterator[Path]:
    """Yields a new hidden folder in `folder`, which is removed afterwards, or by a later run if this one is killed."""
    _remove_what_was_left(Path(folder))
    path = Path(tempfile.mkdtemp(prefix=partial_prefix(), dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


FORGOTTEN_SECONDS = 7 * 24 * 3600
"""Age from which on what a process on another host was writing counts as left behind."""
PARTIAL = re.compile(r"\.partial-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-(?P<began>\d+)-")
_looked_at: set[tuple[int, Path]] = set()
"""Processes, as this one and those that it was forked from, and folders in which they have looked."""


def partial_prefix() -> str:
    """How the names of what this process has not finished begin; a later run removes such files of a dead process."""
    return f".partial-{_host_code()}-{os.getpid()}-{began(os.getpid())}-"


def _host_code() -> str:
    return hashlib.sha256(this_host().encode()).hexdigest()[:8]


def _remove_what_was_left(folder: Path) -> None:
    """Removes from a folder what processes did not finish that have ended since; looks once in a process."""
    if (os.getpid(), folder) in _looked_at:
        return
    _looked_at.add((os.getpid(), folder))
    for path in folder.glob(".partial-*"):
        named = PARTIAL.match(path.name)
        if named and _is_left(path, named):
            with suppress(OSError):  # another process may be quicker, or the file belong to another account
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_left(path: Path, named: re.Match[str]) -> bool:
    if named["host"] == _host_code():
        return has_ended(int(named["process"]), int(named["began"]))
    with suppress(OSError):
        newest = max(file.lstat().st_mtime for file in (path, *path.rglob("*")))
        return time.time() - newest > FORGOTTEN_SECONDS
    return False


def spare_bytes(folder: Path) -> int:
    """Bytes that a download or an archive may fill of a folder's disk: a GiB, or a twentieth of a small disk, is left.

    Args:
        folder: an existing one.
    """
    disk = shutil.disk_usage(folder)
    return disk.free - min(2**30, disk.total // 20)


def link_file(source: Path, target: Path) -> None:
    """Makes `target` a second name of the file `source`, or a copy where the file system has no second names."""
    try:
        os.link(source, target)
    except OSError as fault:
        if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EEXIST):
            raise
        shutil.copy2(source, target)


def linked_together(folders: Sequence[Path], output: Path) -> int:
    """Makes `output` the folder of all files in `folders`, as second names of them; returns how many there are.

    Raises:
        UserError: one of the folders is missing, two have a file of the same name, or `output` has content.
    """
    seen: dict[str, Path] = {}
    with atomic_directory(output) as partial:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; run the stage that writes it")
            for path in sorted(folder.iterdir()):
                if path.name in seen:
                    raise UserError(f"{path.name} is in {seen[path.name]} and in {folder}; remove one of them")
                seen[path.name] = folder
                link_file(path, partial / path.name)
    return len(seen)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file for a failed write that a compiled library reports as a plain RuntimeError.

    Raises:
        UserError: the block raised RuntimeError.
    """
    try:
        yield
    except RuntimeError as fault:
        raise UserError(
            f"{path}: could not be written ({fault}); most likely no space is left on the disk, and nothing "
            "half-written was left behind: free some space and run the stage again"
        ) from fault


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names the file for a read that fails, which the system itself does only when a file is opened."""
    try:
        yield
    except OSError as fault:
        fault.filename = fault.filename or str(path)
        raise


def file_state(path: Path) -> tuple[int, int, int]:
    """What changes where a file is written again: its number on the disk, its length and its time in nanoseconds."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes `content` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def parse_json(text: str, *, option: str) -> dict[str, Any]:
    """The mapping that a JSON text on the command line holds.

    Raises:
        UserError: it is no JSON, or no mapping.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as fault:
        raise UserError(f"{option}: not JSON ({fault})") from None
    if not isinstance(values, dict):
        raise UserError(f"{option}: expected a JSON mapping of keys to values")
    return values


def read_json(path: Path, *, what: str) -> Any:
    """Reads a JSON file.

    Args:
        what: what the file is, for the error message ("plan", "fingerprint").

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():  # a lone surrogate cannot be written to any file: refuse it here
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except FileNotFoundError:
        raise UserError(f"{path}: this {what} does not exist; run the stage that writes it") from None
    except OSError as fault:
        raise UserError(
            f"{path}: this {what} cannot be read ({fault.strerror}); name the file that its stage wrote, and one that "
            "you may read"
        ) from None
    except (RecursionError, ValueError) as fault:
        raise UserError(
            f"{path}: this {what} cannot be read as JSON ({fault}); delete it and run its stage again"
        ) from None


def table_text(path: Path) -> io.StringIO:
    """The text of a table that a stage wrote, to be read as CSV.

    Raises:
        UserError: the last line has no end, as in a file that was cut.
        FileNotFoundError: there is no such file.
        UnicodeDecodeError: it is no text.
    """
    with reading(path):
        content = Path(path).read_bytes()
    if content and not content.endswith(b"\n"):
        raise UserError(f"{path}: it ends within a line, so it was cut; bring the whole file, or run its stage again")
    return io.StringIO(content.decode("utf-8"))


def require_file_name(name: str, where: str) -> None:
    """Refuses a name that cannot be a file's: stages add folders before it and suffixes behind it.

    Args:
        name: the name, say of a case.

    Raises:
        UserError: the name is empty, leads to another folder, is longer than 180 bytes, or has control characters.
    """
    if not name.isprintable() or name in ("", ".", "..") or set(name) & {"/", "\\"} or len(name.encode()) > 180:
        raise UserError(
            f"{where}: {shown(name)} cannot be the name of a file: allowed are up to 180 letters, digits and signs "
            "that can be printed, but no slash; rename it"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with reading(path), Path(path).open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """A short stable hash (12 hexadecimal digits) of anything that JSON can hold; the order of keys does not matter."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
