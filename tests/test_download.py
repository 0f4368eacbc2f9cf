"""Downloads go on where they stopped, and only what verifies is kept."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from file_server import Server, serving
from helpers import full_after
from megavoxel.config.source import Source
from megavoxel.datasets import download as download_module
from megavoxel.datasets.download import download
from megavoxel.errors import UserError
from megavoxel.progress import Progress


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(download_module, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(download_module, "PIECE_BYTES", 1000)
    monkeypatch.setattr(download_module, "LEAST_PROGRESS", 50)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(np.random.default_rng(0).bytes(20000)) as server:
        yield server


def bring(url: str, content: bytes, base: Path, algorithm: str = "sha256") -> None:
    """Downloads to `base`/downloads and compares with what is expected there afterwards."""
    source = Source(url=url, **{algorithm: hashlib.new(algorithm, content).hexdigest()})
    archive = download(source, base / "downloads")
    assert archive == base / "downloads" / "Task.tar"
    assert archive.read_bytes() == content
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_an_archive_is_downloaded_once(server, tmp_path, algorithm):
    bring(server.url, server.content, tmp_path, algorithm)
    bring(server.url, server.content, tmp_path, algorithm)
    assert server.ranges == [None]


def test_an_archive_of_another_checksum_is_replaced(server, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/Task.tar").write_bytes(b"an older release")
    bring(server.url, server.content, tmp_path)


def part(tmp_path: Path, content: bytes) -> None:
    """What an interrupted download left behind."""
    (tmp_path / "downloads").mkdir(parents=True)
    (tmp_path / "downloads/Task.tar.part").write_bytes(content)


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    part(tmp_path, server.content[:3000])
    bring(server.url, server.content, tmp_path)
    assert server.ranges == ["bytes=3000-"]
    assert server.statuses == [206]


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path):
    server.manner = "deaf"
    part(tmp_path, b"?" * 3000)
    bring(server.url, server.content, tmp_path)
    assert server.statuses == [200]


def test_a_complete_part_is_taken_as_it_is(server, tmp_path):
    part(tmp_path, server.content)
    bring(server.url, server.content, tmp_path)
    assert server.statuses == [416]


def test_a_part_that_is_too_long_starts_afresh(server, tmp_path):
    part(tmp_path, server.content + b"more")
    bring(server.url, server.content, tmp_path)
    assert server.statuses == [416, 200]


def test_another_range_than_asked_for_starts_afresh(server, tmp_path):
    server.manner = "wrong range"
    part(tmp_path, server.content[:3000])
    bring(server.url, server.content, tmp_path)
    assert server.statuses == [206, 200]


def test_a_broken_transfer_is_resumed_at_once(server, tmp_path):
    server.manner = "breaking"
    bring(server.url, server.content, tmp_path)
    assert len(server.content) > 5 * 3000
    assert server.ranges == [None, *(f"bytes={start}-" for start in range(3000, len(server.content), 3000))]


def test_a_transfer_that_gets_stuck_is_an_error_that_keeps_the_part(server, tmp_path):
    server.manner = "stuck"
    with pytest.raises(UserError, match=r"failed 4 times.*run the stage again to go on.*Task\.tar\.part"):
        bring(server.url, server.content, tmp_path)
    assert (tmp_path / "downloads/Task.tar.part").read_bytes() == server.content[:3000]
    server.manner = "ranges"
    bring(server.url, server.content, tmp_path)
    assert server.ranges == [None, *["bytes=3000-"] * 4]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.manner = "503"
    bring(server.url, server.content, tmp_path)
    assert server.statuses == [503, 503, 200]


def test_a_refusal_is_final(server, tmp_path):
    server.manner = "404"
    with pytest.raises(UserError, match=r"Task\.tar.*404"):
        bring(server.url, server.content, tmp_path)
    assert server.statuses == [404]


def test_a_host_that_cannot_be_reached_is_an_error_with_a_way_out(tmp_path):
    with pytest.raises(UserError, match=r"failed 4 times.*bring Task\.tar here by other means.*mirror"):
        bring("http://127.0.0.1:1/Task.tar", b"", tmp_path)


def test_a_wrong_checksum_removes_the_download(server, tmp_path):
    right = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(UserError, match=f"wrong SHA-256: expected {'0' * 64}, the file has {right}"):
        download(Source(url=server.url, sha256="0" * 64), tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []
    bring(server.url, server.content, tmp_path)


def test_a_damaged_part_is_found_by_the_checksum(server, tmp_path):
    part(tmp_path, b"?" * 3000)
    with pytest.raises(UserError, match="wrong SHA-256"):
        bring(server.url, server.content, tmp_path)
    bring(server.url, server.content, tmp_path)
    assert server.statuses == [206, 200]


def test_an_address_without_a_file_name_is_an_error(tmp_path):
    with pytest.raises(UserError, match="ends in no file name"):
        bring("http://127.0.0.1:1/", b"", tmp_path)


def test_a_full_disk_in_the_middle_of_a_download_is_passed_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Progress, "advance", full_after(5, Progress.advance))
    with pytest.raises(OSError, match="No space left"):
        bring(server.url, server.content, tmp_path)
    assert server.statuses == [200], "a full disk is no reason to ask again"


def test_what_came_before_a_transfer_broke_is_kept_however_little(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "PIECE_BYTES", 2**20)
    server.manner = "breaking"
    bring(server.url, server.content, tmp_path)
    assert server.ranges[:3] == [None, "bytes=3000-", "bytes=6000-"]


@pytest.mark.parametrize("manner", ["dripping", "a byte"])
def test_a_server_that_sends_next_to_nothing_is_given_up(server, tmp_path, monkeypatch, manner):
    monkeypatch.setattr(download_module, "TIMEOUT_SECONDS", (1, 0.2))
    server.manner = manner
    with pytest.raises(UserError, match="the download failed 4 times"):
        bring(server.url, server.content, tmp_path)
    assert len(server.ranges) == 4


def disk(monkeypatch, free: int) -> None:
    """A small disk with so many bytes free, beside the margin that is left on it."""
    usage = shutil.disk_usage("/")._replace(total=20_000, free=free + 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)


def test_a_server_without_end_is_left_when_the_disk_has_its_margin_left(server, tmp_path, monkeypatch):
    disk(monkeypatch, 55_000)
    server.manner = "endless"
    with pytest.raises(UserError, match=r"Task\.tar.*more comes than .* has room for"):
        bring(server.url, server.content, tmp_path)
    assert (tmp_path / "downloads/Task.tar.part").stat().st_size <= 55_000


def test_a_file_for_which_the_disk_has_no_room_is_not_begun(server, tmp_path, monkeypatch):
    disk(monkeypatch, 19_999)
    with pytest.raises(UserError, match=r"0\.0 MB are to come, and .* has room for 0\.0 MB"):
        bring(server.url, server.content, tmp_path)
    assert not (tmp_path / "downloads/Task.tar.part").exists()
    disk(monkeypatch, 20_000)
    bring(server.url, server.content, tmp_path)


def test_a_file_that_a_server_calls_packed_is_kept_as_it_is(server, tmp_path):
    server.manner = "packed"
    bring(server.url, server.content, tmp_path)


def test_plain_http_without_a_checksum_is_said(server, tmp_path, capsys):
    download(Source(url=server.url, checksum="unpublished"), tmp_path / "downloads")
    assert "warning: http://127.0.0.1" in (said := capsys.readouterr().out)
    assert "plain http does not show whether the file was changed on its way" in said
    bring(server.url.replace("files", "others"), server.content, tmp_path / "checked")
    assert "warning" not in capsys.readouterr().out
