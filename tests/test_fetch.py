"""Fetching: folders are linked, downloads go on where they stopped, and the output is whole or absent."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from file_server import serving
from helpers import full_after
from megavoxel.cli import main
from megavoxel.config.dataset import Dataset
from megavoxel.config.source import Phantom, Source
from megavoxel.datasets import phantom as phantom_module
from megavoxel.datasets.fetch import fetch
from megavoxel.datasets.folder import visible_files
from megavoxel.errors import UserError

FILES = ["dataset.json", "imagesTr/a.nii.gz", "labelsTr/a.nii.gz"]


@pytest.fixture
def source(tmp_path) -> Path:
    """A dataset folder `mirror/some` with a hidden file in it."""
    folder = tmp_path / "mirror" / "some"
    generator = np.random.default_rng(0)
    for name in (*FILES, "imagesTr/._a.nii.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(generator.bytes(5000))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "one"}}))
    return folder


@pytest.fixture
def archive(source, tmp_path) -> Path:
    """The same as `archives/Task.tar`."""
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / "Task.tar", "w") as packed:
        packed.add(source, "Task")
    return tmp_path / "archives" / "Task.tar"


def listing(folder: Path) -> list[str]:
    return [path.as_posix() for path in visible_files(folder)]


def of_folder(folder: object, **keys: str) -> Dataset:
    return Dataset(name="some", source=Source(folder=str(folder)), **keys)


def of_url(url: str, archive: Path, **checksums: str) -> Dataset:
    checksums = checksums or {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    return Dataset(name="some", source=Source(url=url, **checksums))


def bring(dataset: Dataset, base: Path, **options: object) -> str:
    return fetch(dataset, base / "data" / "some", downloads=base / "downloads", **options)


def test_a_folder_is_linked_file_by_file(source, tmp_path):
    message = bring(of_folder(source), tmp_path)
    made = tmp_path / "data" / "some"
    assert listing(made) == ["checksums.tsv", *FILES]
    assert (made / "imagesTr/a.nii.gz").readlink() == source / "imagesTr/a.nii.gz"
    assert not (made / "dataset.json").is_symlink()
    assert str(source) in message


def test_checksums_name_every_file(source, tmp_path):
    bring(of_folder(source), tmp_path)
    lines = (tmp_path / "data/some/checksums.tsv").read_text().splitlines()
    expected = ["file\tbytes\tsha256"]
    for name in FILES:
        content = (source / name).read_bytes()
        expected.append(f"{name}\t{len(content)}\t{hashlib.sha256(content).hexdigest()}")
    assert lines == expected


def test_a_folder_can_be_copied(source, tmp_path):
    bring(of_folder(source), tmp_path, copy=True)
    made = tmp_path / "data/some/imagesTr/a.nii.gz"
    assert not made.is_symlink()
    assert made.read_bytes() == (source / "imagesTr/a.nii.gz").read_bytes()


def test_a_relative_folder_is_looked_for_in_the_mirror_then_here(source, tmp_path, monkeypatch):
    (tmp_path / "work" / "some").mkdir(parents=True)
    (tmp_path / "work" / "some" / "dataset.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "work")
    bring(of_folder("some"), tmp_path, mirror=Path("../mirror"))
    assert (tmp_path / "data/some/imagesTr/a.nii.gz").readlink() == source / "imagesTr/a.nii.gz"
    bring(of_folder("some"), tmp_path)
    assert listing(tmp_path / "data/some") == ["checksums.tsv", "dataset.json"]


def test_a_missing_folder_says_where_was_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mirror").mkdir()
    with pytest.raises(UserError) as caught:
        bring(of_folder("absent"), tmp_path, mirror=tmp_path / "mirror")
    for words in (f"{tmp_path}/mirror/absent", f"{tmp_path}/absent", "--config mirror=DIR", "--mirror DIR"):
        assert words in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_missing_mirror_is_an_error(source, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        bring(of_folder(source), tmp_path, mirror=tmp_path / "nowhere")


def test_a_folder_with_a_name_that_no_file_has_is_not_found(tmp_path):
    with pytest.raises(UserError, match="its source folder was not found"):
        bring(of_folder("x" * 300), tmp_path)


def test_linked_folders_are_followed_but_not_in_circles(source, tmp_path):
    (source / "imagesTs").symlink_to(source / "imagesTr")
    (source / "imagesTr" / "circle").symlink_to(source)
    bring(of_folder(source), tmp_path)
    assert "imagesTs/a.nii.gz" in listing(tmp_path / "data/some")
    assert not any("circle" in name for name in listing(tmp_path / "data/some"))


@pytest.mark.parametrize("output", ["mirror/some", "mirror", "mirror/some/inner"])
def test_an_output_that_would_destroy_the_source_is_refused(source, tmp_path, output):
    with pytest.raises(UserError, match="lie in each other"):
        fetch(of_folder(source), tmp_path / output, downloads=tmp_path / "downloads")
    assert listing(source) == FILES


def test_a_folder_made_by_hand_is_not_replaced_but_an_older_fetch_is(source, tmp_path):
    made = tmp_path / "data" / "some"
    made.mkdir(parents=True)
    (made / "mine.nii.gz").write_bytes(b"mine")
    with pytest.raises(UserError, match="megavoxel did not make"):
        bring(of_folder(source), tmp_path)
    assert listing(made) == ["mine.nii.gz"]
    (made / "mine.nii.gz").unlink()
    bring(of_folder(source), tmp_path)
    (source / "imagesTr/a.nii.gz").unlink()
    bring(of_folder(source), tmp_path)
    assert listing(made) == ["checksums.tsv", "dataset.json", "labelsTr/a.nii.gz"]


def test_phantoms_are_made(tmp_path):
    phantom = Phantom(training_cases=2, test_cases=1, shape=(16, 16, 16))
    bring(Dataset(name="some", source=Source(phantom=phantom)), tmp_path)
    made = listing(tmp_path / "data/some")
    assert len(made) == 2 * 3 + 2
    assert "labelsTs/phantom_0003.nii.gz" in made
    assert json.loads((tmp_path / "data/some/dataset.json").read_text())["name"] == "some"


def test_the_archive_in_the_mirror_comes_first(archive, source, tmp_path):
    message = bring(of_url("http://127.0.0.1:1/Task.tar", archive), tmp_path, mirror=archive.parent)
    assert str(archive) in message
    assert listing(tmp_path / "data/some") == ["checksums.tsv", *FILES]
    assert (tmp_path / "data/some/imagesTr/a.nii.gz").read_bytes() == (source / "imagesTr/a.nii.gz").read_bytes()
    assert archive.is_file()


def test_a_wrong_archive_in_the_mirror_is_an_error_and_stays(archive, tmp_path):
    dataset = of_url("http://127.0.0.1:1/Task.tar", archive, md5="0" * 32)
    with pytest.raises(UserError, match=r"Task\.tar: wrong MD5: expected 0{32}, the file has [0-9a-f]{32}"):
        bring(dataset, tmp_path, mirror=archive.parent)
    assert archive.is_file()
    assert not (tmp_path / "data").exists()


def test_the_folder_in_the_mirror_comes_second(archive, source, tmp_path):
    message = bring(of_url("http://127.0.0.1:1/Task.tar", archive), tmp_path, mirror=source.parent)
    assert message == f"links to {source}"


def test_a_full_disk_in_the_middle_of_phantoms_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "some.yaml").write_text("name: some\nsource: {phantom: {training_cases: 3, shape: [16, 16, 16]}}\n")
    monkeypatch.setattr(phantom_module, "write_nifti", full_after(3, phantom_module.write_nifti))
    options = ["--dataset", str(tmp_path / "some.yaml"), "--output", str(tmp_path / "data/some")]
    assert main(["fetch", *options]) == 1
    assert "no space left on the disk" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_a_full_disk_in_the_middle_of_an_archive_keeps_the_older_folder(archive, source, tmp_path, monkeypatch):
    bring(of_folder(source), tmp_path)
    before = (tmp_path / "data/some/checksums.tsv").read_bytes()
    monkeypatch.setattr("shutil.copyfileobj", full_after(1, shutil.copyfileobj))
    with pytest.raises(OSError, match="No space left"):
        bring(of_url("http://127.0.0.1:1/Task.tar", archive), tmp_path, mirror=archive.parent)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["some"]
    assert (tmp_path / "data/some/checksums.tsv").read_bytes() == before


def test_the_stage_fetches_a_shipped_dataset_from_a_mirror(repository, real_data, tmp_path, capsys):
    options = ["--dataset", str(repository / "config/datasets/chaos-mr.yaml"), "--output", str(tmp_path / "chaos-mr")]
    assert main(["fetch", *options, "--mirror", str(real_data)]) == 0
    assert len(listing(tmp_path / "chaos-mr")) == 2 * 16 + 2
    assert "chaos_mr_t2" in capsys.readouterr().out


def test_an_archive_is_downloaded_verified_and_extracted(archive, source, tmp_path):
    with serving(archive.read_bytes()) as server:
        dataset = of_url(server.url, archive)
        message = bring(dataset, tmp_path, mirror=tmp_path)
        assert listing(tmp_path / "data/some") == ["checksums.tsv", *FILES]
        assert (tmp_path / "data/some/imagesTr/a.nii.gz").read_bytes() == (source / "imagesTr/a.nii.gz").read_bytes()
        assert listing(tmp_path / "downloads") == ["some/Task.tar"]
        assert "may be deleted" in message
        bring(dataset, tmp_path)
        assert server.ranges == [None], "the second time, the archive is there already"


def test_a_wrong_checksum_leaves_no_output(archive, tmp_path):
    with serving(archive.read_bytes()) as server, pytest.raises(UserError, match=r"Task\.tar.*: wrong SHA-256"):
        bring(of_url(server.url, archive, sha256="0" * 64), tmp_path)
    assert not (tmp_path / "data").exists()
    assert listing(tmp_path / "downloads") == []
