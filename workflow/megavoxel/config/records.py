"""Plain data (YAML, JSON) to frozen dataclasses and back, by the types of their fields."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from megavoxel.errors import UserError

Record = TypeVar("Record")


def from_plain(kind: type[Record], values: dict[str, Any], *, where: str) -> Record:
    """Builds the dataclass `kind` from plain values; nested dataclasses, tuples and dictionaries follow its types.

    Args:
        kind: a dataclass whose fields are all keyword-only.
        values: what a YAML or JSON file held.
        where: names the file and key in an error message.

    Raises:
        UserError: a key is unknown or a needed one is missing.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"{where}: unknown key '{unknown[0]}'; allowed: {', '.join(sorted(fields))}")
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
    if value is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        options = [option for option in arguments if option is not type(None)]
        if isinstance(value, list):
            options = [option for option in options if typing.get_origin(option) is tuple] or options
        if isinstance(value, dict):
            options = [option for option in options if dataclasses.is_dataclass(option)] or options
        return _convert(options[0], value, where) if len(options) == 1 else value
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where=where)
    if origin is tuple:
        return tuple(_convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        return {arguments[0](key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return float(value) if hint is float else value
