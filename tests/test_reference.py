"""config/README.md: its tables follow schemas and dataclasses, and its examples are valid."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import pytest
import yaml

from megavoxel.config import reference
from megavoxel.config.allowed import allowed_values
from megavoxel.config.reference import SECTIONS, field_texts, with_reference
from megavoxel.config.schema import load_schema, validate
from megavoxel.config.study import Augmentation, Training
from megavoxel.config.study_file import parse_study
from megavoxel.errors import UserError

SCHEMAS = ("study", "dataset", "hardware")


@pytest.fixture(scope="module")
def page(repository) -> str:
    return (repository / reference.PAGE).read_text()


def mappings(node) -> Iterator[dict]:
    """Every mapping of a schema that names its keys."""
    if isinstance(node, dict):
        if isinstance(node.get("properties"), dict):
            yield node
        for value in node.values():
            yield from mappings(value)
    if isinstance(node, list):
        for value in node:
            yield from mappings(value)


def rows(page: str) -> dict[tuple[str, str], list[str]]:
    """Cells by heading and key."""
    table, heading = {}, ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        match = re.match(r"\| `(\w+)` \| (.*) \|$", line)
        if match:
            table[heading, match[1]] = match[2].split(" | ")
    return table


def test_the_page_is_up_to_date(page):
    assert with_reference(page) == page, "run 'python -m megavoxel.config.reference --write'"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_of_every_mapping_in_a_schema_has_a_row(page, schema):
    table = rows(page)
    sections = [section for section in SECTIONS if section.schema == schema]
    for mapping in mappings(load_schema(schema)):
        titles = [
            section.title for section in sections if section.node is mapping or mapping in section.node.get("oneOf", ())
        ]
        assert len(titles) == 1, f"{sorted(mapping['properties'])} belongs to {titles}"
        for key in mapping["properties"]:
            assert (titles[0], key) in table


def test_every_row_says_what_is_allowed_and_what_it_means(page):
    table = rows(page)
    assert len(table) > 80
    for place, cells in table.items():
        assert len(cells) == 3, place
        assert all(cell.strip() for cell in cells), place


def test_every_field_of_the_dataclasses_can_be_written(page):
    table = rows(page)
    for section in SECTIONS:
        for field in dataclasses.fields(section.record) if section.record else ():
            if field.name != "name" or section.schema == "dataset":
                assert (section.title, field.name) in table


def test_a_default_pasted_into_a_file_is_the_default(page):
    table = rows(page)
    for record, title in ((Training, "`training` of a setting"), (Augmentation, "`augmentation` of a setting")):
        for field in dataclasses.fields(record):
            shown = table[title, field.name][1]
            if field.default is None:
                assert shown == "–"
                continue
            value = yaml.safe_load(shown.strip("`"))
            assert (tuple(value) if isinstance(value, list) else value) == field.default
            assert type(value) is (list if isinstance(field.default, tuple) else type(field.default))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 9}, "integer, 1 to 9"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number, above 0, at most 1"),
        ({"type": "integer", "minimum": 0}, "integer, at least 0"),
        ({"$ref": "#/$defs/name"}, "name"),
        ({"$ref": "#/$defs/fraction"}, "number, 0 to 1"),
        ({"$ref": "#/$defs/range"}, "list of 2 numbers, at least 0"),
        ({"enum": ["sgd", "adamw"]}, "`sgd`, `adamw`"),
        ({"type": "array", "items": {"type": "string"}}, "list of texts"),
        ({"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/name"}}, "list of at least 2 names"),
        ({"type": "string", "description": "allowed: 64 hexadecimal digits"}, "64 hexadecimal digits"),
        ({"type": "boolean"}, "`true`, `false`"),
    ],
)
def test_a_schema_is_put_into_words(node, words):
    assert allowed_values(node, "study", {}) == words


def test_the_string_under_a_field_belongs_to_that_field():
    texts = field_texts(Training)
    assert (
        texts["iterations_per_epoch"] == "Optimiser steps per epoch; where `samples` is given, the planner sets them."
    )
    assert set(texts) == {field.name for field in dataclasses.fields(Training)}


def test_a_stale_page_and_one_without_markers_are_refused(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["reference", "--check"])
    target = tmp_path / reference.PAGE
    target.parent.mkdir()
    target.write_text(page.replace("Optimiser steps per epoch;", "Steps;"))
    assert reference.main() == 1
    assert (
        "config/README.md: out of date; run 'python -m megavoxel.config.reference --write'" in capsys.readouterr().err
    )
    monkeypatch.setattr("sys.argv", ["reference", "--write"])
    assert reference.main() == 0
    assert target.read_text() == page
    with pytest.raises(UserError, match=r"the lines .* are missing"):
        with_reference("# no tables here")


def test_the_examples_of_the_page_are_valid(page):
    study, images, dataset, hardware = (
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    )
    parsed = parse_study(study, source="example")
    assert parsed.setting("large-dice").patch == (128, 224, 224)
    assert (parsed.setting("large-dice").training.epochs, parsed.setting("large-dice").training.loss) == (500, "dice")
    assert "resnet50-224-10pc-4w" in parse_study(images, source="example").cells
    validate(dataset, "dataset", source="example")
    validate(hardware, "hardware", source="example")


def test_links_lead_to_headings(page):
    anchors = {
        re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.M)
    }
    linked = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert len(linked) >= 9
    assert linked <= anchors
