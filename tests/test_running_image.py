"""What a run says of the image that it is in, and of the commit of its code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from megavoxel.containers.lock import running_image
from megavoxel.files import file_sha256
from megavoxel.training.manifest import commit_of


@pytest.fixture
def inside(tmp_path, monkeypatch) -> Path:
    """The image that this process is told it runs in."""
    image = tmp_path / "containers/images/cpu.sif"
    image.parent.mkdir(parents=True)
    image.write_text("cpu")
    (tmp_path / "labels.json").write_text('{"sources": "abc"}')
    monkeypatch.setattr("megavoxel.containers.lock.LABELS", tmp_path / "labels.json")
    monkeypatch.setenv("APPTAINER_CONTAINER", str(image))
    return image


def test_a_run_names_the_image_it_is_in_and_the_sources_of_that(inside, monkeypatch):
    assert running_image() == {"image": "cpu.sif", "sha256": file_sha256(inside), "sources": "abc"}
    monkeypatch.delenv("APPTAINER_CONTAINER")
    assert running_image() is None
    monkeypatch.setenv("SINGULARITY_CONTAINER", "/not/seen/other.sif")
    monkeypatch.setattr("megavoxel.containers.lock.LABELS", inside)
    assert running_image() == {"image": "other.sif", "sha256": None, "sources": None}


def test_a_run_in_an_image_of_another_digest_than_the_lock_says_is_warned_of(inside, tmp_path, capsys):
    lock = tmp_path / "containers/images.lock"
    running_image()
    assert not capsys.readouterr().out
    said = {}
    for digest in (file_sha256(inside), "other"):
        lock.write_text(yaml.safe_dump({"cpu.sif": {"bytes": 3, "sha256": digest}}))
        running_image()
        said[digest] = capsys.readouterr().out
    assert not said[file_sha256(inside)]
    assert said["other"].startswith(f"warning: {inside} is not the file that images.lock describes")


def test_a_broken_lock_does_not_end_a_run(inside, tmp_path, capsys):
    (tmp_path / "containers/images.lock").write_text("[")
    assert running_image()["image"] == "cpu.sif"
    assert "images.lock: cannot be read" in capsys.readouterr().out


def test_a_commit_does_not_count_as_changed_by_the_lock_of_images(tmp_path):
    def git(*words: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "workflow/megavoxel"
    files = [tmp_path / "containers/images.lock", tmp_path / "containers/megavoxel.def", package / "a.py"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git("init")
    git("add", "--all")
    git("commit", "--message", "all")
    committed = commit_of(package)
    assert re.fullmatch(r"[0-9a-f]{40}", committed)
    files[0].write_text("2")
    assert commit_of(package) == committed
    files[1].write_text("2")
    assert commit_of(package) == f"{committed}+changes"
