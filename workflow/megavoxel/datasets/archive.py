"""Archives of strangers: nothing lands outside the target folder, and nothing but plain files lands in it.

Files are written one by one under names that were looked at first. A link inside the archive becomes a copy of the
file that it leads to; no link is ever made on the disk.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from megavoxel.errors import UserError
from megavoxel.files import require_file_name

DAMAGED = (EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def extract_dataset(archive: Path, target: Path) -> None:
    """Extracts a tar (plain, gzip, bzip2, xz) or zip archive with one dataset into the existing folder `target`.

    The folder of the archive that holds dataset.json becomes `target`; what lies outside it and hidden files are left
    out.

    Raises:
        UserError: the archive is damaged, has no dataset.json or several, or holds an absolute path, a path with '..',
            a link out of the archive or a device.
        OSError: the disk is full.
    """
    unpacked = target / ".unpacked"
    unpacked.mkdir()
    try:
        _extract(archive, unpacked)
        root = _dataset_root(archive, unpacked)
        for entry in list(root.iterdir()):
            entry.rename(target / entry.name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _extract(archive: Path, target: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as source:
                _extract_zip(archive, source, target)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as source:
                _extract_tar(archive, source, target)
        else:
            raise UserError(f"{archive}: neither a tar nor a zip archive, or truncated; delete it and fetch it again")
    except DAMAGED as fault:
        raise _damaged(archive, fault) from None
    except OSError as fault:
        if fault.errno is not None:  # the disk's fault; gzip and bzip2 give no number for a damaged file
            raise
        raise _damaged(archive, fault) from None


def _damaged(archive: Path, fault: Exception) -> UserError:
    detail = " ".join(str(fault).split())
    return UserError(
        f"{archive}: cannot be extracted ({detail}); it is damaged or truncated: delete it and fetch it again"
    )


def _extract_tar(archive: Path, source: tarfile.TarFile, target: Path) -> None:
    for member in source:
        name = _safe_name(archive, member.name)
        if member.isdir() or _is_hidden(name):
            continue
        if not (member.isfile() or member.islnk() or member.issym()):
            raise UserError(f"{archive}: '{member.name}' is a device or pipe; a dataset has plain files only")
        try:
            content = source.extractfile(member)
        except (KeyError, RecursionError):
            content = None
        if content is None:
            raise UserError(
                f"{archive}: '{member.name}' is a link to '{member.linkname}', which is no file of the archive; "
                "pack the file itself"
            )
        _write(target / name, content)
    while source.fileobj.read(1 << 20):  # to the end, where a compressed file has its checksum
        pass


def _extract_zip(archive: Path, source: zipfile.ZipFile, target: Path) -> None:
    for member in source.infolist():
        name = _safe_name(archive, member.filename)
        if member.is_dir() or _is_hidden(name):
            continue
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise UserError(f"{archive}: '{member.filename}' is a link or device; pack the file itself")
        if member.flag_bits & 0x1:
            raise UserError(f"{archive}: '{member.filename}' is encrypted; extract the archive and name its folder")
        try:
            content = source.open(member)
        except NotImplementedError as fault:
            raise UserError(
                f"{archive}: '{member.filename}': {fault}; extract the archive and name its folder"
            ) from None
        _write(target / name, content)


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive}: '{name}' leads out of the archive's folder; nothing was extracted")
    for part in path.parts if not _is_hidden(path) else ():
        require_file_name(part, str(archive))
    return path


def _is_hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in name.parts) or "__MACOSX" in name.parts


def _write(path: Path, content: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, path.open("wb") as written:
        shutil.copyfileobj(content, written, 1 << 20)


def _dataset_root(archive: Path, unpacked: Path) -> Path:
    found = sorted(unpacked.rglob("dataset.json"), key=lambda path: len(path.parts))
    if not found:
        raise UserError(f"{archive}: there is no dataset.json in this archive; it is no dataset that can be read")
    nearest = [path for path in found if len(path.parts) == len(found[0].parts)]
    if len(nearest) > 1:
        places = ", ".join(sorted(str(path.relative_to(unpacked).parent) for path in nearest))
        raise UserError(f"{archive}: several datasets in one archive ({places}); extract it and name one's folder")
    return nearest[0].parent
