"""One line for what is wrong in a file: the key, what stands there, what is allowed, the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic

from megavoxel.config.fields import CHARACTERS
from megavoxel.config.words import allowed_keys, allowed_words, node_at, without_null
from megavoxel.errors import closest, shown

EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping of keys to values",
    "none_required": "nothing",
}
"""What was expected, by pydantic's name of the error."""
NUMBERS = ("int_type", "float_type")
BOUNDS = {
    "greater_than_equal": "is less than the minimum of {ge:g}",
    "greater_than": "is not above {gt:g}",
    "less_than_equal": "is greater than the maximum of {le:g}",
    "less_than": "is not below {lt:g}",
    "too_short": "is too short",
    "too_long": "is too long",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
}


def explain(fault: pydantic.ValidationError, values: Any, schema: dict[str, Any], at: Sequence[str] = ()) -> str:
    """The first of the deepest faults: `key.of.the.file: what is wrong; allowed: ...`.

    Args:
        fault: what pydantic found.
        values: the plain values that were checked.
        schema: JSON schema of what they should be.
        at: keys that lead to the values.
    """
    errors = fault.errors(include_url=False)
    paths = [_path(values, error["loc"]) for error in errors]
    path = max(paths, key=len)
    here = [error for error, other in zip(errors, paths, strict=True) if other == path]
    error = here[0]
    node = node_at(schema, path)
    if error["type"] == "unexpected_keyword_argument":
        reason = _unknown(str(path[-1]), allowed_keys(node_at(schema, path[:-1]), schema))
    elif error["type"] == "missing":
        parent = node_at(schema, path)
        reason = (
            f"the key '{error['loc'][-1]}' is missing; needed: {', '.join(allowed_keys(parent, schema, 'required'))}"
        )
    elif error["type"] == "rule":
        path = (*path, *filter(None, error["ctx"]["key"].split(".")))
        reason = error["ctx"]["reason"]
    elif error["loc"] and error["loc"][-1] == "[key]":
        path = path[:-1]
        reason = f"{shown(error['input'])} is not allowed; {_allowed_name(node_at(schema, path))}"
    else:
        reason = _reason(here, node, schema)
    key = ".".join(map(str, (*at, *path)))
    return f"{key}: {reason}" if key else reason


def empty_keys(values: Any, schema: dict[str, Any], path: tuple[str | int, ...] = ()) -> Iterator[str]:
    """Keys whose value is null or empty where that would mean no more than their absence."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        node = node_at(schema, (*path, key))
        is_empty = value in ([], {}) and bool(node.keys() & {"minItems", "minProperties"})
        if is_empty or (value is None and node.get("default", "none") is None):
            yield ".".join(map(str, (*path, key)))
        yield from empty_keys(value, schema, (*path, key))


def _path(values: Any, steps: Sequence[str | int]) -> tuple[str | int, ...]:
    """The keys and places among pydantic's steps, which also name the members of unions."""
    path, place = [], values
    for step in steps:
        known = step in place if isinstance(place, dict) else isinstance(place, list | tuple) and isinstance(step, int)
        if known:
            place = place[step]
            path.append(step)
    return tuple(path)


def _unknown(key: str, allowed: Sequence[str]) -> str:
    return f"unknown key '{key}'; allowed: {', '.join(sorted(allowed))}{closest(key, sorted(allowed))}"


def _allowed_name(mapping: dict[str, Any]) -> str:
    names = mapping.get("propertyNames", {})
    return names.get("description") or CHARACTERS


def _reason(errors: Sequence[dict[str, Any]], node: dict[str, Any], schema: dict[str, Any]) -> str:
    """What is wrong with one value, by the errors of all types that it could have."""
    error, value = errors[0], shown(errors[0]["input"])
    words = allowed_words(node, schema, {}).replace("`", "")
    description = without_null(node).get("description", "")
    if len(errors) > 1 or error["type"] == "literal_error":
        near = closest(error["input"], re.split("[,;] ", words)) if isinstance(error["input"], str) else ""
        allowed = f"{description}; allowed: {words}" if description else f"allowed: {words}"
        return f"{value} is not allowed; {allowed}{near}"
    if error["type"] == "string_pattern_mismatch":
        return f"{value} is not allowed; {description or words}"
    if error["type"] in EXPECTED:
        reason = f"expected {EXPECTED[error['type']]}, found {value}"
        if description:
            return f"{reason} ({description})"
        return f"{reason}; allowed: {words}" if ", " in words and error["type"] in NUMBERS else reason
    if error["type"] in BOUNDS:
        reason = f"{value} {BOUNDS[error['type']].format(**error['ctx'])}"
        return f"{reason} ({description})" if description else f"{reason}; allowed: {words}"
    return f"{value}: {error['msg']}"
