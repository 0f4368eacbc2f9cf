"""`python -m megavoxel.config.reference --write`: JSON schemas for editors; contents and tables of config/README.md.

Schemas and tables come from the records: what is allowed and assumed from their fields, meanings from the strings under
the fields.
`--check` exits with 1 where a file is out of date.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megavoxel.config import classification, dataset, hardware, setting, source, study, training
from megavoxel.config.messages import Node, allowed_words, alternatives
from megavoxel.config.records import schema_of
from megavoxel.errors import UserError
from megavoxel.files import write_text

PAGE = Path("config/README.md")
SCHEMAS = Path("workflow/schemas")
CONTENTS, KEYS = "contents", "keys"
"""Names of the parts of the page that are written here, in their markers."""
COMMAND = "python -m megavoxel.config.reference --write"
FILES = {
    "study": study.StudyFile,
    "classification": classification.ClassificationFile,
    "dataset": dataset.Dataset,
    "hardware": hardware.HardwareFile,
    "site": hardware.Site,
}
"""The record of each kind of file that users write, by the name of its schema."""
OWN_WORDS = ("needs", "forbids", "allows_only", "reason")
"""What JSON Schema does not know in a field: `misprints` reads it."""
SECTIONS = {
    study.StudyFile: "A study file",
    setting.WrittenSetting: "A setting",
    setting.Phase: "A phase of a setting",
    setting.StartFile: "`start` of a setting, as a file",
    setting.Preprocessing: "`preprocessing` of a setting",
    setting.IntensityRange: "`normalisation` of `preprocessing`",
    setting.Network: "`network` of a setting",
    setting.Parallel: "`parallel` of a setting",
    setting.Expansion: "`expansion` of a setting",
    training.Training: "`training` of a setting",
    training.Augmentation: "`augmentation` of a setting",
    setting.Inference: "`inference` of a setting",
    study.EnsembleKeys: "An ensemble",
    study.Partitions: "`partitions` of a study",
    study.Timing: "`timing` of a study",
    study.Tracking: "`tracking` of a study",
    study.SweepKeys: "A sweep",
    classification.ClassificationFile: "A study file of `task: classification`",
    classification.WrittenClassifier: "A classification setting",
    classification.Cells: "An entry of `grid`",
    classification.ClassifierEnsembleKeys: "An ensemble of classifiers",
    classification.ClassifierTraining: "`training` of a classification setting",
    classification.ClassifierAugmentation: "`augmentation` of a classification setting",
    classification.PublishedWeights: "`weights` of a network",
    dataset.Dataset: "A dataset file",
    source.Source: "The source of a dataset",
    source.Phantom: "`phantom` of a source",
    source.Patients: "`patients` of a dataset",
    source.Files: "`files` of a dataset",
    source.Blocks: "`blocks` of a dataset",
    dataset.Hidden: "`hidden` of a dataset",
    dataset.GroupTable: "`groups` of a dataset, as a table",
    dataset.PictureTable: "`pictures` of a dataset",
    dataset.SubgroupTable: "`subgroups` of a dataset",
    source.Classification: "`classification` of a dataset",
    source.TableColumns: "`columns` of a table of images",
    dataset.Declared: "`declared` of a dataset",
    hardware.HardwareFile: "The hardware file",
    hardware.DeviceKeys: "A device",
    hardware.Site: "The site's file, slurm/site.yaml",
}
"""Headings of the tables, in their order, by the record whose keys they list."""


@cache
def json_schema(kind: type) -> Node:
    """The schema of a record with the meanings of its keys, and of the records within it under `$defs`."""
    schema = _for_editors(schema_of(kind))
    records = {record.__name__: record for record in SECTIONS}
    nodes = {kind.__name__: schema, **schema.get("$defs", {})}
    for name, node in nodes.items():
        node["description"] = _introduction(records[name])
    for name, node in nodes.items():
        for key, part in node["properties"].items():
            part["description"] = _meaning(records[name], key, part, schema)
    return schema


def _for_editors(node: Any) -> Any:
    """The node without pydantic's titles and our own words, without null where it means absence, and with names of no
    pattern refused."""
    if isinstance(node, list):
        return [_for_editors(part) for part in node]
    if not isinstance(node, dict):
        return node
    own = () if "properties" in node else OWN_WORDS
    kept = {
        key: _for_editors(part)
        for key, part in node.items()
        if key not in own and (key != "title" or not isinstance(part, str))
    }
    if kept.get("default", "none") is None:
        options = [option for option in kept.pop("anyOf", [{}]) if option != {"type": "null"}]
        del kept["default"]
        kept |= options[0] if len(options) == 1 else {"anyOf": options}
    return {**kept, "additionalProperties": False} if "patternProperties" in kept else kept


def schema_text(name: str) -> str:
    """The schema of a kind of file as YAML, a key per line."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name, **json_schema(FILES[name])}
    for node in (schema, *schema.get("$defs", {}).values()):
        if "properties" in node:
            node["properties"] = {key: _OneLine(part) for key, part in node["properties"].items()}
    head = f"# Written by '{COMMAND}'; change the records in workflow/megavoxel/config instead.\n"
    return head + yaml.dump(schema, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


class _OneLine(dict):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    """Writes `_OneLine`, and twice what stands there twice."""

    ignore_aliases = staticmethod(lambda _: True)


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
_Dumper.add_representer(
    _OneLine, lambda dumper, node: dumper.represent_mapping("tag:yaml.org,2002:map", node, flow_style=True)
)


def reference() -> str:
    """The tables of all sections in Markdown."""
    return "\n\n".join(_table(record, title) for record, title in SECTIONS.items())


def with_reference(page: str) -> str:
    """The page with its contents and the tables between their markers as they should be.

    Raises:
        UserError: markers are missing.
    """
    page = _with_part(page, KEYS, reference())
    return _with_part(page, CONTENTS, contents(page))


def contents(page: str) -> str:
    """Links to the headings of a page, as a list in Markdown."""
    headings = re.findall(r"^(##+) (.*)$", page, re.MULTILINE)
    return "\n".join(f"{'    ' * (len(marks) - 2)}- [{title}](#{_anchor(title)})" for marks, title in headings)


def _with_part(page: str, name: str, text: str) -> str:
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f"{PAGE}: the lines {begin} and {end} are missing; put them where the {name} go")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


@cache
def field_texts(record: type) -> dict[str, str]:
    """The string under each field of a dataclass or of one that it extends, on one line; others are left out."""
    texts: dict[str, str] = {}
    for kind in reversed(record.__mro__[:-1]):
        body = ast.parse(inspect.getsource(kind)).body[0].body
        texts |= {
            field.target.id: " ".join(text.value.value.split())
            for field, text in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        }
    return texts


def _table(record: type, title: str) -> str:
    schema = json_schema(record)
    links = {kind.__name__: _link(other) for kind, other in SECTIONS.items()}
    required = schema.get("required", ())
    lines = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for key, node in sorted(schema["properties"].items(), key=lambda item: item[0] not in required):
        default = "required" if key in required else _default(node)
        meaning = node["description"].replace("|", "\\|")
        allowed = allowed_words({**_checked(record, key), "description": ""}, schema, links)
        lines.append(f"| `{key}` | {allowed} | {default} | {meaning} |")
    return "\n".join([f"### {title}", "", _introduction(record), "", *lines])


def _checked(record: type, key: str) -> Node:
    """The part of pydantic's own schema for a key: its descriptions say what is allowed."""
    return schema_of(record)["properties"][key]


def _default(node: Node) -> str:
    value = node.get("default")
    return "–" if value in (None, "", []) else f"`{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"


def _introduction(record: type) -> str:
    return _for_readers(" ".join(inspect.cleandoc(record.__doc__).split()))


def _meaning(record: type, key: str, node: Node, schema: Node) -> str:
    """The string under the field; where there is none, what the record in it is."""
    text = field_texts(record).get(key)
    return _for_readers(text) if text is not None else next(alternatives(node, schema))["description"]


def _for_readers(text: str) -> str:
    sentence = re.sub(r"\bNone\b", "left out", re.sub(r"(?<=\. )None\b", "Left out", text)).rstrip(".") + "."
    return sentence[:1].upper() + sentence[1:]


def _link(title: str) -> str:
    return f"[{title[:1].lower()}{title[1:]}](#{_anchor(title)})"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


def main() -> int:
    """Rewrites or checks the page and the schemas below the working directory; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m megavoxel.config.reference", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help=f"rewrite {SCHEMAS} and the tables of {PAGE}")
    action.add_argument("--check", action="store_true", help="exit with 1 if they are out of date")
    wanted = {SCHEMAS / f"{name}.schema.yaml": schema_text(name) for name in FILES}
    wanted[PAGE] = with_reference(PAGE.read_text())
    write = parser.parse_args().write
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    for path in stale:
        if write:
            write_text(path, wanted[path])
        else:
            print(f"{path}: out of date; run '{COMMAND}'", file=sys.stderr)
    return 1 if stale and not write else 0


if __name__ == "__main__":
    raise SystemExit(main())
