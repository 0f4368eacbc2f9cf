"""YAML files for people: read as plain data, with what no such file holds refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from megavoxel.errors import UserError, shown

UNREADABLE = (AttributeError, IndexError, KeyError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError)
"""Raised for a file that is no YAML, values that do not have the type of their tag among them."""
MOST_VALUES, MOST_LEVELS = 100_000, 30
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping.

    Raises:
        UserError: the file is missing, is no YAML, or holds something else than a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE as fault:
        detail = " ".join(str(fault).split())[:500]
        raise UserError(f"{path}: cannot be read as YAML ({detail})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    require_plain(content, str(path))
    return content


def require_plain(content: Any, source: str) -> None:
    """Refuses what no file for people holds: aliases that multiply, values inside themselves, keys that are no text.

    Raises:
        UserError: more than `MOST_VALUES` values where every alias is written out, more than `MOST_LEVELS` levels, or
            a key or text that is none.
    """
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, level = waiting.pop()
        seen += 1
        if seen > MOST_VALUES or level > MOST_LEVELS:
            raise UserError(
                f"{source}: more than {MOST_VALUES} values or {MOST_LEVELS} levels, with all aliases written out; "
                "write less, or fewer aliases"
            )
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:
                raise UserError(f"{source}: the key {shown(odd[0])} is no text; put it in quotes, or correct it")
            waiting += [(part, level + 1) for part in (*value.keys(), *value.values())]
        elif isinstance(value, list):
            waiting += [(part, level + 1) for part in value]
        elif isinstance(value, str) and not value.isascii() and HALF_CHARACTER.search(value):
            raise UserError(f"{source}: the text {shown(value)} has half a character in it; write it anew")
