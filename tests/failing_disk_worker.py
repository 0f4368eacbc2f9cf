"""Reads files of all kinds on a disk that fails (`failing_disk.c`); prints what came of each as JSON.

LD_PRELOAD=… python failing_disk_worker.py FOLDER
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

from dicom_files import dicom_file, slice_tags
from helpers import properties
from megavoxel.errors import UserError
from megavoxel.evaluation.tidy import read_scores, write_scores
from megavoxel.files import file_sha256, read_json, write_json
from megavoxel.preprocessing.store import open_case, save_case
from megavoxel.training.states.checkpoint import load_state, save_state
from megavoxel.volumes.open import open_volume

VOXELS = np.random.default_rng(0).normal(size=(30, 31, 32)).astype(np.float32)
PLACES = {1: np.random.default_rng(1).integers(0, 30, (4000, 3)).astype(np.int32)}


def main(folder: Path) -> None:
    """Writes the files, then reads each with every fault."""
    found = {}
    for name, read in make(folder).items():
        path = first_of(folder / name)
        sound, content = read(), path.read_bytes()
        found[name] = {"short": told(read, name, "short", 0, sound)}
        for start in (0, len(content) // 2):
            found[name][f"error from byte {start}"] = told(read, name, "error", start, sound)
            path.write_bytes(content[:start])
            found[name][f"end at byte {start}"] = told(read, "no file", "", 0, sound)
            path.write_bytes(content)
    print(json.dumps(found))


def told(read: Callable[[], object], name: str, fault: str, start: int, sound: object) -> str:
    """What came of a read: `same`, `other`, a refusal, or the name of another exception."""
    os.environ |= {"DISK_FILE": f"/{name}", "DISK_FAULT": fault, "DISK_FROM": str(start)}
    try:
        result = read()
    except UserError as refusal:
        return f"refused: {refusal}"
    except OSError as error:
        return f"refused: {error.filename}: {error.strerror}" if error.filename else f"{type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        del os.environ["DISK_FILE"]
    return "same" if np.array_equal(np.asarray(result, dtype=object), np.asarray(sound, dtype=object)) else "other"


def first_of(path: Path) -> Path:
    """A file, or the first one of a folder."""
    return min(path.iterdir()) if path.is_dir() else path


def make(folder: Path) -> dict[str, Callable[[], object]]:
    """Writes a file of each kind; by name, what reads it."""
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    (folder / "a.nii").write_bytes(image.to_bytes())
    (folder / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
    converted = SimpleITK.GetImageFromArray(VOXELS)
    for ending in ("mha", "nrrd"):
        SimpleITK.WriteImage(converted, str(folder / f"b.{ending}"))
    SimpleITK.WriteImage(converted, str(folder / "packed.nrrd"), useCompression=True)
    (folder / "series").mkdir()
    for number in range(4):
        plane = (VOXELS[number] * 100).astype(np.int16)
        content = dicom_file(slice_tags(plane, number, (0, 0, 2.0 * number), (1, 1, 2)))
        (folder / f"series/{number}.dcm").write_bytes(content)
    labels = (VOXELS > 1).astype(np.uint8)
    save_case(folder, properties("case", VOXELS.shape), VOXELS[None], labels, PLACES, (8, 8, 8))
    save_state(folder, {"key": "some", "values": list(range(3000))})
    write_json(folder / "content.json", list(range(3000)))
    rows = [(f"case{number}", "liver", "DSC", 0.5) for number in range(300)]
    write_scores(folder / "scores.csv", rows, setting="a", split="test", fold="all")
    volumes = ("a.nii", "a.nii.gz", "b.mha", "b.nrrd", "packed.nrrd", "series")
    readers: dict[str, Callable[[], object]] = {
        name: (lambda name=name: open_volume(folder / name).image().tolist()) for name in volumes
    }
    for part in ("image", "labels"):
        readers[f"case.{part}.b2nd"] = lambda part=part: getattr(open_case(folder, "case"), part)[:].tolist()
    readers["case.foreground.npz"] = lambda: open_case(folder, "case").foreground.get(1, np.zeros(0)).tolist()
    return readers | {
        "checkpoint.pt": lambda: (load_state(folder, key="some") or {}).get("values"),
        "content.json": lambda: read_json(folder / "content.json", what="content"),
        "scores.csv": lambda: read_scores(folder / "scores.csv").to_numpy().tolist(),
        "sums.bin": lambda: file_sha256(folder / "sums.bin"),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "sums.bin").write_bytes(bytes(range(256)) * 40)
    main(place)
