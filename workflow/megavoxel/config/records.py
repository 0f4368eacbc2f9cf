"""Records that validate their fields, rules between fields, and conversion from plain data and back.

Each field declares type and bounds (`config/fields.py`), default, and meaning with unit (the string under it), once.
Messages, JSON schemas and the tables of config/README.md are made from these declarations.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, dataclass_transform

import pydantic

from megavoxel.config.messages import explain, misprints
from megavoxel.errors import UserError, shown
from megavoxel.files import read_json

Record = TypeVar("Record")
# Built at first use: most commands need a few of the records.
CONFIG = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def record(kind: type[Record]) -> type[Record]:
    """A frozen, keyword-only dataclass whose values have the types and bounds of their fields, or are refused."""
    return pydantic.dataclasses.dataclass(kind, frozen=True, kw_only=True, config=CONFIG)


def rule(check: Callable[[Any], None]) -> Any:
    """A method of a record that calls `fields.refuse` where its fields contradict one another."""

    def after(self: Any) -> Any:
        check(self)
        return self

    return pydantic.model_validator(mode="after")(after)


def rule_of_whole(check: Callable[[Any], None]) -> Any:
    """A rule that is skipped while only a part of the keys is known, as in the defaults of a study."""

    def after(self: Any, info: pydantic.ValidationInfo) -> Any:
        if not (info.context or {}).get("partial"):
            check(self)
        return self

    return pydantic.model_validator(mode="after")(after)


def from_plain(
    kind: type[Record], values: Any, *, where: str, at: tuple[str, ...] = (), partial: bool = False
) -> Record:
    """Builds a record, or any other dataclass, from plain values.

    Args:
        values: what a YAML or JSON file held.
        where: names the file or option in an error message.
        at: keys of the file that lead to the values.
        partial: whether `rule_of_whole` does not hold yet, because other keys are added before use.

    Raises:
        UserError: one line with the file, the key, what is wrong and what is allowed.
    """
    try:
        text = json.dumps(values, default=_refuse_foreign)
        return adapter(kind).validate_json(text, strict=True, extra="forbid", context={"partial": partial})
    except pydantic.ValidationError as fault:
        reason = explain(fault, values, schema_of(kind), at)
    except (RecursionError, TypeError, ValueError) as fault:
        reason = f"{'.'.join(at) or 'it'} holds what no file for people does ({fault})"
    raise UserError(f"{where}: {reason}")


def from_file(kind: type[Record], values: Any, *, where: str, partial: bool = False) -> Record:
    """Builds a record from what a person wrote: as `from_plain`, and no key may lack its value.

    Raises:
        UserError: as `from_plain`; a key that is no text, or one with nothing behind it.
    """
    for fault in misprints(values, schema_of(kind), schema_of(kind)):
        raise UserError(f"{where}: {fault}")
    return from_plain(kind, values, where=where, partial=partial)


def read_record(kind: type[Record], path: Path, *, what: str) -> Record:
    """Reads a JSON file that a stage wrote for the next ones; `what` names it in messages.

    Raises:
        UserError: the file is missing, or holds something that no stage writes.
    """
    values = read_json(path, what=what)
    try:
        return from_plain(kind, values, where=str(path))
    except UserError as fault:
        raise UserError(f"{fault}; the file was damaged or changed: run the stage that writes it") from None


def to_plain(value: Any) -> Any:
    """The opposite of `from_plain`: dictionaries, lists, strings, numbers and None only."""
    return _plain(value, lambda *_: True)


def deviations(value: Any) -> Any:
    """As `to_plain`, without the fields of records that have their default value.

    A hash of it stays the same when a later version adds a field whose default is what was done before: states go on,
    and exported models are read.
    """
    return _plain(value, lambda field, own: not _is_default(field, own))


@cache
def schema_of(kind: type) -> dict[str, Any]:
    """The JSON schema of a type; not to be changed."""
    return adapter(kind).json_schema()


@cache
def adapter(kind: type) -> pydantic.TypeAdapter:
    """The validator of a type."""
    return pydantic.TypeAdapter(kind)


def _refuse_foreign(value: Any) -> NoReturn:
    raise TypeError(f"{shown(value)} is no text, number, list or mapping; put it in quotes")


def _plain(value: Any, keeps: Callable[[dataclasses.Field, Any], bool]) -> Any:
    """Plain values, of records the fields that are kept."""
    if dataclasses.is_dataclass(value):
        fields = {field: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {field.name: _plain(own, keeps) for field, own in fields.items() if keeps(field, own)}
    if isinstance(value, dict):
        return {str(key): _plain(item, keeps) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, keeps) for item in value]
    return value


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return value == field.default_factory()
    return field.default is not dataclasses.MISSING and value == field.default
