"""Every command of the README runs, in order, in a checkout: for real where that takes seconds, else as a dry run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megavoxel.cli import main
from stage_server import programs

CHECKED_OUT = (
    "Snakefile", "workflow", "profiles", "slurm", "envs", "containers", "Makefile", "pyproject.toml",
    "requirements.lock", "requirements-hashed.lock", "requirements-peers.lock", "requirements-optional.lock",
    "requirements-docs.lock", "README.md", "LICENSE",
)  # fmt: skip
IN_A_CLONE = {
    "make setup": "",
    "make lint": "",
    "make test-quick": "PYTEST_ADDOPTS=tests/test_csv_files.py",
    "make test": "PYTEST_ADDOPTS=tests/test_csv_files.py",
    "make test-gpu": "",
    "make fuzz": "FILES=15",
    "make bench": "PROGRAMS=phantom",
}
"""Commands that run in a clone, and by what they do less there; all tests are those that call this one."""
CLONED = "git clone ADDRESS megavoxel && cd megavoxel"
BY_CI = ("make docs", "make test-slurm")
"""Commands that need packages of their own: CI installs them."""
DRY = ("snakemake -n", "snakemake --configfile", "snakemake --profile")
"""Commands that are asked what they would do, by `-n`; `test_tutorial.py` and `tests/cluster` run such for real."""
NAMES = {
    "/path/to/kidneys": "kidneys",
    "results/kidneys/default": "results/demo/large-patch",
    "/path/to/scans": "data/phantom/imagesTs",
    "PREDICTIONS REFERENCES": "results/demo/large-patch/test data/phantom/labelsTs",
    "snakemake tables --configfile my/study.yaml": "snakemake tables --configfile demo.yaml",
}
"""What stands for something of the reader's own, and what is taken for it here."""

pytestmark = pytest.mark.slow


def commands(page: Path) -> list[str]:
    """The lines that a reader is to type, in order and without their comments."""
    text = page.read_text().replace("\\\n", "")
    lines = re.findall(r"(?m)^    ((?:git|make|megavoxel|snakemake|\.) .*)$", text)
    return [re.sub(r"\s+#.*", "", line) for line in lines]


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory) -> Path:
    """A checkout with the files that the README shows, labelled images, and the demo, trained for a step."""
    folder = tmp_path_factory.mktemp("readme")
    for name in CHECKED_OUT:
        (folder / name).symlink_to(repository / name)
    shutil.copytree(repository / "config", folder / "config")
    phantom = ["--training-cases", "3", "--test-cases", "1", "--seed", "1", "--shape", "16", "28", "28"]
    assert main(["phantom", *phantom, "--output", str(folder / "kidneys")]) == 0
    (folder / "my").mkdir()
    blocks = re.findall(r"```yaml\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    for name, block in zip(("study", "kidneys"), blocks, strict=True):
        (folder / "my" / f"{name}.yaml").write_text(block.replace("/path/to/kidneys", str(folder / "kidneys")))
    demo = yaml.safe_load((repository / "config" / "config.yaml").read_text())
    del demo["settings"]["small-patch"], demo["ensembles"], demo["baseline"]
    demo["defaults"]["training"] |= {"epochs": 1, "iterations_per_epoch": 1, "validation_iterations": 1}
    for name in ("demo.yaml", "config/config.yaml"):
        (folder / name).write_text(yaml.safe_dump(demo))
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(programs())
    (folder / ".venv/.installed").touch()
    done = run(folder, "make demo")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def run(folder: Path, command: str) -> subprocess.CompletedProcess:
    """A command as it is typed after `. .venv/bin/activate`."""
    path = os.pathsep.join([str(programs()), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        shlex.split(command), cwd=folder, capture_output=True, text=True, check=False, timeout=1000,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_every_command_of_the_readme_runs(repository, checkout):
    typed = commands(repository / "README.md")
    assert len(typed) > 15
    for line in typed:
        command = line
        if command in (". .venv/bin/activate", CLONED, "make demo", *IN_A_CLONE, *BY_CI):
            continue
        for name, meant in NAMES.items():
            command = command.replace(name, meant)
        command += " -n" if command.startswith(DRY) else ""
        done = run(checkout, command)
        if "--sdm apptainer" in command:
            # A checkout in which `snakemake images` was not called.
            assert "build it first, without --sdm apptainer: snakemake images" in done.stderr
        else:
            assert done.returncode == 0, f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_clone_is_set_up_and_checked(repository, tmp_path):
    """With the packages that are there: `make` finds them installed after the files that they follow from."""
    assert {CLONED, "make demo", *IN_A_CLONE, *BY_CI} <= set(commands(repository / "README.md"))
    done = run(tmp_path, f"bash -c '{CLONED.replace('ADDRESS', str(repository))} && pwd'")
    assert done.returncode == 0, done.stderr
    clone = tmp_path / "megavoxel"
    assert done.stdout.strip() == str(clone)
    (clone / ".venv").mkdir()
    made = (".installed", ".peers", ".optional")
    for part in Path(sys.prefix).iterdir():
        if part.name not in made:
            (clone / ".venv" / part.name).symlink_to(part)
    for name in made:
        (clone / ".venv" / name).touch()
    for command, less in IN_A_CLONE.items():
        done = run(clone, f"{command} {less}")
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert re.fullmatch(r"(.. benchmarks/results/\S+\n)?", run(clone, "git status --porcelain").stdout)


def test_ci_runs_what_needs_packages_of_its_own(repository):
    called = (repository / ".ci/run").read_text().splitlines()
    assert all(any(line.startswith(command) for line in called) for command in BY_CI)


def test_what_the_readme_says_a_command_leaves_is_there(checkout):
    assert (checkout / "results/demo/report/index.html").is_file()
    assert (checkout / "config/studies/kidneys.yaml").is_file()
    assert len(list((checkout / "predicted").glob("*.nii.gz"))) == 1
    assert (checkout / "bundle/configs/metadata.json").is_file()


@pytest.mark.parametrize("page", ["README.md", "containers/README.md", *[f"docs/{name}.md" for name in ("hpc", "faq")]])
def test_links_of_a_page_lead_to_files(repository, page):
    links = re.findall(r"\]\((?!http)([^)#\s]+)", (repository / page).read_text())
    for link in links:
        assert (repository / page).parent.joinpath(link).exists(), f"{page}: {link}"
