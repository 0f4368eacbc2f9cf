"""Archives of strangers: nothing lands outside the target folder, and nothing but plain files lands in it.

Files are written one by one under names and lengths that were looked at first. A link inside the archive becomes a copy
of the file that it leads to; no link is ever made on the disk. An archive may unpack to `MOST_RATIO` times its own
length, or `LEAST_ALLOWED`, and always leaves a margin on the disk free.
"""

from __future__ import annotations

import bz2
import copy
import lzma
import posixpath
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from megavoxel.errors import UserError
from megavoxel.files import require_file_name, spare_bytes

MOST_RATIO, LEAST_ALLOWED = 100, 2**30
"""Bytes that a byte of an archive may unpack to, over the whole archive, and what any archive may unpack to."""
MOST_OF_LINKS = 10
"""Bytes of copies in place of links for a byte of the archive; `LEAST_ALLOWED` holds as well."""
MOST_MEMBERS = 1_000_000
MOST_LINKS = 40
"""Links that lead from one to the next; Linux follows as many."""
MOST_HEADER = 2**20
"""Bytes of a header that extends that of a member; it is read at once."""
EXTENSIONS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip
PIECE, LZMA_PIECE = 2**20, 2**12
"""Bytes that are read at once; `zipfile` takes the second for packed bytes, which may unpack to 7000 times as many."""
IS_EXTENDED = 482
"""Where the header of a sparse file says that a list of its holes follows (GNU tar's manual, "Old GNU Format")."""


class _HeaderError(Exception):
    """A header of a tar archive that is not followed; tarfile takes its own errors for the sign of another format."""


DAMAGED = (_HeaderError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def extract_dataset(archive: Path, target: Path) -> None:
    """Extracts a tar (plain, gzip, bzip2, xz) or zip archive with one dataset into the existing folder `target`.

    The folder of the archive that holds dataset.json becomes `target`; what lies outside it and hidden files are left
    out.

    Raises:
        UserError: the archive is damaged, has no dataset.json or several, unpacks to more than it may, or holds an
            absolute path, a path with '..', a link out of the archive or a device.
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


@dataclass(kw_only=True)
class _Allowance:
    """What an archive may still unpack to."""

    archive: Path
    total: int
    links: int
    free: int
    members: int

    @classmethod
    def of(cls, archive: Path, target: Path) -> _Allowance:
        """The allowance of an archive that is extracted to a folder."""
        length = archive.stat().st_size
        return cls(
            archive=archive,
            total=max(LEAST_ALLOWED, MOST_RATIO * length),
            links=max(LEAST_ALLOWED, MOST_OF_LINKS * length),
            free=spare_bytes(target),
            members=MOST_MEMBERS,
        )

    def take(self, name: str, size: int, *, is_link: bool = False, is_written: bool = True) -> None:
        """Takes a member from it, before the member is written or passed over.

        Raises:
            UserError: nothing is left for the member.
        """
        self.members -= 1
        self.total -= size
        self.links -= size if is_link else 0
        self.free -= size if is_written else 0
        if min(self.members, self.total, self.links) < 0:
            raise UserError(
                f"{self.archive}: unpacks to more than datasets do ({MOST_RATIO} times its own length, {MOST_OF_LINKS} "
                f"times by links, or {MOST_MEMBERS} files), at '{name}'; if you trust it, extract it and name its "
                "folder"
            )
        if self.free < 0:
            raise UserError(
                f"{self.archive}: unpacks to more than the disk has room for, at '{name}' with {size} bytes; free some "
                "space, or write to another disk"
            )


class _Member(tarfile.TarInfo):
    """A member of a tar archive, whose header is looked at before what extends it is read into memory."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Member:
        """The member of a header block; refuses one whose name, holes or the like would take much memory."""
        found = super().frombuf(buf, encoding, errors)
        if found.type in EXTENSIONS and found.size > MOST_HEADER:
            raise _HeaderError(f"a header claims {found.size} bytes for a name or the like")
        if found.type == tarfile.GNUTYPE_SPARSE and buf[IS_EXTENDED]:
            cls._refuse_holes()
        return found

    def _proc_gnusparse_10(self, *_: object) -> None:
        self._refuse_holes()

    @staticmethod
    def _refuse_holes() -> None:
        raise _HeaderError("a sparse file has a list of holes in it, which is not read; pack it without --sparse")


def _extract(archive: Path, target: Path) -> None:
    allowance = _Allowance.of(archive, target)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as source:
                _extract_zip(allowance, source, target)
        else:
            with _opened_tar(archive) as source:
                _extract_tar(allowance, source, target)
    except DAMAGED as fault:
        raise _damaged(archive, fault) from None
    except NotImplementedError as fault:  # a method, or a version of the format, that zipfile does not know
        raise UserError(f"{archive}: cannot be read here ({fault}); extract it and name its folder") from None
    except OSError as fault:
        if fault.errno is not None:  # the disk's fault; gzip and bzip2 give no number for a damaged file
            raise
        raise _damaged(archive, fault) from None


def _opened_tar(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive, tarinfo=_Member)
    except (EOFError, tarfile.TarError):
        raise UserError(
            f"{archive}: neither a tar nor a zip archive, or truncated; delete it and fetch it again"
        ) from None


def _damaged(archive: Path, fault: Exception) -> UserError:
    detail = " ".join(str(fault).split())
    return UserError(
        f"{archive}: cannot be extracted ({detail}); it is damaged or truncated: delete it and fetch it again"
    )


def _extract_tar(allowance: _Allowance, source: tarfile.TarFile, target: Path) -> None:
    archive, links = allowance.archive, []
    for member in source:
        name = _safe_name(archive, member.name)
        if member.isdir() or _is_hidden(name):
            allowance.take(member.name, member.size, is_written=False)
            continue
        if member.islnk() or member.issym():
            allowance.take(member.name, 0)
            links.append(member)
            continue
        if not member.isfile():
            raise UserError(f"{archive}: '{member.name}' is a device or pipe; a dataset has plain files only")
        if hasattr(tarfile, "data_filter"):  # in Python 3.12, and later versions of 3.11
            tarfile.data_filter(member, str(target))
        allowance.take(member.name, member.size)
        _write(archive, target / name, source.extractfile(member))
    if source.fileobj.tell() < source.offset + tarfile.BLOCKSIZE:
        raise EOFError("its end mark is missing")
    while rest := source.fileobj.read(PIECE):  # to the end, where a compressed file has its checksum
        allowance.take("what lies behind its end", len(rest), is_written=False)
    _copy_for_links(allowance, source, links, target)


def _copy_for_links(
    allowance: _Allowance, source: tarfile.TarFile, links: Sequence[tarfile.TarInfo], target: Path
) -> None:
    """Writes a copy of the file that each link leads to."""
    by_name = {posixpath.normpath(member.name): member for member in source.getmembers()} if links else {}
    for link in links:
        found = _led_to(link, by_name)
        if found is None:
            raise UserError(
                f"{allowance.archive}: '{link.name}' is a link to '{link.linkname}', which is no file of the archive; "
                "pack the file itself"
            )
        allowance.take(link.name, found.size, is_link=True)
        written = target / _safe_name(allowance.archive, found.name)
        content = written.open("rb") if written.is_file() else source.extractfile(found)
        _write(allowance.archive, target / _safe_name(allowance.archive, link.name), content)


def _led_to(link: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """The file that a link leads to, over at most `MOST_LINKS` links; None where there is none."""
    found = link
    for _ in range(MOST_LINKS):
        folder = posixpath.dirname(found.name) if found.issym() else ""
        found = by_name.get(posixpath.normpath(posixpath.join(folder, found.linkname)))
        if found is None or found.isfile():
            return found
        if not (found.issym() or found.islnk()):
            return None
    return None


def _extract_zip(allowance: _Allowance, source: zipfile.ZipFile, target: Path) -> None:
    archive = allowance.archive
    for member in source.infolist():
        allowance.take(member.filename, member.file_size)
    for member in source.infolist():
        name = _safe_name(archive, member.filename)
        if member.is_dir() or _is_hidden(name):
            continue
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise UserError(f"{archive}: '{member.filename}' is a link or device; pack the file itself")
        if member.flag_bits & 0x1:
            raise UserError(f"{archive}: '{member.filename}' is encrypted; extract the archive and name its folder")
        content = _opened(source, member)
        _write(archive, target / name, content, LZMA_PIECE if member.compress_type == zipfile.ZIP_LZMA else PIECE)


def _opened(source: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member that is unpacked piece by piece; `zipfile` unpacks whole blocks of bzip2, each of which may be 4 GB."""
    if member.compress_type != zipfile.ZIP_BZIP2:
        return source.open(member)
    packed = copy.copy(member)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, member.compress_size
    del packed.CRC  # that of the unpacked member; bzip2 has one of its own for each block
    length = 0
    with bz2.BZ2File(source.open(packed)) as content:
        while length <= member.file_size and (piece := content.read(PIECE)):
            length += len(piece)
    if length != member.file_size:
        raise EOFError(f"'{member.filename}' has other than the {member.file_size} bytes that are stated")
    return bz2.BZ2File(source.open(packed))


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    if not name:
        raise UserError(f"{archive}: a file in it has no name; it is damaged: delete it and fetch it again")
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{archive}: '{name}' leads out of the archive's folder; nothing was extracted")
    for part in path.parts if not _is_hidden(path) else ():
        require_file_name(part, str(archive))
    return path


def _is_hidden(name: PurePosixPath) -> bool:
    return any(part.startswith(".") for part in name.parts) or "__MACOSX" in name.parts


def _write(archive: Path, path: Path, content: IO[bytes], piece: int = PIECE) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.open("wb")
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise UserError(
            f"{archive}: '{path.name}' is the name of a file in it and of a folder; it is damaged: delete it and "
            "fetch it again"
        ) from None
    with content, written:
        shutil.copyfileobj(content, written, piece)


def _dataset_root(archive: Path, unpacked: Path) -> Path:
    found = sorted(unpacked.rglob("dataset.json"), key=lambda path: len(path.parts))
    if not found:
        raise UserError(f"{archive}: there is no dataset.json in this archive; it is no dataset that can be read")
    nearest = [path for path in found if len(path.parts) == len(found[0].parts)]
    if len(nearest) > 1:
        places = ", ".join(sorted(str(path.relative_to(unpacked).parent) for path in nearest))
        raise UserError(f"{archive}: several datasets in one archive ({places}); extract it and name one's folder")
    return nearest[0].parent
