"""Real images by `snakemake images`, and studies in them: on this machine and through Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from site_of_user import BIN, DATASET, check_out, finish, start_snakemake, study

from exported import untrained_model
from megavoxel.cli import main
from megavoxel.containers.lock import hash_of_sources, read_lock
from megavoxel.files import file_sha256
from megavoxel.models.container import write_container
from megavoxel.network.tensor_files import load_tensors

IN_CONTAINER = ("--sdm", "apptainer", "--apptainer-args", "--net --network none")
IMAGE = "containers/images/cpu.sif"
SMALL = study("small", {"plain": {"folds": [0]}}, hardware="cpu-core")
PROBE = f"""
rule probe:
    output: "seen.txt"
    container: "{IMAGE}"
    shell: "echo home=$HOME cache=$MPLCONFIGDIR path=${{{{PYTHONPATH:-}}}} > seen.txt; "
        "ls /sys/class/net >> seen.txt; ls {{config[home]}}/secret >> seen.txt 2>&1 || true"
"""


def snakemake(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """What Snakemake prints on its way to success."""
    command = [BIN / "snakemake", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def place(apptainer, tmp_path_factory) -> Path:
    """A checkout with its images built."""
    folder = check_out(
        tmp_path_factory.mktemp("containers"), {"options": {"slurm-init-seconds-before-status-checks": 5}}
    )
    (folder / "containers/base.lock").unlink()  # the mirror may have newer packages
    said = snakemake(folder, apptainer, "images")
    assert (folder / IMAGE).is_file(), said
    return folder


def test_the_lock_says_what_the_image_holds(place, repository):
    record = read_lock(place / "containers/images.lock")["cpu.sif"]
    assert record["sha256"] == file_sha256(place / IMAGE)
    locked = (repository / "requirements.lock").read_text().split("\n")
    inside = {pin.partition("==")[0].lower().replace("_", "-"): pin.partition("==")[2] for pin in record["packages"]}
    for pin in filter(None, locked):
        name, _, version = pin.partition("==")
        assert inside[name.lower().replace("_", "-")].partition("+")[0] == version
    debian = yaml.safe_load((place / "containers/base.lock").read_text())["packages"]
    assert record["debian"] == debian
    assert {"libc6", "python3", "ca-certificates"} <= {pin.partition("=")[0] for pin in debian}
    wheels = (place / "containers/wheels/cpu").glob("*.whl")
    assert record["wheels"] == {path.name: file_sha256(path) for path in wheels}


def test_an_image_that_fits_its_sources_is_not_built_again(place, apptainer):
    said = snakemake(place, apptainer, "images", "-n")
    assert "rule image:" not in said


@pytest.fixture
def unseen() -> Iterator[Path]:
    """A folder that no container sees by itself: neither below /tmp nor below the working directory."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        yield Path(folder)


def test_neither_home_nor_network_nor_the_packages_of_the_host_are_seen_inside(place, apptainer, unseen, tmp_path):
    (unseen / "secret").touch()
    (place / "probe.smk").write_text(PROBE)
    environment = apptainer | {"HOME": str(unseen), "PYTHONPATH": str(tmp_path)}
    snakemake(place, environment, "--snakefile", "probe.smk", *IN_CONTAINER, "--cores=1", "--config", f"home={unseen}")
    first, *others = (place / "seen.txt").read_text().splitlines()
    words = dict(word.partition("=")[::2] for word in first.split())
    assert (words["home"], words["path"]) == (str(place), "")
    assert not words["cache"].startswith(str(place))
    assert others[0] == "lo"
    assert "No such file" in others[-1]


def test_weights_and_scores_from_inside_are_those_from_outside(place, apptainer, unseen, tmp_path):
    """Inside with images and results elsewhere, which have to be bound.

    In float32, which the study fixes: on the CPU `auto` measures which precision is the faster one.
    """
    outside = check_out(tmp_path, {})
    for folder in (place, outside):
        (folder / "small.yaml").write_text(yaml.safe_dump(SMALL, sort_keys=False))
    words = ("--cores=2", "--configfile", "small.yaml")
    snakemake(outside, {}, *words)
    images, results = unseen / "images", unseen / "results"
    shutil.copytree(outside / "data/small-phantom", images)
    (place / "phantom.yaml").write_text(yaml.safe_dump(DATASET | {"source": {"folder": str(images)}}))
    results.mkdir()
    (place / "results").mkdir(exist_ok=True)
    (place / "results/small").symlink_to(results)
    snakemake(place, apptainer, *IN_CONTAINER, *words)
    manifest = json.loads((results / "plain/fold-0/manifest.json").read_text())
    assert manifest["container"]["sha256"] == file_sha256(place / IMAGE)
    assert all(path.is_relative_to(images) for path in map(Path.resolve, (place / "data").glob("*/imagesTr/*")))
    model = "results/small/plain/fold-0/model.pt"
    ours, theirs = (load_tensors(folder / model)["weights"] for folder in (place, outside))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    scores = [(folder / "results/small/scores.csv").read_bytes() for folder in (place, outside)]
    assert scores[0] == scores[1]
    assert json.loads((outside / model).with_name("manifest.json").read_text())["container"] is None


def test_a_model_as_a_container_labels_a_folder_of_scans(place, apptainer, tmp_path, monkeypatch):
    """The image of a model is built on the small base, for its recipe; the command runs in the image of the stages."""
    for name, value in apptainer.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "made").mkdir()
    model = untrained_model(tmp_path / "made")
    write_container(lambda folder: shutil.copytree(model, folder), tmp_path / "container")
    labels = labelled_inside(tmp_path / "container", place / IMAGE, place / "containers/images/base.sif")
    options = ["--model", model, "--input", tmp_path / "container/scans", "--output", tmp_path / "outside"]
    assert main(["predict", *map(str, options), "--device", "cpu", "--threads", "1"]) == 0
    assert labels == (tmp_path / "outside/a scan.nii.gz").read_bytes()


def labelled_inside(container: Path, image: Path, base: Path) -> bytes:
    """The label map of a scan of noise, made without network by the command of a container."""
    scan = np.random.default_rng(0).normal(size=(20, 18, 12)).astype(np.float32)
    (container / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(scan, np.diag([2.0, 2.0, 2.5, 1.0])), container / "scans/a scan.nii.gz")
    run = partial(subprocess.run, cwd=container, check=True, capture_output=True, text=True)
    run(["apptainer", "build", "--build-arg", f"base={base}", "model.sif", "model.def"])
    without = run(["apptainer", "run", "model.sif"], check=False)
    assert (without.returncode, without.stderr.splitlines()[-1][:19]) == (2, "usage: SCANS LABELS")
    inside = run(["apptainer", "exec", "model.sif", "cat", "/opt/model/model.json"]).stdout
    assert inside == (container / "model/model.json").read_text()
    bound = [word for name in ("model", "label") for word in ("--bind", f"{container / name}:/opt/{name}")]
    alone = ["--net", "--network", "none"]
    run(["apptainer", "exec", *alone, *bound, image, "/opt/label", "scans", "labels", "--threads", "1"])
    return (container / "labels/a scan.nii.gz").read_bytes()


def test_the_demo_in_containers_and_through_slurm_reaches_its_report(place, apptainer, cluster, repository):
    demo = yaml.safe_load((repository / "config/config.yaml").read_text())
    finish(start_snakemake(cluster, place, demo, *IN_CONTAINER, environment=apptainer), place / "demo.log")
    results = place / "results/demo"
    assert (results / "report/index.html").stat().st_size > 0
    manifests = [json.loads(path.read_text()) for path in results.glob("*/fold-*/manifest.json")]
    assert len(manifests) == 4
    assert {manifest["container"]["sha256"] for manifest in manifests} == {file_sha256(place / IMAGE)}
    assert {manifest["container"]["sources"] for manifest in manifests} == {hash_of_sources(place)}
    assert not list(place.glob(".cache*"))
    # Jobs ran on the nodes of the cluster, not beside Snakemake.
    comments = cluster.run("squeue", "--states=all", "--noheader", "--format=%k")
    assert "rule_train_wildcards_small-patch_0" in comments
