"""A change of a finished study runs again what it changes, and nothing else: each change by its jobs."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

import stand_in
from stage_server import programs, write_program
from workflow_runs import snakemake

pytestmark = pytest.mark.slow

DATASET = {
    "name": "small-phantom",
    "source": {"phantom": {"training_cases": 6, "test_cases": 2, "shape": [16, 28, 28]}},
    "nsd_tolerance_mm": 1.0,
}
STUDY: dict[str, Any] = {
    "study": "tiny",
    "dataset": "small.yaml",
    "hardware": "box",
    "folds": 2,
    "baseline": "a",
    "defaults": {"patch": [8, 16, 16], "network": {"base_features": 4, "levels": 3}},
    "settings": {
        "a": {"batch": 2},
        "b": {"batch": 2, "patch": [16, 16, 16]},
        "c": {"batch": 2, "training": {"learning_rate": 0.02}},
        "one": {"batch": 2, "folds": [0]},
        "spread": {"batch": 2, "parallel": {"accumulate": 2}},
        "open": {},
    },
    "ensembles": {"three": {"members": ["a", "b", "c"]}},
}
HARDWARE = {"devices": {"box": {"kind": "cpu", "memory_gib": 8, "cpus_per_job": 1}}}
COPIED = (
    "Snakefile", "workflow/Snakefile", "workflow/rules", "workflow/report", "profiles", "envs", "containers", "config",
)  # fmt: skip
Jobs = set[str]


class Finished:
    """A study that was run to its end; a dry run says what a change would run."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder, self.study, self.dataset, self.hardware = folder, *map(copy.deepcopy, (STUDY, DATASET, HARDWARE))
        self.root = folder / "checkout"
        (self.root / "workflow").mkdir(parents=True)
        for name in COPIED:
            copied = shutil.copytree if (repository / name).is_dir() else shutil.copy
            copied(repository / name, self.root / name)
        (self.root / "workflow/megavoxel").symlink_to(repository / "workflow/megavoxel")
        self.program = folder / "bin/snakemake"
        self.program.parent.mkdir()
        (folder / "lib").symlink_to(programs().parent / "lib")
        shutil.copy(programs() / "snakemake", self.program)
        (folder / "bin/python").symlink_to(programs() / "python")
        text = stand_in.TEXT.format(python=Path(sys.executable).resolve(), megavoxel=str(programs() / "megavoxel"))
        write_program(folder / "bin/megavoxel", text)

    def run(self, *options: str, dataset: str = "small.yaml") -> str:
        """What Snakemake says of the study as it is set now."""
        (self.folder / dataset).write_text(yaml.safe_dump(self.dataset))
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump({**self.study, "dataset": dataset}, sort_keys=False))
        (self.root / "config/hardware.yaml").write_text(yaml.safe_dump(self.hardware))
        done = snakemake(self.root, self.folder, "--configfile", "tiny.yaml", *options, program=self.program)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def jobs(self, **keys: str) -> Jobs:
        """The jobs of a dry run, as `rule setting fold`."""
        return jobs_of(self.run("-n", **keys))


def jobs_of(text: str) -> Jobs:
    """The jobs that a dry run prints, but for `all`, each with the values of its wildcards."""
    found: list[str] = []
    for line in text.splitlines():
        head = re.match(r" *(?:local)?(?:rule|checkpoint) (\w+):$", line)
        if head:
            found.append(head[1])
        elif line.strip().startswith("wildcards: "):
            values = dict(pair.partition("=")[::2] for pair in line.strip().removeprefix("wildcards: ").split(", "))
            order = ("setting", "model", "ensemble", "fold", "share")
            found[-1] = " ".join([found[-1], *(values[key] for key in order if key in values)])
    return {*found} - {"all"}


def predicted(setting: str, *folds: int, ensembles: bool = False) -> Jobs:
    suffix = "_for_ensembles" if ensembles else ""
    jobs = {f"predict_validation{suffix} {setting} {fold}" for fold in folds}
    return jobs | {f"predict_test{suffix} {setting} 0", f"collect_test{suffix} {setting}"}


def postprocessed(model: str) -> Jobs:
    names = ("postprocess_determine", "postprocess_apply", "evaluate_test")
    return {f"{name} {model}" for name in names}


def evaluated(model: str, *folds: int) -> Jobs:
    return {f"evaluate_validation {model} {fold}" for fold in folds}


REPORT = {"collect_scores", "report"}
AVERAGED = {"ensemble_validation three 0", "ensemble_validation three 1", "ensemble_test three"}
AVERAGED |= evaluated("ensembles/three", 0, 1) | postprocessed("ensembles/three")


@pytest.fixture(scope="module")
def made(repository, tmp_path_factory) -> Finished:
    study = Finished(repository, tmp_path_factory.mktemp("study"))
    study.run()
    return study


@pytest.fixture
def finished(made) -> Finished:
    """The finished study, as it was run; a test changes its keys, and dry-runs it."""
    made.study, made.dataset, made.hardware = map(copy.deepcopy, (STUDY, DATASET, HARDWARE))
    return made


def test_a_finished_study_has_nothing_to_do(finished):
    assert finished.jobs() == set()


def test_words_of_a_dataset_file_run_nothing(finished):
    finished.dataset |= {"description": "Other words.", "licence": "CC0", "reference": "a paper"}
    assert finished.jobs() == set()


def test_a_tolerance_runs_scores_and_report(finished):
    finished.dataset["nsd_tolerance_mm"] = 2.0
    folds = {name: (0,) if name == "one" else (0, 1) for name in [*STUDY["settings"], "ensembles/three"]}
    scored = {f"evaluate_test {name}" for name in folds} | {
        job for name, own in folds.items() for job in evaluated(name, *own)
    }
    assert finished.jobs() == scored | REPORT


def test_another_name_of_the_dataset_file_runs_nothing(finished):
    assert finished.jobs(dataset="other.yaml") == set()


def test_a_moved_checkout_runs_nothing(finished, tmp_path):
    root = finished.root
    shutil.copytree(root, tmp_path / "elsewhere", symlinks=True)
    finished.root = tmp_path / "elsewhere"
    jobs = finished.jobs()
    finished.root = root
    assert jobs == set()


def test_timing_that_is_added_is_measured_and_reported(finished):
    finished.study["timing"] = True
    timed = {f"time_prediction {name} 0" for name in STUDY["settings"]}
    assert finished.jobs() == timed | {"collect_timings", "report"}


def test_a_sweep_that_is_added_is_reported(finished):
    finished.study["sweeps"] = {"patch": {"title": "Patch", "points": {"small": "a", "large": "b"}}}
    assert finished.jobs() == {"report"}


def test_an_ensemble_that_is_removed_leaves_scores_and_report(finished):
    del finished.study["ensembles"]
    assert finished.jobs() == REPORT


def test_a_member_that_is_removed_leaves_the_ensemble(finished):
    finished.study["ensembles"]["three"]["members"] = ["a", "b"]
    assert finished.jobs() == AVERAGED | REPORT


def test_an_ensemble_and_its_members_that_are_removed_leave_scores_and_report(finished):
    del finished.study["ensembles"], finished.study["settings"]["b"]
    assert finished.jobs() == REPORT


@pytest.mark.parametrize("key", ["memory_gib", "teraflops", "overhead_gib", "cpus_per_job", "host_memory_mb"])
def test_the_device_runs_nothing_where_plans_exist(finished, key):
    values = {"teraflops": {"float32": 0.01}, "overhead_gib": 0.5, "memory_gib": 16, "host_memory_mb": 32000}
    finished.hardware["devices"]["box"][key] = values.get(key, 2)
    assert finished.jobs() == set()


def test_postprocess_runs_post_processing(finished):
    finished.study["settings"]["one"]["postprocess"] = False
    assert finished.jobs() == postprocessed("one") | REPORT


def test_the_step_of_inference_runs_prediction(finished):
    finished.study["settings"]["one"]["inference"] = {"step": 0.7}
    assert finished.jobs() == (
        {"plan_setting one"} | predicted("one", 0) | evaluated("one", 0) | postprocessed("one") | REPORT
    )


def test_a_fold_that_is_added_is_trained_alone(finished):
    finished.study["settings"]["one"]["folds"] = [0, 1]
    new = {"train one 1", "predict_validation one 1", "predict_test one 0", "collect_test one"}
    assert finished.jobs() == new | evaluated("one", 1) | postprocessed("one") | REPORT


def test_a_member_that_is_edited_runs_itself_and_the_ensemble(finished):
    finished.study["settings"]["b"]["training"] = {"epochs": 7}
    own = {"plan_setting b", "plan_training b", "train b 0", "train b 1"} | predicted("b", 0, 1, ensembles=True)
    assert finished.jobs() == own | evaluated("b", 0, 1) | postprocessed("b") | AVERAGED | REPORT


def test_shards_run_nothing(finished):
    finished.study["shards"] = 3
    assert finished.jobs() == set()


def test_a_setting_that_is_planned_as_before_runs_nothing_behind_its_plan(finished):
    finished.study["settings"]["a"]["memory_gib"] = 12.0  # its patch and batch are given
    assert finished.jobs() == set()


def test_an_edit_of_training_runs_the_setting(finished):
    finished.study["settings"]["spread"]["training"] = {"epochs": 7}
    own = {"plan_setting spread", "plan_training spread", "train spread 0", "train spread 1"} | predicted(
        "spread", 0, 1
    )
    assert finished.jobs() == own | evaluated("spread", 0, 1) | postprocessed("spread") | REPORT


def test_a_setting_that_is_added_runs_alone(finished):
    finished.study["settings"]["new"] = {"batch": 2, "folds": [1]}
    own = {"plan_setting new", "plan_training new", "train new 1"} | predicted("new", 1)
    assert finished.jobs() == own | evaluated("new", 1) | postprocessed("new") | REPORT


def test_after_a_change_is_run_there_is_nothing_to_do(finished):
    finished.study["settings"]["one"] = {"batch": 2, "folds": [0], "inference": {"step": 0.6}}
    finished.run()
    assert finished.jobs() == set()
    del finished.study["settings"]["one"]["inference"]
    finished.run()
    assert finished.jobs() == set()


@pytest.mark.parametrize("key", [{"accumulate": 1}, {"data": 2}, {"checkpointing": "blocks"}])
def test_another_way_of_running_a_finished_setting_runs_nothing(finished, key):
    finished.study["settings"]["spread"]["parallel"] = key
    assert finished.jobs() == set()


def test_an_unfinished_setting_is_planned_for_its_new_way_of_running(finished):
    finished.study["settings"]["spread"]["parallel"] = {"data": 2}
    model = finished.folder / "results/tiny/spread/fold-0/model.pt"
    model.rename(model.with_name("elsewhere"))
    jobs = finished.jobs()
    model.with_name("elsewhere").rename(model)
    assert {"plan_setting spread", "plan_training spread", "train spread 0"} < jobs


def test_cases_that_are_added_run_once(finished):
    """The last test: the study has other cases then."""
    finished.dataset["source"]["phantom"]["training_cases"] = 7
    assert "train one 0" in finished.jobs()
    finished.run()
    assert finished.jobs() == set()
    finished.study["settings"]["a"]["memory_gib"] = 12.0
    assert finished.jobs() == set()


@pytest.mark.parametrize(("cases", "jobs"), [(40, 21), (360, 23)])
def test_the_jobs_of_a_cluster_do_not_grow_with_the_cases(repository, tmp_path, cases, jobs):
    dataset = {"name": "many", "source": {"phantom": {"training_cases": cases // 2, "test_cases": cases // 2}}}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(dataset))
    study = {"study": "one", "dataset": "many.yaml", "folds": 5, "settings": {"only": {"patch": [16, 32, 32]}}}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(study))
    done = snakemake(repository, tmp_path, "--configfile", "one.yaml", "-n")
    submitted = Counter(re.findall(r"(?m)^ *rule (\w+):$", done.stdout + done.stderr))
    together = [submitted.pop(name) for name in ("postprocess_determine", "postprocess_apply", "evaluate_test")]
    assert together == [1, 1, 1]  # one group
    rules = "".join(path.read_text() for path in (repository / "workflow").glob("**/*.smk"))
    local = {name for names in re.findall(r"localrules:\n((?: +\w+,\n)+)", rules) for name in re.findall(r"\w+", names)}
    local -= {"evaluate_validation", "report"}  # only of classification
    assert sum(count for name, count in submitted.items() if name not in {*local, "all"}) + 1 == jobs
