"""JSON schemas of the files that users write, and one line for what is wrong in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from megavoxel.errors import UserError, shown

SCHEMAS = Path(__file__).parents[1] / "schemas"
CHARACTERS = "allowed: letters, digits, '-' and '_', beginning with a letter or digit, at most 64"
UNREADABLE = (AttributeError, IndexError, KeyError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError)
"""What comes of a file that is no YAML: values of a type that a tag promises and the text is not, among them."""
MOST_VALUES, MOST_LEVELS = 100_000, 30
MOST_WORDS = 500
"""Characters of a validator's own message."""
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping.

    Raises:
        UserError: the file is missing, is no YAML, or holds something else than a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UNREADABLE as fault:
        detail = " ".join(str(fault).split())[:500]
        raise UserError(f"{path}: cannot be read as YAML ({detail})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    require_plain(content, str(path))
    return content


def require_plain(content: Any, source: str) -> None:
    """Refuses what no file for people holds: aliases that multiply, values inside themselves, keys that are no text.

    Raises:
        UserError: more than `MOST_VALUES` values where every alias is written out, more than `MOST_LEVELS` levels, or
            a key or text that is none.
    """
    waiting, seen = [(content, 0)], 0
    while waiting:
        value, level = waiting.pop()
        seen += 1
        if seen > MOST_VALUES or level > MOST_LEVELS:
            raise UserError(
                f"{source}: more than {MOST_VALUES} values or {MOST_LEVELS} levels, with all aliases written out; "
                "write less, or fewer aliases"
            )
        if isinstance(value, dict):
            odd = [key for key in value if not isinstance(key, str)]
            if odd:
                raise UserError(f"{source}: the key {shown(odd[0])} is no text; put it in quotes, or correct it")
            waiting += [(part, level + 1) for part in (*value.keys(), *value.values())]
        elif isinstance(value, list):
            waiting += [(part, level + 1) for part in value]
        elif isinstance(value, str) and not value.isascii() and HALF_CHARACTER.search(value):
            raise UserError(f"{source}: the text {shown(value)} has half a character in it; write it anew")


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema of a kind of file: `study`, `dataset` or `hardware`."""
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text())


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    """JSON Schema's `$` is the end of the text; Python's is also the place before a last newline."""
    if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
        yield jsonschema.ValidationError(f"{shown(instance)} does not match {pattern!r}")


VALIDATOR = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


def validate(values: dict[str, Any], schema: str, *, source: str, part: str | None = None) -> None:
    """Checks plain data against a schema, or against one of its parts (a name in its `$defs`).

    Raises:
        UserError: one line with the file, the key and what is allowed there.
    """
    whole = load_schema(schema)
    validator = VALIDATOR(whole if part is None else {"$ref": f"#/$defs/{part}", "$defs": whole["$defs"]})
    fault = jsonschema.exceptions.best_match(validator.iter_errors(values))
    if fault is not None:
        raise UserError(f"{source}: {_explain(fault)}")


def closest(word: str, words: list[str]) -> str:
    """A hint with the nearest of `words`, or nothing."""
    near = difflib.get_close_matches(str(word), [str(other) for other in words], n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _explain(fault: jsonschema.ValidationError) -> str:
    key = ".".join(str(part) for part in fault.absolute_path) or "the file"
    if fault.validator == "additionalProperties":
        return _unknown_key(fault, "" if key == "the file" else f"{key}.")
    return f"{key}: {_reason(fault)}"


def _reason(fault: jsonschema.ValidationError) -> str:
    description = _description(fault)
    match fault.validator:
        case "pattern":
            reason = f"{shown(fault.instance)} is not allowed; {description or CHARACTERS}"
        case "required":
            missing = [name for name in fault.validator_value if name not in fault.instance]
            reason = f"the key '{missing[0]}' is missing; needed: {', '.join(fault.validator_value)}"
        case "enum":
            allowed = [str(value) for value in fault.validator_value]
            near = closest(fault.instance, allowed)
            reason = f"{shown(fault.instance)} is not allowed; allowed: {', '.join(allowed)}{near}"
        case "oneOf" | "anyOf":
            reason = f"{shown(fault.instance)} is not allowed; {description or 'see config/README.md'}"
        case _:
            message = " ".join(fault.message.split())
            message = message if len(message) < MOST_WORDS else f"{message[:MOST_WORDS]}..."
            reason = message + (f" ({description})" if description else "")
    return reason


def _description(fault: jsonschema.ValidationError | None) -> str | None:
    """The description of the key at fault: the schema's own, or that of the alternatives it is one of."""
    place = fault.absolute_path
    while fault is not None and fault.absolute_path == place:
        if "description" in fault.schema:
            return fault.schema["description"]
        fault = fault.parent
    return None


def _unknown_key(fault: jsonschema.ValidationError, prefix: str) -> str:
    allowed = sorted(fault.schema.get("properties", {}))
    unknown = next(str(name) for name in fault.instance if name not in allowed)
    return f"{prefix}{unknown}: unknown key '{unknown}'; allowed: {', '.join(allowed)}{closest(unknown, allowed)}"
