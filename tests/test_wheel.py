"""The package as a wheel: complete, and able to label a scan in an environment that has no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_layouts import make_phantoms
from exported import untrained_model
from megavoxel import __version__
from megavoxel.cli import main

COPIED = ("workflow/megavoxel", "workflow/schemas", "config/hardware.yaml", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    """A wheel of the working tree, made in a copy, since setuptools leaves files behind."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools, which builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source, target = repository / name, folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, target)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    return folder / f"megavoxel-{__version__}-py3-none-any.whl"


@pytest.mark.slow
def test_a_wheel_has_all_files_of_the_package(wheel, repository):
    package = repository / "workflow/megavoxel"
    there = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    there |= {f"megavoxel/schemas/{path.name}" for path in (package / "schemas").iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("megavoxel/")}
    assert packed == {name for name in there if "__pycache__" not in name}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An exported model whose network has not learnt anything."""
    return untrained_model(tmp_path_factory.mktemp("model"))


def test_a_card_says_how_to_get_the_program_that_reads_the_model(model):
    card = (model / "README.md").read_text()
    wheel = f"megavoxel-{__version__}-py3-none-any.whl"
    assert f"megavoxel {__version__}, for Python 3.11 to 3.13" in card
    assert "in a checkout of commit 0123456789ab makes the" in card
    assert f"\n    megavoxel/bin/pip install {wheel}\n" in card
    assert f"`pipx run --spec {wheel} megavoxel predict …`" in card


@pytest.mark.slow
def test_an_installed_wheel_labels_scans_as_the_checkout_does(wheel, model, tmp_path):
    place = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place, wheel]
    subprocess.run(install, check=True)
    scan = np.random.default_rng(0).normal(size=(20, 18, 12)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(scan, np.diag([2.0, 2.0, 2.5, 1.0])), tmp_path / "scan.nii.gz")
    options = ["--model", str(model), "--input", str(tmp_path / "scan.nii.gz"), "--device", "cpu", "--threads", "1"]
    assert main(["predict", *options, "--output", str(tmp_path / "ours")]) == 0
    environment = {**os.environ, "PYTHONPATH": str(place)}
    run = partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    where = run([sys.executable, "-c", "import megavoxel; print(megavoxel.__file__)"])
    assert where.stdout.strip() == str(place / "megavoxel/__init__.py")
    run([sys.executable, "-m", "megavoxel", "predict", *options, "--output", "theirs", "--pictures"])
    assert (tmp_path / "theirs/scan.nii.gz").read_bytes() == (tmp_path / "ours/scan.nii.gz").read_bytes()
    assert (tmp_path / "theirs/volumes.csv").is_file()
    program = [place / "bin/megavoxel", "--version"]
    assert run(program).stdout.strip() == __version__


def test_init_brings_the_devices_that_are_known_where_there_is_no_checkout(tmp_path, monkeypatch, repository, capsys):
    phantoms = make_phantoms(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["init", str(phantoms), "--gpu", "rtx-3090", "--processes", "1"]) == 0
    assert "written: config/hardware.yaml, the devices that are known\n" in capsys.readouterr().out
    assert Path("config/hardware.yaml").read_bytes() == (repository / "config/hardware.yaml").read_bytes()
