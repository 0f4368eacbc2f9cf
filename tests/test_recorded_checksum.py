"""Archives without a published checksum: the first one counts, and every later one is held to it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from file_server import serving
from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.source import Source
from megavoxel.datasets.fetch import fetch
from megavoxel.errors import UserError


def archive(folder: Path, content: str) -> bytes:
    """A tar file with a dataset.json of that content."""
    made = folder / "made"
    made.mkdir(exist_ok=True)
    (made / "dataset.json").write_text(content)
    with tarfile.open(folder / "made.tar", "w") as packed:
        packed.add(made, "Task")
    return (folder / "made.tar").read_bytes()


@pytest.fixture
def first(tmp_path) -> bytes:
    return archive(tmp_path, "{}")


@pytest.fixture
def second(tmp_path, first) -> bytes:
    return archive(tmp_path, '{"release": 2}')


def bring(url: str, base: Path, *, name: str = "some", **options: object) -> str:
    dataset = Dataset(name=name, source=Source(url=url, checksum="unpublished"))
    return fetch(dataset, base / "data" / name, downloads=base / "data/downloads", **options)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_checksum_is_recorded_beside_the_folder_and_beside_the_archive(tmp_path, first, capsys):
    with serving(first) as server:
        bring(server.url, tmp_path)
    assert (tmp_path / "data/archives.tsv").read_text() == f"url\tsha256\n{server.url}\t{sha256(first)}\n"
    assert "no checksum is published" in capsys.readouterr().out
    check = ["sha256sum", "--check", "--strict", "Task.tar.sha256"]
    found = subprocess.run(check, cwd=tmp_path / "data/downloads/some", capture_output=True, text=True, check=True)
    assert found.stdout == "Task.tar: OK\n"


def test_the_same_archive_is_accepted_again_after_all_downloads_were_removed(tmp_path, first, capsys):
    with serving(first) as server:
        bring(server.url, tmp_path)
        shutil.rmtree(tmp_path / "data/downloads")
        shutil.rmtree(tmp_path / "data/some")
        bring(server.url, tmp_path)
        assert len(server.ranges) == 2
        bring(server.url, tmp_path)
        assert len(server.ranges) == 2, "the third time, the archive is there already"
    assert capsys.readouterr().out.count("no checksum is published") == 1
    assert (tmp_path / "data/some/dataset.json").is_file()


def test_another_archive_is_refused_with_both_checksums_and_a_way_out(tmp_path, first, second):
    with serving(first) as server:
        bring(server.url, tmp_path)
        shutil.rmtree(tmp_path / "data/downloads")
        server.content = second
        with pytest.raises(UserError) as caught:
            bring(server.url, tmp_path)
        records = tmp_path / "data/archives.tsv"
        for words in (
            f"expected {sha256(first)}",
            f"the file has {sha256(second)}",
            f"remove the line of .* {records}",
        ):
            assert caught.match(words)
        assert (tmp_path / "data/some/dataset.json").read_text() == "{}", "the older folder stays"
        assert not (tmp_path / "data/downloads/some/Task.tar").exists()
        records.write_text("url\tsha256\n")
        bring(server.url, tmp_path)
    assert (tmp_path / "data/some/dataset.json").read_text() == '{"release": 2}'
    assert sha256(second) in records.read_text()


def test_a_changed_archive_among_the_downloads_is_fetched_again(tmp_path, first, second):
    with serving(first) as server:
        bring(server.url, tmp_path)
        (tmp_path / "data/downloads/some/Task.tar").write_bytes(second)
        bring(server.url, tmp_path)
        assert len(server.ranges) == 2
    assert (tmp_path / "data/some/dataset.json").read_text() == "{}"


def test_datasets_of_one_address_share_the_record_and_others_have_their_own(tmp_path, first, second):
    with serving(first) as server, serving(second) as other:
        bring(server.url, tmp_path, name="one")
        bring(other.url, tmp_path, name="two")
        server.content = second
        with pytest.raises(UserError, match="wrong SHA-256"):
            bring(server.url, tmp_path, name="three")
    assert len((tmp_path / "data/archives.tsv").read_text().splitlines()) == 3


def test_the_archive_in_a_mirror_is_recorded_and_held_to_the_record(tmp_path, first, second):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "Task.tar").write_bytes(first)
    bring("http://127.0.0.1:1/Task.tar", tmp_path, mirror=mirror)
    assert [path.name for path in mirror.iterdir()] == ["Task.tar"]
    (mirror / "Task.tar").write_bytes(second)
    with pytest.raises(UserError, match=rf"Task\.tar: wrong SHA-256: expected {sha256(first)}.*archives\.tsv"):
        bring("http://127.0.0.1:1/Task.tar", tmp_path, mirror=mirror)


def test_what_is_no_archive_is_not_recorded(tmp_path):
    with serving(b"<html>come back later</html>") as server, pytest.raises(UserError, match="neither a tar nor a zip"):
        bring(server.url, tmp_path)
    assert not (tmp_path / "data/archives.tsv").exists()


def test_a_damaged_file_of_records_is_refused(tmp_path, first):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/archives.tsv").write_text("something else\n")
    with (
        serving(first) as server,
        pytest.raises(UserError, match=r"archives\.tsv: expected the columns url and sha256"),
    ):
        bring(server.url, tmp_path)


def test_published_checksums_are_not_recorded(tmp_path, first):
    with serving(first) as server:
        source = Source(url=server.url, sha256=sha256(first))
        fetch(Dataset(name="some", source=source), tmp_path / "data/some", downloads=tmp_path / "data/downloads")
    assert not (tmp_path / "data/archives.tsv").exists()
    assert [path.name for path in (tmp_path / "data/downloads/some").iterdir()] == ["Task.tar"]


@pytest.mark.parametrize("keys", ["", f"checksum: unpublished, md5: {'0' * 32}", "checksum: none"])
def test_a_missing_checksum_must_be_said(tmp_path, keys):
    (tmp_path / "some.yaml").write_text(f"name: some\nsource: {{url: 'https://a.example/x.tar', {keys}}}\n")
    with pytest.raises(UserError, match="source"):
        load_dataset(tmp_path / "some.yaml")
