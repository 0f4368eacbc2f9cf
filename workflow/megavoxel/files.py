"""Files that appear whole or not at all, and the few formats that stages exchange."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megavoxel.errors import UserError, shown


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; a clean exit renames it to `path`, an exception removes it.

    The temporary name ends like `path`, so that writers that look at the suffix (``.nii.gz``, ``.png``) do the
    same thing for both.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; a clean exit puts it in the place of `path`, an exception removes it.

    Args:
        path: the folder to make.
        replace: whether a folder with content may stand there, which is then deleted.

    Raises:
        UserError: there is content at `path`, and `replace` was not asked for.
    """
    path = Path(path)
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: has content already and is not replaced; name a new folder, or empty this one")
    path.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".partial-{path.name}-", dir=path.parent))
    # Within the private folder, so that this one is made with the permissions that the user's umask says.
    partial = private / path.name
    try:
        partial.mkdir()
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(private, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file where a compiled library reports a failed write as no more than a RuntimeError.

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


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes `content` to `path` in UTF-8, whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, what: str) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        what: what the file is, for the error message ("plan", "fingerprint").

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():  # half a character, which can be written nowhere, if it is not one of a pair
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


def require_file_name(name: str, where: str) -> None:
    """Refuses what cannot be the name of a file in a folder of ours, with a suffix of ours behind it.

    Raises:
        UserError: the name is empty, a way to another folder, longer than 180 bytes, or has control characters.
    """
    if not name.isprintable() or name in ("", ".", "..") or set(name) & {"/", "\\"} or len(name.encode()) > 180:
        raise UserError(
            f"{where}: {shown(name)} cannot be the name of a file: allowed are up to 180 letters, digits and signs "
            "that can be printed, but no slash; rename it"
        )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def content_hash(content: Any) -> str:
    """A short stable hash (12 hexadecimal digits) of anything that JSON can hold; the order of keys does not matter."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
