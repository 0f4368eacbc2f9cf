"""Archives of strangers: nothing gets out of the folder, and damage is named."""

from __future__ import annotations

import errno
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

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
