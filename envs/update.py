"""`python envs/update.py` writes the versions of requirements.lock to envs/megavoxel.yaml; `--check` compares them.

Local version suffixes (`torch==2.13.0+cpu`) are left out, so that the index decides which build a machine gets.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement

FOLDER = Path(__file__).parent
ENVIRONMENT = FOLDER / "megavoxel.yaml"
LOCK = FOLDER.parent / "requirements.lock"
PYTHON = "python=3.11"
PINNED = re.compile(r"https://[\w./-]+/conda-forge/[a-z0-9-]+/[\w.+-]+\.(conda|tar\.bz2)#[0-9a-f]{32}")
HEAD = f"""\
# For `snakemake --sdm conda`. Written by `python envs/update.py` from requirements.lock: do not edit the pins here.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - {PYTHON}
  - pip
  - pip:
"""


def locked(lock: str) -> list[str]:
    """The pins `NAME==VERSION` of a lock file's text, in its order.

    Raises:
        ValueError: a line does not fix a version.
    """
    requirements = [Requirement(line) for line in lock.splitlines() if line.strip() and not line.startswith("#")]
    loose = [str(requirement) for requirement in requirements if not str(requirement.specifier).startswith("==")]
    if loose:
        raise ValueError(f"{LOCK.name}: {loose[0]} is not pinned by '=='")
    return [f"{requirement.name}{str(requirement.specifier).partition('+')[0]}" for requirement in requirements]


def environment(lock: str) -> str:
    """The text of megavoxel.yaml for a lock file's text."""
    return HEAD + "".join(f"      - {pin}\n" for pin in locked(lock))


def pin_faults(pins: str) -> list[str]:
    """The faults of a pin file's text, which must be an explicit list of conda-forge's packages, each with its MD5."""
    lines = [line.strip() for line in pins.splitlines() if line.strip() and not line.startswith("#")]
    faults = [] if lines[:1] == ["@EXPLICIT"] else ["it is no explicit list: the first line must be @EXPLICIT"]
    faults += [f"no package of conda-forge with its MD5: {line}" for line in lines[1:] if not PINNED.fullmatch(line)]
    if f"/{PYTHON.replace('=', '-')}." not in pins:
        faults.append(f"there is no {PYTHON} in it, which {ENVIRONMENT.name} asks for")
    return faults


def main() -> int:
    """Writes or checks the file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the file is out of date")
    wanted = environment(LOCK.read_text())
    if not parser.parse_args().check:
        ENVIRONMENT.write_text(wanted)
    elif ENVIRONMENT.read_text() != wanted:
        print(f"{ENVIRONMENT}: out of date; run 'python envs/update.py'", file=sys.stderr)
        return 1
    pins = sorted(FOLDER.glob("*.pin.txt"))
    faults = [f"{path}: {fault}" for path in pins for fault in pin_faults(path.read_text())]
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
