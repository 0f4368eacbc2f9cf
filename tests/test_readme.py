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
    "requirements.lock", "requirements-hashed.lock", "requirements-peers.lock", "requirements-docs.lock", "README.md",
    "LICENSE",
)  # fmt: skip
IN_A_CLONE = ("git clone ADDRESS megavoxel && cd megavoxel", "make setup", "make lint")
"""Commands that a test of their own runs in a clone."""
DRY = (
    "make demo",
    "make test",
    "make fuzz",
    "make bench",
    "make docs",
    "snakemake -n",
    "snakemake --configfile",
    "snakemake --profile",
)
"""Commands that are asked what they would do, by `-n`."""
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
    (folder / "demo.yaml").write_text(yaml.safe_dump(demo))
    done = run(folder, "snakemake --cores 2 --configfile demo.yaml")
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
        if command == ". .venv/bin/activate" or command in IN_A_CLONE:
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
    """With the packages that are there: `make setup` finds them installed after the files that they follow from."""
    assert set(IN_A_CLONE) <= set(commands(repository / "README.md"))
    cloned, *made = IN_A_CLONE
    done = run(tmp_path, f"bash -c '{cloned.replace('ADDRESS', str(repository))} && pwd'")
    assert done.returncode == 0, done.stderr
    clone = tmp_path / "megavoxel"
    assert done.stdout.strip() == str(clone)
    (clone / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".installed":
            (clone / ".venv" / part.name).symlink_to(part)
    (clone / ".venv/.installed").touch()
    for command in made:
        done = run(clone, command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert not run(clone, "git status --porcelain").stdout


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
