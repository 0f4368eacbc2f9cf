"""Volumes of the labels of labelled scans: a file per scan, and a table of all scans of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas

from megavoxel.config.records import to_plain
from megavoxel.csv_files import write_csv
from megavoxel.errors import expect
from megavoxel.files import read_json, write_json

if TYPE_CHECKING:  # which loads matplotlib
    from megavoxel.reporting.picture import LabelVolume

SUFFIX = ".volumes.json"
TABLE = "volumes.csv"
COLUMNS = ("case", "label", "voxels", "ml")


def write_volumes(path: Path, case: str, volumes: Mapping[str, LabelVolume]) -> None:
    """Writes CASE.volumes.json: voxels and millilitres by label."""
    write_json(path, {"case": case, "labels": {name: to_plain(volume) for name, volume in volumes.items()}})


def collect_volumes(folder: Path) -> None:
    """Writes volumes.csv of all CASE.volumes.json in a folder, with a line for each case and label, in their order.

    Raises:
        UserError: one of these files is damaged.
    """
    rows = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        content = read_json(path, what="volumes of a case")
        is_sound = isinstance(content, dict) and isinstance(content.get("labels"), dict) and "case" in content
        expect(is_sound, str(path), "volumes by label")
        for label, volume in content["labels"].items():
            expect(isinstance(volume, dict) and {"voxels", "ml"} <= set(volume), str(path), "voxels and ml of a label")
            rows.append((content["case"], label, volume["voxels"], volume["ml"]))
    write_csv(folder / TABLE, pandas.DataFrame(rows, columns=COLUMNS))
