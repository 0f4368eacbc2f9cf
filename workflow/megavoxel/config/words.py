"""What a JSON schema allows, in words for a message and for a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megavoxel.config.fields import LONG_NAME, NAME

PLURALS = {"integer": "integers", "number": "numbers", "text": "texts", "name": "names"}
Node = dict[str, Any]


def alternatives(node: Node, schema: Node) -> Iterator[Node]:
    """The nodes that a value may follow, with references resolved and `null` left out."""
    if "$ref" in node:
        yield from alternatives(schema["$defs"][node["$ref"].rsplit("/", 1)[1]], schema)
    elif "anyOf" in node:
        for option in node["anyOf"]:
            yield from alternatives(option, schema)
    elif node.get("type") != "null":
        yield node


def node_at(schema: Node, path: Sequence[str | int]) -> Node:
    """The part of a schema that holds at a path of keys and places; `{}` where there is none."""
    found = schema
    for step in path:
        children = (_child(node, step) for node in alternatives(found, schema))
        found = next((child for child in children if child is not None), {})
    return found


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(step, int):
        return node.get("items")
    return node.get("properties", {}).get(step) or _values(node)


def _values(node: Node) -> Node | None:
    """What a mapping holds under any name; None where its keys are fixed."""
    return next(iter(node.get("patternProperties", {}).values()), None) or node.get("additionalProperties") or None


def without_null(node: Node) -> Node:
    """What may stand there but nothing."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    return options[0] if len(options) == 1 and "description" not in node else node


def allowed_keys(node: Node, schema: Node, kind: str = "properties") -> list[str]:
    """The keys that a mapping may have, or those that it must have (`required`)."""
    return [key for option in alternatives(node, schema) for key in option.get(kind, ())]


def allowed_words(node: Node, schema: Node, links: Mapping[str, str]) -> str:
    """What may be written, such as `list of 3 integers, 1 to 4096`.

    Args:
        node: of the schema.
        schema: the whole.
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
    count = (
        f"{least} " if least == most else f"{least} to {most} " if most else f"at least {least} " if least > 1 else ""
    )
    return f"list of {count}{PLURALS.get(kind, kind)}{comma}{rest}"


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
