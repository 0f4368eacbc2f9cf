"""The workflow as a module of another one, as the Snakemake workflow catalogue deploys it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stage_server import programs

pytestmark = pytest.mark.slow

STUDY = {
    "study": "deployed",
    "dataset": "small.yaml",
    "folds": 2,
    "defaults": {
        "patch": [8, 16, 16], "batch": 2, "network": {"base_features": 4, "levels": 3},
        "training": {
            "epochs": 1, "iterations_per_epoch": 2, "validation_iterations": 1, "workers": 0, "precision": "float32",
        },
    },
    "settings": {"small": {}, "large": {"patch": [16, 16, 16]}},
    "ensembles": {"both": {"members": ["small", "large"]}},
}  # fmt: skip
DATASET = {
    "name": "small-phantom",
    "source": {"phantom": {"training_cases": 4, "test_cases": 1, "shape": [16, 28, 28]}},
}
MODULE = """\
configfile: "config/config.yaml"


module megavoxel:
    snakefile: "{snakefile}"
    config: config


use rule * from megavoxel


rule count:
    input:
        "results/deployed/scores.csv",
    output:
        "lines.txt",
    shell:
        "wc -l < {{input}} > {{output}}"
"""


def run(folder: Path, *words: object) -> str:
    """What Snakemake says in a folder with a workflow of its own."""
    done = subprocess.run(
        [programs() / "snakemake", "--cores", "2", *map(str, words)], cwd=folder, capture_output=True, text=True,
        check=False, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def cloned(repository: Path, source: Path) -> Path:
    """A Git repository of the checkout as it is, with the tag v1."""
    unneeded = (".git", ".venv", "results", "data", "state", "logs", ".snakemake", "images", "__pycache__")
    shutil.copytree(repository, source, symlinks=True, ignore=shutil.ignore_patterns(*unneeded))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "all"], ["tag", "v1"]):
        subprocess.run([*git, *words], cwd=source, check=True, capture_output=True)
    return source


@pytest.fixture
def project(tmp_path) -> Path:
    """The folder of a user: a study, a dataset file and nothing of the workflow."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(DATASET))
    (tmp_path / "workflow").mkdir()
    return tmp_path


def test_a_module_runs_to_its_report_and_its_files_are_inputs_of_other_rules(repository, project):
    (project / "workflow/Snakefile").write_text(MODULE.format(snakefile=repository / "workflow/Snakefile"))
    run(project)
    assert (project / "results/deployed/report/index.html").is_file()
    assert "Nothing to be done" in run(project, "-n")
    run(project, "lines.txt")
    assert int((project / "lines.txt").read_text()) > 10


def test_rules_of_a_module_can_have_a_prefix(repository, project):
    text = MODULE.format(snakefile=repository / "workflow/Snakefile")
    text = text.replace("use rule * from megavoxel", "use rule * from megavoxel as voxel_*")
    (project / "workflow/Snakefile").write_text(text)
    assert "voxel_train " in run(project, "voxel_all", "-n")


def test_rules_can_be_read_from_a_git_repository(repository, project):
    """As from GitHub: the package is that of the environment, the configuration that of the project."""
    source = cloned(repository, project / "source")
    module = MODULE.format(snakefile="SNAKEFILE").replace(
        '"SNAKEFILE"', f'gitfile("{source}", path="workflow/Snakefile", tag="v1")'
    )
    (project / "workflow/Snakefile").write_text(module)
    assert "train " in run(project, "-n")


def test_snakedeploy_makes_a_project_of_the_repository(repository, project):
    program = Path(os.environ.get("SNAKEDEPLOY") or shutil.which("snakedeploy") or "")
    if not program.is_file():
        pytest.skip("snakedeploy is not installed; SNAKEDEPLOY names its program")
    source = cloned(repository, project / "source")
    target = project / "deployed"
    target.mkdir()
    words = ["deploy-workflow", source, target, "--tag", "v1", "--name", "megavoxel"]
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (target / "config/config.yaml").is_file()
    # A hosted repository is named by address; of a local one, snakedeploy leaves the path for the user to complete.
    text = (target / "workflow/Snakefile").read_text()
    (target / "workflow/Snakefile").write_text(text.replace('"workflow/Snakefile"', f'"{source}/workflow/Snakefile"'))
    assert "train " in run(target, "-n")
