"""JSON schemas of the files that users write, and one line for what is wrong in them."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from megavoxel.errors import UserError

SCHEMAS = Path(__file__).parents[1] / "schemas"
CHARACTERS = "allowed: letters, digits, '-' and '_', beginning with a letter or digit, at most 64"


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that holds one mapping.

    Raises:
        UserError: the file is missing, is no YAML, or holds something else than a mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        detail = " ".join(str(fault).split())
        raise UserError(f"{path}: cannot be read as YAML ({detail})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema of a kind of file: `study`, `dataset` or `hardware`."""
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text())


def validate(values: dict[str, Any], schema: str, *, source: str) -> None:
    """Checks plain data against a schema.

    Raises:
        UserError: one line with the file, the key and what is allowed there.
    """
    validator = jsonschema.Draft202012Validator(load_schema(schema))
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
            reason = f"{fault.instance!r} is not allowed; {description or CHARACTERS}"
        case "required":
            missing = [name for name in fault.validator_value if name not in fault.instance]
            reason = f"the key '{missing[0]}' is missing; needed: {', '.join(fault.validator_value)}"
        case "enum":
            allowed = [str(value) for value in fault.validator_value]
            near = closest(fault.instance, allowed)
            reason = f"{fault.instance!r} is not allowed; allowed: {', '.join(allowed)}{near}"
        case "oneOf" | "anyOf":
            reason = f"{fault.instance!r} is not allowed; {description or 'see config/README.md'}"
        case _:
            reason = " ".join(fault.message.split()) + (f" ({description})" if description else "")
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
