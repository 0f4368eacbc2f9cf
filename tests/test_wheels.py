"""The packages of an image as wheels, and where a Debian machine takes its own packages from."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile

import pytest

from megavoxel.cli import main
from megavoxel.containers.build import collect_wheels, mirror_of_host, pins_beside
from megavoxel.errors import UserError


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("etc/apt/sources.list.d/debian.sources", "Types: deb\nURIs: https://one.example/debian\nSuites: a\n"),
        ("etc/apt/sources.list", "# deb https://two.example x\ndeb [arch=amd64] https://one.example/debian a main\n"),
        ("etc/apt/sources.list", "deb https://one.example/debian a main\n"),
    ],
)
def test_the_mirror_of_a_debian_machine_is_that_of_its_packages(tmp_path, file, text):
    for name, content in (("etc/os-release", 'NAME="Debian"\nID=debian\n'), (file, text)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert mirror_of_host(tmp_path) == "https://one.example/debian"


def test_on_another_system_the_mirror_is_asked_for(tmp_path):
    (tmp_path / "etc/apt").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text("ID=ubuntu\n")
    (tmp_path / "etc/apt/sources.list").write_text("deb https://one.example/ubuntu a main\n")
    with pytest.raises(UserError, match="--config debian_mirror=ADDRESS"):
        mirror_of_host(tmp_path)


def test_packages_that_pip_cannot_find_leave_no_folder(tmp_path, capsys):
    (tmp_path / "requirements.lock").write_text(
        "no-such-package @ file:///nowhere/no_such_package-1-py3-none-any.whl\n"
    )
    (tmp_path / "hashed.lock").write_text("")
    with pytest.raises(UserError, match=r"requirements\.lock: pip could not collect"):
        collect_wheels(tmp_path / "requirements.lock", tmp_path / "hashed.lock", tmp_path / "wheels")
    assert not (tmp_path / "wheels").exists()
    words = ["--requirements", str(tmp_path / "requirements.lock"), "--hashed", str(tmp_path / "hashed.lock")]
    words += ["--output", str(tmp_path / "wheels")]
    assert main(["wheels", *words]) == 1
    assert "requirements.lock: pip could not collect" in capsys.readouterr().err


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="wheels are collected by the Python of the images")
def test_another_python_than_that_of_the_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("megavoxel.containers.build.PYTHON_OF_IMAGE", (3, 9))
    with pytest.raises(UserError, match=r"Python 3\.9, and wheels collected by Python 3\.11 do not fit"):
        collect_wheels(tmp_path / "requirements.lock", tmp_path / "hashed.lock", tmp_path / "wheels")


def test_only_packages_without_checksums_are_taken_as_the_index_has_them(repository):
    texts = [(repository / name).read_text() for name in ("requirements.lock", "requirements-hashed.lock")]
    (pin,) = pins_beside(*texts)
    assert pin.startswith("torch==")


def test_a_package_with_another_checksum_is_no_part_of_an_image(tmp_path):
    (tmp_path / "requirements.lock").write_text("iniconfig==2.1.0\n")
    (tmp_path / "hashed.lock").write_text(f"iniconfig==2.1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(UserError, match=r"hashed\.lock: pip could not collect"):
        collect_wheels(tmp_path / "requirements.lock", tmp_path / "hashed.lock", tmp_path / "wheels")
    assert not (tmp_path / "wheels").exists()


def test_what_a_package_without_checksum_needs_is_taken_in_its_locked_version(tmp_path, monkeypatch):
    # The folder stands for an index in which a newer version has appeared since the lock was written.
    index = tmp_path / "index"
    index.mkdir()
    needed = write_wheel(index, "needed", "1")
    write_wheel(index, "needed", "2")
    write_wheel(index, "top", "1", requires="needed")
    for name in ("wheel", "setuptools"):
        write_wheel(index, name, "99")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    (tmp_path / "requirements.lock").write_text("needed==1\ntop==1\n")
    (tmp_path / "hashed.lock").write_text(f"needed==1 --hash=sha256:{hashlib.sha256(needed).hexdigest()}\n")
    collect_wheels(tmp_path / "requirements.lock", tmp_path / "hashed.lock", tmp_path / "wheels")
    found = {path.name for path in (tmp_path / "wheels").glob("[nt]*.whl")}
    assert found == {"needed-1-py3-none-any.whl", "top-1-py3-none-any.whl"}


def write_wheel(folder, name, version, requires=None):
    """Writes a wheel without code; returns its bytes."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        "METADATA": metadata,
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(f"{info}/{file}", text)
        rows = [f"{info}/{file},sha256={digest(text)},{len(text)}" for file, text in files.items()]
        wheel.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")
    return path.read_bytes()


def digest(text):
    """SHA-256 of a text as the record of a wheel spells it."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
