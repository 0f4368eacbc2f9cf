"""Plain data (YAML, JSON) to frozen dataclasses and back, by the types of their fields."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from typing import Any, TypeVar

from megavoxel.errors import UserError, shown

Record = TypeVar("Record")
DESCRIBED = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    types.NoneType: "nothing",
}


def from_plain(kind: type[Record], values: dict[str, Any], *, where: str) -> Record:
    """Builds the dataclass `kind` from plain values; nested dataclasses, tuples and dictionaries follow its types.

    Args:
        kind: a dataclass whose fields are all keyword-only.
        values: what a YAML or JSON file held.
        where: names the file and key in an error message.

    Raises:
        UserError: a key is unknown, a needed one is missing, or a value has another type than its field.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a mapping of keys to values, found {shown(values)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(map(str, set(values) - set(fields)))
    if unknown:
        raise UserError(f"{where}: unknown key {shown(unknown[0])}; allowed: {', '.join(sorted(fields))}")
    missing = [name for name, field in fields.items() if name not in values and not _has_default(field)]
    if missing:
        raise UserError(f"{where}: the key '{missing[0]}' is missing")
    return kind(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def to_plain(record: Any) -> Any:
    """The opposite of `from_plain`: dictionaries, lists, strings, numbers and None only."""
    if dataclasses.is_dataclass(record):
        return {field.name: to_plain(getattr(record, field.name)) for field in dataclasses.fields(record)}
    if isinstance(record, dict):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [to_plain(value) for value in record]
    return record


def _has_default(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the type says; of a union, as the first of its types that it fits."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        kind = next((option for option in arguments if _fits(option, value)), None)
        return _convert(kind or _refuse(hint, value, where), value, where)
    if not _fits(hint, value):
        _refuse(hint, value, where)
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where=where)
    if origin is tuple:
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return float(value) if hint is float else value


def _refuse(hint: Any, value: Any, where: str) -> typing.NoReturn:
    raise UserError(f"{where}: expected {_described(hint)}, found {shown(value)}")


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value has the form of a type, whatever is inside of it."""
    kind = typing.get_origin(hint) or hint
    if isinstance(value, bool):
        return kind in (bool, Any)
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # neither NaN nor infinite
    if dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    return kind is Any or isinstance(value, list | tuple if kind is tuple else kind)


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(_described, arguments))
    if origin is tuple:
        return "a list"
    if dataclasses.is_dataclass(hint) or origin is dict:
        return "a mapping"
    return DESCRIBED.get(hint, str(hint))
