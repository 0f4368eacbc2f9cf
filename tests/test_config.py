"""Study, dataset and hardware files: what is wrong is said in one line with the file, the key and what is allowed."""

from __future__ import annotations

import copy
import dataclasses
import re
import sys

import jsonschema
import pytest
import yaml

from megavoxel.config import __main__ as config_files
from megavoxel.config.dataset import Dataset, dataset_path, load_dataset
from megavoxel.config.hardware import Device, HardwareFile, load_device, load_hardware, update_device
from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.reference import FILES, SECTIONS, json_schema
from megavoxel.config.setting import Network, Setting, WrittenSetting
from megavoxel.config.source import Phantom, Source
from megavoxel.config.study import Ensemble, Study, StudyFile
from megavoxel.config.study_file import load_study, merge, parse_study
from megavoxel.config.training import Training
from megavoxel.errors import UserError

MINIMAL = {
    "study": "s",
    "dataset": "phantom",
    "defaults": {"batch": 2, "training": {"epochs": 3, "loss": "dice"}},
    "settings": {"a": {"patch": [8, 8, 8]}, "b": {"inherits": "a", "training": {"epochs": 5}}, "c": None},
    "ensembles": {"ab": {"members": ["a", "b"]}},
}


def changed(path: str, value) -> dict:
    values = copy.deepcopy(MINIMAL)
    *folders, key = path.split("/")
    place = values
    for folder in folders:
        place = place.setdefault(folder, {})
    place[key] = value
    return values


def fault(values: dict) -> str:
    with pytest.raises(UserError) as caught:
        parse_study(values, source="my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message


def test_settings_inherit_from_defaults_and_from_one_another():
    study = parse_study(MINIMAL, source="my.yaml")
    b = study.setting("b")
    assert (b.patch, b.batch, b.training.epochs, b.training.loss) == ((8, 8, 8), 2, 5, "dice")
    assert study.setting("c").training.epochs == 3
    assert study.setting("a").training.learning_rate == 0.01
    assert study.folds_of(b) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("defaults/training/los", "dice", ["defaults.training.los", "allowed: batch_dice", "did you mean 'loss'?"]),
        ("settings/a/patsh", [8, 8, 8], ["settings.a.patsh", "unknown key", "did you mean 'patch'?"]),
        ("stdy", "x", ["stdy: unknown key", "did you mean 'study'?"]),
        (
            "defaults/training/loss",
            "dise",
            [
                "defaults.training.loss",
                "allowed: dice_ce, dice_focal, dice_topk, dice_perimeter, dice, cross_entropy",
                "'dice'?",
            ],
        ),
        ("settings/a/inherits", "z", ["settings.a.inherits", "no setting 'z'", "allowed: a, b, c"]),
        ("settings/a/inherits", "b", ["goes round in a circle: a -> b -> a"]),
        ("ensembles/ab/members", ["a", "z"], ["ensembles.ab.members", "no setting 'z'", "allowed: a, b, c"]),
        ("ensembles/a", {"members": ["b", "c"]}, ["ensembles.a", "a setting has this name"]),
        ("baseline", "z", ["baseline", "no setting 'z'"]),
        ("study", "../up", ["study", "'../up'", "allowed: letters"]),
        ("settings/a b", {}, ["settings", "'a b'", "allowed: letters"]),
        ("settings/a;rm", {}, ["'a;rm'", "allowed: letters"]),
        ("settings/report", {}, ["settings.report", "reserved"]),
        ("settings/a/patch", [8, 8], ["settings.a.patch", "voxels per axis"]),
        ("settings/a/patch", [8, 8, 0], ["settings.a.patch.2", "minimum of 1"]),
        ("settings/a/folds", [5], ["settings.a.folds", "no fold 5", "allowed: 0 to 4"]),
        ("settings/b/folds", [0], ["ensembles.ab.members", "different folds"]),
        ("folds", 0, ["folds", "minimum of 1"]),
        ("settings/a/augmentation", {"scaling_range": [1.4, 0.7]}, ["scaling_range", "the smaller first"]),
        ("settings/a/preprocessing", {"normalisation": "CT"}, ["preprocessing.normalisation", "'CT' is not allowed"]),
        (
            "settings/a/preprocessing",
            {"normalisation": {"range": [89, -21]}},
            ["settings.a.preprocessing.normalisation.range: [89.0, -21.0]", "the smaller first"],
        ),
        ("settings/a/preprocessing", {"normalisation": {"range": [5, 5]}}, ["[5.0, 5.0]", "the smaller first"]),
        ("settings/a/preprocessing", {"normalisation": {"range": [0, 1, 2]}}, ["normalisation"]),
        ("settings/a/preprocessing", {"normalisation": {}}, ["normalisation", "range"]),
        ("settings", {}, ["settings"]),
    ],
)
def test_a_mistake_is_named_in_one_line(path, value, words):
    message = fault(changed(path, value))
    for word in words:
        assert word in message, message


def test_a_missing_key_is_named():
    values = copy.deepcopy(MINIMAL)
    del values["dataset"]
    assert "'dataset' is missing" in fault(values)


def test_a_file_that_is_no_yaml_or_absent_is_named(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\nb: 2")
    with pytest.raises(UserError, match=r"broken\.yaml: cannot be read as YAML"):
        load_study(broken)
    with pytest.raises(UserError, match="no such file"):
        load_study(tmp_path / "absent.yaml")
    broken.write_text("- 1\n")
    with pytest.raises(UserError, match="expected a mapping"):
        load_study(broken)


@pytest.mark.parametrize("record", SECTIONS)
def test_schema_and_dataclass_have_the_same_keys(record):
    assert set(json_schema(record)["properties"]) == {field.name for field in dataclasses.fields(record)}


@pytest.mark.parametrize("record", SECTIONS)
def test_an_unknown_key_of_any_record_is_refused_with_the_nearest_name(record):
    key = dataclasses.fields(record)[0].name
    with pytest.raises(UserError, match=rf"x: a\.{key}s: unknown key '{key}s'; allowed: .*did you mean '{key}'"):
        from_plain(record, {f"{key}s": 1}, where="x", at=("a",))


GIVEN_BY_COMMAND = {"device", "mirror", "debian_mirror", "cpu_index", "gpu_index"}
"""Keys that are given as `--config KEY=…`: rules read them, a study does not hold them."""


def test_the_outer_keys_of_schemas_and_dataclasses_agree():
    names = lambda record: {field.name for field in dataclasses.fields(record)}  # noqa: E731
    study = json_schema(StudyFile)
    assert set(study["properties"]) == (names(Study) - {"name"}) | {"study", "defaults", *GIVEN_BY_COMMAND}
    written = study["$defs"]["WrittenSetting"]["properties"]
    assert set(written) == (names(Setting) - {"name"}) | {"inherits", "seeds"}
    assert set(study["$defs"]["EnsembleKeys"]["properties"]) == names(Ensemble) - {"name"}
    dataset = json_schema(Dataset)
    assert set(dataset["properties"]) == names(Dataset)
    assert set(dataset["$defs"]["Phantom"]["properties"]) == names(Phantom)
    assert set(dataset["$defs"]["Source"]["properties"]) == names(Source)
    device = json_schema(HardwareFile)["$defs"]["DeviceKeys"]["properties"]
    assert set(device) == names(Device) - {"name"}


def test_all_files_below_a_folder_are_checked_and_the_wrong_ones_told(repository, tmp_path, monkeypatch, capsys):
    (tmp_path / "datasets").mkdir()
    for name in ("config.yaml", "hardware.yaml", "datasets/phantom.yaml"):
        (tmp_path / name).write_text((repository / "config" / name).read_text())
    monkeypatch.setattr(sys, "argv", ["config", str(tmp_path)])
    assert config_files.main() == 0
    assert capsys.readouterr().out == "3 files checked, 0 wrong\n"
    (tmp_path / "other.yaml").write_text("study: a\ndataset: absent\nsettings: {b: {}}\n")
    assert config_files.main() == 1
    told = capsys.readouterr()
    assert told.out == "4 files checked, 1 wrong\n"
    assert "other.yaml: dataset: " in told.err


@pytest.mark.slow
def test_the_schemas_in_the_repository_accept_every_shipped_file(repository):
    kinds = {"study": [], "classification": [], "dataset": [], "hardware": [], "site": []}
    for path in (repository / "config").rglob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        kind = "dataset" if path.parent.name == "datasets" else "hardware" if "devices" in values else "study"
        kinds["classification" if values.get("task") == "classification" else kind].append(values)
    kinds["site"].append({"all": {"slurm_account": "lab"}, "gpu": None, "scratch": "/tmp"})
    for name, files in kinds.items():
        schema = yaml.safe_load((repository / f"workflow/schemas/{name}.schema.yaml").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert files
        for values in files:
            jsonschema.validate(values, schema)
            (key, *_) = values
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({**values, f"{key}s": 1}, schema)
    assert set(kinds) == set(FILES)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("defaults/training/epochs", True, "defaults.training.epochs: expected a whole number, found True"),
        ("defaults/training/epochs", 1.0, "defaults.training.epochs: expected a whole number, found 1.0"),
        (
            "defaults/training/epochs",
            0,
            "defaults.training.epochs: 0 is less than the minimum of 1; allowed: integer",
        ),
        ("defaults/training/learning_rate", 0, "learning_rate: 0 is not above 0; allowed: number, above 0"),
        ("defaults/training/momentum", 1.5, "1.5 is greater than the maximum of 1; allowed: number, 0 to 1"),
        ("defaults/training/learning_rate", float("inf"), "learning_rate: expected a finite number, found inf"),
        ("defaults/network/levels", 10, "levels: 10 is greater than the maximum of 9; allowed: integer, 1 to 9"),
        ("settings/a/network/kernels", [[2, 2, 2]], "kernels.0.0: 2 is not allowed; allowed: 1, 3, 5, 7, 9, 11"),
        (
            "settings/a/stage1",
            ["b", "b"],
            "a.stage1: ['b', 'b'] is not allowed; each value may stand there once",
        ),
        ("settings/a/phases", [{}], "settings.a.phases: there is one; a curriculum has two phases or more"),
        ("settings/a/parallel", "aut", "'aut' is not allowed; allowed: auto; or a mapping with data, pipeline"),
        ("settings/a/training", [1], "settings.a.training: expected a mapping of keys to values, found [1]"),
        (
            "timing",
            "yes",
            "timing: 'yes' is not allowed; allowed: true, false; or a mapping with repeats, warm_up",
        ),
        ("sweeps/x/points", {"1": "a"}, "sweeps.x.points: "),
        ("task", "segment", "task: 'segment' is not allowed; allowed: segmentation, classification (did you mean"),
        ("dataset", 3, "dataset: expected text, found 3"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_what_is_allowed(path, value, words):
    values = changed(path, value)
    if path.startswith("sweeps"):
        values["sweeps"]["x"]["title"] = "X"
    assert words in fault(values)


@pytest.mark.parametrize(
    "path", ["settings/a/patch", "defaults/training/samples", "defaults/preprocessing/spacing", "timing", "baseline"]
)
def test_a_key_without_a_value_is_named(path):
    assert f"{path.replace('/', '.')}: nothing stands behind this key; give it a value" in fault(changed(path, None))


def test_rules_between_keys_hold_for_whole_settings_and_not_for_defaults_alone():
    values = changed("defaults/network", {"decoder_features": [8, 16]})
    for name in ("a", "c"):
        values["settings"][name] = {"network": {"levels": 3}}
    assert parse_study(values, source="my.yaml").setting("b").network.decoder_features == (8, 16)
    with pytest.raises(ValueError, match="give 'levels' or 'features' beside it"):
        Network(decoder_features=(8,))


def test_records_take_no_values_of_other_types():
    for keys in ({"epochs": True}, {"epochs": "3"}, {"epochs": 0}, {"loss": "x"}, {"learning_rate": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(keys))):
            Training(**keys)
    with pytest.raises(ValueError, match="seeds"):
        WrittenSetting(seeds=(1, 1))


def test_the_choices_of_the_schema_are_those_that_the_code_has():
    from megavoxel.training.loss import build_loss
    from megavoxel.training.optimizer import learning_rate

    keys = json_schema(Training)["properties"]
    assert all(callable(build_loss(Training(loss=name))) for name in keys["loss"]["enum"])
    for schedule in keys["schedule"]["enum"]:
        assert learning_rate(0, Training(schedule=schedule), batch=2) == 0.01


def test_records_survive_the_way_through_plain_data():
    setting = parse_study(MINIMAL, source="my.yaml").setting("b")
    assert from_plain(Setting, to_plain(setting), where="x") == setting


def test_merging_leaves_its_arguments_alone():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}


def dataset_file(tmp_path, **keys):
    path = tmp_path / "set.yaml"
    path.write_text(yaml.safe_dump({"name": "set", "source": {"folder": "x"}, **keys}))
    return path


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"source": {"url": "https://a.example/x.tar"}}, ["source", "url (with sha256 or md5), folder, phantom"]),
        ({"source": {"folder": "a", "url": "https://a.example/x", "md5": "0" * 32}}, ["source"]),
        ({"source": {"url": "file:///etc/passwd", "md5": "0" * 32}}, ["source"]),
        ({"name": "a/b"}, ["name", "allowed: letters"]),
        ({"tolerance": 1}, ["tolerance: unknown key"]),
        ({"nsd_tolerance_mm": 0}, ["nsd_tolerance_mm", "one number in mm"]),
    ],
)
def test_a_mistake_in_a_dataset_file_is_named(tmp_path, keys, words):
    with pytest.raises(UserError) as caught:
        load_dataset(dataset_file(tmp_path, **keys))
    assert all(word in str(caught.value) for word in ["set.yaml", *words]), str(caught.value)


def test_tolerances_are_one_number_or_one_per_label(tmp_path):
    assert load_dataset(dataset_file(tmp_path, nsd_tolerance_mm=2)).tolerance("liver") == 2.0
    dataset = load_dataset(dataset_file(tmp_path, nsd_tolerance_mm={"liver": 3}))
    assert dataset.tolerance("liver") == 3.0
    with pytest.raises(UserError, match="no entry for the label 'spleen'"):
        dataset.tolerance("spleen")


def test_a_dataset_that_does_not_exist_is_named_with_those_that_do(tmp_path, repository):
    with pytest.raises(UserError, match=r"my\.yaml: dataset: .*one of .*phantom"):
        dataset_path("nothing", repository / "config/datasets", source="my.yaml")


def test_a_device_that_does_not_exist_is_named_with_those_that_do(repository):
    hardware = repository / "config/hardware.yaml"
    assert load_device(hardware, "cpu", source="my.yaml").gpus == 0
    assert load_device(hardware, "h100", source="my.yaml").gpus == 1
    with pytest.raises(UserError, match=r"my\.yaml: hardware: .*'h10'.*allowed: .*did you mean 'h100'"):
        load_device(hardware, "h10", source="my.yaml")


def test_own_devices_add_to_those_of_the_hardware_file_key_by_key(tmp_path):
    hardware, own = tmp_path / "hardware.yaml", tmp_path / "hardware.local.yaml"
    hardware.write_text("devices: {a: {kind: gpu, memory_gib: 8, cpus_per_job: 3}}")
    own.write_text("devices: {a: {memory_gib: 12}, b: {kind: gpu, memory_gib: 20}}")
    devices = load_hardware(hardware)
    assert {name: device.memory_gib for name, device in devices.items()} == {"a": 12, "b": 20}
    assert devices["a"].cpus_per_job == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("devices: {b: {memory_gib: 20}}", "devices.b: the key 'kind' is missing"),
        ("devices: {a: {memory: 20}}", "devices.a.memory: unknown key"),
        ("a: {memory_gib: 20}", "expected the key 'devices'"),
        ("devices: [a]", "expected the key 'devices'"),
    ],
)
def test_a_fault_in_own_devices_names_their_file(tmp_path, text, fault):
    (tmp_path / "hardware.yaml").write_text("devices: {a: {kind: gpu, memory_gib: 8}}")
    (tmp_path / "hardware.local.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"hardware\.local\.yaml: {re.escape(fault)}"):
        load_hardware(tmp_path / "hardware.yaml")


def test_no_shipped_file_names_a_machine(repository):
    words = ("/home/", "/root", "/mnt/", "/scratch", "@", "ssh ")
    for path in (*(repository / "config").rglob("*.yaml"), *(repository / "slurm").rglob("*.yaml")):
        assert not [word for word in words if word in path.read_text()], path


def test_seeds_make_a_setting_of_each_and_a_point_of_all():
    values = {
        "study": "s",
        "dataset": "d",
        "settings": {"small": {"seeds": [1, 7], "batch": 2}, "large": {"inherits": "small", "batch": 4}, "one": None},
        "sweeps": {"batch": {"title": "Batch", "points": {"2": "small", "4": ["large"], "other": ["one"]}}},
    }
    study = parse_study(values, source="x")
    names = ["small-seed1", "small-seed7", "large-seed1", "large-seed7", "one"]
    assert [setting.name for setting in study.settings] == names
    assert [(setting.seed, setting.batch) for setting in study.settings[:3]] == [(1, 2), (7, 2), (1, 4)]
    points = study.sweeps[0].points
    assert points == {"2": tuple(names[:2]), "4": tuple(names[2:4]), "other": ("one",)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": {"seed": 1, "seeds": [1, 2]}}, "settings.a: it has both 'seed' and 'seeds'"),
        ({"a": {"seeds": [1]}, "a-seed1": None}, "settings.a.seeds: there is another setting 'a-seed1'"),
        ({"a": {"seeds": [1, 1]}}, "settings.a.seeds"),
    ],
)
def test_seeds_that_clash_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        parse_study({"study": "s", "dataset": "d", "settings": settings}, source="x")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"features": [8, 16], "levels": 3}, "network.features: 2 numbers of channels, but levels is 3"),
        ({"features": [8, 16, 16], "decoder_features": [8]}, "network.decoder_features: 1 .* give 2 of them"),
        ({"decoder_features": [8]}, "network.decoder_features: .* give 'levels' or 'features' beside it"),
    ],
)
def test_channels_must_be_as_many_as_levels(network, message):
    with pytest.raises(UserError, match=rf"settings.a.{message}"):
        parse_study({"study": "s", "dataset": "d", "settings": {"a": {"network": network}}}, source="x")


def test_own_devices_in_a_style_that_lines_cannot_be_added_to_are_left_alone_in_one_line(tmp_path):
    own = tmp_path / "hardware.local.yaml"
    own.write_text("devices: {a: {kind: gpu, memory_gib: 8}}\n")
    with pytest.raises(UserError, match=r"hardware\.local\.yaml: cannot be read as YAML"):
        update_device(own, "b", {"kind": "gpu"})
    assert own.read_text() == "devices: {a: {kind: gpu, memory_gib: 8}}\n"
