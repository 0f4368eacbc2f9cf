"""docs/tutorial.md: every command of it, in order, on a made folder in nnU-Net's raw layout."""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_layouts import CASES, link, make_phantoms, nnunet_raw

BRIEF = {"epochs: 20": "epochs: 1", "iterations_per_epoch: 50": "iterations_per_epoch: 2"}
BRIEF |= {"validation_iterations: 5": "validation_iterations: 1", "base_features: 16": "base_features: 4"}
STUDY = "config/studies/abdomen.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def commands(repository) -> list[str]:
    """The shell commands of the page, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (repository / "docs/tutorial.md").read_text(), re.DOTALL | re.MULTILINE)
    return "".join(blocks).replace("\\\n", "").splitlines()


@pytest.fixture(scope="module")
def clone(repository, tmp_path_factory) -> Path:
    """What a clone has of files to run, and in the home folder beside it the scans that the page speaks of."""
    folder = tmp_path_factory.mktemp("tutorial")
    for part in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(repository / part, folder / "clone" / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "Snakefile", folder / "clone")
    phantoms = make_phantoms(folder)
    nnunet_raw(phantoms, folder / "home/data", channels=1)
    for image in (phantoms / "imagesTs").iterdir():
        link(image, folder / "home/data/new-scans" / image.name)
    return folder / "clone"


def run(command: str, clone: Path) -> str:
    """What a command prints; Python and megavoxel are those that run the tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "HOME": str(clone.parent / "home"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(clone / "workflow"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def shorten(clone: Path) -> None:
    """Training of two steps in place of a thousand."""
    text = (clone / STUDY).read_text()
    for usual, brief in BRIEF.items():
        assert usual in text
        text = text.replace(usual, brief)
    (clone / STUDY).write_text(text)


def test_every_command_of_the_tutorial_does_what_the_page_says(commands, clone):
    assert [command.split()[0] for command in commands[:2]] == ["megavoxel", "snakemake"]
    if importlib.util.find_spec("tensorboard") is None:
        commands = [command for command in commands if not command.startswith("megavoxel tensorboard")]
    shown = {}
    for number, command in enumerate(commands):
        shown[command] = run(command, clone)
        if number == 0:
            assert shown[command].endswith(f"\n  snakemake --configfile {STUDY}\n")
            shorten(clone)
    assert "small" in shown[f"snakemake plan --configfile {STUDY}"]
    assert "study abdomen: 1 runs: 1 done" in shown[f"megavoxel status --study {STUDY}"]
    assert "| small" in shown["cat results/abdomen/report/tables/summary.md"]
    scan = f"phantom_{CASES + 1:04d}"
    assert {path.name for path in (clone / "predicted").iterdir()} == {
        f"{scan}.nii.gz",
        f"{scan}.png",
        "prediction.json",
    }
    with (clone / "results/abdomen/scores.csv").open() as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"validation"}
    assert (clone / "data/abdomen/imagesTr/phantom_0001_0000.nii.gz").is_symlink()
