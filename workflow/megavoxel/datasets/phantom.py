"""Synthetic CT-like datasets from a seed, in the layout of the Medical Segmentation Decathlon."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from megavoxel.config.source import Phantom
from megavoxel.datasets.anatomy import LABELS, Grid, draw_anatomy, render, render_fine_slab
from megavoxel.files import scratch_directory, write_json
from megavoxel.progress import progress
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.slabs import scratch_array, slab_places
from megavoxel.volumes.write import write_nifti, write_slabs

NOISE_SIGMA = 0.5  # voxels; neighbours along an axis correlate by about a quarter
HOUNSFIELD_RANGE = (-1024, 3071)
LARGE_VOXELS = 2**24
"""Voxels of the mean shape from which on cases are written slab by slab."""
STORAGE = (
    ("RAS", False),
    ("RAS", True),
    ("LPS", False),
    ("PSR", False),
    ("LPS", True),
)  # axes of the file, and whether its grid is oblique; cases take them in turn


def write_phantoms(folder: Path, phantom: Phantom, *, name: str = "phantom") -> None:
    """Writes a dataset of synthetic abdomens into an existing folder; same settings, same bytes.

    Training and test cases come from the same distribution. A case depends on the seed and on its own number only.

    Args:
        folder: gets imagesTr, labelsTr, imagesTs, labelsTs and, last, dataset.json.
        phantom: how many cases, on which grid.
        name: name of the dataset in dataset.json.
    """
    total = phantom.training_cases + phantom.test_cases
    entries: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    with progress("phantoms", total) as shown:
        for index in range(total):
            split = "training" if index < phantom.training_cases else "test"
            suffix = "Tr" if split == "training" else "Ts"
            file = f"phantom_{index + 1:04d}.nii.gz"
            entry = {"image": f"./images{suffix}/{file}", "label": f"./labels{suffix}/{file}"}
            write_case(phantom, index, folder / entry["image"], folder / entry["label"])
            entries[split].append(entry)
            shown.advance(line=file)
    write_json(folder / "dataset.json", _description(phantom, name, entries))


def write_case(phantom: Phantom, index: int, image_path: Path, label_path: Path) -> None:
    """Writes image and label map of one case, slab by slab where the mean shape has `LARGE_VOXELS` and more."""
    if math.prod(phantom.shape) >= LARGE_VOXELS:
        write_large_case(phantom, index, image_path, label_path)
        return
    image, labels = make_case(phantom, index)
    write_nifti(image_path, np.asarray(image.dataobj), image.affine)
    write_nifti(label_path, np.asarray(labels.dataobj), labels.affine)


def write_large_case(phantom: Phantom, index: int, image_path: Path, label_path: Path) -> None:
    """Writes a case slab by slab, as `make_case` makes it but for partial volume, of which it has none.

    Noise is drawn for each slab on its own, so that voxels on both sides of a border between two are not correlated.
    """
    generator = np.random.default_rng([phantom.seed, index])
    axes, oblique = STORAGE[index % len(STORAGE)]
    field_of_view = tuple(size * step for size, step in zip(phantom.shape, phantom.spacing, strict=True))
    grid = _draw_grid(phantom, generator, oblique=oblique)
    anatomy = draw_anatomy(generator, tuple(2 / size for size in reversed(phantom.shape)))
    affine = _affine(grid, centre=generator.uniform(-40, 40, 3))
    stored = _stored(np.broadcast_to(np.uint8(0), grid.shape), affine, axes)
    geometry = Geometry(shape=stored.shape, affine=stored.affine)
    label_path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(label_path.parent) as scratch:
        labels = scratch_array(scratch / "labels.b2nd", grid.shape, np.uint8, axis=0)

        def image_slabs() -> Iterator[tuple[int, np.ndarray]]:
            for rows, *_ in slab_places(grid.shape, 0):
                clean, labels[rows] = render_fine_slab(anatomy, grid, field_of_view, rows)
                noise = _noise(generator, clean.shape, phantom.noise) if phantom.noise else np.float32(0)
                yield rows.start, _whole_hounsfield(clean + noise)

        write_slabs(image_path, image_slabs(), geometry, np.int16)
        label_slabs = ((rows.start, labels[rows]) for rows, *_ in slab_places(grid.shape, 0))
        write_slabs(label_path, label_slabs, geometry, np.uint8)


def make_case(phantom: Phantom, index: int) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """Image (int16, HU) and label map (uint8) of one case, in the axis order of its file.

    Args:
        phantom: seed, grid and noise.
        index: number of the case, from 0.
    """
    generator = np.random.default_rng([phantom.seed, index])
    axes, oblique = STORAGE[index % len(STORAGE)]
    field_of_view = tuple(size * step for size, step in zip(phantom.shape, phantom.spacing, strict=True))
    grid = _draw_grid(phantom, generator, oblique=oblique)
    voxel = tuple(2 / size for size in reversed(phantom.shape))
    clean, labels = render(draw_anatomy(generator, voxel), grid, field_of_view)
    image = _whole_hounsfield(clean + _noise(generator, clean.shape, phantom.noise))
    affine = _affine(grid, centre=generator.uniform(-40, 40, 3))
    return _stored(image, affine, axes), _stored(labels, affine, axes)


def _draw_grid(phantom: Phantom, generator: np.random.Generator, *, oblique: bool) -> Grid:
    slices, in_plane = generator.uniform(0.88, 1.12), generator.uniform(0.94, 1.06)
    shape = tuple(size + int(generator.integers(-(size // 20), size // 20 + 1)) for size in phantom.shape)
    degrees = generator.uniform(5, 20) * generator.choice([-1, 1])
    axis = generator.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    return Grid(
        shape=shape,
        spacing=tuple(float(step * f) for step, f in zip(phantom.spacing, (slices, in_plane, in_plane), strict=True)),
        rotation=turn if oblique else np.eye(3),
    )


def _whole_hounsfield(noisy: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(noisy), *HOUNSFIELD_RANGE).astype(np.int16)


def _noise(generator: np.random.Generator, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Slightly correlated Gaussian noise, float32, with the given standard deviation."""
    white = gaussian_filter(generator.standard_normal(shape, dtype=np.float32), NOISE_SIGMA)
    return white * np.float32(deviation / white.std())


def _affine(grid: Grid, centre: np.ndarray) -> np.ndarray:
    """Index (x, y, z) to mm in RAS+, with `centre` in the middle of the grid."""
    affine = np.eye(4)
    affine[:3, :3] = grid.rotation * np.array(grid.spacing[::-1])
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(grid.shape[::-1]) - 1) / 2)
    return affine


def _stored(array: np.ndarray, affine: np.ndarray, axes: str) -> nibabel.Nifti1Image:
    """An array (z, y, x) as a NIfTI image whose axes run towards the three letters of `axes`."""
    upright = nibabel.Nifti1Image(np.transpose(array, (2, 1, 0)), affine)
    return upright.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(axes)))


def _description(phantom: Phantom, name: str, entries: dict[str, list[dict[str, str]]]) -> dict:
    return {
        "name": name,
        "description": "Synthetic CT-like abdomens with four labelled organs",
        "reference": f"megavoxel phantom, seed {phantom.seed}",
        "licence": "CC0-1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(value): label for label, value in LABELS.items()}},
        "numTraining": len(entries["training"]),
        "numTest": len(entries["test"]),
        **entries,
    }
