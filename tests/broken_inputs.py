"""Hypothesis strategies for inputs that are nearly right: sound documents and files, spoilt in one to three places."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Place = tuple[Any, ...]

NAMES = [
    "", " ", ".", "..", "../escape", "/tmp/escape", "a/../../escape", "a/b", "-rf", "--help", "$(touch escape)",
    "`touch escape`", "; touch escape", "a\nb", "a\x00b", "a\x1b[31m", "\ud800", "é", "名", "x" * 300, "x" * 20000,
    "NaN", "None", "true", "null", "1", "~", "*", "**", "[", "%s", "{0}", "{x}", "C:\\escape", "con",
    "\ufeff", "\u202e",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 3, 7, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**18, 10**30,
    10**400, -(10**400), 0.0, -0.0, 0.5, -1.5, 1e-320, 1e-30, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf,
]  # fmt: skip
OTHERS = [None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": {}}}, ["a", 1, None], [1, 2], [1, 2, 3]]
YAML_LINES = [
    "<<: *nothing", "a: &a [*a]", "? [1, 2]", "1: x", "null: x", "true: x", "2020-99-99: x", "x: 2020-99-99",
    "x: 2020-01-01", "x: 0o9", "x: 1:99:99", "x: .nan", "x: -.inf", "x: 0x", "x: 1e400", "x: !!binary abc",
    "x: !!python/object/apply:os.system ['touch escape']", "x: !!python/name:os.system", "x: !!set {a, a}",
    "x: !!int many", "x: !!float many", "x: !!timestamp now", "x: !!null some", "x: \"\\ud800\"", "\tx: 1", "x: |",
    "---",
    "...", "%YAML 9.9", "x: *x", "x: {", "x: [", "x: 'a", "'", "- x", ": :", "x: !<tag> y", "x: &x {<<: *x}",
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
    "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\n"
    "e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]\n"
    "g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f]\nh: &h [*g, *g, *g, *g, *g, *g, *g, *g, *g]",
]  # fmt: skip
JSON_PIECES = [
    "NaN", "Infinity", "-Infinity", "1e400", "9" * 5000, '"\\ud800"', '"\\u0000"', "null", "[", "]", "{", "}", ",", ":",
    '"', "\\", "//", "[" * 100000, '{"a":' * 50000, "0x1", "01", "'a'", "True",
]  # fmt: skip
CSV_PIECES = [
    ",",
    '"',
    "\n",
    "\r",
    "\x00",
    "nan",
    "inf",
    "-1",
    "1e999",
    "x",
    ",,,,,,,,",
    '""""',
    "=1+1",
    "é",
    "9" * 5000,
]


def scalars() -> st.SearchStrategy:
    """Names, numbers and small containers that something may stumble over."""
    return st.one_of(st.sampled_from(NAMES), st.sampled_from(NUMBERS), st.sampled_from(OTHERS).map(copy.deepcopy))


def places(document: Any, here: Place = ()) -> list[Place]:
    """The way to everything in a document but itself."""
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
    else:
        return []
    return [place for key, value in items for place in ((*here, key), *places(value, (*here, key)))]


def at(document: Any, place: Place) -> Any:
    """What stands there."""
    for key in place:
        document = document[key]
    return document


@st.composite
def broken_documents(draw: st.DrawFn, documents: Sequence[Any]) -> Any:
    """One of some documents of dictionaries and lists, changed in one to three places."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        known = places(document)
        if not known:
            return draw(scalars())
        place = draw(st.sampled_from(known))
        document = _changed(draw, document, place, known)
    return document


def _changed(draw: st.DrawFn, document: Any, place: Place, known: list[Place]) -> Any:
    parent, key = at(document, place[:-1]), place[-1]
    action = draw(st.sampled_from(["replace", "replace", "drop", "rename", "repeat", "swap", "wrap", "scale", "whole"]))
    if action == "replace":
        parent[key] = draw(scalars())
    elif action == "drop":
        del parent[key]
    elif action == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(NAMES))] = parent.pop(key)
    elif action == "repeat" and isinstance(parent, list):
        parent.extend(copy.deepcopy([parent[key]]) * draw(st.sampled_from([1, 2, 50])))
    elif action == "swap":
        parent[key] = copy.deepcopy(at(document, draw(st.sampled_from(known))))
    elif action == "wrap":
        parent[key] = draw(st.sampled_from([lambda x: [x], lambda x: {"a": x}, str, lambda x: [[x]]]))(parent[key])
    elif action == "scale" and isinstance(parent[key], int | float):
        parent[key] = parent[key] * draw(st.sampled_from([-1, 10, 1000, 10**9, 0.001, 1.5]))
    elif action == "whole" and draw(st.integers(0, 9)) == 0:
        return draw(scalars())
    return document


@st.composite
def broken_bytes(
    draw: st.DrawFn, contents: Sequence[bytes], pieces: Sequence[str] = (), head: int | None = None
) -> bytes:
    """The bytes of one of some files, changed in one to three places; most of them among the first `head`."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 3))):
        most = len(content) if head is None or draw(st.integers(0, 3)) == 0 else min(head, len(content))
        start = draw(st.integers(0, most))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1000]))
        action = draw(st.sampled_from(["flip", "set", "cut", "remove", "repeat", "piece", "piece", "ends"]))
        if action == "flip" and start < len(content):
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif action == "set":
            patch = draw(st.sampled_from([b"\x00", b"\xff", b"\x7f", b"\x80", b"\x01"])) * length
            content[start : start + length] = patch[: max(0, len(content) - start)]
        elif action == "cut":
            del content[start:]
        elif action == "remove":
            del content[start : start + length]
        elif action == "repeat":
            content[start:start] = content[start : start + length]
        elif action == "piece" and pieces:
            content[start:start] = draw(st.sampled_from(pieces)).encode(errors="surrogatepass")
        elif action == "ends":
            content[:0] = draw(
                st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"#!", b"\x1f\x8b", b"PK\x03\x04"])
            )
    return bytes(content)


@st.composite
def broken_lines(draw: st.DrawFn, texts: Sequence[str], pieces: Sequence[str]) -> bytes:
    """One of some texts with lines dropped, doubled, moved in or out, or put in, in one to three places."""
    lines = draw(st.sampled_from(texts)).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, max(0, len(lines) - 1)))
        action = draw(st.sampled_from(["drop", "double", "indent", "outdent", "insert", "insert"]))
        if action == "insert" or not lines:
            indent = " " * draw(st.sampled_from([0, 0, 2, 4]))
            lines[number:number] = [indent + line for line in draw(st.sampled_from(pieces)).splitlines()]
        elif action == "drop":
            del lines[number]
        elif action == "double":
            lines.insert(number, lines[number])
        elif action == "indent":
            lines[number] = "  " + lines[number]
        else:
            lines[number] = lines[number].removeprefix("  ")
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-16", "utf-8-sig", "latin-1"]))
    return "\n".join(lines).encode(encoding, errors="replace") + b"\n"


def as_json(document: Any) -> bytes:
    """A document as JSON, with what Python's JSON has beyond the standard."""
    return json.dumps(document).encode() if _short(document) else b"9" * 5000


def _short(document: Any) -> bool:
    """Whether Python turns its numbers into text."""
    try:
        json.dumps(document)
    except ValueError:
        return False
    return True


def broken_json(documents: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Files of JSON: two of three are JSON still."""
    sound = [json.dumps(document, indent=1).encode() for document in documents]
    spoilt = broken_documents(documents).map(as_json)
    return st.one_of(spoilt, spoilt, broken_bytes(sound, JSON_PIECES))


def broken_yaml(texts: Sequence[str], documents: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Files of YAML: half of them say what a JSON document does, which is YAML too."""
    spoilt = broken_documents(documents).map(as_json)
    sound = [text.encode() for text in texts]
    return st.one_of(spoilt, spoilt, broken_lines(texts, YAML_LINES), broken_bytes(sound, YAML_LINES))
