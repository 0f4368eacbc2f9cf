"""`python -m megavoxel.config.reference --write`: the tables of keys in config/README.md, from schemas and dataclasses.

What is allowed comes from the JSON schemas, defaults and meanings from the dataclasses and the strings under their
fields. `--check` exits with 1 where the page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megavoxel.config import classification, dataset, hardware, study
from megavoxel.config.allowed import allowed_values, properties, resolve
from megavoxel.config.schema import load_schema
from megavoxel.errors import UserError
from megavoxel.files import write_text

PAGE = Path("config/README.md")
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
WORDS = {
    "study": "Name of the study: its folder below results/, state/ and logs/.",
    "defaults": "Keys that all settings share; where a setting says something else, the setting counts.",
    "settings": "What is compared, by name.",
    "ensembles": "Ensembles of settings, by name.",
    "grid": "Settings by the combinations of lists. Their names are NETWORK-RESOLUTION-IMAGESpc-WORKERSw.",
    "sweeps": "Tables of the report that compare some of the settings, by name.",
    "devices": "Devices by name.",
    "description": "For the reader.",
    "licence": "For the reader.",
    "float32": "In single precision.",
    "half": "In bfloat16 or float16.",
}
"""Meanings of keys that neither a dataclass nor a schema describes."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A mapping that users write, and where its keys are defined."""

    title: str
    """Heading, in Markdown."""
    schema: str
    """`study`, `classification`, `dataset` or `hardware`."""
    place: str = ""
    """Where the mapping lies in that schema: keys joined by '/'."""
    record: type | None = None
    """The dataclass that holds its values."""

    @property
    def node(self) -> dict[str, Any]:
        """The schema of the mapping."""
        node = load_schema(self.schema)
        for key in filter(None, self.place.split("/")):
            node = node[key]
        return node

    @property
    def introduction(self) -> str:
        """What the mapping is."""
        return _for_readers(self.node.get("description") or inspect.cleandoc(self.record.__doc__))


def _of_classifier(key: str, record: type) -> Section:
    return Section(
        title=f"`{key}` of a classification setting", schema="classification", place=f"$defs/{key}", record=record
    )


def _of_setting(key: str, record: type) -> Section:
    return Section(
        title=f"`{key}` of a setting", schema="study", place=f"$defs/setting/properties/{key}", record=record
    )


SECTIONS = (
    Section(title="A study file", schema="study", record=study.Study),
    Section(title="A setting", schema="study", place="$defs/setting", record=study.Setting),
    Section(title="A phase of a setting", schema="study", place="$defs/phase", record=study.Phase),
    _of_setting("preprocessing", study.Preprocessing),
    Section(
        title="`normalisation` of `preprocessing`",
        schema="study",
        place="$defs/intensity_range",
        record=study.IntensityRange,
    ),
    _of_setting("network", study.Network),
    Section(title="`parallel` of a setting", schema="study", place="$defs/parallel", record=study.Parallel),
    Section(title="`expansion` of a setting", schema="study", place="$defs/expansion", record=study.Expansion),
    _of_setting("training", study.Training),
    _of_setting("augmentation", study.Augmentation),
    _of_setting("inference", study.Inference),
    Section(title="An ensemble", schema="study", place="$defs/ensemble", record=study.Ensemble),
    Section(title="`partitions` of a study", schema="study", place="$defs/partitions", record=study.Partitions),
    Section(title="`timing` of a study", schema="study", place="$defs/timing", record=study.Timing),
    Section(title="A sweep", schema="study", place="$defs/sweep", record=study.Sweep),
    Section(
        title="A study file of `task: classification`",
        schema="classification",
        record=classification.ClassificationStudy,
    ),
    Section(
        title="A classification setting",
        schema="classification",
        place="$defs/setting",
        record=classification.ClassifierSetting,
    ),
    Section(
        title="An entry of `grid`",
        schema="classification",
        place="$defs/cells",
        record=classification.ClassifierSetting,
    ),
    Section(
        title="An ensemble of classifiers",
        schema="classification",
        place="$defs/ensemble",
        record=classification.ClassifierEnsemble,
    ),
    _of_classifier("training", classification.ClassifierTraining),
    _of_classifier("augmentation", classification.ClassifierAugmentation),
    Section(
        title="`weights` of a network",
        schema="classification",
        place="$defs/weights",
        record=classification.PublishedWeights,
    ),
    Section(title="A dataset file", schema="dataset", record=dataset.Dataset),
    Section(title="The source of a dataset", schema="dataset", place="properties/source", record=dataset.Source),
    Section(title="`phantom` of a source", schema="dataset", place="$defs/phantom", record=dataset.Phantom),
    Section(title="`patients` of a dataset", schema="dataset", place="$defs/patients", record=dataset.Patients),
    Section(title="`files` of a dataset", schema="dataset", place="$defs/files", record=dataset.Files),
    Section(title="`blocks` of a dataset", schema="dataset", place="$defs/blocks", record=dataset.Blocks),
    Section(title="`hidden` of a dataset", schema="dataset", place="$defs/hidden", record=dataset.Hidden),
    Section(
        title="`classification` of a dataset",
        schema="dataset",
        place="$defs/classification",
        record=dataset.Classification,
    ),
    Section(
        title="`columns` of a table of images", schema="dataset", place="$defs/columns", record=dataset.TableColumns
    ),
    Section(title="`declared` of a dataset", schema="dataset", place="$defs/declared", record=dataset.Declared),
    Section(title="The hardware file", schema="hardware"),
    Section(
        title="A device",
        schema="hardware",
        place="properties/devices/additionalProperties",
        record=hardware.Device,
    ),
    Section(
        title="`teraflops` of a device",
        schema="hardware",
        place="properties/devices/additionalProperties/properties/teraflops",
    ),
)


def reference() -> str:
    """The tables of all sections in Markdown."""
    return "\n\n".join(_table(section) for section in SECTIONS)


def with_reference(page: str) -> str:
    """The page with the tables between its two markers as they should be.

    Raises:
        UserError: the markers are missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{PAGE}: the lines {BEGIN} and {END} are missing; put them where the tables go")
    return f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}"


@cache
def field_texts(record: type) -> dict[str, str]:
    """The string under each field of a dataclass, on one line; fields without one are left out."""
    body = ast.parse(inspect.getsource(record)).body[0].body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _table(section: Section) -> str:
    lines = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    links = {id(other.node): _link(other.title) for other in SECTIONS if other.place}
    for key, node in properties(section.node).items():
        allowed = allowed_values(node, section.schema, links)
        lines.append(f"| `{key}` | {allowed} | {_default(section, key)} | {_meaning(section, key, node)} |")
    return "\n".join([f"### {section.title}", "", section.introduction, "", *lines])


def _default(section: Section, key: str) -> str:
    if key in section.node.get("required", ()):
        return "required"
    fields = {field.name: field for field in dataclasses.fields(section.record)} if section.record else {}
    value = fields[key].default if key in fields else None
    if value in (None, "", (), dataclasses.MISSING):
        return "–"
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(plain, default_flow_style=True).splitlines()[0]}`"


def _meaning(section: Section, key: str, node: dict[str, Any]) -> str:
    resolved = resolve(node, section.schema)
    introductions = [other.introduction for other in SECTIONS if other.place and other.node is resolved]
    known = field_texts(section.record) if section.record else {}
    candidates = (known.get(key), node.get("description"), *introductions, WORDS.get(key, ""))
    return _for_readers(next(text for text in candidates if text is not None))


def _for_readers(text: str) -> str:
    sentence = re.sub(r"\bNone\b", "left out", text).rstrip(".") + "."
    return (sentence[:1].upper() + sentence[1:]).replace("|", "\\|")


def _link(title: str) -> str:
    anchor = re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")
    return f"[{title[:1].lower()}{title[1:]}](#{anchor})"


def main() -> int:
    """Rewrites or checks config/README.md in the working directory; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m megavoxel.config.reference", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help=f"rewrite the tables of {PAGE}")
    action.add_argument("--check", action="store_true", help="exit with 1 if they are out of date")
    page = PAGE.read_text()
    wanted = with_reference(page)
    if parser.parse_args().write:
        write_text(PAGE, wanted)
    elif page != wanted:
        print(f"{PAGE}: out of date; run 'python -m megavoxel.config.reference --write'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
