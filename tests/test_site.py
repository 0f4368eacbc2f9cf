"""slurm/site.yaml as `snakemake --profile slurm` takes it: dry runs, which need no Slurm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stage_server import programs

SITE = {
    "all": {"slurm_account": "lab", "slurm_partition": "all"},
    "gpu": {"slurm_partition": "gpu", "gpu_model": "a100", "constraint": "ib"},
}
DEVICES = {"gpu-node": {"kind": "gpu", "memory_gib": 40, "most_devices": 4, "devices_per_node": 2}}
STUDY = {
    "study": "site",
    "dataset": "phantom",
    "hardware": "gpu-node",
    "folds": 2,
    "timing": {"repeats": 1},
    "defaults": {"patch": [16, 32, 32], "batch": 4, "network": {"base_features": 4, "levels": 3}},
    "settings": {
        "plain": {"folds": [0]},
        "pair": {"folds": [0], "parallel": {"data": 2}},
        "nodes": {"folds": [0], "parallel": {"data": 4}},
        "whole": {"folds": [0], "patch": "whole", "batch": 1, "parallel": {"pipeline": 4}},
        "tiles": {"folds": [0], "patch": "whole", "batch": 1, "parallel": {"space": [1, 2, 2]}},
    },
    "ensembles": {"both": {"members": ["plain", "pair"]}},
}
GPU_RULES = {
    "train", "predict_validation", "predict_validation_for_ensembles", "predict_test", "predict_test_for_ensembles",
    "time_prediction",
}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory) -> Path:
    """What a dry run reads of a checkout, with a site's file and a device of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("workflow", "config", "slurm", "profiles", "envs", "containers"):
        ignored = shutil.ignore_patterns("images", "wheels", "site.yaml", "__pycache__")
        shutil.copytree(repository / name, folder / name, symlinks=True, ignore=ignored)
    shutil.copy(repository / "Snakefile", folder)
    hardware = yaml.safe_load((folder / "config/hardware.yaml").read_text())
    hardware["devices"] |= DEVICES
    (folder / "config/hardware.yaml").write_text(yaml.safe_dump(hardware))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return folder


def dry_run(checkout: Path, site: dict | str, *arguments: str) -> subprocess.CompletedProcess:
    """`snakemake --profile slurm -n` at a site."""
    text = site if isinstance(site, str) else yaml.safe_dump(site)
    (checkout / "slurm/site.yaml").write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [programs() / "snakemake", "--profile", "slurm", "-n", *arguments],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def jobs_of(done: subprocess.CompletedProcess) -> list[tuple[str, str, dict[str, str]]]:
    """Rule, setting and resources of each job of a dry run."""
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    jobs = []
    for name, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", text, flags=re.MULTILINE):
        setting = re.search(r"wildcards: .*?\bsetting=([\w-]+)", block)
        resources = re.search(r"resources: (.*)", block)[1].split(", ")
        jobs.append((name, setting[1] if setting else "", dict(word.partition("=")[::2] for word in resources)))
    return jobs


@pytest.fixture(scope="module")
def printed(checkout) -> subprocess.CompletedProcess:
    """The study at the site, with the commands of its jobs."""
    return dry_run(checkout, SITE, "-p", "--configfile", "study.yaml")


@pytest.fixture(scope="module")
def jobs(printed) -> list[tuple[str, str, dict[str, str]]]:
    """All jobs of the study at the site."""
    return jobs_of(printed)


def devices_of(done: subprocess.CompletedProcess) -> set[str]:
    """Devices that the commands of a dry run name, of jobs that train or predict."""
    commands = re.findall(r"^.*megavoxel (?:train|predict|time) --plan .*$", done.stdout + done.stderr, re.MULTILINE)
    assert len(commands) > 6
    return {re.search(r" --device (\w+) ", command)[1] for command in commands}


def test_jobs_on_gpus_name_them_unless_the_study_is_tried_on_the_processor(checkout, printed):
    assert devices_of(printed) == {"cuda"}
    tried = dry_run(checkout, SITE, "-p", "--configfile", "study.yaml", "--config", "device=cpu")
    assert devices_of(tried) == {"cpu"}
    assert sorted(map(str, jobs_of(tried))) == sorted(map(str, jobs_of(printed)))


def test_what_the_site_has_for_gpus_goes_to_all_jobs_on_gpus_and_to_no_other(jobs):
    assert {name for name, _, resources in jobs if resources["slurm_partition"] == "gpu"} == GPU_RULES
    for name, _, resources in jobs:
        on_gpu = resources.get("gpu", "0") != "0" or "gres" in resources
        assert on_gpu == (name in GPU_RULES)
        assert resources["slurm_partition"] == ("gpu" if on_gpu else "all")
        assert resources.get("constraint") == ("ib" if on_gpu else None)
        assert resources["slurm_account"] == "lab"


def test_a_study_on_the_cpu_asks_for_no_gpu(checkout):
    for name, _, resources in jobs_of(dry_run(checkout, SITE)):
        assert resources["slurm_partition"] == "all", name
        assert resources.get("gpu", "0") == "0"
        assert "gpu_model" not in resources


def test_the_sites_name_of_a_gpu_is_asked_for_on_one_node_and_on_several(jobs):
    training = {setting: resources for name, setting, resources in jobs if name == "train"}
    assert (training["pair"]["gpu"], training["pair"]["gpu_model"]) == ("2", "a100")
    assert (training["nodes"]["nodes"], training["nodes"]["gres"]) == ("2", "gpu:a100:2")
    assert "gpu_model" not in training["nodes"]


@pytest.mark.parametrize("setting", ["whole", "tiles"])
def test_a_prediction_of_whole_images_takes_the_nodes_that_training_takes(jobs, setting):
    whole = {name: resources for name, found, resources in jobs if found == setting and name in GPU_RULES}
    assert set(whole) == {"train", "predict_validation", "predict_test", "time_prediction"}
    for resources in whole.values():
        assert [resources[key] for key in ("nodes", "tasks", "mpi", "gres")] == ["2", "2", "srun", "gpu:a100:2"]


def test_a_scratch_folder_that_is_not_there_gives_way_to_the_systems(checkout, tmp_path):
    for folder, taken in ((tmp_path, str(tmp_path)), ("/proc/nowhere/tmp", os.environ.get("TMPDIR", "/tmp"))):
        done = dry_run(checkout, {"scratch": str(folder)})
        assert {resources["tmpdir"] for _, _, resources in jobs_of(done)} - {"<TBD>"} == {taken}


def test_jobs_run_where_the_scratch_folder_cannot_be_made(checkout):
    dry_run(checkout, {"scratch": "/proc/nowhere/tmp", "options": {"executor": "local", "cores": 1}})
    command = [programs() / "snakemake", "--profile", "slurm", "--until", "fetch"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("site", "named"),
    [
        ("all: cpu", "all: expected a mapping, found 'cpu'"),
        ("- all", "expected a mapping of keys to values, found list"),
        ("all: [", "cannot be read as YAML"),
        ("gpu: {constraint: [ib]}", "gpu.constraint: ['ib'] is not allowed; a text or number"),
        ("partition: gpu", "partition: unknown key 'partition'; allowed: all, gpu, options, scratch"),
        (
            "all: {slurm_acount: lab}",
            "all.slurm_acount: neither Snakemake nor its Slurm plugin knows this resource (did",
        ),
        ("all: {gpu_model: a100}", "all.gpu_model: neither Snakemake nor its Slurm plugin knows this resource"),
        ("all: {mem_mb: 4 GB}", "all.mem_mb: '4 GB' is not allowed; whole MB"),
        ("gpu: {runtime: '1-00:00'}", "gpu.runtime: '1-00:00' is not allowed; minutes as a whole number, or a text"),
        ("gpu: {ask_by: gpu}", "gpu.ask_by: 'gpu' is not allowed; gpus or gres"),
        ("gpu: {slurm_partition: 7}", "gpu.slurm_partition: 7 is not allowed; a text, in quotes"),
        ("options: {slurm-requeu: true}", "options.slurm-requeu: neither Snakemake nor its Slurm plugin has an option"),
        ("options: {jbos: 200}", "options.jbos: neither Snakemake nor its Slurm plugin has an option --jbos (did you"),
        (
            "options: {jobs: many}",
            "options.jobs: 'many' is not allowed; Snakemake cannot read it (Error parsing",
        ),
        ("options: {latency-wait: 1 min}", "options.latency-wait: '1 min' is not allowed; Snakemake cannot read it"),
    ],
)
def test_a_wrong_site_file_is_told_in_one_line(checkout, site, named):
    done = dry_run(checkout, site)
    assert done.returncode != 0
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("Using profiles")]
    assert line.startswith(f"Error: slurm/site.yaml: {named}")


@pytest.mark.parametrize(("asked", "named"), [("all", "predict_test"), ("preprocess, train", "train")])
def test_arrays_of_jobs_that_ask_for_different_things_are_refused(checkout, asked, named):
    words = ("--configfile", "study.yaml")
    by_site = dry_run(checkout, SITE | {"options": {"slurm-array-jobs": asked}}, *words)
    by_user = dry_run(checkout, SITE, *words, "--slurm-array-jobs", asked)
    for done in (by_site, by_user):
        assert done.returncode != 0
        assert f"Error: slurm-array-jobs: jobs of {named} differ by setting" in done.stdout + done.stderr
    equal = dry_run(checkout, SITE | {"options": {"slurm-array-jobs": "preprocess,evaluate_validation"}}, *words)
    assert equal.returncode == 0, equal.stdout + equal.stderr


def test_a_site_that_knows_gres_alone_is_asked_by_it_for_all_devices(checkout):
    site = {**SITE, "gpu": {**SITE["gpu"], "ask_by": "gres"}}
    jobs = jobs_of(dry_run(checkout, site, "--configfile", "study.yaml"))
    training = {setting: resources for name, setting, resources in jobs if name == "train"}
    assert {name: training[name]["gres"] for name in ("plain", "pair", "nodes")} == {
        "plain": "gpu:a100:1", "pair": "gpu:a100:2", "nodes": "gpu:a100:2",
    }  # fmt: skip
    assert training["pair"]["nodes"] == "1"
    for resources in training.values():
        assert resources["slurm_partition"] == "gpu"
        assert not {"gpu", "gpu_model", "ask_by"} & set(resources)


def written_in(folder: Path) -> dict[Path, int]:
    """Files of a folder by the time of their last change, but for those that Python compiles, which need not be."""
    files = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {path: path.lstat().st_mtime_ns for path in files if path.is_file()}


def test_the_profile_finds_site_package_and_configuration_from_any_folder(checkout, tmp_path):
    """By its path and by a link to the checkout, in which nothing is written, so that it may be read-only."""
    (checkout / "slurm/site.yaml").write_text(yaml.safe_dump(SITE))
    before = written_in(checkout)
    (tmp_path / "linked").symlink_to(checkout)
    shutil.copy(checkout / "study.yaml", tmp_path)
    for root in (checkout, tmp_path / "linked"):
        command = [programs() / "snakemake", "--profile", root / "slurm", "-s", root / "Snakefile", "-n"]
        words = ["--directory", tmp_path, "--configfile", tmp_path / "study.yaml"]
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        training = {setting: resources for name, setting, resources in jobs_of(done) if name == "train"}
        assert training["plain"]["gpu_model"] == "a100"
        assert training["plain"]["slurm_account"] == "lab"
    assert written_in(checkout) == before
    (checkout / "slurm/site.yaml").write_text("all: cpu")
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert f"Error: {tmp_path}/linked/slurm/site.yaml: all: expected a mapping" in done.stdout + done.stderr
