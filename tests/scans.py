"""Small datasets on disk, made of arrays, for tests of fingerprint, planning and preprocessing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megavoxel.datasets.cases import Case, Cases
from megavoxel.planning.fingerprint import CaseFingerprint, Fingerprint, Intensities
from megavoxel.volumes.write import write_nifti

STATISTICS = Intensities(
    mean=40.0, median=41.0, std=20.0, minimum=-900.0, maximum=900.0, percentile_0_5=-100.0, percentile_99_5=300.0
)


def write_case(
    root: Path,
    name: str,
    image: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    split: str = "training",
) -> Case:
    """Writes arrays (z, y, x) as files in RAS+, one per channel where the image has four axes."""
    channels = image[np.newaxis] if image.ndim == 3 else image
    affine = np.diag([*reversed(spacing), 1.0])
    files = [f"imagesTr/{name}_{number}.nii.gz" for number in range(len(channels))]
    for file, channel in zip(files, channels, strict=True):
        write_nifti(root / file, channel.transpose(2, 1, 0).astype(np.float32), affine)
    label = None if labels is None else f"labelsTr/{name}.nii.gz"
    if labels is not None:
        write_nifti(root / label, labels.transpose(2, 1, 0).astype(np.uint8), affine)
    return Case(id=name, images=tuple(files), label=label, split=split)


def write_nrrd(path: Path, array: np.ndarray, **fields: object) -> None:
    """Writes an array (i, j, k) by the definition of the format (teem.sourceforge.net/nrrd/format.html).

    Args:
        path: the file.
        array: its numbers.
        fields: of the header, with underscores for blanks: text, a vector, or a row of vectors; None is left out.
    """
    kinds = {"u1": "uint8", "i2": "int16", "f4": "float", "f8": "double"}
    sizes = " ".join(map(str, array.shape))
    header = {
        "type": kinds[array.dtype.str[1:]],
        "dimension": 3,
        "sizes": sizes,
        "endian": "little",
        "encoding": "gzip",
    }
    for name, value in fields.items():
        if value is not None:
            header[name.replace("_", " ")] = value if isinstance(value, str) else _vectors(np.asarray(value))
    lines = ["NRRD0004", *(f"{name}: {value}" for name, value in header.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + gzip.compress(array.tobytes(order="F")))


def _vectors(values: np.ndarray) -> str:
    rows = values.astype(float).reshape(-1, values.shape[-1]).tolist()
    return " ".join(f"({','.join(map(repr, row))})" for row in rows)


def dataset(
    root: Path, cases: Sequence[Case], *, channels: Sequence[str] = ("CT",), labels: dict[str, int] | None = None
) -> Cases:
    """A dataset of written cases."""
    labels = {"ball": 1, "cube": 3} if labels is None else labels
    return Cases(
        dataset="made",
        root=str(root),
        channels=tuple(channels),
        labels=labels,
        nsd_tolerance_mm=dict.fromkeys(labels, 1.0),
        cases=tuple(cases),
    )


def unwritten(count: int, *, tests: int = 0, **changes) -> Cases:
    """A dataset whose files do not exist: c000, c001, … for training, t000, … for testing."""
    training = [Case(id=f"c{number:03d}", images=("none.nii.gz",)) for number in range(count)]
    test = [Case(id=f"t{number:03d}", images=("none.nii.gz",), split="test") for number in range(tests)]
    return dataset(Path("nowhere"), training + test, **changes)


def fingerprint(spacings, shapes, *, channels=("CT",), full=None) -> Fingerprint:
    """Of cases with these spacings and cropped shapes; `full`: the shape before cropping, where it is another."""
    cases = tuple(
        CaseFingerprint(
            id=f"c{number:03d}", spacing=tuple(spacing), shape=tuple(full or shape), cropped_shape=tuple(shape)
        )
        for number, (spacing, shape) in enumerate(zip(spacings, shapes, strict=True))
    )
    return Fingerprint(dataset="made", channels=channels, cases=cases, intensities=(STATISTICS,) * len(channels))


def dataset_of(folder: Path, *, limit: int) -> Cases:
    """The first cases of a folder in the layout of the Medical Segmentation Decathlon."""
    content = json.loads((folder / "dataset.json").read_text())
    labels = {name: int(value) for value, name in content["labels"].items() if int(value) > 0}
    cases = [
        Case(id=Path(pair["image"]).name.removesuffix(".nii.gz"), images=(pair["image"],), label=pair["label"])
        for pair in content["training"][:limit]
    ]
    return dataset(folder, cases, channels=tuple(content["modality"].values()), labels=labels)
