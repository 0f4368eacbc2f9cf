"""The one exception that speaks to the user, and what its messages show of others' values."""

from __future__ import annotations

from typing import Any


class UserError(Exception):
    """Something that the user can mend: the message names the file, key or case, what was expected, and what to do.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """


def shown(value: Any, most: int = 200) -> str:
    """A value as Python writes it, for a message; cut where it is longer than `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."


def printable(message: str) -> str:
    """A message that a terminal can be given: names of strangers may hold control characters and half characters."""
    return "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in message)


def expect(is_sound: bool, where: str, expected: str) -> None:
    """Refuses a file between stages that says something which no stage writes.

    Args:
        is_sound: whether it says what is expected.
        where: file and key.
        expected: what a stage would have written.

    Raises:
        UserError: it does not.
    """
    if not is_sound:
        raise UserError(f"{where}: expected {expected}; the file was damaged or changed: run the stage that writes it")
