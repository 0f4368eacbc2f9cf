"""YAML that people write: read if it is as long as they write it, with every alias written out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event, MappingStartEvent, ScalarEvent

from megavoxel.errors import UserError, shown

UNREADABLE = (AttributeError, IndexError, KeyError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError)
"""Raised for a file that is no YAML, values that do not have the type of their tag among them."""
MOST_BYTES, MOST_VALUES, MOST_LEVELS = 2**22, 100_000, 30
LETTERS = 64
"""Letters of a text that count as a further value."""
TOO_MUCH = f"more than {MOST_VALUES} values or {MOST_LEVELS} levels, with all aliases written out; write less"
SIXTIES = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""A number to the base of 60 in YAML 1.1, such as 12:30; it takes long where it is long, and nobody means it."""
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml parses several times as fast. It crashes where it builds thousands of levels, which it does not do here."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping.

    Raises:
        UserError: the file is missing, is no YAML, holds something else than a mapping, or more than people write.
    """
    try:
        if Path(path).stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes; write less")
        return parse_yaml(Path(path).read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE as fault:
        raise _unreadable(str(path), fault) from None


def parse_yaml(text: str, *, where: str) -> dict[str, Any]:
    """The mapping that a text in YAML holds; `where` names the text in messages.

    Raises:
        UserError: it is no YAML, holds something else than a mapping, or more than people write.
    """
    try:
        _require_modest(text)
        content = yaml.safe_load(text)
    except UNREADABLE as fault:
        raise _unreadable(where, fault) from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a mapping of keys to values, found {type(content).__name__}")
    _require_text(content, where)
    return content


def _unreadable(where: str, fault: Exception) -> UserError:
    """The error for a text that is no YAML, with the line, where one is to blame."""
    mark = getattr(fault, "problem_mark", None)
    if mark is None:
        detail = " ".join(str(fault).split())[:500]
        return UserError(f"{where}: cannot be read as YAML ({detail})")
    begin = fault.context_mark
    around = f" ({fault.context}{f', which begins in line {begin.line + 1}' if begin else ''})" if fault.context else ""
    return UserError(
        f"{where}: cannot be read as YAML: line {mark.line + 1}, column {mark.column + 1}: "
        f"{_one_line(fault.problem)}{around}; correct it there or in the lines before"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


@dataclass(kw_only=True)
class _Part:
    """A list or mapping whose end has not been read, or an anchor."""

    anchor: str | None = None
    size: int = 1
    """Values in it, with all aliases written out."""
    levels: int = 1
    keys: set[str] | None = None
    """Keys of a mapping that were read; None: a list."""
    expects_key: bool = True


def _require_modest(text: str) -> None:
    """Refuses aliases that multiply or hold themselves, many levels, keys that are there twice, and numbers to the
    base of 60.

    Raises:
        ValueError: with what was found.
        yaml.YAMLError: the text is no YAML.
    """
    whole = _Part()
    open_parts, anchors = [whole], {}
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, CollectionEndEvent):
            part = open_parts.pop()
            anchors |= {part.anchor: part} if part.anchor else {}
            _add(open_parts, part)
        elif isinstance(event, CollectionStartEvent):
            keys = set() if isinstance(event, MappingStartEvent) else None
            open_parts.append(_Part(anchor=event.anchor, keys=keys))
        elif isinstance(event, AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(
                    f"{_line(event)}the alias *{event.anchor} stands before or within what it names; {TOO_MUCH}"
                )
            _add(open_parts, anchors[event.anchor])
        elif isinstance(event, ScalarEvent):
            part = _scalar(event, open_parts[-1])
            anchors |= {event.anchor: part} if event.anchor else {}
            _add(open_parts, part)
        if len(open_parts) > MOST_LEVELS + 1:
            raise ValueError(TOO_MUCH)


def _scalar(event: Event, around: _Part) -> _Part:
    if not event.style and SIXTIES.fullmatch(event.value):
        raise ValueError(f"{_line(event)}{shown(event.value, 50)} is a number to the base of 60; put it in quotes")
    if around.keys is not None and around.expects_key and event.value != "<<":
        if event.value in around.keys:
            raise ValueError(
                f"{_line(event)}the key {shown(event.value, 100)} is there twice in one mapping; remove one"
            )
        around.keys.add(event.value)
    return _Part(size=1 + len(event.value) // LETTERS, levels=0)


def _line(event: Event) -> str:
    return f"line {event.start_mark.line + 1}: "


def _add(open_parts: list[_Part], part: _Part) -> None:
    """Counts what has been read to what it lies in."""
    around = open_parts[-1]
    around.size += part.size
    around.levels = max(around.levels, 1 + part.levels)
    around.expects_key = not around.expects_key
    if around.size > MOST_VALUES or len(open_parts) - 1 + part.levels > MOST_LEVELS:
        raise ValueError(TOO_MUCH)


def _require_text(content: Any, source: str) -> None:
    """Refuses keys that are no text, and halves of characters."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:
                raise UserError(f"{source}: the key {shown(odd[0])} is no text; put it in quotes, or correct it")
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not value.isascii() and HALF_CHARACTER.search(value):
            raise UserError(f"{source}: the text {shown(value)} has half a character in it; write it anew")
