"""`files` of a dataset file: images and label maps found by patterns, and linked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_folder import refusal
from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.source import Files, Source
from megavoxel.datasets.fetch import fetch
from megavoxel.datasets.layout import read_layout
from megavoxel.datasets.pairs import matching
from megavoxel.errors import UserError

KEYS = "labels: {one: 1}\nchannels: [CT]\n"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def dataset(folder: Path, images: list[str], label: str, **changes: object) -> Dataset:
    keys = {"channels": tuple("CT" if not n else f"c{n}" for n in range(len(images))), "labels": {"one": 1}}
    files = Files(images=tuple(images), label=label)
    return Dataset(name="some", source=Source(folder=str(folder)), files=files, **{**keys, **changes})


@pytest.mark.parametrize(
    ("pattern", "files", "found"),
    [
        ("a/{case}.nii", ["a/x.nii", "a/b/y.nii", "b/z.nii", "a/x.nii.gz"], {"x": "a/x.nii"}),
        ("{case}/{case}_t1.nii", ["p/p_t1.nii", "q/p_t1.nii"], {"p": "p/p_t1.nii"}),
        ("s-*/{case}.nii*", ["s-1/x.nii.gz", "s-2/y.nii", "t/z.nii"], {"x": "s-1/x.nii.gz", "y": "s-2/y.nii"}),
        ("[a]/{case}.nii", ["[a]/x.nii", "a/y.nii"], {"x": "[a]/x.nii"}),
    ],
)
def test_a_pattern_stands_for_a_case_within_one_name(pattern, files, found):
    assert matching(files, pattern) == found


def test_two_files_of_one_case_are_named():
    with pytest.raises(UserError, match=r"'\*/\{case\}\.nii': a/x\.nii and b/x\.nii both are of the case 'x'"):
        matching(["a/x.nii", "b/x.nii"], "*/{case}.nii")


def test_cases_are_linked_with_their_channels_and_what_is_a_label_map_is_no_image(tmp_path):
    source = touch(tmp_path / "in", "p.nii.gz", "p_seg.nii.gz", "q.nii.gz", "q_seg.nii.gz", "pet/p.nii", "pet/q.nii")
    some = dataset(source, ["{case}.nii.gz", "pet/{case}.nii"], "{case}_seg.nii.gz")
    said = fetch(some, tmp_path / "out", downloads=tmp_path)
    assert said == f"2 cases, 2 of them labelled, from {source}"
    layout = read_layout(tmp_path / "out", some)
    assert [(case.id, case.images, case.label) for case in layout.cases] == [
        (case, (f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii"), f"labelsTr/{case}.nii.gz")
        for case in ("p", "q")
    ]
    linked = {name: (tmp_path / "out" / name).resolve() for name in (*layout.cases[0].images, layout.cases[0].label)}
    assert [path.relative_to(source).as_posix() for path in linked.values()] == [
        "p.nii.gz",
        "pet/p.nii",
        "p_seg.nii.gz",
    ]
    assert "dataset.json\t" in (tmp_path / "out/checksums.tsv").read_text()
    fetch(some, tmp_path / "out", downloads=tmp_path, copy=True)
    assert not (tmp_path / "out/imagesTr/p_0000.nii.gz").is_symlink()


def test_an_image_without_a_label_map_can_be_left_out(tmp_path):
    source = touch(tmp_path / "in", "i/p.nii.gz", "i/q.nii.gz", "l/p.nii.gz")
    some = dataset(source, ["i/{case}.nii.gz"], "l/{case}.nii.gz", exclude=("q",))
    fetch(some, tmp_path / "out", downloads=tmp_path)
    layout = read_layout(tmp_path / "out", some)
    assert ([case.id for case in layout.cases], layout.excluded) == (["p"], ("q",))
    assert "label" not in json.loads((tmp_path / "out/dataset.json").read_text())["dataset"]["q"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["i/{case}.nii.gz"], "label maps, but no images, of r"),
        (["i/{case}.nii.gz", "j/{case}.nii.gz"], r"'j/\{case\}\.nii\.gz': no such image of q"),
        (["k/{case}.nii.gz"], r"no image matches 'k/\{case\}\.nii\.gz'"),
    ],
)
def test_what_does_not_go_together_is_named_and_nothing_is_written(tmp_path, images, message):
    source = touch(tmp_path / "in", "i/p.nii.gz", "i/q.nii.gz", "j/p.nii.gz", "l/p.nii.gz", "l/r.nii.gz")
    with pytest.raises(UserError, match=message):
        fetch(dataset(source, images, "l/{case}.nii.gz"), tmp_path / "out", downloads=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("files: {images: ['i/{case}.nii.gz'], label: 'l/{case}.nii.gz'}", "files: it also needs 'labels'"),
        (KEYS + "files: {images: ['i/{case}.nii.gz']}", "label"),
        (KEYS + "files: {images: ['i/x.nii.gz'], label: 'l/{case}.nii.gz'}", "with {case} in it"),
        (
            KEYS + "files: {images: ['i/{case}.png'], label: 'l/{case}.nii.gz'}",
            "ends in .nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, .ome.tif, .ome.tiff, .tif, .tiff, .nii*,",
        ),
        (KEYS + "files: {images: ['/i/{case}.nii'], label: 'l/{case}.nii.gz'}", "below the source folder"),
        (
            KEYS + "files: {images: ['i/{case}.nii', 'j/{case}.nii'], label: 'l/{case}.nii.gz'}",
            "files.images: 2 patterns for 1 channels (CT)",
        ),
        (
            KEYS + "files: {images: ['i/{case}.nii'], label: 'l/{case}.nii'}\nblocks: {counts: [1, 1, 2]}",
            "files: not beside 'blocks'",
        ),
    ],
)
def test_keys_that_cannot_be_read_so_are_refused(tmp_path, lines, message):
    assert message in refusal(tmp_path, lines)


def test_patterns_need_a_folder(tmp_path):
    file = tmp_path / "some.yaml"
    files = "files: {images: ['i/{case}.nii'], label: 'l/{case}.nii'}"
    file.write_text(f"name: some\nsource: {{phantom: {{training_cases: 2}}}}\n{KEYS}{files}\n")
    with pytest.raises(UserError, match="files: this layout is read from a folder"):
        load_dataset(file)


def test_endings_in_capitals_are_endings(tmp_path):
    source = touch(tmp_path / "in", "images/p.NII.GZ", "labels/p.NII.GZ")
    some = dataset(source, ["images/{case}.NII.GZ"], "labels/{case}.NII.GZ")
    fetch(some, tmp_path / "out", downloads=tmp_path)
    (case,) = read_layout(tmp_path / "out", some).cases
    assert (case.images, case.label) == (("imagesTr/p_0000.nii.gz",), "labelsTr/p.nii.gz")
