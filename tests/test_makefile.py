"""`make setup`: an environment that works is brought up to date in place, since running jobs may use it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
# In place of Python: writes down what it is asked, makes an environment as `venv --clear` does, and "installs".
STAND_IN = """\
#!/bin/sh
echo "$(basename "$0") $*" >> calls
[ "$1 $2" = "-m pip" ] && exit {status}
[ "$1 $2" = "-m venv" ] || exit 0
for folder in "$@"; do :; done
rm -rf "$folder"/* && mkdir -p "$folder/bin" && sed 's/exit [0-9]/exit 0/' "$0" > "$folder/bin/python"
chmod +x "$folder/bin/python"
"""


def program(path: Path, *, status: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(status=status))
    path.chmod(0o755)


@pytest.fixture
def checkout(repository, tmp_path) -> Path:
    """A folder in which `make setup` can be called, with a stand-in for Python."""
    shutil.copy(repository / "Makefile", tmp_path)
    for name in ("pyproject.toml", "requirements.lock", "requirements-hashed.lock"):
        (tmp_path / name).touch()
    program(tmp_path / "base-python")
    return tmp_path


def setup(checkout: Path, *options: str) -> list[str]:
    """What Python was asked for by `make setup`."""
    # Not those of a make that called these tests.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "setup", "PYTHON=./base-python", *options]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (checkout / "said").write_text(done.stdout)
    return (checkout / "calls").read_text().splitlines()


def installs(calls: list[str]) -> int:
    return sum(call.startswith("python -m pip install") for call in calls)


@pytest.mark.parametrize("is_link", [False, True])
def test_an_environment_that_works_keeps_its_files_and_is_brought_up_to_date(checkout, is_link):
    folder = checkout / ("elsewhere" if is_link else ".venv")
    program(folder / "bin" / "python")
    (folder / "in-use").touch()
    if is_link:
        (checkout / ".venv").symlink_to("elsewhere")
    calls = setup(checkout)
    assert (folder / "in-use").exists()
    assert not any("venv" in call for call in calls)
    assert installs(calls) == 3
    assert setup(checkout) == calls, "and not again while nothing changes"


def test_one_that_is_missing_is_made(checkout):
    assert installs(setup(checkout)) == 3


def test_one_that_does_not_start_is_made_again(checkout):
    program(checkout / ".venv" / "bin" / "python", status=1)
    (checkout / ".venv" / "half-made").touch()
    assert installs(setup(checkout)) == 3
    assert not (checkout / ".venv" / "half-made").exists()


def test_all_packages_but_pytorch_are_held_to_their_checksums_first(checkout):
    asked = [call for call in setup(checkout) if call.startswith("python -m pip install")]
    assert asked[0].endswith("--no-deps --require-hashes --requirement requirements-hashed.lock")
    assert asked[1].endswith("--requirement requirements.lock")


def test_the_steps_are_said(checkout):
    setup(checkout)
    said = (checkout / "said").read_text()
    assert said.startswith("setting up .venv (about ")
    assert [said.index(f"\n{step} of 3: ") for step in (1, 2, 3)] == sorted(
        said.index(f"{n} of 3") - 1 for n in (1, 2, 3)
    )


def test_the_build_of_pytorch_for_cpus_is_taken_where_it_is_asked_for(checkout):
    asked = [call for call in setup(checkout, "TORCH=cpu") if call.startswith("python -m pip install")]
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert [index in call for call in asked] == [False, True, False]
    assert "2 of 3: PyTorch for CPUs\n" in (checkout / "said").read_text()
