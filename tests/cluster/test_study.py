"""Two studies in one checkout by `snakemake --profile slurm`: a cascade, and every way of spreading a training job."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_of_user import check_out, finish, start_snakemake, study

CASCADE = study("cascade", {"plain": {}, "refined": {"folds": [0], "stage1": ["plain"]}})
SPREAD = study(
    "spread",
    {
        "pair": {"folds": [0], "parallel": {"data": 2}},
        "line": {"folds": [0], "parallel": {"pipeline": 2, "micro_batches": 2}},
        "grid": {"folds": [0], "parallel": {"data": 2, "pipeline": 2}},
        "whole": {"folds": [0], "patch": "whole", "batch": 1, "parallel": {"pipeline": 4}},
    },
)
SITE = {
    "all": {"slurm_partition": "cpu"},
    "gpu": {"slurm_partition": "gpu"},
    "options": {"slurm-init-seconds-before-status-checks": 5},
}


@pytest.fixture(scope="module")
def other_disk() -> Iterator[Path]:
    """A folder on another file system than the checkout."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def finished(cluster, other_disk, tmp_path_factory) -> Path:
    """The checkout of the two studies, which ran at the same time from the moment that their dataset was there.

    Their results lie on another file system, and others may not read what they make.
    """
    folder = check_out(tmp_path_factory.mktemp("study"), SITE)
    (folder / "results").symlink_to(other_disk)
    finish(start_snakemake(cluster, folder, SPREAD, "--until", "fetch", umask=0o027), folder / "spread.log")
    both = [
        (start_snakemake(cluster, folder, CASCADE, umask=0o027), CASCADE),
        (start_snakemake(cluster, folder, SPREAD, umask=0o027), SPREAD),
    ]
    for process, definition in both:
        finish(process, folder / f"{definition['study']}.log", minutes=40)
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        # Validation cases of `plain` and of `refined`, and the test case of both; of four settings two and one.
        ("cascade", 4 + 2 + 2),
        ("spread", 4 * (2 + 1)),
    ],
)
def test_a_study_reaches_its_report(finished, name, cases):
    results = finished / "results" / name
    assert (results / "report/index.html").stat().st_size > 0
    # 4 labels and 2 metrics
    assert len(read_csv(results / "scores.csv")) == 4 * 2 * cases


@pytest.mark.parametrize(("setting", "devices"), [("pair", 2), ("line", 2), ("grid", 4)])
def test_a_step_over_several_devices_is_that_of_one(finished, setting, devices):
    folder = finished / "results/spread" / setting / "fold-0"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["devices"] == devices
    expected = read_csv(finished / "results/cascade/plain/fold-0/history.csv")
    for ours, theirs in zip(read_csv(folder / "history.csv"), expected, strict=True):
        assert float(ours["training_loss"]) == pytest.approx(float(theirs["training_loss"]), abs=1e-4)


@pytest.mark.parametrize(
    ("setting", "nodes", "cpus", "memory", "gpus"),
    [
        ("plain", 1, 1, 5369, "TresPerJob=gres:gpu:pretended:1"),
        ("pair", 1, 2, 10738, "TresPerJob=gres:gpu:pretended:2"),
        ("line", 1, 2, 10738, "TresPerJob=gres:gpu:pretended:2"),
        ("grid", 2, 4, 10738, "TresPerNode=gres:gpu:pretended:2"),
    ],
)
def test_a_training_job_is_granted_what_its_plan_needs(finished, cluster, setting, nodes, cpus, memory, gpus):
    """By the controller's own record; memory is that of each node: 5 GiB for a process on a GPU without loaders."""
    jobs = cluster.run("scontrol", "--details", "--oneliner", "show", "job").splitlines()
    (job,) = [line for line in jobs if f"Comment=rule_train_wildcards_{setting}_0 " in line]
    assert f"NumNodes={nodes} " in job
    assert f"NumCPUs={cpus} " in job
    assert f"MinMemoryNode={memory}M " in job
    assert "Partition=gpu " in job
    assert gpus in job.split()


def test_whole_images_are_predicted_by_the_pipeline_of_training_over_its_nodes(finished, cluster):
    jobs = cluster.run("scontrol", "--details", "--oneliner", "show", "job").splitlines()
    for rule in ("predict_validation", "predict_test"):
        (job,) = [line for line in jobs if f"Comment=rule_{rule}_wildcards_whole" in line]
        assert "NumNodes=2 " in job
        assert "TresPerNode=gres:gpu:pretended:2" in job.split()


def test_what_jobs_make_has_the_permissions_that_the_user_asked_for(finished):
    made = [*(finished / "results").rglob("*"), *(finished / "state").rglob("*"), *(finished / "logs").rglob("*")]
    assert not [path for path in made if path.stat().st_mode & 0o027]


def test_nothing_is_kept_twice_where_results_lie_on_another_file_system(finished):
    assert not list((finished / "state").glob("*/*/predicted/**/*.nii.gz"))


def test_light_steps_are_no_jobs_and_test_scores_share_one_with_post_processing(finished, cluster):
    comments = cluster.run("squeue", "--states=all", "--noheader", "--format=%k")
    assert "rule_test_scores_" in comments
    for rule in ("fetch", "split", "plan", "postprocess", "evaluate_test", "collect_scores"):
        assert f"rule_{rule}" not in comments
