"""Every test that docs/security.md and docs/reliability.md name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = ("security", "reliability")


def named(repository: Path, page: str) -> list[tuple[Path, str, str]]:
    """Path, name of a test and word of `-k` of all tests that a page names; the path may be a folder."""
    text = (repository / f"docs/{page}.md").read_text()
    found = []
    for quoted in re.findall(r"`([^`\n]+)`", text):
        for match in re.finditer(r"(TESTS|CLUSTER|\btests)((?:/\w+)+\.py)?(?:::(\w+))?(?: -k (\w+))?", quoted):
            place, file, test, word = match.groups(default="")
            folder = repository / ("tests/cluster" if place == "CLUSTER" else "tests")
            found.append((folder / file.lstrip("/"), test, word))
    return found


def names_in(path: Path) -> list[str]:
    """Names of the tests of a file, or of all files of a folder, each behind that of its file."""
    files = sorted(path.glob("test_*.py")) if path.is_dir() else [path]
    texts = {file.stem: file.read_text() for file in files}
    return [f"{stem}::{name}" for stem, text in texts.items() for name in re.findall(r"(?m)^def (test_\w+)", text)]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(repository, page):
    found = named(repository, page)
    assert len(found) > 20
    for path, test, word in found:
        assert path.exists(), path
        if path.name.startswith("test_") or word:
            names = names_in(path)
            assert not test or any(name.endswith(f"::{test}") for name in names), (path, test)
            assert any(word in name for name in names), (path, word)


def test_each_promise_of_the_page_about_files_names_the_tests_that_hold_it(repository):
    text = (repository / "docs/security.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]  # behind its head
    assert len(rows) > 20
    assert [row.split("|")[1].strip() for row in rows if "::test_" not in row.split("|")[3]] == []


def test_names_are_found_in_both_forms(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text(
        "`tests/test_a.py::test_b`, `TESTS/test_c.py -k word`, `CLUSTER -k faults`\n"
    )
    assert named(tmp_path, "page") == [
        (tmp_path / "tests/test_a.py", "test_b", ""),
        (tmp_path / "tests/test_c.py", "", "word"),
        (tmp_path / "tests/cluster", "", "faults"),
    ]
