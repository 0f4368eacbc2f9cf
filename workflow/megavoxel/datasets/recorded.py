"""Checksums of archives whose publisher gives none: recorded at the first fetch, and binding for later ones."""

from __future__ import annotations

from pathlib import Path

from megavoxel.errors import UserError
from megavoxel.files import file_sha256, write_text

RECORDS = "archives.tsv"
"""Lies beside the folders of the datasets, where neither a removed download nor a repeated fetch takes it away."""
HEADER = "url\tsha256"


def recorded_checksum(records: Path, url: str) -> str | None:
    """The SHA-256 that was recorded for an address, or None.

    Raises:
        UserError: the file of records is not what `record_checksum` writes.
    """
    return _read(records).get(url)


def record_checksum(records: Path, url: str, archive: Path, *, beside: bool) -> None:
    """Records the SHA-256 of an archive that was fetched for the first time.

    Args:
        records: the file of records, with one line per address; a line that is there already is not changed.
        url: the address.
        archive: what came from there.
        beside: whether ``ARCHIVE.sha256`` is to be written beside the archive, in the form that `sha256sum --check`
            reads.

    Raises:
        UserError: the file of records is not what this function writes.
    """
    known = _read(records)
    checksum = known.get(url) or file_sha256(archive)
    if url not in known:
        lines = [HEADER, *(f"{address}\t{value}" for address, value in sorted({**known, url: checksum}.items()))]
        write_text(records, "\n".join(lines) + "\n")
        print(f"{url}: no checksum is published; recorded in {records}: {checksum}", flush=True)
    if beside:
        write_text(archive.with_name(f"{archive.name}.sha256"), f"{checksum}  {archive.name}\n")


def _read(records: Path) -> dict[str, str]:
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
