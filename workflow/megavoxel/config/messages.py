"""Error messages of one line (key, value, what is allowed, nearest name), and JSON schemas put into words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic

from megavoxel.config.fields import CHARACTERS, LONG_NAME, NAME
from megavoxel.errors import closest, shown

Node = dict[str, Any]
PLURALS = {"integer": "integers", "number": "numbers", "text": "texts", "name": "names"}
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
"""Words for the expected type, by pydantic's name of the error."""
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


def explain(fault: pydantic.ValidationError, values: Any, schema: Node, at: Sequence[str] = ()) -> str:
    """Explains the deepest fault: `key.of.the.file: what is wrong; allowed: ...`.

    Args:
        values: the plain values that were checked.
        schema: JSON schema of what they should be.
        at: keys that lead to the values.
    """
    errors = fault.errors(include_url=False)
    paths = [_path(values, error["loc"]) for error in errors]
    path = max(paths, key=len)
    here = [error for error, other in zip(errors, paths, strict=True) if other == path]
    # Of the types that a value could have, the one whose form it has says best what is wrong.
    formed = [error for error in here if error["type"] not in EXPECTED and error["type"] != "literal_error"]
    here = formed if len(formed) == 1 else here
    error = here[0]
    if error["type"] == "rule":
        path = (*path, *filter(None, error["ctx"]["key"].split(".")))
        reason = error["ctx"]["reason"]
    elif error["loc"] and error["loc"][-1] == "[key]":
        path = path[:-1]
        names = node_at(schema, path).get("propertyNames", {})
        reason = f"{shown(error['input'])} is not allowed; {names.get('description', CHARACTERS)}"
    elif error["type"] == "unexpected_keyword_argument":
        allowed = sorted(allowed_keys(node_at(schema, path[:-1]), schema))
        reason = f"unknown key '{path[-1]}'; allowed: {', '.join(allowed)}{closest(str(path[-1]), allowed)}"
    elif error["type"] == "missing":
        needed = ", ".join(allowed_keys(node_at(schema, path), schema, "required"))
        reason = f"the key '{error['loc'][-1]}' is missing; needed: {needed}"
    else:
        reason = _reason(here, node_at(schema, path), schema)
    key = ".".join(map(str, (*at, *path)))
    return f"{key}: {reason}" if key else reason


def misprints(values: Any, node: Node, schema: Node, path: tuple[str | int, ...] = ()) -> Iterator[str]:
    """Finds keys that are not text, keys with an empty value that means the same as leaving the key out, and keys that
    do not go with others, whatever their values (`needs`, `forbids` and `allows_only` of `config/fields.py`)."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        if isinstance(values, dict) and not isinstance(key, str):
            yield f"{'.'.join(map(str, path)) or 'it'}: the key {shown(key)} is no text; put it in quotes"
            return
        part, place = node_at(schema, (key,), node), (*path, key)
        if not isinstance(part, dict):  # any value is allowed
            continue
        is_empty = value in ([], {}) and bool(part.keys() & {"minItems", "minProperties"})
        if is_empty or (value is None and part.get("default", "none") is None):
            yield f"{'.'.join(map(str, place))}: nothing stands behind this key; give it a value, or leave it out"
        for other, reason in _misplaced(str(key), part, values, allowed_keys(node, schema)):
            yield f"{'.'.join(map(str, (*path, other)))}: {reason}"
        yield from misprints(value, part, schema, place)


def _misplaced(key: str, part: Node, written: Any, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Keys that the declaration `part` of `key` does not allow beside it, or itself where another is missing."""
    yield from ((other, reason) for other, reason in part.get("forbids", ()) if other in written)
    yield from ((key, reason) for other, reason in part.get("needs", ()) if other not in written)
    if "allows_only" in part:
        others = set(written) & set(known) - {key, *part["allows_only"]}
        yield from ((other, part["reason"]) for other in sorted(others))


def _path(values: Any, steps: Sequence[str | int]) -> tuple[str | int, ...]:
    """Keeps the keys and list indices of pydantic's location, and drops the names of union members in it."""
    path, place = [], values
    for step in steps:
        known = step in place if isinstance(place, dict) else isinstance(place, list | tuple) and isinstance(step, int)
        if known:
            place = place[step]
            path.append(step)
    return tuple(path)


def _reason(errors: Sequence[dict[str, Any]], node: Node, schema: Node) -> str:
    """Explains what is wrong with one value, given the errors of all types that it could have."""
    error, value = errors[0], shown(errors[0]["input"])
    words = allowed_words(node, schema, {}).replace("`", "")
    description = without_null(node).get("description", "")
    if error["type"] == "literal_error" or len(errors) > 1:
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


def alternatives(node: Node, schema: Node) -> Iterator[Node]:
    """The nodes that a value may follow, with references resolved and `null` left out."""
    if "$ref" in node:
        yield from alternatives(schema["$defs"][node["$ref"].rsplit("/", 1)[1]], schema)
    elif "anyOf" in node:
        for option in node["anyOf"]:
            yield from alternatives(option, schema)
    elif node.get("type") != "null":
        yield node


def node_at(schema: Node, path: Sequence[str | int], start: Node | None = None) -> Node:
    """The part of a schema that holds at a path of keys and places, from a node on; `{}` where there is none."""
    found = schema if start is None else start
    for step in path:
        children = (_child(node, step) for node in alternatives(found, schema))
        found = next((child for child in children if child is not None), {})
    return found


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(step, int):
        return node.get("items")
    return node.get("properties", {}).get(step) or _values(node)


def _values(node: Node) -> Node | None:
    """Schema of the values of a mapping with free names; None where its keys are fixed."""
    return next(iter(node.get("patternProperties", {}).values()), None) or node.get("additionalProperties") or None


def without_null(node: Node) -> Node:
    """The node without the alternative `null`, if only one other is left."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return options[0] if len(options) == 1 and "description" not in node else node


def allowed_keys(node: Node, schema: Node, kind: str = "properties") -> list[str]:
    """The keys that a mapping may have, or those that it must have (`required`)."""
    return [key for option in alternatives(node, schema) for key in option.get(kind, ())]


def allowed_words(node: Node, schema: Node, links: Mapping[str, str]) -> str:
    """Puts a node into words, such as `list of 3 integers, 1 to 4096`.

    Args:
        links: what to write for a mapping that has a table of its own, by the name of its record.
    """
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[1]
        return links.get(name) or f"a mapping with {', '.join(allowed_keys(node, schema))}"
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        return "; or ".join(allowed_words(option, schema, links) for option in options)
    if node.get("type") == "array":
        return _list(node, allowed_words(node["items"], schema, links))
    if node.get("type") == "object":
        return _mapping(node, schema, links)
    return _scalar(node)


def _mapping(node: Node, schema: Node, links: Mapping[str, str]) -> str:
    values = _values(node)
    names = allowed_words(node["propertyNames"], schema, links) if "enum" in node.get("propertyNames", {}) else "names"
    if not isinstance(values, dict) or not values:
        return "mapping"
    return f"mapping of {names}, each to: {allowed_words(values, schema, links)}"


def _list(node: Node, items: str) -> str:
    kind, comma, rest = items.partition(", ")
    least, most = node.get("minItems", 0), node.get("maxItems")
    items = f"{PLURALS.get(kind, kind)}{comma}{rest}"
    if most is not None:
        return f"list of {least} {items}" if least == most else f"list of {least} to {most} {items}"
    return f"list of at least {least} {items}" if least > 1 else f"{'non-empty ' if least else ''}list of {items}"


def _scalar(node: Node) -> str:
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node.get("pattern") in (NAME, LONG_NAME):
        return "name"
    description = node.get("description", "")
    if description.startswith("allowed: "):
        return description.removeprefix("allowed: ")
    kind = {"boolean": "`true`, `false`", "string": "text"}.get(node.get("type", ""), node.get("type", "anything"))
    if {"minimum", "maximum"} <= set(node):
        return f"{kind}, {node['minimum']} to {node['maximum']}"
    bounds = {
        "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    }  # fmt: skip
    return ", ".join([kind, *(f"{words} {node[key]}" for key, words in bounds.items() if key in node)])
