"""Images that change after the dataset was fetched: training does not go on with the arrays of the old ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from megavoxel.datasets.folder import link_folder, require_unchanged, write_checksums
from megavoxel.errors import UserError
from megavoxel.files import file_sha256

EARLIER = 1_600_000_000
NAMES = ("imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz")


@pytest.fixture(params=["files", "links"])
def fetched(request, tmp_path) -> Path:
    """A dataset of three files, or of links to them, and their checksums."""
    origin, data = tmp_path / "origin", tmp_path / "data"
    for name in NAMES:
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_bytes(name.encode() * 100)
    data.mkdir()
    link_folder(origin, data, copy=request.param == "files")
    write_checksums(data)
    return data


def refusal(data: Path) -> str:
    with pytest.raises(UserError) as caught:
        require_unchanged(data / "checksums.tsv")
    return str(caught.value)


def rewritten(path: Path, content: bytes) -> None:
    """Other content by the same name, with the times of long ago that `cp -p` and `rsync -t` bring along."""
    path.resolve().write_bytes(content)
    os.utime(path, (EARLIER, EARLIER))


def test_a_dataset_as_it_was_fetched_is_known_by_its_checksums(fetched):
    assert require_unchanged(fetched / "checksums.tsv") == file_sha256(fetched / "checksums.tsv")


def test_files_that_were_touched_or_copied_with_the_same_content_are_taken(fetched, tmp_path):
    (fetched / NAMES[0]).touch()
    require_unchanged(fetched / "checksums.tsv")
    shutil.copytree(fetched, tmp_path / "copy")
    require_unchanged(tmp_path / "copy/checksums.tsv")


@pytest.mark.parametrize("content", [b"imagesTr/b.nii.gY" * 100, b"longer than before" * 100], ids=["size", "content"])
def test_a_file_of_other_content_is_named_whatever_its_times_say(fetched, content):
    rewritten(fetched / NAMES[1], content)
    message = refusal(fetched)
    assert str(fetched / NAMES[1]) in message
    assert "snakemake --forcerun fetch" in message


def test_files_that_are_gone_are_no_fault_since_their_arrays_are_there(fetched):
    shutil.rmtree(fetched / "imagesTr")
    require_unchanged(fetched / "checksums.tsv")


def test_an_image_that_the_checksums_do_not_list_is_named(fetched):
    (fetched / "imagesTr/c.nii.gz").write_bytes(b"new")
    (fetched / "notes.txt").write_text("of the user")
    assert "imagesTr/c.nii.gz is not listed" in refusal(fetched)


def test_checksums_cut_anywhere_are_refused(fetched):
    path = fetched / "checksums.tsv"
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        assert str(path) in refusal(fetched), end
