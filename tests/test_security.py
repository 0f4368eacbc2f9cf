"""Nothing from outside runs code, reaches a shell unquoted or leads to a path outside of its folder.

The first half reads the sources; the second half hands in what an attacker would.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from helpers import properties, store_case, tiny_plan
from megavoxel.cli import main
from megavoxel.config.dataset import load_dataset
from megavoxel.config.hardware import Device
from megavoxel.config.records import adapter
from megavoxel.config.study_file import parse_study
from megavoxel.datasets.archive import extract_dataset
from megavoxel.datasets.cases import Case, Cases, load_cases, save_cases
from megavoxel.datasets.download import archive_name
from megavoxel.errors import UserError
from megavoxel.network.weights import load_weights
from megavoxel.planning.plan import save_plan
from megavoxel.planning.splits import load_splits
from megavoxel.preprocessing.store import open_case
from megavoxel.training.states.checkpoint import load_state

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pandas.io.pickle"}
CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "__import__", "subprocess.getoutput", "pickle.load",
    "pickle.loads", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle",
    "pd.read_pickle", "pandas.eval", "pd.eval", "torch.jit.load", "tempfile.mktemp",
}  # fmt: skip
SHELL_WORDS = re.compile(r"(?<!\{)\{([^{}]+)\}(?!\})")
BARE = {
    # Numbers, and words that the rules or the wildcards' constraints fix.
    "threads", "wildcards.fold", "wildcards.share", "wildcards.total", "params.folds", "params.seed", "params.split",
    "params.fold", "params.part", "params.hash", "params.cases", "params.logits", "params.option", "params.repeats",
    "params.warm_up", "params.nodes", "params.basis",
    "resources.cpus_per_task",
    # Several words, each of them quoted where they are put together.
    "params.mirror", "params.device", "params.facts", "params.published", "params.timings", "params.stage1",
    "params.start", "params.launcher", "params.weights", "params.index", "params.hardware", "params.device_of_needs",
    "params.lesions",
    "params.products",
    "params.metrics", "params.samples", "params.averaged", "params.tolerance", "params.tolerances", "params.terminal",
    "params.ready_made",
}  # fmt: skip
"""What stands in a rule's shell line without quotes."""


def sources(repository: Path) -> list[Path]:
    return sorted((repository / "workflow" / "megavoxel").rglob("*.py"))


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Dotted name and named arguments of every call in a file."""
    tree = ast.parse(path.read_text())
    return [
        (ast.unparse(node.func), {word.arg: word.value for word in node.keywords if word.arg})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def faults_of(path: Path) -> list[str]:
    """What a source file does that may run code of strangers."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
            found += [f"imports {name}" for name in names if name in MODULES or name.split(".")[0] in MODULES]
    for name, words in calls(path):
        plain = {word: ast.unparse(value) for word, value in words.items()}
        if name in CALLS:
            found.append(f"calls {name}")
        if name == "torch.load" and plain.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and plain.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if plain.get("shell") == "True" or (plain.get("allow_pickle", "False") != "False"):
            found.append(f"{name} with a shell or pickle")
    return found


def test_no_source_unpickles_evaluates_or_starts_a_shell(repository):
    files = sources(repository)
    assert len(files) > 100
    assert {str(path): faults for path in files if (faults := faults_of(path))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "eval(text)",
    ],
)
def test_the_reading_of_sources_finds(tmp_path, line):
    (tmp_path / "some.py").write_text(f"{line}\n")
    assert faults_of(tmp_path / "some.py")


def test_shell_lines_of_rules_quote_what_is_not_fixed(repository):
    found = set()
    for path in [repository / "workflow" / "Snakefile", *sorted((repository / "workflow" / "rules").glob("*.smk"))]:
        for line in re.findall(r"^ {8,12}\"(.*?)\"$", path.read_text(), flags=re.M):
            if "{" in line and re.search(r"megavoxel |--|> \{", line):
                found |= set(SHELL_WORDS.findall(line))
    assert len(found) > 30
    unquoted = {word for word in found if not word.endswith(":q")}
    assert unquoted <= BARE, "quote it by ':q', or put it together from quoted words and list it here"


def test_names_that_reach_a_shell_bare_are_held_by_the_record():
    """`resources.gres`, part of `params.launcher`, has the name of the GPU in it."""
    model = adapter(Device).json_schema()["properties"]["gpu_model"]["anyOf"][0]
    assert model["pattern"] == "^[A-Za-z0-9_.]+$"


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def evil_files(folder: Path) -> dict[str, Path]:
    """A payload in every form that `torch.load` has ever read."""
    payload = {"weights": Payload(folder / "ran"), "plan_hash": "x", "precision": "float32", "key": "x"}
    forms = {name: folder / f"{name}.pt" for name in ("zip", "legacy", "pickle", "array", "protocol")}
    torch.save(payload, forms["zip"])
    torch.save(payload, forms["legacy"], _use_new_zipfile_serialization=False)
    torch.save(payload, forms["protocol"], pickle_protocol=5)
    forms["pickle"].write_bytes(pickle.dumps(payload))
    with forms["array"].open("wb") as target:
        np.savez(target, weights=np.array([payload], dtype=object))
    return forms


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "array", "protocol"])
def test_a_payload_in_weights_or_a_state_is_refused_and_does_not_run(tmp_path, capsys, form):
    path = evil_files(tmp_path)[form]
    with pytest.raises(UserError, match=r"no weights of megavoxel, or damaged"):
        load_weights(path)
    (tmp_path / "states").mkdir()
    path.rename(tmp_path / "states/checkpoint.pt")
    assert load_state(tmp_path / "states", key="x") is None
    assert "checkpoint.pt: damaged" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


def test_the_payload_is_one(tmp_path):
    pickle.loads(evil_files(tmp_path)["pickle"].read_bytes())
    assert (tmp_path / "ran").is_dir()


def test_predict_says_in_one_line_that_weights_are_none(tmp_path, capsys):
    save_plan(tmp_path / "plan.json", tiny_plan())
    store_case(tmp_path / "cases", "a", seed=1)
    (tmp_path / "splits.json").write_text(json.dumps({"folds": [], "test": ["a"]}))
    inputs = ["--plan", tmp_path / "plan.json", "--splits", tmp_path / "splits.json", "--split", "test"]
    inputs += ["--preprocessed", tmp_path / "cases", "--output", tmp_path / "out"]
    assert main(["predict", *map(str, inputs), "--weights", str(evil_files(tmp_path)["zip"])]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("megavoxel predict: error: ")
    assert "zip.pt: no weights of megavoxel" in line
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_or_precision_are_named(tmp_path, capsys):
    test_predict_says_in_one_line_that_weights_are_none(tmp_path, capsys)
    facts = {"plan_hash": tiny_plan().hash, "precision": "float32"}
    for content, words in [({"weights": {"a": torch.zeros(2)}}, "do not fit"), ({"weights": {}, "precision": 3}, "3")]:
        torch.save({**facts, **content}, tmp_path / "other.pt")
        inputs = ["--plan", tmp_path / "plan.json", "--splits", tmp_path / "splits.json", "--split", "test"]
        inputs += ["--preprocessed", tmp_path / "cases", "--output", tmp_path / "out"]
        assert main(["predict", *map(str, inputs), "--weights", str(tmp_path / "other.pt")]) == 1
        assert words in capsys.readouterr().err


def test_parts_of_a_checkpoint_that_unpack_to_more_than_the_file_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(UserError, match="more than the file"):
        load_weights(tmp_path / "bomb.pt")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "..", "a\nb", "a\x00b", "\x1b[2J", "x" * 300])
def test_a_case_that_stages_hand_on_cannot_lead_to_another_folder(tmp_path, name):
    one = Case(id=name, images=("a.nii.gz",))
    tolerances = {"one": 1.0}
    cases = Cases(dataset="d", root="r", channels=("CT",), labels={"one": 1}, nsd_tolerance_mm=tolerances, cases=(one,))
    save_cases(tmp_path / "cases.json", cases)
    with pytest.raises(UserError, match=r"cases\.json.* cannot be the name of a file"):
        load_cases(tmp_path / "cases.json")
    (tmp_path / "splits.json").write_text(json.dumps({"folds": [], "test": [name]}))
    with pytest.raises(UserError, match=r"splits\.json.* cannot be the name of a file"):
        load_splits(tmp_path / "splits.json")


def test_a_stored_case_that_names_another_is_refused(tmp_path):
    """The name in it is that of the label map which `predict` writes."""
    store_case(tmp_path, "a", seed=1)
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**content, "case": "../../evil"}))
    with pytest.raises(UserError, match=r"a\.json: case: expected 'a'"):
        open_case(tmp_path, "a")
    assert properties("a", (2, 2, 2)).case == "a"


@pytest.mark.parametrize("file", ["../a.nii.gz", "/etc/a.nii.gz", "b/../../a.nii.gz"])
def test_a_list_of_cases_cannot_name_files_outside_of_the_dataset(tmp_path, file):
    one = Case(id="a", images=(file,))
    cases = Cases(dataset="d", root="r", channels=("CT",), labels={"l": 1}, nsd_tolerance_mm={"l": 1.0}, cases=(one,))
    save_cases(tmp_path / "cases.json", cases)
    with pytest.raises(UserError, match="files below the dataset's folder"):
        load_cases(tmp_path / "cases.json")


@pytest.mark.parametrize("name", ["a\n", "a\n; rm", "../a", "-a", "a b", "a;b", "$(a)", "a\x00", ""])
def test_names_of_studies_settings_and_datasets_become_folders_and_are_held_to_it(tmp_path, name):
    for study in ({"study": name, "settings": {"a": {}}}, {"study": "s", "settings": {name: {}}}):
        with pytest.raises(UserError, match="allowed: letters, digits"):
            parse_study({"dataset": "d", **study}, source="study.yaml")
    ensembles = {name: {"members": ["a", "b"]}}
    with pytest.raises(UserError, match="allowed: letters, digits"):
        parse_study(
            {"study": "s", "dataset": "d", "settings": {"a": {}, "b": {}}, "ensembles": ensembles}, source="study.yaml"
        )
    (tmp_path / "some.yaml").write_text(yaml.safe_dump({"name": name, "source": {"folder": "f"}}))
    with pytest.raises(UserError, match="allowed: letters, digits"):
        load_dataset(tmp_path / "some.yaml")


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["Task/imagesTr/a\nb.nii.gz", "Task/" + "x" * 300, "Task/a\x1b[2J"])
def test_names_in_archives_that_no_file_should_have_are_refused(tmp_path, kind, name):
    archive, target = tmp_path / "some.archive", tmp_path / "target"
    target.mkdir()
    if kind == "tar":
        with tarfile.open(archive, "w") as packed:
            member = tarfile.TarInfo(name)
            member.size = 1
            packed.addfile(member, io.BytesIO(b"x"))
    else:
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(name, b"x")
    with pytest.raises(UserError, match="cannot be the name of a file"):
        extract_dataset(archive, target)
    assert list(target.iterdir()) == []


def test_every_download_has_a_checksum(repository):
    """The schema takes no address without one, published or recorded at the first fetch."""
    for path in sorted((repository / "config/datasets").glob("*.yaml")):
        source = load_dataset(path).source
        assert source.url is None or source.sha256 or source.md5 or source.checksum == "unpublished"


def test_an_address_without_a_checksum_is_refused(tmp_path):
    (tmp_path / "some.yaml").write_text("name: some\nsource: {url: 'https://example.org/a.tar'}\n")
    with pytest.raises(UserError, match="checksum"):
        load_dataset(tmp_path / "some.yaml")


@pytest.mark.parametrize("name", ["%00", "a%0Ab.tar", "%1b[2J", "x" * 300, "a%5C..%5Cb"])
def test_the_name_of_a_download_is_one_of_a_file(name):
    with pytest.raises(UserError, match="cannot be the name of a file"):
        archive_name(f"https://example.org/{name}")


@pytest.mark.parametrize("name", ["..%2F..%2Fevil.tar", "a/../evil.tar", "%2Ftmp%2Fevil.tar"])
def test_a_download_stays_in_its_folder(name):
    assert archive_name(f"https://example.org/{name}") == "evil.tar"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "https://a/b\nc", "https://a/b\tc", "-o x"])
def test_addresses_are_those_of_the_web_on_one_line(tmp_path, url):
    source = {"url": url, "md5": "0" * 32}
    (tmp_path / "some.yaml").write_text(yaml.safe_dump({"name": "some", "source": source}))
    with pytest.raises(UserError, match="source"):
        load_dataset(tmp_path / "some.yaml")


def test_what_a_message_shows_of_strangers_cannot_steer_a_terminal(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset.json").write_text(json.dumps({"labels": {"\x1b[2Jone": -1}, "modality": {"0": "CT"}}))
    (tmp_path / "some.yaml").write_text("name: some\nsource: {folder: some}\n")
    files = ["--checks", tmp_path / "checks.csv", "--output", tmp_path / "cases.json", "--data", tmp_path / "data"]
    assert main(["check", "--dataset", str(tmp_path / "some.yaml"), *map(str, files)]) == 1
    message = capsys.readouterr().err
    assert "\\x1b[2Jone" in message
    assert "\x1b" not in message
