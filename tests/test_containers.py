"""Container images without a container: what Apptainer is asked, what the lock says, and what a study wants of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megavoxel.cli import main
from megavoxel.containers.build import build_image
from megavoxel.containers.lock import hash_of_sources, read_lock, source_files, write_lock
from megavoxel.errors import UserError
from megavoxel.files import file_sha256
from workflow_runs import snakemake

# In place of Apptainer: writes down its arguments, and makes an "image" of the definition.
STAND_IN = """\
#!/bin/sh
echo "$@" >> {calls}
case "$1 $2" in *--version*) echo "apptainer version 1.4.5"; exit;; esac
for word in "$@"; do last=$word; done
case "$*" in
  *build*) echo "words on standard output"; echo "words on standard error" >&2
    grep -q broken "$last" && exit 3
    shift $(($# - 2)); cp "$2" "$1";;
  *inspect*) echo '{{"data": {{"attributes": {{"labels": {labels}}}}}}}';;
  *exec*packages.txt) printf 'torch==2.13.0\\nannotated-types==0.8.0\\n';;
  *exec*dpkg-query*) cat {debian};;
  *exec*wheels.txt) printf '12ab  torch-2.13.0-cp311.whl\\n34cd  annotated_types-0.8.0-py3.whl\\n';;
  *exec*) exit 1;;
esac
"""
MADE_FROM = ("requirements.lock", "requirements-hashed.lock", "pyproject.toml")
LABELS = '{"sources": "abc", "org.label-schema.usage.apptainer.version": "1.4.5"}'


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """A stand-in for Apptainer on PATH, under no other name; the file to which it writes its arguments."""
    return stand_in(tmp_path, monkeypatch, LABELS)


def stand_in(folder: Path, monkeypatch, labels: str) -> Path:
    calls = folder / "calls.txt"
    program = folder / "bin" / "apptainer"
    program.parent.mkdir()
    (folder / "debian.txt").write_text("libc6=2.36-9\nbase-files=12.4\n")
    program.write_text(STAND_IN.format(calls=calls, labels=labels, debian=folder / "debian.txt"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return calls


def test_a_build_hands_its_arguments_on_and_leaves_a_whole_image(calls, tmp_path, capfd):
    definition = tmp_path / "a.def"
    definition.write_text("Bootstrap: localimage")
    build_image(definition, tmp_path / "images" / "a.sif", {"mirror": "https://example.org/a b", "base": "b.sif"})
    assert (tmp_path / "images" / "a.sif").read_text() == "Bootstrap: localimage"
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.sif"]
    assert "--build-arg mirror=https://example.org/a b --build-arg base=b.sif" in calls.read_text()
    said = capfd.readouterr().out
    assert "words on standard output" in said
    assert "words on standard error" in said


def test_a_build_that_fails_leaves_the_older_image(calls, tmp_path):
    definition, image = tmp_path / "a.def", tmp_path / "a.sif"
    definition.write_text("broken")
    image.write_text("older")
    with pytest.raises(UserError, match=r"a\.def: Apptainer could not build .*a\.sif"):
        build_image(definition, image, {})
    assert image.read_text() == "older"
    assert not list(tmp_path.glob(".partial*"))


def test_without_apptainer_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.def").write_text("")
    assert main(["image", "--definition", str(tmp_path / "a.def"), "--output", str(tmp_path / "a.sif")]) == 1
    assert "no apptainer on this machine's PATH" in capsys.readouterr().err


def test_the_lock_has_digest_sources_and_packages_of_each_image(calls, tmp_path, capsys):
    images = [tmp_path / "gpu.sif", tmp_path / "cpu.sif"]
    for image in images:
        image.write_text(image.name)
    lock = tmp_path / "images.lock"
    assert main(["lock-images", "--images", *map(str, images), "--output", str(lock)]) == 0
    records = read_lock(lock)
    assert list(records) == ["cpu.sif", "gpu.sif"]
    assert records["cpu.sif"] == {
        "sha256": file_sha256(images[1]),
        "bytes": 7,
        "sources": "abc",
        "apptainer": "1.4.5",
        "debian": ["base-files=12.4", "libc6=2.36-9"],
        "packages": ["annotated-types==0.8.0", "torch==2.13.0"],
        "wheels": {"torch-2.13.0-cp311.whl": "12ab", "annotated_types-0.8.0-py3.whl": "34cd"},
    }
    assert f"cpu.sif: sha256 {file_sha256(images[1])}, 2 packages" in capsys.readouterr().out


def test_the_lock_keeps_what_it_says_of_images_that_are_still_there(calls, tmp_path):
    images = {name: tmp_path / f"{name}.sif" for name in ("cpu", "gpu", "old")}
    for image in images.values():
        image.write_text(image.name)
    lock = tmp_path / "images.lock"
    write_lock(lock, list(images.values()))
    before = read_lock(lock)
    images["old"].unlink()
    images["cpu"].write_text("built again")
    write_lock(lock, [images["cpu"]])
    after = read_lock(lock)
    assert list(after) == ["cpu.sif", "gpu.sif"]
    assert after["gpu.sif"] == before["gpu.sif"]
    assert after["cpu.sif"]["sha256"] == file_sha256(images["cpu"])
    lock.write_text("[")
    write_lock(lock, [images["cpu"]])
    assert list(read_lock(lock)) == ["cpu.sif"]


@pytest.fixture
def base(calls, tmp_path) -> list[str]:
    """The command that builds a base beside its lock."""
    (tmp_path / "base.def").write_text("Bootstrap: debootstrap")
    lock = ["--base-lock", str(tmp_path / "base.lock")]
    return ["image", "--definition", str(tmp_path / "base.def"), *lock, "--output", str(tmp_path / "base.sif")]


def test_a_base_is_held_to_the_packages_of_its_lock(base, tmp_path, capsys):
    for _ in range(2):
        assert main(base) == 0
    locked = yaml.safe_load((tmp_path / "base.lock").read_text())
    assert locked["packages"] == ["base-files=12.4", "libc6=2.36-9"]
    assert re.fullmatch(r"\d{8}T\d{6}Z", locked["archive"])
    (tmp_path / "debian.txt").write_text("libc6=2.36-10\nxz-utils=5.4\n")
    (tmp_path / "base.sif").write_text("older")
    assert main(base) == 1
    said = capsys.readouterr().err
    assert "3 packages of Debian are not those of" in said
    assert "base-files missing (locked: 12.4), libc6 2.36-10 (locked: 2.36-9), xz-utils 5.4 (locked: none)" in said
    assert f"archive of mirrors as of {locked['archive']}" in said
    assert (tmp_path / "base.sif").read_text() == "older"
    (tmp_path / "base.lock").unlink()
    assert main(base) == 0
    assert yaml.safe_load((tmp_path / "base.lock").read_text())["packages"] == ["libc6=2.36-10", "xz-utils=5.4"]


def test_an_image_without_packages_of_debian_is_no_base(base, tmp_path, capsys):
    (tmp_path / "debian.txt").write_text("")
    assert main(base) == 1
    assert "packages of Debian cannot be listed: there are none" in capsys.readouterr().err
    assert not (tmp_path / "base.sif").exists()


@pytest.mark.parametrize("text", ["[", "- a\n", "archive: today\npackages: [a=1]\n", "archive: 20261130T000000Z\n"])
def test_a_broken_lock_of_the_base_is_named(base, tmp_path, capsys, text):
    (tmp_path / "base.lock").write_text(text)
    assert main(base) == 1
    assert "base.lock: is no lock of a base; remove it" in capsys.readouterr().err


def test_the_base_of_this_checkout_is_locked(repository):
    locked = yaml.safe_load((repository / "containers/base.lock").read_text())
    assert {"libc6", "python3", "python3-venv"} <= {pin.partition("=")[0] for pin in locked["packages"]}


@pytest.mark.slow
def test_snakemake_leaves_the_lock_for_its_stage_to_read(calls, repository, tmp_path):
    put_images(tmp_path, "cpu", "gpu")
    (tmp_path / "containers/images.lock").write_text(yaml.safe_dump({"gpu.sif": {"sources": "kept"}}))
    command = [str(Path(sys.executable).with_name("snakemake")), "containers/images.lock", "--cores=1"]
    command += ["--forcerun", "lock_images", "--allowed-rules", "lock_images"]
    command += ["--snakefile", str(linked_checkout(repository, tmp_path) / "Snakefile"), "--directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    sources = {name: record["sources"] for name, record in read_lock(tmp_path / "containers/images.lock").items()}
    assert sources == {"cpu.sif": "abc", "gpu.sif": "kept"}


def test_an_image_of_another_origin_is_named(tmp_path, monkeypatch, capsys):
    stand_in(tmp_path, monkeypatch, "{}")
    (tmp_path / "other.sif").write_text("")
    command = ["lock-images", "--images", str(tmp_path / "other.sif"), "--output", str(tmp_path / "images.lock")]
    assert main(command) == 1
    assert "other.sif: does not say from what it was built" in capsys.readouterr().err


def test_an_image_that_is_not_there_is_named(calls, tmp_path, capsys):
    command = ["lock-images", "--images", str(tmp_path / "none.sif"), "--output", str(tmp_path / "images.lock")]
    assert main(command) == 1
    assert "none.sif: there is no such image" in capsys.readouterr().err
    assert not (tmp_path / "images.lock").exists()


@pytest.mark.parametrize("text", ["[", "- a\n", "cpu.sif: text\n"])
def test_a_broken_lock_is_named(tmp_path, text):
    (tmp_path / "images.lock").write_text(text)
    with pytest.raises(UserError, match=r"images\.lock"):
        read_lock(tmp_path / "images.lock")


def test_sources_are_known_by_names_and_content_and_not_by_place(tmp_path):
    def checkout(name: str, module: str, text: str) -> Path:
        package = tmp_path / name / "workflow" / "megavoxel"
        (package / "__pycache__").mkdir(parents=True)
        (package / module).write_text(text)
        (package / "__pycache__" / "a.pyc").write_text(name)
        return tmp_path / name

    first = hash_of_sources(checkout("first", "a.py", "1"))
    assert hash_of_sources(checkout("second", "a.py", "1")) == first
    assert hash_of_sources(checkout("third", "a.py", "2")) != first
    assert hash_of_sources(checkout("fourth", "b.py", "1")) != first


def test_all_that_the_definition_copies_is_among_the_sources(repository):
    text = (repository / "containers" / "megavoxel.def").read_text()
    copied = [line.split()[0] for line in text.split("%files")[1].split("%post")[0].splitlines() if line.strip()]
    sources = {str(path.relative_to(repository)) for path in source_files(repository)}
    for name in set(copied) - {"{{", "README.md", "LICENSE"}:
        assert any(source == name or source.startswith(f"{name}/") for source in sources), name


def dry_run(repository: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A dry run in another working directory, with the stand-in for Apptainer."""
    return snakemake(repository, folder, *arguments, "-n")


def linked_checkout(repository: Path, folder: Path) -> Path:
    """A checkout in `folder`, in which images can be put: links to this one, but for the folder of images."""
    for name in ("Snakefile", "workflow", "config", "envs", "profiles", "slurm", *MADE_FROM):
        if not (folder / name).exists():
            (folder / name).symlink_to(repository / name)
    (folder / "containers").mkdir(exist_ok=True)
    for definition in (repository / "containers").glob("*.def"):
        (folder / "containers" / definition.name).symlink_to(definition)
    return folder


def put_images(folder: Path, *kinds: str, **record: object) -> None:
    for kind in kinds:
        image = folder / "containers" / "images" / f"{kind}.sif"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_text(kind)
    lock = {f"{kind}.sif": {"sources": "old", "bytes": len(kind), **record} for kind in kinds}
    (folder / "containers" / "images.lock").write_text(yaml.safe_dump(lock))


@pytest.mark.slow
def test_a_study_without_its_images_says_how_to_build_them(calls, repository, tmp_path):
    done = dry_run(repository, tmp_path, "--sdm", "apptainer")
    assert done.returncode != 0
    assert "containers/images/cpu.sif is not there; build it first" in done.stderr


@pytest.mark.slow
def test_folders_outside_of_the_working_directory_are_mounted(calls, repository, tmp_path):
    """Of a checkout elsewhere, and of results that are a link to another disk."""
    checkout, work, disk = (tmp_path / name for name in ("checkout", "work", "disk"))
    for folder in (checkout, work, disk):
        folder.mkdir()
    put_images(linked_checkout(repository, checkout), "cpu")
    (work / "results").symlink_to(disk)
    program = tmp_path / "bin/apptainer"
    program.write_text(
        program.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\necho "$APPTAINER_BIND" > {tmp_path}/bind\n')
    )
    done = snakemake(checkout, work, "--sdm", "apptainer", "--until", "fetch")
    assert done.returncode != 0  # the stand-in runs nothing
    mounted = (tmp_path / "bind").read_text().strip().split(",")
    assert mounted == sorted(map(str, {disk, repository / "config", repository / "config/datasets"}))


@pytest.mark.slow
def test_every_rule_with_a_container_has_it_as_an_input(calls, repository, tmp_path):
    put_images(tmp_path, "cpu", "gpu")
    study = yaml.safe_load((repository / "config/config.yaml").read_text()) | {"hardware": "a100-80"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = dry_run(linked_checkout(repository, tmp_path), tmp_path, "--sdm", "apptainer", "--configfile", "study.yaml")
    assert done.returncode == 0, done.stderr
    jobs = dict(re.findall(r"rule (\w+):\n    input: (.*)\n", done.stdout + done.stderr))
    del jobs["all"]
    assert len(jobs) > 15
    on_gpus = {name for name, inputs in jobs.items() if "containers/images/gpu.sif" in inputs}
    predicting = {"predict_validation_for_ensembles", "predict_test_for_ensembles"}
    assert on_gpus == {"train", *predicting, "ensemble_validation", "ensemble_test"}
    for name in set(jobs) - on_gpus:
        assert "containers/images/cpu.sif" in jobs[name], name


def test_every_rule_with_a_container_names_the_same_image_as_an_input(repository):
    """Also rules that no dry run of a study shows; one made of another rule has inputs of its own, or that one's."""
    for path in sorted((repository / "workflow/rules").glob("*.smk")):
        images = {}
        for block in re.split(r"(?m)^(?=rule \w+:|use rule )", path.read_text())[1:]:
            name = re.search(r"rule (\w+)", block)[1]
            container = re.search(r"(?m)^    container:\n        (.+)", block)
            images |= {name: container[1]} if container else {}
            if block.startswith("rule") or "\n    input:\n" in block:
                assert f"image=used({images[name]})" in block, f"{path.name}: {block[:60]}"


@pytest.mark.slow
def test_an_image_of_other_sources_is_named_but_used(calls, repository, tmp_path):
    checkout = linked_checkout(repository, tmp_path)
    put_images(tmp_path, "cpu")
    done = dry_run(checkout, tmp_path, "--sdm", "apptainer")
    assert done.returncode == 0, done.stderr
    assert "Warning: containers/images/cpu.sif was built from other sources" in done.stderr
    put_images(tmp_path, "cpu", sources=hash_of_sources(repository))
    assert "Warning" not in dry_run(checkout, tmp_path, "--sdm", "apptainer").stderr
    (tmp_path / "containers/images/cpu.sif").write_text("longer")
    done = dry_run(checkout, tmp_path, "--sdm", "apptainer")
    assert done.returncode == 0, done.stderr
    assert "Warning: containers/images/cpu.sif is not the file that images.lock describes" in done.stderr


def checkout_of_small_nodes(repository: Path, folder: Path, parallel: object) -> Path:
    """A checkout with a device of which a node has one, and a study in `folder` of which a setting is spread."""
    study = yaml.safe_load((repository / "config/config.yaml").read_text()) | {"hardware": "small-node"}
    study["settings"]["large-patch"]["parallel"] = parallel
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    checkout = folder / "checkout"
    shutil.copytree(repository / "config", checkout / "config")
    put_images(linked_checkout(repository, checkout), "cpu", "gpu")
    hardware = checkout / "config" / "hardware.yaml"
    devices = yaml.safe_load(hardware.read_text())
    devices["devices"]["small-node"] = devices["devices"]["a100-80"] | {"most_devices": 4, "devices_per_node": 1}
    hardware.write_text(yaml.safe_dump(devices))
    return checkout


@pytest.mark.slow
def test_a_training_over_several_nodes_is_refused_by_name(calls, repository, tmp_path):
    checkout = checkout_of_small_nodes(repository, tmp_path, {"data": 2})
    done = dry_run(checkout, tmp_path, "--configfile", "study.yaml", "--sdm", "apptainer")
    assert done.returncode != 0
    assert "a job of large-patch takes several nodes, which --sdm apptainer cannot start" in done.stderr
    outside = dry_run(checkout, tmp_path, "--configfile", "study.yaml")
    assert outside.returncode == 0, outside.stderr


@pytest.mark.slow
def test_in_containers_the_planner_chooses_among_the_devices_of_one_node(calls, repository, tmp_path):
    checkout = checkout_of_small_nodes(repository, tmp_path, "auto")
    for options, most in ((["--sdm", "apptainer"], 1), ([], 4)):
        done = dry_run(checkout, tmp_path, "--configfile", "study.yaml", "--printshellcmds", *options)
        assert done.returncode == 0, done.stderr
        told = re.findall(r'megavoxel plan .*"most_devices": (\d+)', done.stdout + done.stderr)
        assert set(told) == {str(most)}
        assert len(told) == 4, "two settings, each planned once for the study and once for training"


@pytest.mark.slow
def test_without_containers_no_rule_asks_for_an_image(repository, tmp_path):
    done = dry_run(repository, tmp_path)
    assert ".sif" not in done.stdout + done.stderr
