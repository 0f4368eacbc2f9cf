"""The error that a user can mend, and helpers for the text of its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

INTERRUPTED = 130
"""Exit status after Ctrl-C, by the convention of shells: 128 and the number of SIGINT."""


class UserError(Exception):
    """An error that the user can mend: the message names the file, key or case, what was expected, and what to do.

    The command line prints the message without a traceback, and exits with status 1.
    """


class Interrupted(UserError):
    """The user ended the stage by Ctrl-C, and what it had done is saved; the command line exits with 130."""


def shown(value: Any, most: int = 200) -> str:
    """The `repr` of a value for a message, cut after `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write numbers of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."


def closest(word: str, words: Iterable[str]) -> str:
    """A hint with those of `words` that begin with `word` and a dash, else with the nearest one; or nothing."""
    known = list(map(str, words))
    near = [one for one in known if one.startswith(f"{word}-")] or difflib.get_close_matches(str(word), known, n=1)
    offered = " or ".join(f"'{one}'" for one in near)
    return f" (did you mean {offered}?)" if near else ""


def faults_listed(head: str, faults: Sequence[str], remedy: str, *, most: int = 20) -> UserError:
    """An error of one line for one fault, and of a line for each of several, cut after `most` of them.

    Args:
        head: what all faults belong to.
        faults: one or more.
        remedy: what the user can do.
    """
    if len(faults) == 1:
        return UserError(f"{head}: {faults[0]}; {remedy}")
    more = [f"  ... and {len(faults) - most} more"] if len(faults) > most else []
    return UserError(
        "\n".join([f"{head}: {len(faults)} faults:", *(f"  {fault}" for fault in faults[:most]), *more, remedy])
    )


def printable(message: str) -> str:
    """A message that is safe on a terminal: control characters and lone surrogates, say of file names, are escaped."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in message)


def expect(is_sound: bool, where: str, expected: str) -> None:
    """Refuses a file between stages with content that no stage writes.

    Args:
        is_sound: whether the content is as expected.
        expected: what a stage would have written, for the message.

    Raises:
        UserError: `is_sound` is false.
    """
    if not is_sound:
        raise UserError(f"{where}: expected {expected}; the file was damaged or changed: run the stage that writes it")
