"""Models as containers: what is written, and the one command inside. Real images: tests/cluster/test_containers.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megavoxel.containers.lock import source_files
from megavoxel.errors import UserError
from megavoxel.models.container import write_container


def little_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.json").write_text("{}")


@pytest.fixture
def container(tmp_path) -> Path:
    write_container(little_model, tmp_path / "kidneys")
    return tmp_path / "kidneys"


def test_a_container_has_the_model_and_all_that_its_images_are_built_from(container, repository):
    names = {path.name for path in container.iterdir()}
    assert names == {"model", "sources", "model.def", "Dockerfile", "label", "README.md"}
    package = repository / "workflow/megavoxel"
    wanted = {path.relative_to(repository) for path in source_files(repository)} | {
        Path("workflow/megavoxel/schemas") / path.name for path in (package / "schemas").iterdir()
    }
    found = {path.relative_to(container / "sources") for path in (container / "sources").rglob("*") if path.is_file()}
    assert found == wanted | {Path("README.md"), Path("LICENSE")}
    assert not [path for path in container.rglob("*") if path.is_symlink()]
    definition, dockerfile = (container / "model.def").read_text(), (container / "Dockerfile").read_text()
    copied = re.findall(r"^(?:COPY|   ) (\S+) /opt/\w+$", definition + dockerfile, re.MULTILINE)
    assert {"model", "label", "sources"} == set(copied)
    for name in re.findall(r"/opt/megavoxel/(\S+)", dockerfile):
        assert (container / "sources" / name).is_file()
    assert "docker build --tag kidneys ." in (container / "README.md").read_text()


def test_an_installed_package_cannot_write_a_container(tmp_path):
    with pytest.raises(UserError, match=r"takes model\.def and the sources from a checkout"):
        write_container(little_model, tmp_path / "out", checkout=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs sh")
def test_the_command_inside_labels_one_folder_into_another(container, tmp_path):
    program = tmp_path / "bin/megavoxel"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    def label(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [container / "label", *words], env=environment, capture_output=True, text=True, check=False
        )

    done = label("my scans", "out", "--pictures")
    assert done.stdout == "predict|--model|/opt/model|--input|my scans|--output|out|--pictures|"
    done = label("scans")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: SCANS LABELS")
