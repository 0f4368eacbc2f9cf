"""Types of fields that several records share: what is allowed in them, in the words that a message shows."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

T = TypeVar("T")
NAME = "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
LONG_NAME = NAME.replace("63", "99")
CHARACTERS = "allowed: letters, digits, '-' and '_', beginning with a letter or digit, at most 64"


def between(least: float, most: float) -> Any:
    """Bounds of a number, both of which are allowed."""
    return Field(ge=least, le=most)


def refuse(reason: str, key: str = "") -> NoReturn:
    """Refuses a value in the validator of its type, or a record in a rule between its fields.

    Args:
        reason: what is wrong, and what is allowed.
        key: the field of the record that is wrong; keys within it are joined by dots.
    """
    raise PydanticCustomError("rule", "{reason}", {"reason": reason, "key": key})


def needs(**reasons: str) -> Any:
    """What a file must have beside this key, also where it gives the default: what a message says, by the other key."""
    return Field(json_schema_extra={"needs": list(reasons.items())})


def forbids(**reasons: str) -> Any:
    """What a file cannot have beside this key, not even with its default: what a message says of the other key."""
    return Field(json_schema_extra={"forbids": list(reasons.items())})


def allows_only(keys: tuple[str, ...], reason: str) -> Any:
    """The only keys that a file may have beside this one, and what a message says of any other."""
    return Field(json_schema_extra={"allows_only": keys, "reason": reason})


def unique(values: tuple) -> tuple:
    """Refuses a list that has a value twice."""
    if len(set(values)) < len(values):
        refuse(f"{list(values)} is not allowed; each value may stand there once")
    return values


def _ordered(ends: tuple) -> tuple:
    if ends[0] > ends[1]:
        refuse(f"{list(ends)} is not allowed; two numbers, the smaller first")
    return ends


def _increasing(ends: tuple) -> tuple:
    if ends[0] == ends[1]:
        refuse(f"{list(ends)} is not allowed; two numbers, the smaller first")
    return _ordered(ends)


def _permutation(axes: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(axes) != [0, 1, 2]:
        refuse(f"{list(axes)}; give 0, 1 and 2 in some order")
    return axes


# Text.
Name = Annotated[str, Field(pattern=NAME, description=CHARACTERS)]
LongName = Annotated[str, Field(pattern=LONG_NAME, description=CHARACTERS.replace("64", "100"))]
"""A name that the workflow may have lengthened, as `NAME-seedN`."""
Text = Annotated[str, Field(min_length=1)]
DatasetName = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63}|[^\x00-\x1f]+\.ya?ml)$",
        description="allowed: a name in config/datasets/ or the path of a dataset file ending in .yaml",
    ),
]

# Numbers.
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
"""A number of things that may be 0."""
Seed = Annotated[int, between(0, 2**31 - 1)]
Batch = Annotated[int, between(1, 65536)]
Fraction = Annotated[float, between(0, 1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Parts = Annotated[int, between(1, 4096)]
Channels = Annotated[int, between(1, 4096)]

# Lists.
Triple = Annotated[tuple[T, ...], Field(min_length=3, max_length=3)]
Several = Annotated[tuple[T, ...], Field(min_length=1)]
"""A list that is not empty."""
Distinct = Annotated[
    tuple[T, ...], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(unique)
]
"""A list that is not empty, of values that differ."""
DistinctOrNone = Annotated[
    tuple[T, ...], Field(json_schema_extra={"minItems": 1, "uniqueItems": True}), AfterValidator(unique)
]
"""A list of values that differ, of which a file has one or more where it has the key."""
OneOrMore = Union[T, Several[T]]  # noqa: UP007 - a type variable cannot be joined by `|`
Range = Annotated[
    tuple[T, ...],
    Field(min_length=2, max_length=2, description="two numbers, the smaller first"),
    AfterValidator(_ordered),
]
Interval = Annotated[
    tuple[float, ...],
    Field(min_length=2, max_length=2, description="two numbers, the smaller first"),
    AfterValidator(_increasing),
]
"""A range that is not empty."""
Spacing = Annotated[Triple[Positive], Field(description="three numbers above 0")]
"""mm per axis."""
Shape = Annotated[Triple[Annotated[int, between(1, 1_000_000)]], Field(description="three whole numbers above 0")]
Voxels = Annotated[
    Triple[Annotated[int, between(1, 4096)]],
    Field(description="voxels per axis: three whole numbers, coarsest axis first"),
]
Patch = Annotated[Literal["whole"] | Voxels, Field(description="voxels per axis, coarsest axis first, or whole")]
Transposition = Annotated[Triple[Annotated[int, between(0, 2)]], AfterValidator(_permutation)]
Folds = Distinct[CountOrNone]
Patterns = Annotated[Distinct[Text], Field(description="shell patterns of case ids, such as 'amos_04*'")]

# Choices.
Norm = Literal["instance", "batch"]
Pooling = Literal["stride", "max"]
Upsampling = Literal["transposed", "nearest"]
Fusion = Literal["post", "pre"]
ExpansionOrder = Literal["sequential", "joint"]
