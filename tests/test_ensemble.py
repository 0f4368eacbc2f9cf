"""Ensembles of settings on probabilities that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers import preprocessing_plan, properties
from megavoxel.errors import UserError
from megavoxel.evaluation.postprocessing import KeepLargest, Postprocessing, save_postprocessing
from megavoxel.inference.ensemble import Member, mean_probabilities, write_ensemble
from megavoxel.inference.logits import header_of, label_map, open_logits, write_logits
from megavoxel.inference.sliding_window import Slab
from megavoxel.stages import ensemble as stage
from megavoxel.volumes.open import read_labels
from megavoxel.volumes.write import write_labels

SHAPE = (2, 3, 8)


def member(folder, name: str, probabilities: np.ndarray, postprocessing=None, plan=None) -> Member:
    """A member whose softmax is `probabilities` (classes, z, y, x)."""
    logits = torch.from_numpy(np.log(probabilities)).float()
    header = header_of(properties("case", SHAPE), plan or preprocessing_plan())
    write_logits(folder / name / "logits", header, [Slab(start=0, stop=SHAPE[0], logits=logits)])
    opened = open_logits(folder / name / "logits", "case")
    (folder / name / "maps").mkdir()
    labels = label_map(SHAPE, header.decision, opened.slabs())
    write_labels(folder / name / "maps" / "case.nii.gz", labels, header.properties.geometry)
    return Member(
        name=name,
        logits=folder / name / "logits",
        predictions=folder / name / "maps",
        postprocessing=postprocessing or Postprocessing(),
    )


def field(*values: float) -> np.ndarray:
    """The same probabilities in every voxel."""
    return np.broadcast_to(np.array(values).reshape(-1, 1, 1, 1), (3, *SHAPE)).copy()


def combined(members, folder) -> np.ndarray:
    folder.mkdir()
    write_ensemble(members, "case", folder)
    return read_labels(folder / "case.nii.gz")[0]


def test_probabilities_are_averaged_not_votes_counted(tmp_path):
    sure = field(0.02, 0.96, 0.02)
    unsure = field(0.3, 0.3, 0.4)
    members = [member(tmp_path, name, values) for name, values in (("a", sure), ("b", unsure), ("c", unsure))]
    assert (combined(members, tmp_path / "out") == 1).all()
    mean = next(mean_probabilities([open_logits(m.logits, "case") for m in members], [None] * 3)).logits
    torch.testing.assert_close(mean, torch.from_numpy((sure + 2 * unsure) / 3).float(), atol=2e-3, rtol=0)


def test_post_processing_of_a_member_comes_before_the_mean(tmp_path):
    """Member a's stray voxel is removed before averaging; without that it would win against b's weak background."""
    first = field(0.98, 0.01, 0.01)
    first[:, :, :, 0:3] = np.array([0.01, 0.98, 0.01]).reshape(-1, 1, 1, 1)
    first[:, 0, 0, 7] = [0.01, 0.98, 0.01]
    second = field(0.5, 0.3, 0.2)
    rules = Postprocessing(keep_largest=KeepLargest(labels=("ball",)))
    plain = combined([member(tmp_path, "a", first), member(tmp_path, "b", second)], tmp_path / "plain")
    (tmp_path / "again").mkdir()
    cleaned = combined(
        [member(tmp_path / "again", "a", first, rules), member(tmp_path / "again", "b", second)], tmp_path / "cleaned"
    )
    assert plain[0, 0, 7] == 1
    assert cleaned[0, 0, 7] == 0
    assert (cleaned[:, :, 0:3] == 1).all()


def test_members_with_other_labels_are_refused(tmp_path):
    other = preprocessing_plan(labels={"ball": 1, "cone": 3})
    members = [member(tmp_path, "a", field(0.4, 0.3, 0.3)), member(tmp_path, "b", field(0.4, 0.3, 0.3), plan=other)]
    with pytest.raises(UserError, match="a and b have different labels"):
        combined(members, tmp_path / "out")


def test_members_that_predicted_different_cases_are_refused(tmp_path):
    from megavoxel.cli import main

    members = [member(tmp_path, name, field(0.4, 0.3, 0.3)) for name in "ab"]
    (members[1].logits / "case.json").rename(members[1].logits / "other.json")
    save_postprocessing(tmp_path / "rules.json", Postprocessing())
    arguments = ["ensemble", "--members", "a", "b", "--logits", *(str(m.logits) for m in members)]
    arguments += ["--predictions", *(str(m.predictions) for m in members)]
    arguments += ["--postprocessing", *[str(tmp_path / "rules.json")] * 2, "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert not (tmp_path / "out").exists()
    assert stage.__doc__
