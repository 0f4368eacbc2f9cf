"""What a JSON schema allows, in words for a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megavoxel.config.schema import load_schema

PLURALS = {"integer": "integers", "number": "numbers", "text": "texts", "name": "names"}


def resolve(node: dict[str, Any], schema: str) -> dict[str, Any]:
    """A node of the schema `study`, `dataset` or `hardware`, or the definition that it refers to."""
    return load_schema(schema)["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node


def properties(node: dict[str, Any]) -> dict[str, Any]:
    """The keys that a mapping may have, those of all its alternatives included."""
    keys = dict(node.get("properties", {}))
    for alternative in node.get("oneOf", ()):
        keys |= properties(alternative)
    return keys


def allowed_values(node: dict[str, Any], schema: str, links: Mapping[int, str]) -> str:
    """What may be written, such as `list of 3 integers, 1 to 4096`.

    Args:
        node: of the schema.
        schema: its name.
        links: what to write for a node that has a table of its own, by its `id`.
    """
    if node.get("$ref", "").endswith("/name"):
        return "name"
    node = resolve(node, schema)
    if id(node) in links:
        return links[id(node)]
    if "anyOf" in node:
        return "; or ".join(allowed_values(option, schema, links) for option in node["anyOf"])
    if node.get("type") == "array":
        return _list(node, allowed_values(node["items"], schema, links))
    if node.get("type") == "object":
        return f"mapping of names, each to: {allowed_values(node['additionalProperties'], schema, links)}"
    return _scalar(node)


def _list(node: dict[str, Any], items: str) -> str:
    kind, comma, rest = items.partition(", ")
    least, most = node.get("minItems", 0), node.get("maxItems")
    count = f"{least} " if least == most else f"at least {least} " if least > 1 else ""
    return f"list of {count}{PLURALS.get(kind, kind)}{comma}{rest}"


def _scalar(node: dict[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    description = node.get("description", "")
    if description.startswith("allowed: "):
        return description.removeprefix("allowed: ")
    kind = {"boolean": "`true`, `false`", "string": "text", "null": "nothing"}.get(node["type"], node["type"])
    if {"minimum", "maximum"} <= set(node):
        return f"{kind}, {node['minimum']} to {node['maximum']}"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    return ", ".join([kind, *(f"{words} {node[key]}" for key, words in bounds.items() if key in node)])
