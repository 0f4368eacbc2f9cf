"""The layers of docs/architecture.md: imports point one way, and the package knows nothing of Snakemake."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

LAYERS = (
    {"errors", "files", "csv_files", "memory", "processes", "parallel", "progress"},
    {"volumes"},
    {"config", "containers"},
    {"datasets"},
    {"planning"},
    {"preprocessing"},
    {"network"},
    {"distributed"},
    {"training"},
    {"evaluation"},
    {"inference"},
    {"forecast"},
    {"tasks"},
    {"reporting"},
    {"models"},
    {"stages"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@pytest.fixture(scope="module")
def package(repository) -> Path:
    return repository / "workflow" / "megavoxel"


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def layer(path: Path, package: Path) -> str:
    first = path.relative_to(package).parts[0]
    return first.removesuffix(".py")


def test_imports_point_to_lower_layers(package):
    edges = set()
    for path in package.rglob("*.py"):
        own = layer(path, package)
        if own == "__init__":
            continue
        for name in imported(path):
            match = re.match(r"megavoxel\.(\w+)", name)
            if match and match[1] in LEVEL and match[1] != own:
                edges.add((own, match[1]))
    assert ("training", "network") in edges
    wrong = sorted(f"{own} imports {other}" for own, other in edges if LEVEL[other] > LEVEL[own])
    assert not wrong


def test_the_package_never_imports_snakemake(package):
    for path in package.rglob("*.py"):
        assert not [name for name in imported(path) if name.split(".")[0] == "snakemake"], path


def test_paths_and_modules_named_in_the_page_exist(repository, package):
    page = (repository / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|yaml|smk))`", page))
    assert len(named) > 15
    for name in named - {"stages/NAME.py"}:
        assert (repository / name).is_file() or (package / name).is_file(), name


def import_graph(package: Path) -> dict[str, set[str]]:
    """For every module of the package, those that it imports, wherever in the file; for types alone counts as well."""
    names = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in names.items()}
    return {name: {other for other in imported(path) if other in modules} - {name} for name, path in modules.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach one another, sorted: the strongly connected components of more than one node."""

    def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            new = edges[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    backwards = {name: {other for other in graph if name in graph[other]} for name in graph}
    groups = {frozenset(reached(name, graph) & reached(name, backwards)) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [["a", "b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_files_import_one_another_in_a_circle(package):
    assert not circles(import_graph(package))


def test_no_function_is_longer_than_70_lines(package):
    too_long = [
        f"{path.relative_to(package)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 70
    ]
    assert not too_long


def test_docstrings_say_what_they_describe_in_their_first_words(package):
    """Those of modules, classes and functions, and strings under fields; nobody should have to guess what they mean."""
    riddles = [
        f"{path.relative_to(package)}:{node.lineno}: {text.splitlines()[0]}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(text := getattr(node.value, "value", None), str)
        if re.match(r"(Of|Whose|So|The same|That of|What of|As for)\b", text)
    ]
    assert not riddles
