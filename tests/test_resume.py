"""Work that goes on where it ended: preprocessed cases by their files, predicted cases by what they depend on."""

from __future__ import annotations

import argparse

import pytest

from megavoxel.datasets.folder import read_checksums
from megavoxel.errors import UserError
from megavoxel.files import linked_together
from megavoxel.inference import finished
from megavoxel.inference.finished import Finished


class FakePlan:
    prediction_hash = "abc"


@pytest.fixture
def arguments(tmp_path) -> argparse.Namespace:
    for name in ("stored", "stage1"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.pt").write_text("weights")
    (tmp_path / "stored/a.json").write_text("{}")
    return argparse.Namespace(
        output=tmp_path / "out", resume=tmp_path / "kept", weights=[tmp_path / "model.pt"], logits=None, stage1=[],
        preprocessed=tmp_path / "stored", confidence=None,
    )  # fmt: skip


def finish(arguments: argparse.Namespace) -> Finished:
    kept = Finished.of(FakePlan(), arguments)
    with kept.adding("a") as folders:
        (folders[finished.MAPS] / "a.nii.gz").write_text("map")
    return kept


def test_a_finished_case_is_found_again_and_handed_over(arguments, tmp_path):
    finish(arguments)
    kept = Finished.of(FakePlan(), arguments)
    assert kept.has("a")
    assert not kept.has("b")
    arguments.output.mkdir()
    kept.hand_over("a", {finished.MAPS: arguments.output})
    assert (arguments.output / "a.nii.gz").read_text() == "map"
    kept.forget(["a"], linked=False)
    assert not arguments.resume.exists()
    assert (arguments.output / "a.nii.gz").read_text() == "map"


def test_a_case_is_kept_as_long_as_it_takes_no_space(arguments, tmp_path):
    kept = finish(arguments)
    kept.forget(["a"], linked=True)
    assert not kept.has("a")  # nothing else has these bytes
    kept = finish(arguments)
    arguments.output.mkdir()
    kept.hand_over("a", {finished.MAPS: arguments.output})
    kept.forget(["a"], linked=True)
    assert kept.has("a")
    assert next(arguments.resume.glob("*/maps/a.nii.gz")).samefile(arguments.output / "a.nii.gz")


def test_what_is_kept_of_earlier_networks_is_removed(arguments, tmp_path):
    earlier = finish(arguments)
    (tmp_path / "model.pt").write_text("others")
    kept = finish(arguments)
    arguments.output.mkdir()
    kept.hand_over("a", {finished.MAPS: arguments.output})
    kept.forget(["a"], linked=True)
    assert (kept.has("a"), earlier.has("a")) == (True, False)


def test_a_kept_case_that_was_edited_is_predicted_again(arguments):
    kept = finish(arguments)
    next(arguments.resume.glob("*/maps/a.nii.gz")).write_text("edited")
    assert not kept.has("a")


def test_a_case_of_another_program_is_predicted_again(arguments, monkeypatch):
    finish(arguments)
    monkeypatch.setattr(finished, "_program", lambda: "another")
    assert not Finished.of(FakePlan(), arguments).has("a")


@pytest.mark.parametrize("file", ["model.pt", "stored/a.json", "stored/a.source"])
def test_a_case_is_predicted_again_where_what_it_depends_on_has_changed(arguments, tmp_path, file):
    finish(arguments)
    (tmp_path / file).write_text("another")
    assert not Finished.of(FakePlan(), arguments).has("a")


def test_a_case_that_was_being_predicted_is_not_there(arguments):
    kept = Finished.of(FakePlan(), arguments)

    def interrupted() -> None:
        with kept.adding("a") as folders:
            (folders[finished.MAPS] / "a.nii.gz").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not kept.has("a")


def test_parts_become_one_folder_of_the_same_files(tmp_path):
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"case-{name}").write_text(name)
    assert linked_together([tmp_path / "0", tmp_path / "1"], tmp_path / "all") == 2
    assert {path.name for path in (tmp_path / "all").iterdir()} == {"case-0", "case-1"}
    assert (tmp_path / "all/case-1").samefile(tmp_path / "1/case-1")
    with pytest.raises(UserError, match="case-0 is in"):
        linked_together([tmp_path / "0", tmp_path / "0"], tmp_path / "twice")
    with pytest.raises(UserError, match="no such folder"):
        linked_together([tmp_path / "2"], tmp_path / "none")


def test_checksums_are_read_by_file(tmp_path):
    (tmp_path / "checksums.tsv").write_text(f"file\tbytes\tsha256\na.nii.gz\t3\t{'ab' * 32}\n")
    assert read_checksums(tmp_path / "checksums.tsv") == {"a.nii.gz": "ab" * 32}
    with pytest.raises(UserError, match="no such file"):
        read_checksums(tmp_path / "other.tsv")
