"""The text of NRRD and MetaImage headers, read before ITK reads it: where the voxels lie, and how many there can be.

ITK follows a header to any file of the machine, and makes room for as many voxels as one claims.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from megavoxel.errors import shown
from megavoxel.volumes.volume import DamagedFileError

MOST_RATIO = 1032
"""Bytes that a byte of a compressed file can stand for: the most that deflate can do (zlib.net)."""
HEADER_BYTES = 2**16
"""Where the text of a header ends at the latest."""
MOST_AXES = 10
"""Axes that MetaIO makes room for; it crashes with a header that states more."""
MOST_LETTERS = 500
"""Letters of a line of an NRRD header: teem crashes where it complains of longer ones. Comments and pairs of keys and
values (`:=`), which it does not complain of, may be longer."""
TEXT_RATIO = 4
"""Bytes that a byte of a file with numbers as text can stand for: a digit and a space may be a number of 8 bytes."""
HEADER_OF_META = re.compile(rb".*?(?:^[ \t]*ElementDataFile[^\n]*\n|\Z)", re.DOTALL | re.MULTILINE)
"""A MetaImage header with its last line."""
HEADER_OF_NRRD = re.compile(rb".*?(?:\n\r?\n|\Z)", re.DOTALL)
NUMBERED = re.compile(r"([^%]*)%0?\d?d([^%]*)")
"""A name with one number in it. What else C's printf takes can make any name."""
SLICES = re.compile(r"%.*\d{5}")
"""Names by number of the files of more slices than there can be, for which MetaIO makes room."""
SIDES = {"nrrd": ("spacings",), "meta": ("elementspacing", "elementsize")}
"""Keys for the size of a voxel beside `space directions` of NRRD; ITK takes 1 where there are none."""
UNITS = {"nrrd": ("space units", "units"), "meta": ("distanceunits",)}
"""Keys for the units of lengths."""
OTHER_UNITS = {
    "m", "meter", "metre", "cm", "centimeter", "um", "µm", "micron", "micrometer", "micrometre", "nm", "nanometer",
    "in", "inch", "inches",
}  # fmt: skip
"""Units of lengths that are not mm, in lower case and without a plural."""
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
"""Errors of the system where no file can be found by a name."""
END_OF_NRRD = re.compile(rb"\r?\n\r?\n")
PACKED = ("gzip", "gz", "bzip2", "bz2")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The text of a header."""

    path: Path
    """The file itself, and no link to it."""
    kind: str
    """`nrrd` or `meta`."""
    lines: tuple[str, ...]
    """As they are written, without space around them."""
    files: tuple[Path, ...]
    """The files with the voxels, where they are not in this one."""
    length: int
    """Bytes of the text."""

    @property
    def lower(self) -> list[str]:
        """The lines in lower case."""
        return [line.lower() for line in self.lines]

    @property
    def room(self) -> int:
        """Bytes that the voxels can have at most, by the length of the files that hold them."""
        length = sum(file.stat().st_size for file in self.files or (self.path,))
        is_packed = any(encoding in PACKED for encoding in self.values("encoding")) or self.is_packed_meta
        return length * (MOST_RATIO if is_packed else TEXT_RATIO)

    @property
    def is_packed_meta(self) -> bool:
        """Whether a MetaImage says that its voxels are compressed."""
        return any(value[:1].lower() in ("t", "1") for value in self.values("compresseddata"))

    @property
    def gzip_streams(self) -> list[tuple[Path, int]]:
        """Files with voxels of an NRRD in gzip, and the byte at which the stream begins in each."""
        skipped = any(_numbers(value) != [0] for value in self.values("byte skip", "byteskip", "line skip", "lineskip"))
        if self.kind != "nrrd" or skipped or not {"gzip", "gz"} & {value.lower() for value in self.values("encoding")}:
            return []
        if self.files:
            return [(file, 0) for file in self.files]
        with self.path.open("rb") as source:
            end = END_OF_NRRD.search(source.read(HEADER_BYTES + 1))
        return [(self.path, end.end())] if end else []

    @property
    def zlib_streams(self) -> list[tuple[Path, int, int | None]]:
        """Files with compressed voxels of a MetaImage, the byte at which the stream begins, and its bytes if stated."""
        if not self.is_packed_meta:
            return []
        if len(self.files) > 1:
            return [(file, 0, None) for file in self.files]
        sizes = [int(value) for value in self.values("compresseddatasize") if value.isdecimal()]
        file, begin = (self.files[0], 0) if self.files else (self.path, self.length)
        return [(file, begin, sizes[0] if sizes and sizes[0] > 0 else None)]

    @property
    def states_sides(self) -> bool:
        """Whether it states a size above 0 of three axes of a voxel."""
        vectors = [re.findall(r"\(([^)]*)\)", value) for value in self.values("space directions")]
        stated = [_numbers(value) for value in self.values(*SIDES[self.kind])]
        stated += [[math.hypot(*_numbers(vector)) for vector in row] for row in vectors]
        return any(len(sides) >= 3 and min(sides[:3]) > 0 for sides in stated)

    @property
    def other_units(self) -> list[str]:
        """Units of lengths that it states and that are not mm."""
        words = [word.strip() for value in self.values(*UNITS[self.kind]) for word in value.lower().split('"')]
        return [word for word in words if word in OTHER_UNITS or word.removesuffix("s") in OTHER_UNITS]

    def values(self, *keys: str) -> list[str]:
        """What the lines with one of some keys say; the keys are in lower case."""
        return _values(self.lines, *keys)


def read_header(path: Path) -> Header:
    """Reads the text of a header, and looks at the files that it names.

    Raises:
        DamagedFileError: ITK would crash with the header or never end; or a file with the voxels is missing, or lies
            outside of the header's folder.
    """
    own = path.resolve()
    with own.open("rb") as source:
        text = source.read(HEADER_BYTES + 1)
    kind = "nrrd" if text.startswith(b"NRRD") else "meta"
    found = (HEADER_OF_NRRD if kind == "nrrd" else HEADER_OF_META).match(text)[0]
    lines = tuple(line.strip() for line in re.split(r"[\r\n]+", found.decode("latin-1")))
    names = _values(lines, "data file", "datafile") if kind == "nrrd" else _values(lines, "elementdatafile")
    if any(name.startswith("LIST") for name in names):
        found, behind = text, re.split(r"[\r\n]+", text[len(found) :].decode("latin-1"))
        following = [line.strip() for line in (*lines, *behind)]
        names = following[max(number for number, line in enumerate(lines) if line.endswith(names[0])) + 1 :]
    if len(found) > HEADER_BYTES:
        raise DamagedFileError(
            f"{path}: its header does not end within {HEADER_BYTES} letters; the file is damaged or of another kind: "
            "copy it again"
        )
    files = [file for name in names if name and name.upper() != "LOCAL" for file in _files(path, own.parent, name)]
    header = Header(path=own, kind=kind, lines=lines, files=tuple(files), length=len(found))
    if _harms(header, names):
        raise DamagedFileError(f"{path}: its header makes no sense; the file is damaged: copy it again")
    return header


def _harms(header: Header, names: Sequence[str]) -> bool:
    """Whether ITK's readers crash with a header, or never end."""
    if header.kind == "nrrd":
        return any(len(line) > MOST_LETTERS and ":=" not in line and line[:1] != "#" for line in header.lines)
    axes = header.values("ndims")
    return (
        any(not value.isdecimal() or int(value[:9]) > MOST_AXES for value in axes)
        or any(map(SLICES.search, names))
        or (header.is_packed_meta and any(value.startswith("-") for value in header.values("headersize")))
    )


def _values(lines: Sequence[str], *keys: str) -> list[str]:
    """What lines `KEY: VALUE` or `KEY = VALUE` say of some keys, which are in lower case."""
    parts = [re.split("[=:]", line, maxsplit=1) for line in lines]
    return [part[1].strip() for part in parts if len(part) == 2 and part[0].strip().lower() in keys]


def _files(path: Path, folder: Path, name: str) -> list[Path]:
    """The files of a name, or of a pattern such as `slice%03d.raw 1 90 1`, in the header's folder or below.

    Raises:
        DamagedFileError: there are none, or they lie elsewhere.
    """
    first, *_ = name.split() if "%" in name else [name]
    pattern = NUMBERED.fullmatch(first.replace("\\", "/"))
    if "%" in name and pattern is None:
        raise DamagedFileError(
            f"{path}: its header names the files with its voxels by {shown(first)}; expected a name with one %d: "
            "mend the header"
        )
    place = folder / first.replace("\\", "/")
    try:
        if not place.parent.resolve().is_relative_to(folder):
            raise _outside(path, name)
        if pattern is None:
            found = [place] if place.is_file() else []
        else:
            own = re.compile(re.escape(PurePosixPath(pattern[1] + "0").name[:-1]) + r"\d+" + re.escape(pattern[2]))
            found = [file for file in sorted(place.parent.glob("*")) if own.fullmatch(file.name)]
    except (OSError, RuntimeError) as fault:  # no file can have such a name, or links lead round in a circle
        if getattr(fault, "errno", None) not in (None, *NO_NAME):
            raise
        found = []
    if not found:
        raise DamagedFileError(f"{path}: the file {shown(name)} with its voxels is missing; copy it to the header")
    if not all(file.resolve().is_relative_to(folder) for file in found):
        raise _outside(path, name)
    return found


def _outside(path: Path, name: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path}: its voxels would be read from {shown(name)}, which is not in the folder of the header; copy the file "
        "there, and write its name into the header"
    )


def _numbers(text: str) -> list[float]:
    """The finite numbers of a text in which commas or blanks lie between them; other words are left out."""
    found = []
    for word in re.split(r"[\s,]+", text):
        try:
            found.append(float(word))
        except ValueError:
            continue
    return [number for number in found if math.isfinite(number)]
