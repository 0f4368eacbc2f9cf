"""Pages of the documentation: the commands that they name exist, with the options that they have there."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from megavoxel.cli import STAGES
from pages import blocks_of, named_commands, words_of

PAGES = ("README.md", "CONTRIBUTING.md", "config/README.md", "containers/README.md", "envs/README.md", "docs")
TARGETS = re.compile(r"^ *rule (\w+):|^(\w+): ", re.MULTILINE)


@pytest.fixture(scope="module")
def pages(repository) -> list[Path]:
    """All pages."""
    return [page for name in PAGES for page in (sorted((repository / name).rglob("*.md")) or [repository / name])]


def options_of(stage: str) -> set[str]:
    """The options of a stage."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"megavoxel.stages.{stage.replace('-', '_')}").add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings}


def faults(command: str, rules: set[str]) -> list[str]:
    """What is wrong with a command of megavoxel, Snakemake or make."""
    program, *words = words_of(command)
    if program == "snakemake":
        return [words[0]] if words and re.fullmatch(r"[a-z_]+", words[0]) and words[0] not in rules else []
    if program == "make":
        return [word for word in words[:1] if word not in rules]
    stage = words[0]
    if stage not in STAGES:
        return [] if stage.isupper() or stage.startswith("-") else [stage]
    options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return sorted(options - options_of(stage) - {"--help"})


def test_commands_that_pages_name_exist_with_their_options(repository, pages):
    rules = set()
    for path in (repository / "workflow/rules").glob("*.smk"):
        rules |= set(re.findall(r"^ *rule (\w+):", path.read_text(), re.MULTILINE))
    rules |= set(re.findall(r"^([\w-]+):", (repository / "Makefile").read_text(), re.MULTILINE)) | {"test-quick"}
    named = [(page.name, command) for page in pages for command in named_commands(page)]
    assert len(named) > 100
    assert [(page, command, wrong) for page, command in named if (wrong := faults(command, rules))] == []


def test_tutorial_and_how_to_pages_show_commands_only_in_blocks_that_tests_run(repository):
    for page in (repository / "docs/tutorial.md", *sorted((repository / "docs/how-to").glob("*.md"))):
        for block in blocks_of(page):
            lines = [line for line in block.text.splitlines() if re.match(r"(megavoxel|snakemake|python) ", line)]
            assert block.language == "sh" or not lines, f"{page.name}: {lines}"


def test_the_readme_shows_no_commands_but_those_that_tests_run(repository):
    text = re.sub(r"```.*?```", "", (repository / "README.md").read_text().replace("\\\n", ""), flags=re.DOTALL)
    first = {line.split()[0] for line in re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)}
    assert {word for word in first if not word.startswith("results/")} == {"make", "megavoxel", "snakemake", ".", "git"}


def test_a_wrong_command_is_found():
    assert faults("megavoxel predict --modle x", set()) == ["--modle"]
    assert faults("megavoxel predickt", set()) == ["predickt"]
    assert faults("snakemake plans", {"plan"}) == ["plans"]
