"""config/README.md: its tables follow schemas and dataclasses, and its examples are valid."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from megavoxel.config import reference
from megavoxel.config.dataset import Dataset
from megavoxel.config.fields import NAME
from megavoxel.config.hardware import HardwareFile
from megavoxel.config.messages import allowed_words
from megavoxel.config.records import adapter, from_plain
from megavoxel.config.reference import FILES, SECTIONS, field_texts, schema_text, with_reference
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Augmentation, Training
from megavoxel.errors import UserError


@pytest.fixture(scope="module")
def page(repository) -> str:
    return (repository / reference.PAGE).read_text()


def mappings(kind: type) -> dict[str, dict]:
    """Every mapping of a file that names its keys, by the name of its record."""
    schema = adapter(kind).json_schema()
    nodes = {kind.__name__: schema, **schema.get("$defs", {})}
    return {name: node for name, node in nodes.items() if "properties" in node}


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


@pytest.mark.parametrize("name", FILES)
def test_the_schemas_are_up_to_date(repository, name):
    assert (repository / f"workflow/schemas/{name}.schema.yaml").read_text() == schema_text(name)


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_every_mapping_in_a_schema_has_a_row(page, name):
    table = rows(page)
    titles = {record.__name__: title.lstrip("# ") for record, title in SECTIONS.items()}
    for record, mapping in mappings(FILES[name]).items():
        for key in mapping["properties"]:
            assert (titles[record], key) in table


def test_every_row_says_what_is_allowed_and_what_it_means(page):
    table = rows(page)
    assert len(table) > 80
    for place, cells in table.items():
        assert len(cells) == 3, place
        assert all(cell.strip() for cell in cells), place


def test_no_meaning_begins_with_the_values_that_are_allowed(page):
    assert [place for place, cells in rows(page).items() if cells[2].startswith("`")] == []


def test_the_contents_lead_to_every_heading_in_order(page):
    _, listed, rest = page.split("<!-- contents:")
    assert re.findall(r"- \[(.*)\]\(#", listed) == re.findall(r"^##+ (.*)$", rest, re.MULTILINE)


def test_every_field_of_the_dataclasses_can_be_written(page):
    table = rows(page)
    for record, title in SECTIONS.items():
        for field in dataclasses.fields(record):
            assert (title, field.name) in table


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
        ({"type": "string", "pattern": NAME}, "name"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "number, 0 to 1"),
        (
            {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number", "minimum": 0}},
            "list of 2 numbers, at least 0",
        ),
        ({"type": "array", "minItems": 1, "maxItems": 9, "items": {"type": "integer"}}, "list of 1 to 9 integers"),
        ({"anyOf": [{"const": "auto"}, {"$ref": "#/$defs/A"}, {"type": "null"}]}, "`auto`; or a mapping with a, b"),
        ({"type": "object", "patternProperties": {NAME: {"type": "number"}}}, "mapping of names, each to: number"),
        ({"enum": ["sgd", "adamw"]}, "`sgd`, `adamw`"),
        ({"type": "array", "items": {"type": "string"}}, "list of texts"),
        ({"type": "array", "minItems": 1, "items": {"type": "string"}}, "non-empty list of texts"),
        ({"type": "array", "minItems": 2, "items": {"type": "string", "pattern": NAME}}, "list of at least 2 names"),
        ({"type": "string", "description": "allowed: 64 hexadecimal digits"}, "64 hexadecimal digits"),
        ({"type": "boolean"}, "`true`, `false`"),
    ],
)
def test_a_schema_is_put_into_words(node, words):
    schema = {"$defs": {"A": {"type": "object", "properties": {"a": {}, "b": {}}}}}
    assert allowed_words(node, schema, {}) == words


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
    for part in ("keys", "contents"):
        with pytest.raises(UserError, match=rf"the lines <!-- {part}: begin --> .* are missing"):
            with_reference(page.replace(f"<!-- {part}: end -->", ""))


def test_the_examples_of_the_page_are_valid(page):
    study, images, dataset, hardware = (
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    )
    parsed = parse_study(study, source="example")
    assert parsed.setting("large-dice").patch == (128, 224, 224)
    assert (parsed.setting("large-dice").training.epochs, parsed.setting("large-dice").training.loss) == (500, "dice")
    assert "resnet50-224-10pc-4w" in parse_study(images, source="example").cells
    assert from_plain(Dataset, dataset, where="example").name == dataset["name"]
    assert set(from_plain(HardwareFile, hardware, where="example").devices) == set(hardware["devices"])


def test_links_lead_to_headings(page):
    anchors = {
        re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page, re.M)
    }
    linked = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert len(linked) >= 9
    assert linked <= anchors
