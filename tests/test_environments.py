"""Dependencies: what the package needs, what the lock pins and what the conda environment installs agree."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def update(repository):
    """envs/update.py as a module."""
    specification = importlib.util.spec_from_file_location("envs_update", repository / "envs" / "update.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def pins(path) -> dict[str, Requirement]:
    """Requirements of a lock by normalised name."""
    requirements = [Requirement(line) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.fixture(scope="module")
def locked(repository) -> dict[str, Requirement]:
    """Requirements of the lock."""
    return pins(repository / "requirements.lock")


@pytest.fixture(scope="module")
def peers(repository) -> dict[str, Requirement]:
    """Requirements of the lock of what the benchmarks compare with."""
    return pins(repository / "requirements-peers.lock")


@pytest.fixture(scope="module")
def optional(repository) -> dict[str, Requirement]:
    """Requirements of the lock of what the optional dependencies need."""
    return pins(repository / "requirements-optional.lock")


def declared(repository) -> list[Requirement]:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_dependency_is_locked_at_a_version_that_satisfies_it(repository, locked, peers, optional):
    needed = declared(repository)
    assert len(needed) > 20
    for requirement in needed:
        pin = (locked | peers | optional)[canonicalize_name(requirement.name)]
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is not met by {pin}"


def test_peers_come_on_top_of_the_lock_and_change_nothing_in_it(repository, locked, peers, optional):
    assert "nnunetv2" in peers
    assert not (set(peers) | set(optional)) & set(locked)
    assert not set(peers) & set(optional)
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {canonicalize_name(Requirement(text).name) for text in extras["peers"]} <= set(peers)
    assert all(str(pin.specifier).startswith("==") for pin in (peers | optional).values())


def test_the_lock_pins_each_package_once_and_exactly(repository, locked):
    lines = [line for line in (repository / "requirements.lock").read_text().splitlines() if line.strip()]
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) == len(locked)
    for requirement in locked.values():
        (specifier,) = requirement.specifier
        assert (specifier.operator, "*" in specifier.version) == ("==", False)
        assert requirement.marker is None


def test_every_locked_package_but_pytorch_has_the_checksums_of_its_files(repository, locked):
    text = (repository / "requirements-hashed.lock").read_text().replace("\\\n", "")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    pinned = {canonicalize_name(Requirement(words[0]).name): Requirement(words[0]) for words in lines}
    assert set(pinned) == set(locked) - {"torch"}
    assert all(str(pin.specifier) == str(locked[name].specifier) for name, pin in pinned.items())
    assert all(
        words[1:] and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", word) for word in words[1:]) for words in lines
    )


def test_the_conda_environment_has_the_pins_of_the_lock(repository, locked):
    content = yaml.safe_load((repository / "envs" / "megavoxel.yaml").read_text())
    assert content["channels"][0] == "conda-forge"
    assert {"python=3.11", "pip"} == {item for item in content["dependencies"] if isinstance(item, str)}
    (pip,) = [item["pip"] for item in content["dependencies"] if isinstance(item, dict)]
    found = {canonicalize_name(Requirement(pin).name): Requirement(pin) for pin in pip}
    assert set(found) == set(locked)
    for name, pin in found.items():
        assert str(pin.specifier) == str(locked[name].specifier).partition("+")[0]


def test_the_conda_environment_leaves_the_build_of_torch_open(repository):
    (torch,) = re.findall(r"- torch==(.*)\n", (repository / "envs" / "megavoxel.yaml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", torch)


def test_local_version_suffixes_are_left_out(update):
    lock = "# pins\ntorch==2.13.0+cpu\n\nscipy==1.17.1\n"
    assert update.locked(lock) == ["torch==2.13.0", "scipy==1.17.1"]
    content = yaml.safe_load(update.environment(lock))
    assert content["dependencies"][-1] == {"pip": ["torch==2.13.0", "scipy==1.17.1"]}


def test_a_requirement_without_a_pin_is_refused(update):
    with pytest.raises(ValueError, match="scipy>=1 is not pinned"):
        update.locked("numpy==2.4.6\nscipy>=1\n")


def test_a_stale_environment_is_found_and_rewritten(update, tmp_path, monkeypatch, capsys):
    stale = tmp_path / "megavoxel.yaml"
    stale.write_text("dependencies: []\n")
    monkeypatch.setattr(update, "ENVIRONMENT", stale)
    monkeypatch.setattr(sys, "argv", ["update.py", "--check"])
    assert update.main() == 1
    assert "out of date; run 'python envs/update.py'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["update.py"])
    assert update.main() == 0
    monkeypatch.setattr(sys, "argv", ["update.py", "--check"])
    assert update.main() == 0


def test_the_post_deploy_script_stops_outside_of_a_checkout(repository, tmp_path):
    script = repository / "envs" / "megavoxel.post-deploy.sh"
    ended = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "from the root of the checkout" in ended.stderr


def test_the_post_deploy_script_installs_the_lock_then_the_checkout(repository, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PWD: $*"\n')
    python.chmod(0o755)
    script = repository / "envs" / "megavoxel.post-deploy.sh"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended = subprocess.run(
        ["bash", script], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    commands = [line.removeprefix(f"{repository}: ").split() for line in ended.stdout.strip().splitlines()]
    assert [command[:3] for command in commands] == [["-m", "pip", "install"]] * 3
    assert commands[0][-3:] == ["--require-hashes", "--requirement", "requirements-hashed.lock"]
    assert commands[1][-2:] == ["--requirement", "requirements.lock"]
    assert commands[2][-3:] == ["--no-deps", "--editable", "."]


def test_pin_files_are_explicit_lists_with_checksums_or_named(update, repository):
    """A pin file stands for the whole YAML file, so that it must have a Python of its own."""
    channel = "https://mirror.example/conda-forge/linux-64"
    sound = f"# platform: linux-64\n@EXPLICIT\n{channel}/python-3.11.9-h_0_cpython.conda#{'0' * 32}\n"
    assert update.pin_faults(sound) == []
    assert len(update.pin_faults(sound.replace("@EXPLICIT\n", ""))) == 1
    assert "python=3.11" in update.pin_faults(sound.replace("python-3.11", "python-3.12"))[0]
    assert "with its MD5" in update.pin_faults(sound.replace("#" + "0" * 32, ""))[0]
    assert "with its MD5" in update.pin_faults(sound.replace("conda-forge", "defaults"))[0]
    for path in (repository / "envs").glob("*.pin.txt"):
        assert update.pin_faults(path.read_text()) == []
