"""`python -m megavoxel.config FOLDER`: checks every study, dataset and hardware file below a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from megavoxel.config.dataset import dataset_path, load_dataset
from megavoxel.config.hardware import OWN, load_device, load_hardware
from megavoxel.config.study_file import load_study
from megavoxel.errors import UserError


def check_file(path: Path, root: Path) -> None:
    """Checks one file; studies together with the dataset and the device that they name.

    Raises:
        UserError: one line that says what is wrong.
    """
    if path.parent.name == "datasets":
        load_dataset(path)
    elif path.name in ("hardware.yaml", OWN.name):
        load_hardware(path.with_name("hardware.yaml"))
    else:
        study = load_study(path)
        dataset_path(study.dataset, root / "datasets", source=str(path))
        load_device(root / "hardware.yaml", study.hardware, source=str(path))


def main() -> int:
    """Checks all files and returns 1 if one of them is wrong."""
    root = Path(sys.argv[1])
    files = sorted(root.rglob("*.yaml"))
    faults = 0
    for path in files:
        try:
            check_file(path, root)
        except UserError as error:
            print(error, file=sys.stderr)
            faults += 1
    print(f"{len(files)} files checked, {faults} wrong")
    return 1 if faults or not files else 0


if __name__ == "__main__":
    raise SystemExit(main())
