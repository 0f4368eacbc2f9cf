"""A crude abdomen on CT, drawn from random numbers: shapes in the patient's frame, and their rendering on a grid.

The patient's frame is RAS+: x grows to the right, y to the front, z to the head. Its unit along each axis is half the
mean field of view, so that the same anatomy fits any grid; rendering converts to mm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import make_interp_spline

LABELS = {"liver": 1, "stomach": 2, "aorta": 3, "gland": 4}
AIR_HU = -1000.0
SUPERSAMPLING = 2
CONTROL_POINTS = 5
KNOTS = np.linspace(-0.5, 0.5, CONTROL_POINTS)
DISPLACEMENT = 0.03  # standard deviation at the control points, in half fields of view: a fifteenth of their distance
SLAB_SLICES = 16
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """An ellipsoid; a semi-axis far above 1 along z makes a cylinder of it."""

    centre: tuple[float, float, float]
    """x, y, z in half fields of view."""
    semi_axes: tuple[float, float, float]
    """Before turning, in half fields of view."""
    angle: float = 0.0
    """Turn about z in radians, from x towards y."""

    def contains(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """True where the points x, y, z (three arrays of one shape) lie inside."""
        cosine, sine = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        dx, dy = x - np.float32(self.centre[0]), y - np.float32(self.centre[1])
        along = (cosine * dx + sine * dy) / np.float32(self.semi_axes[0])
        across = (cosine * dy - sine * dx) / np.float32(self.semi_axes[1])
        upward = (z - np.float32(self.centre[2])) / np.float32(self.semi_axes[2])
        return along * along + across * across + upward * upward <= 1


@dataclass(frozen=True, kw_only=True)
class Tube:
    """A vessel along z that sways from side to side."""

    centre: tuple[float, float]
    """Mean x and y in half fields of view."""
    radius: float
    """In half fields of view."""
    sway: float
    """Amplitude of its sideways wave in half fields of view."""
    phase: float
    """Phase of that wave at z = 0 in radians."""

    def contains(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """True where the points x, y, z (three arrays of one shape) lie inside."""
        wave = np.float32(self.sway) * np.sin(np.float32(2.0) * z + np.float32(self.phase))
        dx, dy = x - np.float32(self.centre[0]) - wave, y - np.float32(self.centre[1])
        return dx * dx + dy * dy <= np.float32(self.radius**2)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A shape with its intensity and label."""

    shape: Ellipsoid | Tube
    hounsfield: float
    """Mean intensity in HU."""
    label: int = 0
    """Value in the label map; 0 for what is drawn but not labelled."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One patient."""

    structures: tuple[Structure, ...]
    """In the order of drawing: later ones cover earlier ones."""
    control: np.ndarray
    """Displacements (x, y or z; control points along z, y, x) in half fields of view."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the voxels of one scan lie; arrays on it are (z, y, x)."""

    shape: tuple[int, int, int]
    """Voxels along z, y, x."""
    spacing: tuple[float, float, float]
    """mm along z, y, x."""
    rotation: np.ndarray
    """3 x 3, the grid's x, y, z directions in the patient's frame."""


def draw_anatomy(generator: np.random.Generator, voxel: Triple) -> Anatomy:
    """A patient: positions, sizes and contrasts vary, the arrangement does not.

    The spleen is as bright as the liver and the spine as bright as the aorta, so that intensity alone tells neither
    pair apart. The left lobe of the liver overlaps the stomach, so that the two always touch. The gland is drawn last,
    so that nothing hides it.

    Args:
        generator: all randomness comes from it.
        voxel: mean voxel along x, y, z in half fields of view; no organ gets so thin that a scan could miss it.
    """
    size = generator.uniform(0.94, 1.04)
    soft, liver, aorta = generator.normal((40, 105, 185), (4, 10, 15))

    def organ(
        centre: Triple, semi_axes: Triple, hounsfield: float, *, jitter: float = 0.02, label: int = 0
    ) -> Structure:
        shape = Ellipsoid(
            centre=tuple(size * place + generator.normal(0, jitter) for place in centre),
            semi_axes=tuple(
                max(size * axis * generator.uniform(0.9, 1.1), 1.6 * thinnest)
                for axis, thinnest in zip(semi_axes, voxel, strict=True)
            ),
            angle=generator.uniform(-0.2, 0.2),
        )
        return Structure(shape=shape, hounsfield=hounsfield, label=label)

    structures = (
        *_draw_torso(generator, size, soft),
        organ((0, -0.45, 0), (0.14, 0.12, 6), generator.normal(aorta, 12), jitter=0.01),  # spine
        organ((-0.52, -0.2, 0.1), (0.17, 0.26, 0.48), generator.normal(liver, 6)),  # spleen
        organ((-0.36, 0.2, 0.15), (0.26, 0.22, 0.45), generator.normal(soft - 45, 6), label=LABELS["stomach"]),
        organ((0.38, 0.04, 0.1), (0.32, 0.42, 0.62), liver, label=LABELS["liver"]),  # right lobe
        organ((0.04, 0.3, 0.2), (0.36, 0.17, 0.36), liver, label=LABELS["liver"]),  # left lobe
        Structure(shape=_draw_aorta(generator, max(voxel[:2])), hounsfield=aorta, label=LABELS["aorta"]),
        organ((-0.25, -0.13, -0.25), (0.12, 0.1, 0.17), generator.normal(145, 8), label=LABELS["gland"]),
    )
    control = generator.normal(0, DISPLACEMENT, (3, *(CONTROL_POINTS,) * 3))
    return Anatomy(structures=structures, control=control)


def _draw_torso(generator: np.random.Generator, size: float, soft: float) -> tuple[Structure, Structure]:
    """A cylinder of fat, and one of soft tissue in it."""
    width, depth = size * 0.88, size * generator.uniform(0.71, 0.79)
    rim = generator.uniform(0.07, 0.13)
    fat = Ellipsoid(centre=(0, 0, 0), semi_axes=(width, depth, 6))
    inner = Ellipsoid(centre=(0, 0, 0), semi_axes=(width - rim, depth - rim, 6))
    return Structure(shape=fat, hounsfield=generator.normal(-100, 8)), Structure(shape=inner, hounsfield=soft)


def _draw_aorta(generator: np.random.Generator, voxel: float) -> Tube:
    return Tube(
        centre=(generator.normal(-0.05, 0.02), generator.normal(-0.2, 0.015)),
        radius=max(0.085 * generator.uniform(0.88, 1.15), 1.2 * voxel),
        sway=generator.uniform(0, 0.05),
        phase=generator.uniform(0, 2 * np.pi),
    )


def render(anatomy: Anatomy, grid: Grid, field_of_view: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Draws a patient with partial volume: every voxel is the mean of 2 x 2 x 2 samples.

    Args:
        grid: the voxels, centred on the patient.
        field_of_view: mean field of view in mm along z, y, x: the unit of the anatomy.

    Returns:
        HU without noise, float32 (z, y, x), and the label of most samples of each voxel, uint8 (z, y, x). Ties go to
        the voxel's first and last sample in a checkerboard, so that no border is shifted and no label favoured.
    """
    image, labels = np.empty(grid.shape, np.float32), np.empty(grid.shape, np.uint8)
    for start in range(0, grid.shape[0], SLAB_SLICES):
        slab = slice(start, min(start + SLAB_SLICES, grid.shape[0]))
        hounsfield, label = _draw(anatomy, *_sample_points(anatomy, grid, field_of_view, slab))
        image[slab] = _over_samples(hounsfield) / SUPERSAMPLING**3
        labels[slab] = _majority(label)
    return image, labels


def render_fine_slab(
    anatomy: Anatomy, grid: Grid, field_of_view: tuple[float, float, float], slab: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Some slices of a patient on a grid so fine that one sample per voxel is enough: no partial volume.

    Args:
        field_of_view: as for `render`.

    Returns:
        HU without noise, float32 (slices, y, x), and labels, uint8 (slices, y, x).
    """
    places = [(np.arange(size) + 0.5) / size - 0.5 for size in grid.shape]
    places[0] = places[0][slab]
    weights = [make_interp_spline(KNOTS, np.eye(CONTROL_POINTS), k=3)(place).astype(np.float32) for place in places]
    control = anatomy.control.astype(np.float32)
    displacements = [np.einsum("zi,yj,xk,ijk->zyx", *weights, part, optimize=True) for part in control]
    return _draw(anatomy, *_patient_points(grid, field_of_view, places, displacements))


def _draw(anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HU, float32, and labels, uint8, of points of the patient."""
    hounsfield = np.array([AIR_HU, *(part.hounsfield for part in anatomy.structures)], dtype=np.float32)
    label_of = np.array([0, *(part.label for part in anatomy.structures)], dtype=np.uint8)
    drawn = np.zeros(x.shape, dtype=np.uint8)
    for number, part in enumerate(anatomy.structures, start=1):
        drawn[part.shape.contains(x, y, z)] = number
    return hounsfield[drawn], label_of[drawn]


def _majority(samples: np.ndarray) -> np.ndarray:
    first = samples[(slice(None, None, SUPERSAMPLING),) * 3]
    last = samples[(slice(SUPERSAMPLING - 1, None, SUPERSAMPLING),) * 3]
    casting = np.where(sum(np.indices(first.shape, sparse=True)) % 2, first, last)
    votes = [
        2 * _over_samples((samples == label).astype(np.uint8)) + (casting == label) for label in (0, *LABELS.values())
    ]
    return np.argmax(votes, axis=0)


def _sample_points(
    anatomy: Anatomy, grid: Grid, field_of_view: tuple[float, float, float], slab: slice
) -> list[np.ndarray]:
    """Patient coordinates x, y, z, each (z, y, x) over the samples of a slab, after deformation."""
    places = [_sample_places(size) for size in grid.shape]
    places[0] = places[0][slab.start * SUPERSAMPLING : slab.stop * SUPERSAMPLING]
    return _patient_points(grid, field_of_view, places, _displacements(anatomy.control, places))


def _patient_points(
    grid: Grid,
    field_of_view: tuple[float, float, float],
    places: Sequence[np.ndarray],
    displacements: Iterable[np.ndarray],
) -> list[np.ndarray]:
    """Patient coordinates x, y, z of points at `places` (z, y, x, from -0.5 to 0.5 of the grid), displaced."""
    offsets = [
        place * size * spacing for place, size, spacing in zip(places, grid.shape, grid.spacing, strict=True)
    ]  # mm from the centre along z, y, x
    along_z, along_y, along_x = np.ix_(*offsets)
    points = []
    for world, displacement in enumerate(displacements):
        to_x, to_y, to_z = grid.rotation[world]
        millimetres = to_x * along_x + to_y * along_y + to_z * along_z
        unit = field_of_view[2 - world] / 2
        points.append((millimetres / unit).astype(np.float32) + displacement)
    return points


def _sample_places(size: int) -> np.ndarray:
    """Centres of the samples along an axis, from -0.5 to 0.5 of the field of view."""
    return (np.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING) - 0.5


def _displacements(control: np.ndarray, places: list[np.ndarray]) -> np.ndarray:
    """The displacement field (x, y or z; samples along z, y, x), float32: cubic splines through the control points."""
    field = control
    for axis, place in enumerate(places, start=1):
        field = make_interp_spline(KNOTS, field, k=3, axis=axis)(place).astype(np.float32)
    return field


def _over_samples(values: np.ndarray) -> np.ndarray:
    """Sums over the samples of each voxel."""
    depth, height, width = (size // SUPERSAMPLING for size in values.shape)
    return values.reshape(depth, SUPERSAMPLING, height, SUPERSAMPLING, width, SUPERSAMPLING).sum(
        axis=(1, 3, 5), dtype=values.dtype
    )
