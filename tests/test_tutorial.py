"""docs/tutorial.md and docs/how-to: every command, in order, on a made folder in nnU-Net's layout and on phantoms."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from dataset_layouts import CASES, link, make_phantoms, nnunet_raw, training_pairs
from pages import blocks_of, environment, follow, is_typed, run, write
from stage_server import programs

BRIEF = {"epochs: 20": "epochs: 1", "iterations_per_epoch: 50": "iterations_per_epoch: 2"}
BRIEF |= {"validation_iterations: 5": "validation_iterations: 1", "base_features: 16": "base_features: 4"}
STUDY = "config/studies/abdomen.yaml"
NOT_CLONED = ("__pycache__", "images", "wheels", "images.lock", "site.yaml", "hardware.local.yaml")
FILES = ("Snakefile", "pyproject.toml", "requirements.lock", "requirements-hashed.lock", "LICENSE", "README.md")
HOW_TO = (
    "own-splits", "several-scans", "test-set", "multi-modal-mri", "class-weights", "constant-learning-rate", "two-gpus",
    "several-nodes", "add-a-gpu", "container-mirror",
)  # fmt: skip
"""Pages whose commands are dry runs and short stages, whatever was run before."""
CALIBRATION = "megavoxel calibrate our-card\n"
"""What a page tells to call on a machine with a GPU."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def commands(repository) -> list[str]:
    """The shell commands of the page, continued lines joined."""
    typed = [block.text for block in blocks_of(repository / "docs/tutorial.md") if is_typed(block)]
    return "".join(typed).replace("\\\n", "").splitlines()


@pytest.fixture(scope="module")
def clone(repository, tmp_path_factory) -> Path:
    """What a clone has of files to run, and in the home folder beside it the scans that the page speaks of."""
    folder = tmp_path_factory.mktemp("tutorial")
    for part in ("workflow", "config", "profiles", "envs", "slurm", "containers"):
        shutil.copytree(repository / part, folder / "clone" / part, ignore=shutil.ignore_patterns(*NOT_CLONED))
    for name in FILES:
        shutil.copy(repository / name, folder / "clone")
    phantoms = make_phantoms(folder)
    nnunet_raw(phantoms, folder / "home/data", channels=1)
    for image in (phantoms / "imagesTs").iterdir():
        link(image, folder / "home/data/new-scans" / image.name)
    return folder / "clone"


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
        shown[command] = run(command, clone, own_code=True)
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
        f"{scan}.volumes.json",
        "prediction.json",
        "volumes.csv",
    }
    with (clone / "results/abdomen/scores.csv").open() as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"validation"}
    assert (clone / "data/abdomen/imagesTr/phantom_0001_0000.nii.gz").is_symlink()


@pytest.fixture(scope="module")
def small_phantoms(clone) -> Path:
    """The clone, with phantoms that are quickly made: as many, and smaller."""
    file = clone / "config/datasets/phantom.yaml"
    text = file.read_text()
    assert "shape: [40, 64, 64]" in text
    file.write_text(text.replace("shape: [40, 64, 64]", "shape: [16, 28, 28]"))
    return clone


@pytest.fixture(scope="module")
def brain(clone) -> Path:
    """MR images of the home folder: a folder per patient, with a file per channel and a label map."""
    folder = clone.parent / "home/data/brain"
    for number, (image, label) in enumerate(training_pairs(clone.parent / "Task07_Abdomen"), start=1):
        case = f"patient-{number:02d}"
        for name in ("t1", "flair"):
            link(image, folder / case / f"{case}_{name}.nii.gz")
        link(label, folder / case / f"{case}_seg.nii.gz")
    return folder


@pytest.fixture(scope="module")
def resumed(repository, small_phantoms) -> dict[str, str]:
    """docs/how-to/resuming.md, with the Ctrl-C that it asks for: what its commands print."""
    study, start, status, again = blocks_of(repository / "docs/how-to/resuming.md")
    write(study, small_phantoms)
    interrupted = interrupt(start.text, small_phantoms)
    return {"first": interrupted, "status": run(status.text, small_phantoms), "second": run(again.text, small_phantoms)}


def interrupt(command: str, clone: Path) -> str:
    """Presses Ctrl-C when training has said something of an epoch; what the command prints."""
    log = clone / "logs/resume/train/small-0.log"
    running = subprocess.Popen(
        ["bash", "-ec", command], cwd=clone, env=environment(clone, own_code=False), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not (log.is_file() and "epoch" in log.read_text()):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.02)
    # A terminal tells Snakemake and its job; here they are forks of a server, which no terminal reaches.
    for process in (*training_in(clone), running):
        process.send_signal(signal.SIGINT)
    said = running.communicate(timeout=120)[0]
    assert running.returncode != 0
    return said


def training_in(clone: Path) -> list[psutil.Process]:
    """The processes `megavoxel train` of a clone."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(clone) and str(programs() / "megavoxel") in (process.info["cmdline"] or ())
        and "train" in process.info["cmdline"]
    ]  # fmt: skip


def test_every_how_to_page_is_tested_and_named_by_the_readme(repository):
    pages = {path.stem for path in (repository / "docs/how-to").glob("*.md")}
    assert pages == {*HOW_TO, "resuming", "add-a-metric"}
    readme = (repository / "README.md").read_text()
    assert [page for page in pages if f"(docs/how-to/{page}.md)" not in readme] == []


@pytest.mark.parametrize("page", HOW_TO)
def test_the_commands_of_a_page_run_as_they_are_written(repository, small_phantoms, brain, page):
    blocks = [block for block in blocks_of(repository / f"docs/how-to/{page}.md") if block.text != CALIBRATION]
    said = follow(blocks, small_phantoms)
    SHOWN[page](said, small_phantoms / "results")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure the GPU here")
def test_the_calibration_of_the_page_is_refused_where_there_is_no_gpu(repository, small_phantoms):
    device, *_, calibration = blocks_of(repository / "docs/how-to/add-a-gpu.md")
    write(device, small_phantoms)
    assert calibration.text == CALIBRATION
    with pytest.raises(AssertionError, match="our-card is a device of kind gpu, and this would measure cpu"):
        follow([calibration], small_phantoms)


def splits(results: Path, study: str) -> list[dict]:
    """The folds of a study."""
    return json.loads((results / study / "splits.json").read_text())["folds"]


def jobs(said: str) -> set[str]:
    """The rules that the last dry run lists."""
    return set(re.findall(r"^(\w+) +\d+$", said.rsplit("Job stats:", maxsplit=1)[1], re.MULTILINE))


def shows_own_splits(said: str, results: Path) -> None:
    """The folds are those of the page, and the workflow keeps them."""
    first = [f"phantom_{number:04d}" for number in range(1, 7)]
    assert splits(results, "own-folds")[0]["training"] == first
    assert "phantom_0012" in said


def shows_several_scans(said: str, results: Path) -> None:
    """No patient is on both sides of a fold."""
    with (results.parent / "patients.csv").open() as file:
        patient = {row["case"]: row["patient"] for row in csv.DictReader(file)}
    folds = splits(results, "patients")
    assert len(folds) == 3
    assert all(
        {patient[case] for case in fold["training"]}.isdisjoint(patient[case] for case in fold["validation"])
        for fold in folds
    )


def shows_test_set(said: str, results: Path) -> None:
    """Three of twelve cases are in no fold."""
    divided = json.loads((results / "with-test/splits.json").read_text())
    assert len(divided["test"]) == 3
    assert len(divided["folds"][0]["training"]) + len(divided["folds"][0]["validation"]) == 9


def shows_mri(said: str, results: Path) -> None:
    """Both channels are those of the page, in its order."""
    cases = json.loads((results / "brain/cases.json").read_text())
    assert cases["channels"] == ["T1", "FLAIR"]


def shows_weights(said: str, results: Path) -> None:
    """The weights that were written by hand are in the plan."""
    plan = json.loads((results / "weights/by-hand/plan.json").read_text())
    assert plan["training"]["class_weights"] == [0.2, 1, 1, 1, 2]
    assert "by-voxels" in said


SHOWN = {
    "own-splits": shows_own_splits,
    "several-scans": shows_several_scans,
    "test-set": shows_test_set,
    "multi-modal-mri": shows_mri,
    "class-weights": shows_weights,
    "constant-learning-rate": lambda said, _: [said.index(name) for name in ("constant-low", "warm")],
    "two-gpus": lambda said, _: [said.index(name) for name in ("shared-batch", "shared-network", "large")],
    "several-nodes": lambda said, _: said.index("nodes=2"),
    "add-a-gpu": lambda said, _: said.index("our-card"),
    "container-mirror": lambda said, _: said.index("base_image"),
}
"""What is looked at after the commands of a page: what they print, and the folder of results."""


def test_a_study_that_was_interrupted_goes_on_as_the_page_says(resumed, small_phantoms):
    assert "interrupted" in resumed["status"]
    assert (small_phantoms / "results/resume/report/index.html").is_file()
    assert "1 done" in run("megavoxel status --study config/studies/resume.yaml", small_phantoms)


def test_the_metric_of_the_page_is_computed_and_known_to_a_study(repository, resumed, small_phantoms):
    said = follow(blocks_of(repository / "docs/how-to/add-a-metric.md"), small_phantoms, own_code=True)
    with (small_phantoms / "similarities.csv").open() as file:
        assert {row["metric"] for row in csv.DictReader(file)} == {"DSC", "VS"}
    assert "report" in said
