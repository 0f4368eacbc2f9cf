"""What the fuzz run found, and what it is to find: broken files are named with the key that is wrong."""

from __future__ import annotations

import gzip
import json
import resource
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from fake_study import make_plan
from helpers import store_case, tiny_plan
from megavoxel.config.records import from_plain
from megavoxel.config.setting import Inference, Parallel, Preprocessing
from megavoxel.config.training import Training
from megavoxel.config.yaml_files import read_yaml
from megavoxel.datasets.blocks import list_cases
from megavoxel.datasets.cases import Case
from megavoxel.errors import UserError, shown
from megavoxel.evaluation.postprocessing import load_postprocessing
from megavoxel.evaluation.tidy import COLUMNS, read_scores
from megavoxel.files import read_json
from megavoxel.planning.plan import load_plan, save_plan
from megavoxel.preprocessing.checksums import write_checksums
from megavoxel.preprocessing.store import case_properties, open_case
from megavoxel.reporting.run_files import HISTORY_COLUMNS, read_history, read_manifest
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.open import read_geometry, read_image
from megavoxel.volumes.volume import DamagedFileError

MERGED = "a0: &a0 {k0: 1, k1: 1}\n" + "".join(
    f"a{level}: &a{level}\n  <<: [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 13)
)
LONG = "a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 10_000 + "]\n"

BOMB = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x, x]"] + [
    f"{name}: &{name} [{', '.join(10 * [f'*{last}'])}]" for last, name in zip("abcdefgh", "bcdefghi", strict=True)
])  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (Training, {"epochs": "many"}, r"some: epochs: expected a whole number, found 'many'"),
        (Training, {"epochs": True}, "expected a whole number, found True"),
        (Training, {"epochs": 1.5}, r"expected a whole number, found 1\.5"),
        (Training, {"epochs": None}, "expected a whole number, found None"),
        (Training, {"learning_rate": float("nan")}, "expected a finite number, found nan"),
        (Training, {"learning_rate": 10**400}, "expected a finite number, found 1000"),
        (Training, {"class_weights": [1, "x"]}, r"class_weights\.1: expected a finite number, found 'x'"),
        (
            Training,
            {"class_weights": {"a": 1}},
            "class_weights: {'a': 1} is not allowed; allowed: none, softmax_of_inverse, inverse_square_root, "
            "inverse_frequency; or list of",
        ),
        (
            Preprocessing,
            {"normalisation": [1]},
            r"normalisation\.0: 1 is not allowed; allowed: ct, z-score, .*or a mapping with range",
        ),
        (Inference, {"mirror": 1}, "expected true or false, found 1"),
        (Parallel, ["data"], "some: expected a mapping of keys to values"),
    ],
)
def test_a_value_of_another_type_is_named(kind, values, words):
    with pytest.raises(UserError, match=words):
        from_plain(kind, values, where="some")


def test_whole_numbers_stand_for_numbers_and_lists_for_tuples():
    assert from_plain(Training, {"learning_rate": 1, "class_weights": [1, 2]}, where="").class_weights == (1.0, 2.0)
    assert from_plain(Inference, {"window": "whole"}, where="").window == "whole"
    assert from_plain(Inference, {"window": [1, 2, 3]}, where="").window == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100000 values"),
        ("a: &a [*a]", "more than 100000 values or 30 levels"),
        ("a: " + "[" * 40 + "]" * 40, "30 levels"),
        ("[" * 100_000, "cannot be read as YAML"),
        (MERGED, "more than 100000 values"),
        (LONG, "more than 100000 values"),
        ("- " * 100_000, "30 levels"),
        ("a: &a\n  b: &b\n    c: *a\n", "stands before or within what it names"),
        ("x: 1" + ":59" * 200_000, "a number to the base of 60; put it in quotes"),
        ("# " + "x" * 5_000_000, "more than 4194304 bytes"),
        ("a: {b: 1, c: 2, b: 3}", "the key 'b' is there twice in one mapping"),
        ("1: x", "the key 1 is no text"),
        ("a: {null: x}", "the key None is no text"),
        ('a: "\\ud800"', "half a character|invalid Unicode character"),
        ("a: 2020-99-99", "cannot be read as YAML"),
        ("a: !!int many", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_yaml_that_nobody_writes_is_refused(tmp_path, text, words):
    (tmp_path / "some.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_yaml(tmp_path / "some.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study: a\ndataset: b\n  folds: 1\n", "line 3, column 8: mapping values are not allowed in this context"),
        ("a: 1\nb: [1, 2\nc: 3\n", "line 3, column 2: did not find expected ',' or ']' (while parsing a flow sequence"),
        ("a: 1\nb: 'x\nc: 2\n", "begins in line 2"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is there twice in one mapping"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: found a tab character that violates indentation"),
        ("a: 1\nb: 12:30\n", "line 2: '12:30' is a number to the base of 60"),
        ("a:\n- *b\n", "line 2: the alias *b stands before or within what it names"),
    ],
)
def test_broken_yaml_names_its_line(tmp_path, text, words):
    (tmp_path / "some.yaml").write_text(text)
    with pytest.raises(UserError) as refused:
        read_yaml(tmp_path / "some.yaml")
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'some.yaml'}: cannot be read as YAML")
    assert words in message
    assert "\n" not in message


def test_aliases_that_say_the_same_twice_are_read(tmp_path):
    (tmp_path / "some.yaml").write_text("a: &a {b: 1}\nc: *a\n")
    assert read_yaml(tmp_path / "some.yaml") == {"a": {"b": 1}, "c": {"b": 1}}


def test_keys_of_other_mappings_are_merged(tmp_path):
    (tmp_path / "some.yaml").write_text(
        "a: &a {b: 1, c: 2}\nd: &d {e: 3}\nf:\n  <<: [*a, *d]\n  b: 4\n  '12:30': 12:75\n"
    )
    assert read_yaml(tmp_path / "some.yaml")["f"] == {"b": 4, "c": 2, "e": 3, "12:30": "12:75"}


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '"\\ud800"', "\ufeff{}", ""])
def test_json_that_cannot_be_taken_is_refused(tmp_path, text):
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(tmp_path / "some.json", what="file")


def test_long_values_are_cut_in_messages():
    assert len(shown("x" * 10_000)) < 250
    assert shown(10**5000) == "a number of thousands of digits"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_claims_more_voxels_than_the_file_holds_takes_no_memory(tmp_path, suffix):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float64), np.eye(4))
    content = bytearray(image.to_bytes())
    content[42:48] = np.array([30000] * 3, np.int16).tobytes()
    path = tmp_path / f"some{suffix}"
    path.write_bytes(bytes(content) if suffix == ".nii" else gzip.compress(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_geometry, read_image):
        with pytest.raises(DamagedFileError, match="claims 216000000000000 bytes of voxels"):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_an_axis_without_voxels_does_not_hide_a_huge_one(tmp_path):
    content = bytearray(nibabel.Nifti2Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes())
    content[24:48] = np.array([0, 0, 2**62], np.int64).tobytes()
    (tmp_path / "some.nii").write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match="more than the file can hold"):
        read_geometry(tmp_path / "some.nii")


def test_an_empty_volume_that_packs_well_is_read(tmp_path):
    """Zeros are as small as gzip makes anything: 1 / 1029 here."""
    image = nibabel.Nifti1Image(np.zeros((200, 200, 200), np.float64), np.eye(4))
    (tmp_path / "zeros.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
    assert (tmp_path / "zeros.nii.gz").stat().st_size < 200**3 * 8 / 1000
    assert read_image(tmp_path / "zeros.nii.gz")[0].shape == (1, 200, 200, 200)


def test_a_case_whose_spacing_is_in_another_unit_is_named():
    plan = make_plan("some", patch=(8, 8, 8)).preprocessing
    box = ((0, 5),) * 3
    metres = Geometry(shape=(5, 5, 5), affine=np.diag([1e3, 1e3, 1e3, 1]))
    with pytest.raises(UserError, match=r"case a: .* 1000 x 1000 x 1000 mm to 3 x 1\.5 x 1 mm .* may not be in mm"):
        case_properties((5, 5, 5), box, metres, plan, "a", None)
    thick = Geometry(shape=(5, 5, 5), affine=np.diag([5, 5, 20, 1.0]))
    assert case_properties((5, 5, 5), box, thick, plan, "a", None).shape == (33, 17, 25)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing": [0.0, 1.0, 1.0]}, "spacing: expected three numbers above 0"),
        ({"box": [[0, 14], [0, 18], [0]]}, "box: expected two ends"),
        ({"box": [[0, 14], [0, 18], [4, 99]]}, "box: expected two ends per axis inside"),
        ({"shape": [14, 18, 16000]}, "shape: expected that of the stored image"),
        ({"shape": [14, 18]}, "shape: expected three numbers"),
        ({"affine": [[0.0] * 4] * 4}, "affine: expected 4 x 4"),
        ({"affine": [[1.0, 0.0], [0.0]]}, "affine: expected 4 x 4"),
        ({"case": "b"}, "case: expected 'a'"),
    ],
)
def test_properties_of_a_stored_case_that_nobody_writes_are_named(tmp_path, changes, words):
    store_case(tmp_path, "a", seed=1)
    content = json.loads((tmp_path / "a.json").read_text())
    text = json.dumps({**content, **changes})
    (tmp_path / "a.json").write_text(text)
    arrays = [path for path in tmp_path.iterdir() if path.suffix in (".b2nd", ".npz")]
    write_checksums(tmp_path / "a.sha256", arrays, {"a.json": text})
    with pytest.raises(UserError, match=words):
        open_case(tmp_path, "a")


def changed_plan(folder: Path, way: str, value: object) -> Path:
    """A plan with another value at keys divided by slashes."""
    save_plan(folder / "plan.json", tiny_plan())
    content = json.loads((folder / "plan.json").read_text())
    *parents, key = way.split("/")
    place = content
    for parent in parents:
        place = place[parent]
    place[key] = value
    (folder / "plan.json").write_text(json.dumps(content))
    return folder / "plan.json"


@pytest.mark.parametrize(
    ("way", "value", "words"),
    [
        ("patch", [8, 8], r"patch: \[8, 8\] is too short \(three whole numbers above 0\)"),
        ("patch", [8, 8, 0], "patch.2: 0 is less than the minimum of 1; allowed: integer, 1 to"),
        ("batch", 0, "batch: 0 is less than the minimum of 1; allowed: integer, at least 1"),
        ("network/features", [], r"network.features: \[\] is too short; allowed: list of 1 to 16 integers, 1 to 4096"),
        ("network/features", [10**9, 8, 8], "network.features.0: 1000000000 .* allowed: integer, 1 to 4096"),
        (
            "network/strides",
            [[1, 1, 1], [2, 2, 2], [1, 2]],
            r"strides.2: \[1, 2\] is too short; allowed: list of 3",
        ),
        ("network/kernels", [[3, 3, 3]], "kernels: expected three whole numbers above 0 per level"),
        ("network/kernels", [[2, 2, 2]] * 3, "kernels: expected odd numbers"),
        ("network/norm", "layer", "network.norm: 'layer' is not allowed; allowed: instance, batch"),
        ("network/classes", 7, "classes: expected 3"),
        ("network/channels", 2, "channels: expected 1"),
        ("preprocessing/transpose", [0, 0, 1], r"transpose: \[0, 0, 1\]; give 0, 1 and 2 in some order"),
        ("preprocessing/spacing", [1.0, 0.0, 1.0], "spacing.1: 0.0 is not above 0; allowed: number, above 0"),
        ("preprocessing/labels", {"ball": 1, "cube": 1}, "labels: expected a value of its own"),
        (
            "preprocessing/labels",
            {"ball": 1, "cube": -3},
            "labels.cube: -3 .*allowed: integer, 1 to 65535",
        ),
        ("preprocessing/normalisation", [], "normalisation: expected one per channel"),
        (
            "preprocessing/normalisation",
            [{"scheme": "ct"}],
            "normalisation.0: expected mean and std and lower and upper",
        ),
        ("preprocessing/normalisation", [{"scheme": "x"}], "0.scheme: 'x' is not .*: ct, z-score, .*, range"),
        ("inference/step", 0, "inference.step: .*above 0, at most 1"),
        ("training/loss", "best", "training.loss: 'best' is not allowed"),
        ("augmentation/mirror_axes", [3], "augmentation.mirror_axes.0: 3 is not allowed"),
        ("parallel/data", 0, "parallel.data: "),
    ],
)
def test_a_plan_that_no_planner_writes_is_named(tmp_path, way, value, words):
    path = changed_plan(tmp_path, way, value)
    with pytest.raises(UserError, match=rf"plan\.json: (.|\n)*{words}"):
        load_plan(path)


def test_what_the_planner_writes_is_taken_back(tmp_path):
    save_plan(tmp_path / "plan.json", tiny_plan())
    assert load_plan(tmp_path / "plan.json") == tiny_plan()


def test_a_connectivity_that_there_is_not_is_named(tmp_path):
    (tmp_path / "keep.json").write_text(json.dumps({"connectivity": 7}))
    with pytest.raises(UserError, match="connectivity: expected 6, 18 or 26"):
        load_postprocessing(tmp_path / "keep.json")


def test_a_history_with_words_is_named(tmp_path):
    (tmp_path / "history.csv").write_text(",".join(HISTORY_COLUMNS) + "\n1,2,3,4,5,much\n")
    with pytest.raises(UserError, match="peak_memory_mib holds something else than numbers"):
        read_history(tmp_path / "history.csv")


def test_scores_with_more_values_than_columns_are_named(tmp_path):
    (tmp_path / "scores.csv").write_text(",".join(COLUMNS) + "\n1,2,3,4,5,6,7,8,9\n")
    with pytest.raises(UserError, match="lines with more values than the 7 of its first line"):
        read_scores(tmp_path / "scores.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("null", "which is an object"),
        ('{"peak_memory": 1}', "peak_memory"),
        ('{"data": null}', "data: expected an object"),
        ('{"parameters": "1234567"}', "parameters: expected a number"),
        ('{"devices": true}', "devices: expected a number"),
        ('{"peak_memory": {"gib": "0.75"}}', "peak_memory.gib: expected a number"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path, text, words):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=rf"manifest\.json.*{words}"):
        read_manifest(tmp_path / "manifest.json")


def test_numbers_that_json_does_not_know_are_not_written_back(tmp_path):
    (tmp_path / "dataset.json").write_text('{"numTraining": 1, "release": NaN}')
    case = Case(id="a", split="training", images=("imagesTr/a.nii",), label="labelsTr/a.nii")
    with pytest.raises(UserError, match=r"dataset\.json: has NaN or Infinity as a value"):
        list_cases(tmp_path / "dataset.json", [case])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epoch": "x"}, "epoch"),
        ({"history": None}, "NoneType"),
        ({"precision": {"name": "float8", "reason": ""}}, "precision"),
        ({"network": {}}, "KeyError"),
        ({"optimizer": {}}, "KeyError"),
        ({"losses": "x"}, "AttributeError"),
    ],
)
def test_a_state_with_other_content_is_refused_with_what_to_do(tmp_path, changes, words):
    plan = tiny_plan()
    fold = VolumeData(number=0, preprocessed=tmp_path, training=("a",), validation=("b",))
    state = start_run(plan, fold, torch.device("cpu")).state_dict()
    start_run(plan, fold, torch.device("cpu"), state)
    with pytest.raises(UserError, match=rf"training state is not what this run writes \(.*{words}.*remove its folder"):
        start_run(plan, fold, torch.device("cpu"), {**state, **changes})


def test_numbers_of_an_optimizer_that_are_not_one_per_weight_are_refused(tmp_path):
    plan = replace(tiny_plan(), training=replace(tiny_plan().training, optimizer="adamw"))
    fold = VolumeData(number=0, preprocessed=tmp_path, training=("a",), validation=("b",))
    run = start_run(plan, fold, torch.device("cpu"))
    for parameter in run.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.optimizer.step()
    state = run.state_dict()
    start_run(plan, fold, torch.device("cpu"), state)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2)
    with pytest.raises(UserError, match="'optimizer'"):
        start_run(plan, fold, torch.device("cpu"), state)
