"""Shapes of labels, and the metrics that `init` proposes for them."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from megavoxel.cli import main
from megavoxel.config.study_file import load_study
from megavoxel.datasets.label_shapes import SCATTERED, SMALL, TUBULAR, metrics_hint, shape_of, shapes_of_labels
from megavoxel.evaluation.components import matched_components
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.write import write_labels, write_nifti

SHAPE = (40, 60, 60)
GEOMETRY = Geometry(shape=SHAPE[::-1], affine=np.diag([1.0, 1.0, 2.0, 1.0]))
NAMES = {"organ": 1, "lesions": 2, "pipe": 3, "gland": 4}


def label_map() -> np.ndarray:
    """An organ, six lesions, a pipe and a gland of 6 x 6 x 6 voxels."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:20, 2:30, 2:30] = 1
    for number in range(6):
        labels[22:28, 9 * number : 9 * number + 6, 2:8] = 2
    labels[30:32, 5:8, 2:58] = 3
    labels[34:40, 40:46, 40:46] = 4
    return labels


def test_shapes_are_told_by_voxels_components_and_length(tmp_path):
    paths = [tmp_path / f"{number}.nii.gz" for number in range(2)]
    for path in paths:
        write_labels(path, label_map(), GEOMETRY)
    found = shapes_of_labels(paths, {name: (value,) for name, value in NAMES.items()}, processes=1)
    assert found == {"lesions": SCATTERED, "pipe": TUBULAR, "gland": SMALL}
    assert metrics_hint(found) == {
        "default": ["dsc", "nsd"],
        "lesions": ["lesion_f1", "pq", "dsc"],
        "pipe": ["cldice", "nsd"],
        "gland": ["nsd", "assd"],
    }


def test_names_tell_tubes_without_any_map():
    labels = {name: (value,) for value, name in enumerate(("liver", "portal vein", "Bronchi", "ductus"), start=1)}
    assert shapes_of_labels([], labels, processes=1) == dict.fromkeys(("portal vein", "Bronchi", "ductus"), TUBULAR)


def test_a_single_voxel_is_no_tube_and_a_thin_curved_line_is_one():
    assert not shape_of(np.ones((1, 1, 1), bool), (5.0, 1.0, 1.0)).is_tube
    turns = np.linspace(0, 6 * np.pi, 4000)
    helix = np.zeros((40, 60, 60), bool)
    helix[
        np.linspace(0, 39, 4000).astype(int),
        (30 + 28 * np.sin(turns)).astype(int),
        (30 + 28 * np.cos(turns)).astype(int),
    ] = True
    assert shape_of(helix, (1.0, 1.0, 1.0)).is_tube


def test_voxels_in_a_line_with_gaps_are_components():
    line = np.array([1, 0, 0, 1, 1, 0, 1], bool)[:, None, None]
    assert shape_of(line, (1.0, 1.0, 1.0)).voxels == 4
    found = matched_components(line, line)
    assert (found.predicted.tolist(), found.f1, found.panoptic_quality) == ([1, 2, 1], 1.0, 1.0)


@pytest.mark.slow
def test_init_proposes_metrics_as_a_comment(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        image = np.random.default_rng(number).normal(size=SHAPE[::-1]).astype(np.float32)
        write_nifti(tmp_path / f"d/images/c{number}.nii.gz", image, GEOMETRY.affine)
        write_labels(tmp_path / f"d/labels/c{number}.nii.gz", label_map(), GEOMETRY)
    words = ["--to", str(tmp_path / "to"), "--labels", *(f"{name}={value}" for name, value in NAMES.items())]
    assert main(["init", str(tmp_path / "d"), *words, "--processes", "1"]) == 0
    assert "lesions is in many components, pipe is tubular, gland is small" in capsys.readouterr().out
    study = tmp_path / "to/studies/d.yaml"
    assert load_study(study).metrics == ("dsc", "nsd")
    (line,) = [line for line in study.read_text().splitlines() if line.startswith("# metrics:")]
    study.write_text(study.read_text().replace(line, line.removeprefix("# ")))
    assert load_study(study).metrics["pipe"] == ("cldice", "nsd")
    assert yaml.safe_load(line.removeprefix("# "))["metrics"]["gland"] == ["nsd", "assd"]
