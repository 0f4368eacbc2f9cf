"""Images, classes, splits, draws and shares; and what is wrong with them."""

from __future__ import annotations

import csv
import errno
import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageEnhance

from megavoxel.config.dataset import Dataset, load_dataset
from megavoxel.config.source import Classification, Source, TableColumns
from megavoxel.datasets.cases import save_cases
from megavoxel.errors import UserError
from megavoxel.planning.splits import Fold, Splits, save_splits
from megavoxel.tasks.classification.cases import load_image_cases
from megavoxel.tasks.classification.check import check_images
from megavoxel.tasks.classification.images import (
    DEVIATION,
    MEAN,
    DecodedImages,
    read_image,
    saturate,
    shade,
    to_tensor,
    transform,
)
from megavoxel.tasks.classification.layout import read_image_layout
from megavoxel.tasks.classification.plan import check_images_suffice
from megavoxel.tasks.classification.splits import (
    Assignment,
    assign,
    draw_images,
    load_image_splits,
    make_image_splits,
    require_whole_patients,
)
from small_images import CLASSES, classifier, image_cases, write_folders, write_image


def dataset(**keys: object) -> Dataset:
    classification = Classification(**{"classes": CLASSES} | keys)
    return Dataset(name="small", source=Source(folder="small"), classification=classification)


def write_table(root: Path, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> None:
    with (root / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def errors(root: Path, **keys: object) -> dict[str, str]:
    """Messages of the errors that a check finds, by case."""
    _, findings = check_images(root, dataset(**keys))
    return {finding.case: finding.message for finding in findings if finding.severity == "error"}


def test_a_folder_per_class_is_read(tmp_path):
    write_folders(tmp_path, 3)
    write_image(tmp_path / "other" / "0.png", "dark", 0)
    layout = read_image_layout(tmp_path, dataset())
    assert Counter(case.label for case in layout.cases) == {"bright": 3, "dark": 3}
    assert [finding.message for finding in layout.findings] == ["1 images of other classes are left out"]


def test_a_number_of_classes_takes_those_with_most_images(tmp_path):
    for label, count in (("a", 1), ("b", 3), ("c", 2), ("d", 2)):
        for number in range(count):
            write_image(tmp_path / "images" / label / f"{number}.jpg", "dark", number)
    assert read_image_layout(tmp_path, dataset(classes=2, folder="images")).classes == ("b", "c")
    with pytest.raises(UserError, match="it has 4 classes"):
        read_image_layout(tmp_path, dataset(classes=5, folder="images"))


def test_a_table_names_files_classes_splits_and_patients(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"part{number % 2}" / f"{number}.png", "dark", number)
    header = ("Image Index", "Finding Labels", "Patient ID", "split")
    rows = [("0.png", "dark", "7", "train"), ("part1/1.png", "bright", "8", "test"), ("2.png", "dark|bright", "7", "")]
    write_table(tmp_path, [*rows, ("3.png", "dark", "", "")], header)
    columns = TableColumns(file="Image Index", label="Finding Labels", patient="Patient ID")
    layout = read_image_layout(tmp_path, dataset(table="images.csv", columns=columns))
    found = {case.id: (case.label, case.split, case.patient) for case in layout.cases}
    assert found == {
        "part0/0.png": ("dark", "training", "7"),
        "part1/1.png": ("bright", "test", "8"),
        "part1/3.png": ("dark", "training", None),
    }
    assert [finding.message for finding in layout.findings] == ["1 images of other classes are left out"]


def test_a_list_names_the_test_images(tmp_path):
    write_folders(tmp_path, 2)
    (tmp_path / "test.txt").write_text("bright/1.png\n")
    layout = read_image_layout(tmp_path, dataset(test_list="test.txt"))
    assert [case.id for case in layout.cases if case.split == "test"] == ["bright/1.png"]


def test_names_in_a_list_may_hold_blanks_and_lines_without_an_image_are_counted(tmp_path):
    write_folders(tmp_path, 2)
    write_image(tmp_path / "dark" / "a scan.png", "dark", 3)
    (tmp_path / "test.txt").write_text("a scan.png\n\nnone.png\n")
    layout = read_image_layout(tmp_path, dataset(test_list="test.txt"))
    assert [case.id for case in layout.cases if case.split == "test"] == ["dark/a scan.png"]
    assert [(finding.severity, finding.message) for finding in layout.findings] == [
        ("excluded", "test.txt: 1 of 2 lines name no image of the dataset's classes")
    ]


def test_a_list_that_names_no_image_is_refused(tmp_path):
    write_folders(tmp_path, 2)
    (tmp_path / "test.txt").write_text("bright/7.png\n8.png\n")
    with pytest.raises(UserError, match=r"test\.txt: none of its 2 lines names an image"):
        read_image_layout(tmp_path, dataset(test_list="test.txt"))


def test_a_class_that_the_test_split_uses_up_is_named(tmp_path):
    write_folders(tmp_path, 2)
    write_image(tmp_path / "dark" / "2.png", "dark", 2)
    found = errors(tmp_path, test_per_class=2)
    assert set(found) == {"class bright"}
    assert "none is left for training" in found["class bright"]


def test_test_images_are_drawn_by_class_and_by_whole_patients(tmp_path):
    write_folders(tmp_path, 12)
    rows = [(f"{label}/{number}.png", label, f"{label}{number // 3}") for label in CLASSES for number in range(12)]
    write_table(tmp_path, rows, ("file", "label", "patient"))
    keys = {"table": "images.csv", "test_per_class": 3}
    drawn = [read_image_layout(tmp_path, dataset(**keys, test_seed=seed)).cases for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert Counter(case.label for case in drawn[0] if case.split == "test") == {"bright": 3, "dark": 3}
    assert len({case.patient for case in drawn[0] if case.split == "test"}) == 2


def test_damaged_images_are_named(tmp_path):
    write_folders(tmp_path, 3)
    whole = (tmp_path / "bright/0.png").read_bytes()
    (tmp_path / "bright/0.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dark/1.png").write_bytes(b"no image")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8))
    image.save(tmp_path / "dark/3.jpg")
    jpeg = (tmp_path / "dark/3.jpg").read_bytes()
    (tmp_path / "dark/3.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    found = errors(tmp_path)
    assert set(found) == {"bright/0.png", "dark/1.png", "dark/3.jpg"}
    assert all("cannot be read as an image" in message for message in found.values())


def test_sixteen_bits_are_refused(tmp_path):
    write_folders(tmp_path, 1)
    Image.fromarray(np.full((8, 8), 4000, dtype=np.uint16)).save(tmp_path / "dark/1.png")
    assert "of the kind 'I;16'; expected grey or colour of at most 8 bits" in errors(tmp_path)["dark/1.png"]


def test_a_grey_image_among_colour_ones_is_a_warning_and_its_grey_stands_for_all_colours(tmp_path):
    write_folders(tmp_path, 2, mode="RGB")
    write_image(tmp_path / "dark/2.png", "dark", 2)
    cases, findings = check_images(tmp_path, dataset())
    assert [(finding.case, finding.severity) for finding in findings] == [("dark/2.png", "warning")]
    assert len(cases.cases) == 5
    tensor = to_tensor(read_image(tmp_path / "dark/2.png", 40))
    assert tensor.shape == (3, 40, 40)
    grey = np.array(Image.open(tmp_path / "dark/2.png"))[5, 7] / 255
    expected = [(grey - mean) / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True)]
    assert tensor[:, 5, 7].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_colour_image_among_grey_ones_is_the_one_that_is_named(tmp_path):
    write_folders(tmp_path, 3)
    write_image(tmp_path / "dark/3.png", "dark", 3, mode="RGB")
    _, findings = check_images(tmp_path, dataset())
    assert [(finding.case, finding.severity) for finding in findings] == [("dark/3.png", "warning")]


def test_grey_that_is_stored_as_colours_is_grey(tmp_path):
    write_folders(tmp_path, 2)
    Image.open(tmp_path / "dark/0.png").convert("RGBA").save(tmp_path / "dark/0.png")
    assert check_images(tmp_path, dataset())[1] == []


def test_a_patient_in_two_splits_is_named(tmp_path):
    write_folders(tmp_path, 3)
    rows = [("bright/0.png", "bright", "p1", "training"), ("dark/0.png", "dark", "p1", "test")]
    rows += [("dark/1.png", "dark", "p2", "test"), ("dark/2.png", "dark", "p3", "training")]
    write_table(tmp_path, rows, ("file", "label", "patient", "split"))
    assert errors(tmp_path, table="images.csv") == {
        "patient p1": "has images in training and in test; all images of a patient belong to one of them"
    }


def test_faults_of_a_table_are_named(tmp_path):
    write_folders(tmp_path, 2)
    write_image(tmp_path / "extra" / "1.png", "dark", 1)
    rows = [("bright/0.png", "bright", "training"), ("bright/0.png", "dark", "training"), ("none.png", "dark", "test")]
    rows += [("1.png", "dark", "test"), ("dark/0.png", "dark", "tset")]
    write_table(tmp_path, rows, ("file", "label", "split"))
    found = errors(tmp_path, table="images.csv")
    assert found["bright/0.png"] == "the table has 2 lines of it; keep one"
    assert found["none.png"] == "images.csv: there is no such file"
    assert found["1.png"] == "images.csv: there are 3 files of this name"
    assert found["dark/0.png"] == "'tset' is no split; allowed: training, train, test"
    with pytest.raises(UserError, match="the column 'class' is missing; it has file, label, split"):
        check_images(tmp_path, dataset(table="images.csv", columns=TableColumns(label="class")))


def test_check_writes_cases_or_refuses_with_all_faults(tmp_path, capsys):
    write_folders(tmp_path / "source", 3)
    file = tmp_path / "small.yaml"
    keys = {"name": "small", "source": {"folder": str(tmp_path / "source")}}
    file.write_text(yaml.safe_dump({**keys, "classification": {"classes": [*CLASSES], "test_per_class": 1}}))

    def run() -> None:
        from megavoxel.cli import main

        data = ["--dataset", str(file), "--output", str(tmp_path / "data")]
        assert main(["fetch", *data]) == 0
        names = ["--checks", str(tmp_path / "checks.csv"), "--output", str(tmp_path / "cases.json")]
        return main(["check", "--dataset", str(file), "--data", str(tmp_path / "data"), *names])

    assert run() == 0
    cases = load_image_cases(tmp_path / "cases.json")
    assert (len(cases.of_split("training")), len(cases.of_split("test"))) == (4, 2)
    assert json.loads((tmp_path / "data/dataset.json").read_text()) == {"name": "small", "task": "classification"}
    (tmp_path / "source/dark/0.png").write_bytes(b"")
    assert run() == 1
    assert "1 faults in 1 of 6 cases" in capsys.readouterr().err
    assert not (tmp_path / "cases.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"a": 1}}, "labels: this key is for segmentation"),
        ({"classification": {"classes": 2, "folder": "a", "table": "b"}}, "keep one of them"),
        ({"classification": {"classes": 2, "columns": {"file": "a"}}}, "columns: it needs 'table'"),
        ({"classification": {"classes": 2, "test_list": "a", "test_per_class": 1}}, "drop test_per_class"),
        ({"test_section": "test"}, "test_section: this key is for segmentation"),
        ({"classification": {"classes": 2, "folder": ".", "table": "b"}}, "keep one of them"),
        ({"classification": {"classes": 2, "columns": {"file": "file"}}}, "columns: it needs 'table'"),
        ({"classification": {"classes": 2, "test_seed": 0}}, "test_seed: it draws images only beside 'test_per_class'"),
        ({"classification": {"classes": 1}}, "classification.classes"),
        ({"source": {"phantom": {"training_cases": 2}}}, "images are read from a folder"),
    ],
)
def test_dataset_files_that_contradict_themselves_are_refused(tmp_path, change, message):
    values = {"name": "a", "source": {"folder": "a"}, "classification": {"classes": 2}} | change
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path / "a.yaml")


def test_cases_that_lead_out_of_the_folder_are_refused(tmp_path):
    cases = image_cases(tmp_path, 1)
    save_cases(tmp_path / "cases.json", replace(cases, cases=(replace(cases.cases[0], id="../a.png"),)))
    with pytest.raises(UserError, match="leads out of the dataset's folder"):
        load_image_cases(tmp_path / "cases.json")


def test_splits_of_images_hold_paths(tmp_path):
    splits = make_image_splits(image_cases(tmp_path, 3), 1, seed=1)
    save_splits(tmp_path / "splits.json", splits)
    assert load_image_splits(tmp_path / "splits.json") == splits


def test_one_fold_without_test_images_is_refused(tmp_path, capsys):
    from megavoxel.cli import main

    save_cases(tmp_path / "cases.json", image_cases(tmp_path, 3))
    keys = ["--cases", str(tmp_path / "cases.json"), "--seed", "1", "--output", str(tmp_path / "splits.json")]
    assert main(["split", *keys, "--folds", "1"]) == 1
    assert "no image would be scored; give the study 'folds' of 2 or more" in capsys.readouterr().err
    assert main(["split", *keys, "--folds", "3"]) == 0


def test_folds_keep_patients_whole_and_classes_even():
    cases = image_cases(Path("x"), per_class=24, images_per_patient=3)
    splits = make_image_splits(cases, 4, seed=1)
    require_whole_patients(cases, splits, source="made here")
    for fold in splits.folds:
        assert not {*fold.training} & {*fold.validation}
        assert Counter(case.label for case in cases.select(fold.validation)) == {"bright": 6, "dark": 6}
    assert sorted(name for fold in splits.folds for name in fold.validation) == sorted(case.id for case in cases.cases)


def test_ready_made_folds_with_a_patient_on_both_sides_are_refused():
    cases = image_cases(Path("x"), per_class=4, images_per_patient=2)
    fold = Fold(training=("bright/0.png",), validation=("bright/1.png",))
    with pytest.raises(UserError, match="fold 0: patient bright0 has images in training and in validation"):
        require_whole_patients(cases, Splits(folds=(fold,)), source="splits.json")


def test_one_fold_trains_on_all():
    splits = make_image_splits(image_cases(Path("x"), 3), 1, seed=1)
    assert len(splits.folds[0].training) == 6
    assert splits.folds[0].validation == ()


def test_more_images_per_class_hold_the_fewer():
    cases = image_cases(Path("x"), 20).cases
    few, more, other = (
        draw_images(cases, count, seed, classes=CLASSES, where="s") for count, seed in ((5, 1), (9, 1), (5, 2))
    )
    assert Counter(case.label for case in few) == {"bright": 5, "dark": 5}
    assert {*few} < {*more}
    assert few != other


def test_a_class_with_too_few_images_is_named():
    cases = image_cases(Path("x"), 4)
    small = replace(cases, cases=tuple(case for case in cases.cases if case.id != "dark/0.png"))
    splits = make_image_splits(small, 1, seed=1)
    with pytest.raises(UserError, match="setting a, fold 0: images_per_class is 4, but the class dark has 3 training"):
        check_images_suffice(classifier(images_per_class=4), small, splits, (0,))


@pytest.mark.parametrize(("batch", "resolution"), [(1, 32), (5, 32), (1, 33), (4, 32)])
def test_a_step_that_batch_norm_cannot_take_is_refused_by_the_plan(batch, resolution):
    cases = image_cases(Path("x"), 3)
    plan, splits = classifier(network="resnet50", batch=batch, resolution=resolution), make_image_splits(cases, 1, 1)
    if (batch, resolution) == (1, 32):
        with pytest.raises(UserError, match="resnet50 leaves one pixel at resolution 32, and batch norm needs two"):
            check_images_suffice(plan, cases, splits, (0,))
    else:
        assert check_images_suffice(plan, cases, splits, (0,))


def test_a_class_without_any_training_image_is_named():
    cases = [case for case in image_cases(Path("x"), 4).cases if case.label == "bright"]
    for count in (2, None):
        with pytest.raises(UserError, match="but the class dark has 0 training images"):
            draw_images(cases, count, 1, classes=CLASSES, where="s")


def test_private_shares_are_disjoint_whole_patients_and_fixed():
    cases = image_cases(Path("x"), per_class=15, images_per_patient=3).cases
    one, two = (assign(cases, 4, "private", 3, pool=cases, setting="s") for _ in range(2))
    assert one == two
    assert sorted(number for share in one.shares for number in share) == list(range(30))
    owners = [{cases[number].owner for number in share} for share in one.shares]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 10
    assert max(one.sizes) - min(one.sizes) <= 3


def test_an_empty_share_is_refused():
    cases = image_cases(Path("x"), per_class=3, images_per_patient=3).cases
    with pytest.raises(UserError, match="2 patients cannot be shared among 3 workers: the share of worker 2 would be"):
        assign(cases, 3, "private", 3, pool=cases, setting="s")
    with pytest.raises(UserError, match="the shares of workers 2, 3 would be empty"):
        assign(cases, 4, "private", 3, pool=cases, setting="s")
    nameless = [replace(case, patient=None) for case in cases[:2]]
    with pytest.raises(UserError, match="2 images cannot be shared among 3 workers"):
        assign(nameless, 3, "private", 3, pool=nameless, setting="s")


@pytest.mark.parametrize("images_per_patient", [1, 3])
def test_a_patient_stays_with_its_worker_however_many_images_are_drawn(images_per_patient):
    pool = image_cases(Path("x"), 60, images_per_patient=images_per_patient).cases
    sites = []
    for count in (10, 20, 40, None):
        drawn = draw_images(pool, count, 3, classes=CLASSES, where="s")
        shares = assign(drawn, 4, "private", 3, pool=pool, setting="s").shares
        sites.append({drawn[number].owner: rank for rank, share in enumerate(shares) for number in share})
        if images_per_patient == 1:
            for share in shares:
                of_class = Counter(drawn[number].label for number in share)
                assert max(of_class.values()) - min(of_class.values()) <= 1
                assert abs(len(share) - len(drawn) / 4) <= 1
    for few, many in itertools.pairwise(sites):
        assert few.items() <= many.items()


def test_few_validation_images_may_leave_a_worker_without_any():
    cases = image_cases(Path("x"), per_class=1).cases
    assert sorted(assign(cases, 3, "private", 3, pool=cases, setting="s", allow_empty=True).sizes) == [0, 1, 1]


def test_an_epoch_shows_every_image_once_in_nearly_equal_batches():
    shares = (tuple(range(11)), tuple(range(11, 18)), (18,))
    private = Assignment(partition="private", shares=shares)
    assert private.steps_per_epoch(4) == 3
    for rank, own in enumerate(shares):
        batches = private.batches(rank, 4, seed=(1,))
        assert sorted(np.concatenate(batches)) == list(own)
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
    shared = Assignment(partition="shared", shares=(tuple(range(11)),) * 2)
    parts = [shared.batches(rank, 2, seed=(1,)) for rank in range(2)]
    assert sorted(np.concatenate([number for own in parts for number in own])) == list(range(11))
    alone = Assignment(partition="shared", shares=(tuple(range(11)),)).batches(0, 4, seed=(1,))
    for step, batch in enumerate(alone):
        assert [*parts[0][step], *parts[1][step]] == list(batch)


def test_geometry_on_images_of_four_by_four():
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    image = Image.fromarray(values)

    def moved(**keys: object) -> np.ndarray:
        return np.array(transform(image, **keys)).astype(int)

    assert (moved() == values).all()
    assert (moved(flips=(True, False)) == values[:, ::-1]).all()
    assert (moved(flips=(False, True)) == values[::-1]).all()
    assert np.abs(moved(angle=np.pi / 2) - np.rot90(values)).max() <= 1
    assert (moved(shift=(0.25, 0)) == np.pad(values, ((0, 0), (1, 0)))[:, :4]).all()
    flat = Image.fromarray(np.pad(np.full((4, 4), 200, dtype=np.uint8), 2))
    assert (np.array(transform(flat, zoom=2.0)) == 200).sum() >= 36  # four by four became eight by eight, edges blurred


def test_brightness_scales_and_contrast_spreads_around_the_mean():
    image = Image.fromarray(np.array([[40, 80]], dtype=np.uint8))
    assert np.array(shade(image, brightness=0.5)).tolist() == [[20, 40]]
    assert np.array(shade(image, contrast=2.0)).tolist() == [[20, 100]]
    assert np.array(shade(image, brightness=4.0)).tolist() == [[160, 255]]


@pytest.mark.parametrize("saturation", [0.0, 0.5, 1.0, 1.3, 2.0])
def test_saturation_equals_pillows_enhancer_to_its_rounding(saturation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    found = np.array(saturate(image, saturation)).astype(int)
    expected = np.array(ImageEnhance.Color(image).enhance(saturation)).astype(int)
    assert np.abs(found - expected).max() <= (0 if saturation == 1 else 1)


@pytest.mark.parametrize("side", [32, 100, 256, 300])
def test_jpegs_are_decoded_at_a_part_of_their_size_without_another_picture(tmp_path, side):
    grid = np.add.outer(np.arange(256), np.arange(256)) // 2
    Image.fromarray(grid.astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    found = np.array(read_image(tmp_path / "a.jpg", side)).astype(float)
    expected = np.array(Image.fromarray(grid.astype(np.uint8)).resize((side, side), Image.Resampling.BOX)).astype(float)
    assert found.shape == (side, side)
    assert np.abs(found - expected).mean() < 2


def test_real_radiographs_are_read(real_data):
    folder = real_data / "cxr2"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    path = next((folder / "pneumonia").glob("*.jpg"))
    assert to_tensor(read_image(path, 112)).std() > 0.1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_is_decoded_once_and_stays_what_it_was(tmp_path, mode):
    write_folders(tmp_path, 2, mode=mode)
    files = sorted(tmp_path.rglob("*.png"))
    images = DecodedImages(files, 32)
    first = [images[number].tobytes() for number in range(len(files))]
    for path in files:
        path.unlink()
    assert [images[number].tobytes() for number in range(len(files))] == first
    assert images[0].mode == mode


def test_without_space_for_pixels_images_are_decoded_every_time(tmp_path, monkeypatch):
    write_folders(tmp_path, 2)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.pwrite", full)
    images = DecodedImages([tmp_path / "dark/0.png"], 32)
    assert images[0].tobytes() == images[0].tobytes() == read_image(tmp_path / "dark/0.png", 32).tobytes()
