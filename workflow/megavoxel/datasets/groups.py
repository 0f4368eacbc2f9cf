"""Groups of cases: those that no fold and no share divides, usually the scans of a patient, and those of pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from megavoxel.config.dataset import Dataset, GroupTable
from megavoxel.csv_files import as_written
from megavoxel.datasets.cases import Case
from megavoxel.errors import UserError
from megavoxel.files import table_text

LISTED_CASES = 10
SCAN = re.compile(
    r".+?(?P<mark>[-_](?:acq|day|exam|frame|month|run|scan|series|ses|session|study|t|timepoint|tp|v|visit|week)[-_]?)"
    r"\d+(?:[-_.].*)?",
    re.IGNORECASE,
)
"""An id that ends in one of several scans, behind that of the patient."""
SUBJECT = re.compile(r"sub-[A-Za-z0-9]+(?P<mark>_).+")
"""An id of BIDS behind its subject (Gorgolewski et al., Sci. Data 3:160044, 2016)."""
GROUP = "{group}"
UNUSUAL = re.compile(r"[^A-Za-z0-9_-]+")
"""What a name of a picture does not have."""


def with_groups(cases: Sequence[Case], dataset: Dataset) -> list[Case]:
    """The cases with the groups that the dataset file gives them.

    Raises:
        UserError: a case is in no group, or the table cannot be read or has a case in two groups.
    """
    groups = dataset.groups
    if groups is None:
        return list(cases)
    where = f"dataset {dataset.name}: groups"
    names = [case.id for case in cases]
    if isinstance(groups, GroupTable):
        found = _in_table(groups.table, groups.case, [groups.group], where)[groups.group]
        remedy = f"add them to {groups.table}"
    else:
        found, remedy = _by_pattern(groups, names), f"'{groups}' does not match them; correct the pattern, give a table"
    lacking = [name for name in names if name not in found]
    if lacking:
        more = f" and {len(lacking) - LISTED_CASES} more" if len(lacking) > LISTED_CASES else ""
        raise UserError(
            f"{where}: {len(lacking)} of {len(names)} cases are in no group: {', '.join(lacking[:LISTED_CASES])}"
            f"{more}; {remedy}, or list them under 'exclude'"
        )
    return [replace(case, group=found[case.id]) for case in cases]


def with_pictures(cases: Sequence[Case], dataset: Dataset) -> list[Case]:
    """The cases with the picture of the report that the dataset file lets each one be chosen for.

    Its name is the value in the table, with `-` for what no file name has.

    Raises:
        UserError: the table cannot be read, has a case with two values or two values of the same name, or has no value
            for any case.
    """
    pictures = dataset.pictures
    if pictures is None:
        return list(cases)
    where = f"dataset {dataset.name}: pictures"
    values = _in_table(pictures.table, pictures.case, [pictures.column], where)[pictures.column]
    named: dict[str, str] = {}
    for value in sorted({values[case.id] for case in cases if case.id in values}):
        name = UNUSUAL.sub("-", value).strip("-")[:64]
        if not name or named.setdefault(name, value) != value:
            other = f"is no name of a file, like that of '{named[name]}'" if name else "has no letter and no digit"
            raise UserError(f"{where}.table: {pictures.table}: '{value}' {other}; give each value a name of its own")
    if not named:
        raise UserError(f"{where}.table: {pictures.table} has no value of '{pictures.column}' for any case; add some")
    names = {value: name for name, value in named.items()}
    return [replace(case, picture=names[values[case.id]] if case.id in values else None) for case in cases]


def with_subgroups(cases: Sequence[Case], dataset: Dataset) -> list[Case]:
    """The cases with their values in the columns of the dataset file's table of subgroups.

    Raises:
        UserError: the table cannot be read, has a case with two values, or has no value for any case in a column.
    """
    subgroups = dataset.subgroups
    if subgroups is None:
        return list(cases)
    where = f"dataset {dataset.name}: subgroups"
    values = _in_table(subgroups.table, subgroups.case, subgroups.columns, where)
    empty = [name for name, own in values.items() if not any(case.id in own for case in cases)]
    if empty:
        raise UserError(f"{where}.table: {subgroups.table} has no value of '{empty[0]}' for any case; add some")
    return [
        replace(case, subgroups={name: own[case.id] for name, own in values.items() if case.id in own})
        for case in cases
    ]


def guess_groups(names: Sequence[str]) -> str | None:
    """The pattern of groups that ids show, if several have one: those of BIDS the subject, others a number of the scan.

    None where ids are otherwise, or no two of them have a group in common.
    """
    for expression in (SUBJECT, SCAN):
        matches = [expression.fullmatch(name) for name in names]
        marks = {match["mark"] for match in matches if match}
        if len(marks) == 1 and all(matches):
            pattern = f"{GROUP}{marks.pop()}*"
            groups = set(_by_pattern(pattern, names).values())
            return pattern if len(groups) < len(names) else None
    return None


def require_undivided(cases: Sequence[Case], dataset: Dataset) -> None:
    """Refuses a group with training and test cases.

    Raises:
        UserError: naming the group, and a case of either kind.
    """
    first: dict[str | None, Case] = {}
    for case in cases:
        other = first.setdefault(case.group, case)
        if case.group is not None and other.split != case.split:
            training, test = sorted((other, case), key=lambda one: one.split == "test")
            raise UserError(
                f"dataset {dataset.name}: groups: '{case.group}' is divided: {training.id} is a training case and "
                f"{test.id} a test case; move one of them by 'test_cases', or leave one out by 'exclude'"
            )


def _by_pattern(pattern: str, names: Sequence[str]) -> dict[str, str]:
    """The group of each id that the pattern matches: as few characters as possible."""
    before, after = (re.escape(part).replace(r"\*", ".*") for part in pattern.split(GROUP))
    expression = re.compile(f"{before}(.+?){after}")
    matches = {name: expression.fullmatch(name) for name in names}
    return {name: match[1] for name, match in matches.items() if match}


def _in_table(table: str, case: str, columns: Sequence[str], where: str) -> dict[str, Mapping[str, str]]:
    """By column of a CSV file, its values by the id of the case; those that are empty are left out."""
    path = Path(table)
    try:
        lines = as_written(pd.read_csv(table_text(path), dtype=str, keep_default_na=False))
    except FileNotFoundError:
        raise UserError(f"{where}.table: there is no file {path}") from None
    except (OSError, ValueError) as fault:
        raise UserError(f"{where}.table: {path} cannot be read as CSV ({fault})") from None
    for name in (case, *columns):
        if name not in lines:
            raise UserError(f"{where}.table: {path} has no column '{name}'; it has: {', '.join(lines.columns)}")
    return {column: _by_case(lines[case], lines[column], f"{where}.table: {path}") for column in columns}


def _by_case(cases: Sequence[str], values: Sequence[str], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for case, value in zip(cases, values, strict=True):
        if value and found.setdefault(case, value) != value:
            raise UserError(f"{where} has the case '{case}' in '{found[case]}' and in '{value}'")
    return found
