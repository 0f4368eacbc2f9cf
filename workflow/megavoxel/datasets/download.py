"""Downloads that go on where they stopped and are only kept if their checksum is right.

Where the publisher of an archive gives no checksum, that of the first fetch is recorded and binding for later ones.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from megavoxel.config.source import Source
from megavoxel.errors import UserError
from megavoxel.files import file_sha256, require_file_name, spare_bytes, write_text
from megavoxel.progress import BYTES, progress

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 2.0
TIMEOUT_SECONDS = (15, 60)  # to connect, and between two pieces
PIECE_BYTES = 1 << 20
LEAST_PROGRESS = PIECE_BYTES // 16
"""Bytes that must come in the time of a timeout, and by which a further attempt must get, so that no server keeps a
job for ever."""
LATER_MAY_WORK = (408, 425, 429, 500, 502, 503, 504)
RECORDS = "archives.tsv"
"""Lies beside the folders of the datasets, where neither a removed download nor a repeated fetch takes it away."""
HEADER = "url\tsha256"
BROKEN_OFF = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)


def archive_name(url: str) -> str:
    """The file name at the end of an address.

    Raises:
        UserError: the address ends in no name, or in one that no file should have.
    """
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    if name in ("", ".", ".."):
        raise UserError(f"{url}: this address ends in no file name; give the address of the archive itself")
    require_file_name(name, url)
    return name


def checksum_fault(path: Path, source: Source) -> str | None:
    """What is wrong with the checksum of the archive at `path`, or None; SHA-256 is preferred to MD5.

    An archive of which no checksum is known is taken as it is.
    """
    if source.sha256 is None and source.md5 is None:
        return None
    if source.sha256 is not None:
        name, expected, algorithm = "SHA-256", source.sha256, hashlib.sha256
    else:
        name, expected, algorithm = "MD5", source.md5, lambda: hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        seen = hashlib.file_digest(content, algorithm).hexdigest()
    return None if seen == expected else f"wrong {name}: expected {expected}, the file has {seen}"


def download(source: Source, folder: Path, *, remedy: str = "correct the checksum in the dataset file") -> Path:
    """Brings the archive of `source.url` to `folder` and verifies it; returns its path.

    An archive that is there already and verifies is taken as it is. What came of an interrupted download stays in
    ``ARCHIVE.part``, and the next call asks the server for the rest.

    Args:
        source: address and checksum; without a checksum, the archive is taken as it comes.
        folder: where the archive is kept.
        remedy: what a user can do where the checksum is wrong every time.

    Raises:
        UserError: the server refuses, cannot be reached or breaks off repeatedly, or the checksum is wrong; a file
            with a wrong checksum is removed.
        OSError: the disk is full.
    """
    archive = folder / archive_name(source.url)
    if archive.is_file() and checksum_fault(archive, source) is None:
        return archive
    archive.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}.part")
    bring(source.url, part, is_checked=source.sha256 is not None or source.md5 is not None)
    fault = checksum_fault(part, source)
    if fault is not None:
        part.unlink()
        raise UserError(
            f"{source.url}: {fault}; the download was removed: run the stage again, and if this repeats, {remedy}"
        )
    part.replace(archive)
    return archive


def recorded_checksum(records: Path, url: str) -> str | None:
    """The SHA-256 that was recorded for an address, or None.

    Raises:
        UserError: the file of records is not what `record_checksum` writes.
    """
    return _read_records(records).get(url)


def record_checksum(records: Path, url: str, archive: Path, *, beside: bool) -> None:
    """Records the SHA-256 of an archive that was fetched for the first time.

    Args:
        records: the file of records, with one line per address; a line that is there already is not changed.
        archive: what came from there.
        beside: whether ``ARCHIVE.sha256`` is to be written beside the archive, in the form that `sha256sum --check`
            reads.

    Raises:
        UserError: the file of records is not what this function writes.
    """
    known = _read_records(records)
    checksum = known.get(url) or file_sha256(archive)
    if url not in known:
        lines = [HEADER, *(f"{address}\t{value}" for address, value in sorted({**known, url: checksum}.items()))]
        write_text(records, "\n".join(lines) + "\n")
        print(f"{url}: no checksum is published; recorded in {records}: {checksum}", flush=True)
    if beside:
        write_text(archive.with_name(f"{archive.name}.sha256"), f"{checksum}  {archive.name}\n")


def bring(url: str, part: Path, *, is_checked: bool) -> None:
    """Brings what is missing of the file at an address to `part`.

    Args:
        is_checked: whether a checksum of the file is known; if not, a warning says that plain http protects nothing.

    Raises:
        UserError: the server refuses, several attempts in a row bring next to nothing more, or the disk has no room.
    """
    failures, furthest, wait = 0, _size(part), FIRST_WAIT_SECONDS
    while failures < ATTEMPTS:
        try:
            if _fetch_rest(url, part, is_checked=is_checked):
                return
            reason = "the transfer broke off"
        except BROKEN_OFF as fault:
            reason = " ".join(str(fault).split())
        except requests.RequestException as fault:
            raise UserError(f"{url}: cannot be downloaded ({' '.join(str(fault).split())})") from None
        if _size(part) >= furthest + LEAST_PROGRESS:
            failures, furthest, wait = 0, _size(part), FIRST_WAIT_SECONDS
        failures += 1
        if failures < ATTEMPTS:
            print(f"{url}: {reason}; trying again in {wait:g} s", flush=True)
            time.sleep(wait)
            wait *= 2
    raise UserError(
        f"{url}: the download failed {ATTEMPTS} times ({reason}); run the stage again to go on from what is in {part}, "
        f"or bring {archive_name(url)} here by other means and give its folder as mirror"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch_rest(url: str, part: Path, *, is_checked: bool) -> bool:
    """Appends what is missing to `part`; False where the transfer broke off or has to start afresh."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == 416 and have:
            if _total_bytes(response) == have:
                return True
            part.unlink()  # longer than the archive, or no part of it
            return False
        if response.status_code in LATER_MAY_WORK:
            raise requests.ConnectionError(f"status {response.status_code} {response.reason}")
        response.raise_for_status()
        if not is_checked and response.url.startswith("http:"):
            print(
                f"warning: {response.url}: no checksum is known, and plain http does not show whether the file was "
                "changed on its way; compare it with what its publisher says",
                flush=True,
            )
        continued = response.status_code == 206 and _first_byte(response) == have
        if response.status_code == 206 and not continued:
            part.unlink(missing_ok=True)
            return False
        return _append(response, part, have if continued else 0)


def _append(response: requests.Response, part: Path, have: int) -> bool:
    length = response.headers.get("Content-Length", "")
    total = have + int(length) if length.isdigit() else None
    spare = spare_bytes(part.parent)
    if total is not None and total - have > spare:
        raise UserError(
            f"{response.url}: {(total - have) / 1e6:.1f} MB are to come, and {part.parent} has room for "
            f"{max(spare, 0) / 1e6:.1f} MB; free some space, or write to another disk"
        )
    with (
        part.open("r+b" if have else "wb") as target,
        progress(part.stem, total, unit=BYTES, done=have) as shown,
    ):
        target.seek(have)
        rest = f" of {total / 1e6:.1f} MB" if total else ""
        print(f"downloading {response.url}: {have / 1e6:.1f} MB here already{rest}", flush=True)
        for piece in _pieces(response):
            spare -= len(piece)
            if spare < 0:
                raise UserError(
                    f"{response.url}: more comes than {part.parent} has room for; free some space, or bring the file "
                    "by other means"
                )
            target.write(piece)
            shown.advance(len(piece))
        return total is None or target.tell() == total


def _pieces(response: requests.Response) -> Iterator[bytes]:
    """What the server sends, as it comes; all that came is kept where the transfer breaks off.

    Raises:
        urllib3.exceptions.HTTPError: the transfer broke off, or next to nothing came for the time of a timeout.
    """
    began, came = time.monotonic(), 0
    while piece := response.raw.read1(PIECE_BYTES, decode_content=False):
        yield piece
        came += len(piece)
        if came >= LEAST_PROGRESS:
            began, came = time.monotonic(), 0
        elif time.monotonic() - began > TIMEOUT_SECONDS[1]:
            raise urllib3.exceptions.ReadTimeoutError(
                None, response.url, f"less than {LEAST_PROGRESS} bytes came in {TIMEOUT_SECONDS[1]} s"
            )


def _total_bytes(response: requests.Response) -> int | None:
    found = re.search(r"/(\d+)$", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _first_byte(response: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _read_records(records: Path) -> dict[str, str]:
    if not records.is_file():
        return {}
    header, *lines = records.read_text().splitlines() or [""]
    rows = [line.split("\t") for line in lines if line]
    if header != HEADER or any(len(row) != 2 for row in rows):
        raise UserError(
            f"{records}: expected the columns url and sha256, separated by tabs; mend the file, or remove it to record "
            "the checksums anew"
        )
    return dict(rows)
