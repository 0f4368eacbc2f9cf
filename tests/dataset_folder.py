"""A small dataset that tests spoil in one place, and the options of `megavoxel check` on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import pytest

from megavoxel.cli import main
from megavoxel.config.dataset import load_dataset
from megavoxel.errors import UserError
from megavoxel.volumes.write import write_nifti

SHAPE = (6, 7, 8)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def refusal(folder: Path, lines: str) -> str:
    """What is said of a dataset file with mistaken lines; it begins with the file's path."""
    file = folder / "some.yaml"
    file.write_text(f"name: some\nsource: {{folder: source}}\n{lines}\n")
    with pytest.raises(UserError) as caught:
        load_dataset(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    return message


def image(channels: int = 1) -> np.ndarray:
    """Noise on the common grid."""
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def labels() -> np.ndarray:
    """A label map with the values 0, 1, 2."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 1:3, 1:3] = 1
    array[3:5, 3:5, 3:5] = 2
    return array


class Folder:
    """A dataset of sound cases `case_0` ... in a temporary folder, with the options of `megavoxel check`."""

    def __init__(self, base: Path, cases: int = 3, channels: int = 1) -> None:
        self.base, self.data = base, base / "data"
        names = [f"case_{number}" for number in range(cases)]
        self.content = {
            "modality": {str(channel): f"c{channel}" for channel in range(channels)},
            "labels": {"0": "background", "1": "one", "2": "two"},
            "training": [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names],
            "test": [],
        }
        for number, name in enumerate(names):
            self.write(f"imagesTr/{name}", image(channels) + (1 + number))  # no two images are one
            self.write(f"labelsTr/{name}", labels())

    def write(self, name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
        """Writes data/NAME.nii.gz."""
        write_nifti(self.data / f"{name}.nii.gz", array, affine)
        return self.data / f"{name}.nii.gz"

    def check(self, *options: str, keys: str = "") -> int:
        """Runs the stage and returns its exit status."""
        (self.data / "dataset.json").write_text(json.dumps(self.content))
        (self.base / "some.yaml").write_text(f"name: some\nsource: {{folder: some}}\n{keys}")
        files = ["--checks", str(self.base / "checks.csv"), "--output", str(self.base / "cases.json")]
        return main(["check", "--dataset", str(self.base / "some.yaml"), "--data", str(self.data), *files, *options])

    def rows(self, severity: str = "error") -> list[tuple[str, str, str]]:
        """Case, check and message of the rows of checks.csv with a severity."""
        table = pandas.read_csv(self.base / "checks.csv")
        assert list(table.columns) == ["case", "check", "severity", "message"]
        chosen = table[table.severity == severity]
        return list(zip(chosen.case, chosen.check, chosen.message, strict=True))

    def finds(self, capsys: pytest.CaptureFixture, case: str, check: str, *words: str) -> None:
        """Asserts that there is exactly one error, and that checks.csv and the message name it."""
        assert self.check() == 1
        rows = self.rows()
        assert [(row[0], row[1]) for row in rows] == [(case, check)]
        printed = capsys.readouterr().err
        for word in words:
            assert word in rows[0][2]
            assert word in printed
        assert case in printed
        assert "exclude" in printed
        assert not (self.base / "cases.json").exists()
        assert len(self.rows("ok")) == len(self.content["training"]) - 1
