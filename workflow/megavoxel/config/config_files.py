"""The files that Snakemake is given by `--configfile`: held to what files of a user are held to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from megavoxel.config.yaml_files import read_yaml
from megavoxel.errors import UserError

OPTIONS = ("--configfile", "--configfiles")


def require_readable(files: Iterable[Path]) -> None:
    """Refuses files that are missing, or neither JSON nor YAML as people write it, and keys that are there twice.

    Raises:
        UserError: with the file and, where one is to blame, the line.
    """
    for path in files:
        try:
            json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
        except (OSError, RecursionError, ValueError):
            read_yaml(path)


def refuse_unreadable(arguments: Sequence[str]) -> None:
    """Ends Snakemake in one line where it would say neither which file cannot be read nor why.

    Args:
        arguments: of Snakemake's command line.
    """
    try:
        require_readable(map(Path, _config_files(arguments)))
    except UserError as error:
        sys.exit(f"Error: {error}")


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError  # read as YAML, which names the line
    return found


def _config_files(arguments: Sequence[str]) -> list[str]:
    """The values of `--configfile`, behind an equals sign as well."""
    found, wanted = [], False
    for word in arguments:
        if word.startswith("-"):
            option, _, value = word.partition("=")
            wanted = option in OPTIONS
            found += [value] if wanted and value else []
        elif wanted:
            found.append(word)
    return found
