"""Pages of the documentation as readers follow them: files that they show are written, commands are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stage_server import programs

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:megavoxel|snakemake|make) [^\n]*")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    language: str
    """`sh` is for commands to be typed."""
    file: str
    """What the page calls it; empty: it is no file."""
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = BLOCK.findall(page.read_text())
    return [Block(language=language, file=file, text=text) for language, file, text in found]


def named_commands(page: Path) -> list[str]:
    """Every command of megavoxel and Snakemake on a page, in its blocks and within its sentences; on one line each."""
    text = page.read_text().replace("\\\n", " ")
    fenced = "\n".join(re.findall(r"^```(?:sh|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4,}(.*)$", BLOCK.sub("", text), re.MULTILINE))
    lines = [line for line in f"{fenced}\n{indented}".splitlines() if COMMAND.match(line.strip())]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines] + [span for span in spans if COMMAND.match(span)]


def is_typed(block: Block) -> bool:
    """Whether the block holds commands."""
    return block.language == "sh"


def write(block: Block, folder: Path) -> None:
    """Writes a file that a page shows."""
    path = folder / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)


def environment(clone: Path, *, own_code: bool) -> dict[str, str]:
    """Variables of a shell in a clone, whose home folder is beside it.

    Args:
        own_code: whether its programs are those of the clone's code; else they are forks of a server, which start
            faster.
    """
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    found = {**os.environ, "HOME": str(clone.parent / "home"), "OMP_NUM_THREADS": "1"}
    if own_code:
        found["PYTHONPATH"] = os.pathsep.join([str(clone / "workflow"), os.environ.get("PYTHONPATH", "")])
    else:
        path.insert(0, str(programs()))
    return {**found, "PATH": os.pathsep.join(path)}


def run(command: str, clone: Path, *, own_code: bool = False) -> str:
    """What commands print; the first that fails ends the test."""
    done = subprocess.run(
        ["bash", "-ec", command], cwd=clone, env=environment(clone, own_code=own_code), capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def follow(blocks: Sequence[Block], clone: Path, *, own_code: bool = False) -> str:
    """Does what a page says; what its commands print."""
    said = ""
    for block in blocks:
        if block.file:
            write(block, clone)
        elif is_typed(block):
            said += run(block.text, clone, own_code=own_code)
    return said


def words_of(command: str) -> list[str]:
    """The words of a command as a shell divides them."""
    return shlex.split(command, comments=True)
