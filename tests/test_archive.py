"""Archives of strangers: nothing gets out of the folder, and damage is named."""

from __future__ import annotations

import errno
import gzip
import io
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megavoxel.datasets import archive as archive_module
from megavoxel.datasets.archive import extract_dataset
from megavoxel.datasets.folder import visible_files
from megavoxel.errors import UserError

CONTENT = {
    "Task/dataset.json": b"{}",
    "Task/imagesTr/a.nii.gz": b"image" * 5000,
    "Task/labelsTr/a.nii.gz": b"label",
    "Task/imagesTr/._a.nii.gz": b"resource fork",
    "__MACOSX/Task/dataset.json": b"{}",
    "README": b"outside the dataset",
}
EXPECTED = ["dataset.json", "imagesTr/a.nii.gz", "labelsTr/a.nii.gz"]
MODES = {"plain.tar": "w", "small.tar.gz": "w:gz", "small.tar.bz2": "w:bz2", "small.tar.xz": "w:xz"}


def pack_tar(path: Path, content: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    """A tar archive with files, then other members."""
    with tarfile.open(path, MODES.get(path.name, "w")) as target:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
        for member in extra:
            target.addfile(member)
    return path


def pack_zip(path: Path, content: dict[str, bytes]) -> Path:
    """A zip archive with files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in content.items():
            target.writestr(name, data)
    return path


def member(name: str, kind: bytes, leads_to: str = "") -> tarfile.TarInfo:
    """A member without content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, leads_to
    return info


@pytest.fixture
def target(tmp_path) -> Path:
    folder = tmp_path / "deep" / "target"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", list(MODES))
def test_a_tar_loses_its_top_folder_and_hidden_files(tmp_path, target, name):
    extract_dataset(pack_tar(tmp_path / name, CONTENT), target)
    assert [path.as_posix() for path in visible_files(target)] == EXPECTED
    assert (target / "imagesTr/a.nii.gz").read_bytes() == b"image" * 5000
    assert sorted(path.name for path in target.iterdir()) == ["dataset.json", "imagesTr", "labelsTr"]


def test_a_zip_loses_its_top_folder_and_hidden_files(tmp_path, target):
    extract_dataset(pack_zip(tmp_path / "small.zip", CONTENT), target)
    assert [path.as_posix() for path in visible_files(target)] == EXPECTED


def test_an_archive_without_top_folder_is_read(tmp_path, target):
    extract_dataset(pack_tar(tmp_path / "flat.tar", {"./dataset.json": b"{}", "./imagesTr/a.nii": b"x"}), target)
    assert [path.as_posix() for path in visible_files(target)] == ["dataset.json", "imagesTr/a.nii"]


EVIL = {
    "parent": member("Task/../../evil", tarfile.REGTYPE),
    "absolute": member("/tmp/megavoxel-evil", tarfile.REGTYPE),
    "windows": member("..\\..\\evil", tarfile.REGTYPE),
    "symlink out": member("Task/evil", tarfile.SYMTYPE, "../../../secret"),
    "absolute symlink": member("Task/evil", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link out": member("Task/evil", tarfile.LNKTYPE, "../../secret"),
    "absolute hard link": member("Task/evil", tarfile.LNKTYPE, "/etc/passwd"),
    "link to a folder": member("Task/evil", tarfile.SYMTYPE, "imagesTr"),
    "link to itself": member("Task/evil", tarfile.SYMTYPE, "evil"),
    "device": member("Task/evil", tarfile.CHRTYPE),
    "block device": member("Task/evil", tarfile.BLKTYPE),
    "pipe": member("Task/evil", tarfile.FIFOTYPE),
}


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
def test_evil_members_of_a_tar_are_refused(tmp_path, target, evil):
    (tmp_path / "secret").write_bytes(b"secret")
    pack_tar(tmp_path / "evil.tar", CONTENT, evil)
    before = everything_below(tmp_path)
    with pytest.raises(UserError, match=r"evil\.tar: '.*evil'"):
        extract_dataset(tmp_path / "evil.tar", target)
    assert everything_below(tmp_path) == before
    assert not Path("/tmp/megavoxel-evil").exists()


def test_a_symlink_cannot_carry_a_later_file_out(tmp_path, target):
    content = {**CONTENT, "Task/way/evil": b"x"}
    with tarfile.open(tmp_path / "evil.tar", "w") as packed:
        packed.addfile(member("Task/way", tarfile.SYMTYPE, "../../.."))
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match="is a link to"):
        extract_dataset(tmp_path / "evil.tar", target)
    assert everything_below(tmp_path) == ["deep", "deep/target", "evil.tar"]


@pytest.mark.parametrize(("kind", "to"), [(tarfile.SYMTYPE, "a.nii.gz"), (tarfile.LNKTYPE, "Task/imagesTr/a.nii.gz")])
def test_a_link_inside_the_archive_becomes_a_copy(tmp_path, target, kind, to):
    extract_dataset(pack_tar(tmp_path / "links.tar", CONTENT, member("Task/imagesTr/b.nii.gz", kind, to)), target)
    copy = target / "imagesTr/b.nii.gz"
    assert copy.read_bytes() == b"image" * 5000
    assert not copy.is_symlink()
    assert copy.stat().st_nlink == 1


@pytest.mark.parametrize("name", ["../evil", "/tmp/megavoxel-evil", "Task/../../evil", "..\\evil"])
def test_evil_names_in_a_zip_are_refused(tmp_path, target, name):
    with pytest.raises(UserError, match="leads out"):
        extract_dataset(pack_zip(tmp_path / "evil.zip", {**CONTENT, name: b"x"}), target)
    assert everything_below(tmp_path) == ["deep", "deep/target", "evil.zip"]


@pytest.mark.parametrize("pack", [pack_tar, pack_zip])
@pytest.mark.parametrize(
    "names", [("Task/a", "Task/a/b"), ("Task/a/b", "Task/a"), ("Task/.",), ("Task/a/b/c", "Task/a")]
)
def test_a_name_of_a_file_and_of_a_folder_is_refused(tmp_path, target, pack, names):
    archive = pack(tmp_path / "odd.archive", {"Task/dataset.json": b"{}"} | dict.fromkeys(names, b"x"))
    with pytest.raises(UserError, match=r"odd\.archive: '\w+' is the name of a file in it and of a folder"):
        extract_dataset(archive, target)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_file_without_a_name_is_refused(tmp_path, target, kind):
    archive = tmp_path / "odd.archive"
    if kind == "tar":
        pack_tar(archive, {"Task/dataset.json": b"{}", "": b"x"})
    else:
        with zipfile.ZipFile(archive, "w") as source:
            source.writestr("x", b"x")
            source.filelist[0].filename = ""  # zipfile itself refuses to write such a name
    with pytest.raises(UserError, match=r"odd\.archive: a file in it has no name"):
        extract_dataset(archive, target)


def test_a_symlink_in_a_zip_is_refused(tmp_path, target):
    with zipfile.ZipFile(pack_zip(tmp_path / "evil.zip", CONTENT), "a") as packed:
        link = zipfile.ZipInfo("Task/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="'Task/link' is a link"):
        extract_dataset(tmp_path / "evil.zip", target)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 5])


def garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


COMPRESSED = ["small.tar.gz", "small.tar.bz2", "small.tar.xz", "small.zip"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [("plain.tar", cut), *((name, damage) for name in COMPRESSED for damage in (cut, garble))],
)
def test_a_damaged_archive_is_named(tmp_path, target, name, damage: Callable[[Path], None]):
    noise = {"Task/imagesTr/n.nii.gz": bytes((n * n * 7919 >> 5) % 256 for n in range(20000))}
    path = (pack_zip if name.endswith("zip") else pack_tar)(tmp_path / name, {**noise, **CONTENT})
    damage(path)
    with pytest.raises(UserError, match=rf"{name}: .*truncated"):
        extract_dataset(path, target)
    assert list(target.iterdir()) == []


def test_an_encrypted_zip_is_named(tmp_path, target):
    path = pack_zip(tmp_path / "locked.zip", {"dataset.json": b"{}"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"'dataset\.json' is encrypted"):
        extract_dataset(path, target)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"a/b": b"x"}, r"no dataset\.json"), ({"a/dataset.json": b"", "b/dataset.json": b""}, r"several .*\(a, b\)")],
)
def test_none_or_several_datasets_are_refused(tmp_path, target, content, message):
    with pytest.raises(UserError, match=message):
        extract_dataset(pack_tar(tmp_path / "some.tar", content), target)
    assert list(target.iterdir()) == []


def test_something_else_than_an_archive_is_named(tmp_path, target):
    (tmp_path / "page.tar").write_text("<html>sign in first</html>")
    with pytest.raises(UserError, match="neither a tar nor a zip"):
        extract_dataset(tmp_path / "page.tar", target)


def test_a_full_disk_is_passed_up(tmp_path, target, monkeypatch):
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive_module.shutil, "copyfileobj", fill)
    with pytest.raises(OSError, match="No space left"):
        extract_dataset(pack_tar(tmp_path / "some.tar", CONTENT), target)
    assert list(target.iterdir()) == []


@pytest.fixture
def small_bounds(monkeypatch):
    """Archives may unpack to a tenth of a megabyte, or to 100 times their own length, 10 times by links."""
    monkeypatch.setattr(archive_module, "LEAST_ALLOWED", 100_000)


def fault(archive: Path, target: Path) -> str:
    """The one line by which an archive is refused; nothing is left of it."""
    with pytest.raises(UserError) as caught:
        extract_dataset(archive, target)
    assert "\n" not in str(caught.value)
    assert not list(target.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("name", ["small.tar.gz", "small.tar.bz2", "small.tar.xz"])
@pytest.mark.usefixtures("small_bounds")
def test_a_tar_that_unpacks_to_much_more_than_its_length_is_refused(tmp_path, target, name):
    for place in ("Task/imagesTr/a.nii", "Task/.hidden", "Task/folder/"):
        archive = pack_tar(tmp_path / name, {"Task/dataset.json": b"{}", place: bytes(10**6)})
        assert "unpacks to more than datasets do (100 times its own length" in fault(archive, target)


@pytest.mark.usefixtures("small_bounds")
def test_what_lies_behind_the_end_of_a_tar_counts(tmp_path, target):
    inside = pack_tar(tmp_path / "plain.tar", CONTENT).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(inside + bytes(3 * 10**6)))
    assert "at 'what lies behind its end'" in fault(tmp_path / "a.tar.gz", target)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.usefixtures("small_bounds")
def test_a_zip_that_unpacks_to_much_more_than_its_length_is_refused(tmp_path, target, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("Task/dataset.json", "{}")
        archive.writestr("Task/a", bytes(10**6))
    assert "unpacks to more than datasets do" in fault(tmp_path / "a.zip", target)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_every_method_are_read(tmp_path, target, method):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
    extract_dataset(tmp_path / "a.zip", target)
    assert [str(path) for path in visible_files(target)] == EXPECTED
    assert (target / "imagesTr/a.nii.gz").read_bytes() == CONTENT["Task/imagesTr/a.nii.gz"]


@pytest.mark.parametrize("stated", [10, 10**5])
def test_a_part_of_bzip2_that_is_not_as_long_as_stated_is_refused(tmp_path, target, stated):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("Task/dataset.json", "{}")
        archive.writestr("Task/a", bytes(10**4))
    content = (tmp_path / "a.zip").read_bytes()
    assert content.count((10**4).to_bytes(4, "little")) == 2
    (tmp_path / "a.zip").write_bytes(content.replace((10**4).to_bytes(4, "little"), stated.to_bytes(4, "little")))
    assert f"has other than the {stated} bytes that are stated" in fault(tmp_path / "a.zip", target)


@pytest.mark.usefixtures("small_bounds")
def test_many_links_to_one_file_are_refused(tmp_path, target):
    links = [member(f"Task/link-{number}", tarfile.SYMTYPE, "file") for number in range(1000)]
    noise = np.random.default_rng(0).bytes(10_000)
    archive = pack_tar(tmp_path / "a.tar", {"Task/dataset.json": b"{}", "Task/file": noise}, *links)
    assert archive.stat().st_size < 10**6
    assert "10 times by links" in fault(archive, target)


def test_more_members_than_datasets_have_are_refused(tmp_path, target, monkeypatch):
    monkeypatch.setattr(archive_module, "MOST_MEMBERS", 3)
    assert "or 3 files)" in fault(pack_tar(tmp_path / "a.tar", CONTENT), target)


def sparse(size: int, *, is_extended: bool) -> bytes:
    """A tar archive of a file that is one hole, in the format of old GNU tars."""

    def number(value: int) -> bytes:
        return b"\x80" + value.to_bytes(11, "big")

    header = bytearray(tarfile.TarInfo("Task/imagesTr/a.nii").tobuf(tarfile.GNU_FORMAT)[:512])
    header[156:157], header[124:136] = tarfile.GNUTYPE_SPARSE, number(0)
    header[386:410], header[483:495] = number(size) + number(0), number(size)
    header[482] = is_extended
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("size", "is_extended", "words"),
    [
        (100 * 2**40, False, "unpacks to more than datasets do"),
        (5000, True, "pack it without --sparse"),
    ],
)
def test_holes_of_sparse_files_cost_no_disk(tmp_path, target, size, is_extended, words):
    start = pack_tar(tmp_path / "plain.tar", {"Task/dataset.json": b"{}"}).read_bytes()[:1024]
    (tmp_path / "a.tar").write_bytes(start + sparse(size, is_extended=is_extended) + bytes(1024))
    assert words in fault(tmp_path / "a.tar", target)


def test_a_small_hole_is_filled(tmp_path, target):
    start = pack_tar(tmp_path / "plain.tar", {"Task/dataset.json": b"{}"}).read_bytes()[:1024]
    (tmp_path / "a.tar").write_bytes(start + sparse(5000, is_extended=False) + bytes(1024))
    extract_dataset(tmp_path / "a.tar", target)
    assert (target / "imagesTr/a.nii").read_bytes() == bytes(5000)


def test_a_list_of_holes_in_the_format_of_pax_is_refused(tmp_path, target):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("Task/a")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18}
        info.size = 512
        archive.addfile(info, io.BytesIO(b"9" * 512))
    assert "pack it without --sparse" in fault(tmp_path / "a.tar", target)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path, target, kind):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = kind, 6 * 2**30
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    assert "a header claims 6442450944 bytes" in fault(tmp_path / "a.tar", target)


def test_an_archive_leaves_a_margin_of_the_disk_free(tmp_path, target, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=10**6, free=50_100)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    archive = pack_tar(tmp_path / "a.tar", {"Task/dataset.json": b"{}", "Task/a": bytes(99)})
    assert "unpacks to more than the disk has room for, at 'Task/a' with 99 bytes" in fault(archive, target)
    extract_dataset(pack_tar(tmp_path / "a.tar", {"Task/dataset.json": b"{}", "Task/a": bytes(98)}), target)


def test_a_tar_that_is_cut_between_two_members_is_refused(tmp_path, target):
    whole = pack_tar(tmp_path / "plain.tar", {"Task/dataset.json": b"{}", "Task/a": b"a", "Task/b": b"b"}).read_bytes()
    for length in (2048, 2048 + 100):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        assert "its end mark is missing" in fault(tmp_path / "cut.tar", target)


@pytest.mark.parametrize("order", [1, -1])
def test_links_to_links_are_followed_as_far_as_linux_does(tmp_path, target, order):
    def chain(length: int) -> Path:
        names = ["a.nii.gz", *(f"link-{number}" for number in range(length))]
        links = [member(f"Task/imagesTr/{name}", tarfile.SYMTYPE, to) for to, name in pairwise(names)]
        return pack_tar(tmp_path / "a.tar", CONTENT, *links[::order])

    assert "which is no file of the archive; pack the file itself" in fault(chain(1000), target)
    extract_dataset(chain(40), target)
    assert (target / "imagesTr/link-39").read_bytes() == CONTENT["Task/imagesTr/a.nii.gz"]
    assert not any(path.is_symlink() for path in target.rglob("*"))


@pytest.mark.parametrize(("place", "value"), [(6, 153), (10, 9)])  # version of the format, method of compression
def test_a_zip_that_cannot_be_read_here_says_what_to_do(tmp_path, target, place, value):
    path = pack_zip(tmp_path / "later.zip", CONTENT)
    content = bytearray(path.read_bytes())
    begin = content.index(b"PK\x01\x02") + place
    content[begin : begin + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    assert re.search(r"cannot be read here \(.+\); extract it and name its folder", fault(path, target))
