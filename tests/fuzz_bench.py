"""Sound files of every kind that others hand in or stages hand on, and what reads each kind when one of them is broken.

A reader gets the file in place of the sound one and says whether it was accepted. It ends with True, or with False
where the command line refused with status 1 or a loader with `UserError`; anything else is a fault.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch

from dataset_folder import Folder
from fake_study import FakeStudy, make_study
from fuzz_example import GIVEN, Example, Truth
from fuzz_guard import outcome
from fuzz_parcels import MODEL
from megavoxel.cli import main
from megavoxel.config.hardware import load_device
from megavoxel.config.study_file import load_study
from megavoxel.config.training import Training
from megavoxel.datasets.archive import extract_dataset
from megavoxel.errors import UserError
from megavoxel.files import file_sha256
from megavoxel.models.description import DatasetFacts, FoldFacts, ModelDescription, save_description
from megavoxel.models.scans import find_scans
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import load_tensors, load_weights, save_weights
from megavoxel.planning.plan import load_plan
from megavoxel.preprocessing.store import open_case
from megavoxel.reporting.costs import read_timings
from megavoxel.reporting.loading import load_stored
from megavoxel.reporting.published import read_published
from megavoxel.reporting.tables import SHOWN, numbers, write_tables
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run
from megavoxel.training.states.checkpoint import load_state, save_state
from megavoxel.volumes.grid import Geometry
from megavoxel.volumes.open import open_volume, read_image, read_labels
from megavoxel.volumes.volume import Hints

Reader = Callable[[], bool]
STUDY = """\
study: some
dataset: boxes
folds: 2
baseline: small
defaults: {batch: 2, network: {base_features: 4}, training: {epochs: 2, workers: 0}}
settings:
  small:
    patch: [8, 8, 8]
    network: {levels: 2, features: [4, 8]}
  large:
    inherits: small
    patch: [8, 16, 16]
    folds: [0, 1]
    training: {loss: dice, learning_rate: 0.01, class_weights: none}
    augmentation: {scaling_range: [0.8, 1.2], mirror_axes: [0]}
    parallel: {data: 1, accumulate: 2}
  free: {memory_gib: 2, preprocessing: {spacing: [3, 1.5, 1], normalisation: {range: [-20, 90]}}}
  grown: {patch: [8, 16, 16], phases: [{patch: [8, 8, 8], epochs: 1}, {learning_rate: 0.001}]}
  expanded: {patch: [8, 8, 8], expansion: {factor: 2}}
  second: {patch: [8, 8, 8], stage1: [small], fusion: pre}
  again: {inherits: small, start: small}
ensembles:
  both: {members: [small, large], postprocess: true}
sweeps:
  patch: {title: "Table 1: patch", points: {"8 x 8": small, "8 x 16": [large], both: both}}
timing: {repeats: 1, split: test}
partitions: {gpus: [2], memory_gib: [16]}
"""
DATASET = """\
name: some
reference: somebody
source: {folder: some}
labels: {one: 1, two: 2}
channels: [CT]
nsd_tolerance_mm: {one: 1.0, two: 2.0}
include: ["case_*"]
exclude: [case_2]
test_cases: [case_1]
unannotated: {two: [case_3]}
modalities: {CT: ["case_0", "case_1"], MR: ["case_[23]"]}
declared: {training_cases: 3, shape: [8, 8, 8], spacing: [1, 1, 1]}
---
""".removesuffix("---\n")
CUT = """\
name: some
source: {folder: some}
test_count: 1
hidden: {share: 0.3, seed: 1}
blocks: {counts: [1, 2, 1], margin: [0, 1, 0]}
labels: {one: 1}
background_values: [2]
"""
PATIENTS = """\
name: some
source: {folder: some}
labels: {one: 1, two: 2}
channels: [CT]
patients: {image: "img*", masks: {one: "structures/one*", two: "structures/two*"}, spacing: [1, 1, 1]}
"""
HARDWARE = """\
devices:
  cpu: {kind: cpu, teraflops: {float32: 0.1}}
  some: {kind: gpu, memory_gib: 24, gpu_model: a100, most_devices: 8, devices_per_node: 4, source: measured}
"""
MILLIMETRES = {"meter": 1e3, "micron": 1e-3}
"""Of the units of NIfTI files other than mm."""
PUBLISHED = "table,row,metric,value,source\nTable 1: patch size,small,DSC,0.9,somebody\nTable 1,large,seconds,2,x\n"
TIMINGS = (
    "setting,split,fold,case,repeat,seconds,window\nsmall,test,0,case_4,0,0.5,8 8 8\nlarge,test,0,case_4,0,1,8 8 8\n"
)


class Bench:
    """Sound files below `root/in`, outputs below `root/out`, which is emptied before each example."""

    def __init__(self, root: Path) -> None:
        self.root, self.inputs, self.out = root, root / "in", root / "out"
        self.fake: FakeStudy = make_study(self.inputs / "fake")
        self.results = self.fake.results
        self.plan_file = self.results / "small/plan.json"
        self._write_configuration()
        self._write_datasets()
        self._write_network()

    def file(self, name: str) -> Path:
        """Where the file of a kind lies."""
        return self.inputs / name

    def sound(self, name: str) -> bytes:
        """The sound content of a file."""
        return self._sound.setdefault(name, self.file(name).read_bytes())

    def accepts(self, example: Example) -> bool:
        """Whether the files of an example are taken, with all the guards of `outcome`."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        with self._in_place(example.files):
            return outcome(lambda: self._taken(example), self.out)

    def _taken(self, example: Example) -> bool:
        with _quiet():
            try:
                return example.read(self)
            except UserError as refusal:
                return not str(refusal).strip()

    @contextmanager
    def _in_place(self, files: dict[str, bytes | Path]) -> Iterator[None]:
        replaced = {name: self.sound(name) for name in files if self.file(name).is_file()}
        try:
            for name, content in files.items():
                path = self.file(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    path.unlink(missing_ok=True)
                    path.symlink_to(content)
                else:
                    path.write_bytes(
                        content.replace(b"INPUTS", bytes(self.inputs)) if b"INPUTS" in content else content
                    )
            yield
        finally:
            shutil.rmtree(self.file(GIVEN), ignore_errors=True)
            for name in files:
                self.file(name).unlink(missing_ok=True)
            for name, content in replaced.items():
                self.file(name).write_bytes(content)

    def _write_configuration(self) -> None:
        self._sound: dict[str, bytes] = {}
        self.inputs.mkdir(exist_ok=True)
        texts = {"study": STUDY, "dataset": DATASET, "cut": CUT, "patients": PATIENTS, "hardware": HARDWARE}
        for name, text in texts.items():
            (self.inputs / f"{name}.yaml").write_text(text)
        (self.inputs / "published.csv").write_text(PUBLISHED)
        (self.inputs / "timings.csv").write_text(TIMINGS)

    def _write_datasets(self) -> None:
        folder = Folder(self.inputs / "mirror", cases=4)
        folder.data = self.inputs / "mirror/some"
        shutil.move(self.inputs / "mirror/data", folder.data)
        (folder.data / "dataset.json").write_text(json.dumps(folder.content))
        for ending in ("nii", "nii.gz"):
            one = self.inputs / f"one-{ending}"
            single = {"image": f"imagesTr/case_0.{ending}", "label": f"labelsTr/case_0.{ending}"}
            for name in single.values():
                (one / name).parent.mkdir(parents=True, exist_ok=True)
                packed = (folder.data / name.replace(ending, "nii.gz")).read_bytes()
                (one / name).write_bytes(packed if ending == "nii.gz" else gzip.decompress(packed))
            (one / "dataset.json").write_text(json.dumps({**folder.content, "training": [single]}))
        self._write_by_itk(folder)
        (self.inputs / "one.yaml").write_text("name: some\nsource: {folder: some}\n")
        for name in ("a", "b"):
            for path, array in (("img", np.random.default_rng(0).normal(size=(4, 5, 6))), *self._masks()):
                target = self.inputs / f"patients/some/{name}/{path}.npy"
                target.parent.mkdir(parents=True, exist_ok=True)
                np.save(target, array.astype(np.float32))

    def _write_by_itk(self, folder: Folder) -> None:
        """The first case in NRRD and MetaImage."""
        for ending in ("nrrd", "mha"):
            single = {"image": f"imagesTr/case_0.{ending}", "label": f"labelsTr/case_0.{ending}"}
            for name in single.values():
                target, source = self.inputs / f"one-{ending}" / name, folder.data / name.replace(ending, "nii.gz")
                target.parent.mkdir(parents=True, exist_ok=True)
                SimpleITK.WriteImage(SimpleITK.ReadImage(str(source)), str(target))
            content = {**folder.content, "training": [single]}
            (self.inputs / f"one-{ending}/dataset.json").write_text(json.dumps(content))

    def _masks(self) -> list[tuple[str, np.ndarray]]:
        one = np.zeros((4, 5, 6))
        one[1:3, 1:3, 1:3] = 1
        return [("structures/one", one), ("structures/two", one[::-1])]

    def _write_network(self) -> None:
        self.plan = load_plan(self.plan_file)
        (self.results / "pre").mkdir()
        content = json.loads(self.plan_file.read_text())["preprocessing"]
        (self.results / "pre/plan.json").write_text(json.dumps(content))
        run_stage("fingerprint", "--cases", self.fake.cases, "--output", self.results / "fingerprint.json")
        self.preprocessed = self.inputs / "preprocessed"
        assert self._preprocess(self.preprocessed)
        network = SegmentationNetwork(self.plan.network, seed=1)
        save_weights(self.inputs / "model.pt", network, plan_hash=self.plan.hash, precision="float32")
        self.fold = VolumeData(
            number=0, preprocessed=self.preprocessed, training=("case_2", "case_3"), validation=("case_0",)
        )
        self.training_plan = self._short_plan()
        started = start_run(self.training_plan, self.fold, torch.device("cpu"))
        for parameter in started.network.parameters():
            parameter.grad = torch.ones_like(parameter)
        started.optimizer.step()
        (self.inputs / "state").mkdir()
        save_state(self.inputs / "state", {"key": "some", **started.state_dict()})
        keeping = {"keep_largest": {"foreground": True, "labels": ["liver"]}, "cases": 4, "connectivity": 26}
        (self.inputs / "postprocessing.json").write_text(json.dumps(keeping))
        self._write_model()

    def _write_model(self) -> None:
        """An exported model with the weights of the study."""
        folder = self.inputs / MODEL
        folder.mkdir()
        shutil.copy(self.plan_file, folder / "plan.json")
        shutil.copy(self.inputs / "model.pt", folder / "fold-0.pt")
        facts = {
            "fold": 0, "weights": "fold-0.pt", "training_cases": 2, "validation_cases": 2, "epochs": 2, "hours": 1.0,
            "seed": 1, "precision": "float32", "parameters": 10, "data_sha256": None, "hardware": "cpu",
            "version": "1", "commit": None, "versions": {},
        }  # fmt: skip
        description = ModelDescription(
            name="fake-small", study="fake", setting="small", channels=self.plan.preprocessing.channels,
            labels=self.plan.preprocessing.labels, dataset=DatasetFacts(name="boxes"), folds=(FoldFacts(**facts),),
            sha256=self._checksums(),
        )  # fmt: skip
        save_description(folder / "model.json", description)
        self._weights = load_tensors(self.inputs / "model.pt")["weights"]
        self._state = load_tensors(self.inputs / "state/checkpoint.pt")["network"]
        self._arrays = {name: _content(self.inputs / "preprocessed", name) for name in self._array_names()}

    def _checksums(self) -> dict[str, str]:
        return {name: file_sha256(self.inputs / MODEL / name) for name in ("fold-0.pt", "plan.json")}

    def _array_names(self) -> list[str]:
        return [path.name for path in self.preprocessed.iterdir() if path.suffix in (".b2nd", ".npz")]

    def _short_plan(self) -> Any:
        return replace(self.plan, training=Training(epochs=2, precision="float32", workers=0))

    def _preprocess(self, folder: Path) -> bool:
        plan = self.results / "pre/plan.json"
        output = ["--folder", folder, "--output", folder.parent / "shard-0.json", "--patch", 8, 8, 8]
        return run_stage("preprocess", "--cases", self.fake.cases, "--plan", plan, *output)

    # Readers of new files: each says whether they were taken, and looks at what came of them.

    def label(self, truth: Truth | None, *, may_be_refused: bool = True) -> bool:
        """The scan of an example, labelled by the exported model; what is taken has to be what the scan holds."""
        given, labels = self.inputs / GIVEN, self.out / "labels"
        words = ["--input", given, "--output", labels, "--device", "cpu", "--threads", 1, "--any-modality"]
        if not run_stage("predict", "--model", self.inputs / MODEL, *words, told=not may_be_refused):
            return False
        scans = find_scans([given])
        assert len(scans) == len([path for path in labels.iterdir() if path.name != "prediction.json"])
        for scan in scans:
            volume = open_volume(scan.dicom or scan.files[0])
            result = open_volume(labels / f"{scan.case}{scan.suffix}")
            if truth is not None:
                np.testing.assert_allclose(volume.image()[0], truth.voxels, atol=0.51)
                _require_place(volume.geometry, truth, MILLIMETRES.get(volume.geometry.unit, 1.0))
                _require_place(result.geometry, truth, MILLIMETRES.get(result.geometry.unit, 1.0))
        return True

    def label_by_model(self, *, sign: bool = False, fit: bool = False) -> bool:
        """A scan of the study by the exported model.

        Args:
            sign: whether the checksums of model.json are made to fit its files first.
            fit: whether the weights are made to name its plan first.
        """
        model = self._signed(fit) if sign else self.inputs / MODEL
        scan, labels = self.fake.root / "data/images/case_4.nii.gz", self.out / "labels"
        words = ["--input", scan, "--output", labels, "--device", "cpu", "--threads", 1]
        taken = run_stage("predict", "--model", model, *words)
        assert taken == (labels / "case_4.nii.gz").exists()
        return taken

    def _signed(self, fit: bool) -> Path:
        """A copy of the model as a stranger would hand it on."""
        model = self.out / "model"
        shutil.copytree(self.inputs / MODEL, model)
        if fit:
            with contextlib.suppress(UserError):
                content = load_weights(model / "fold-0.pt") | {"plan_hash": load_plan(model / "plan.json").hash}
                torch.save(content, model / "fold-0.pt")
        description = json.loads((model / "model.json").read_text())
        description["sha256"] = {name: file_sha256(model / name) for name in ("fold-0.pt", "plan.json")}
        (model / "model.json").write_text(json.dumps(description))
        return model

    def same_weights(self) -> bool:
        """The weights on their own: those that were written, or refused."""
        found = load_weights(self.file("model.pt"))["weights"]
        _require_same(self._weights, found)
        return True

    def same_state(self) -> bool:
        """The state: that which was written, or refused."""
        state = load_state(self.file("state"), key="some")
        if state is None:
            return False
        _require_same(self._state, state["network"])
        return True

    def same_array(self, name: str) -> bool:
        """An array of a preprocessed case: as it was written, or refused."""
        found = _content(self.preprocessed, name)
        for key, array in self._arrays[name].items():
            np.testing.assert_array_equal(found[key], array)
        return True

    def extract(self) -> bool:
        """An archive."""
        target = self.out / "target"
        target.mkdir()
        extract_dataset(self.inputs / GIVEN / "a.archive", target)
        assert all(path.is_file() and not path.is_symlink() for path in target.rglob("*") if not path.is_dir())
        return True

    def evaluate_folders(self) -> bool:
        """Two folders of label maps."""
        folders = [self.inputs / GIVEN / name for name in ("predicted", "reference")]
        words = ["--tolerance", 1, "--output", self.out / "scores.csv"]
        return run_stage("evaluate", *folders, *words, may_be_too_large=True)

    # Readers of known files: each calls what reads a file of its kind.

    def read_study(self) -> bool:
        """The study, and the plans of its first settings."""
        path = self.file("study.yaml")
        study = load_study(path)
        files = ["--cases", self.fake.cases, "--preprocessing-plan", self.results / "pre/plan.json"]
        files += ["--hardware", self.file("hardware.yaml"), "--output", self.out / "plan.json"]
        for setting in study.settings[:3]:
            run_stage("plan", "--study", path, "--setting", setting.name, *files)
            preprocessing = ["--cases", self.fake.cases, "--fingerprint", self.results / "fingerprint.json"]
            preprocessing += ["--study", path, "--setting", setting.name, "--output", self.out / "pre.json"]
            run_stage("plan-preprocessing", *preprocessing)
        return True

    def read_hardware(self) -> bool:
        """A device of the hardware file."""
        device = load_device(self.file("hardware.yaml"), "some", source="study")
        return device.nodes(device.most_devices) > 0

    def read_dataset(self, name: str = "dataset.yaml", mirror: str = "mirror") -> bool:
        """`fetch` where the source is a folder, and `check`."""
        from megavoxel.config.dataset import load_dataset

        if load_dataset(self.file(name)).source.folder is None:
            return True
        place = ["--mirror", self.inputs / mirror, "--downloads", self.out / "downloads"]
        fetched = run_stage("fetch", "--dataset", self.file(name), "--output", self.out / "data", *place)
        return fetched and self._check(self.file(name), self.out / "data")

    def read_description(self) -> bool:
        """A folder's dataset.json: `fetch`, `check` and `split`."""
        cut, folder = self.file("cut.yaml"), self.inputs / "mirror"
        run_stage("fetch", "--dataset", cut, "--output", self.out / "cut", "--mirror", folder)
        checked = self._check(self.file("one.yaml"), folder / "some")
        return checked and run_stage(
            "split", "--cases", self.out / "cases.json", "--folds", 2, "--seed", 1, "--output", self.out / "splits.json"
        )

    def read_volume(self, name: str) -> bool:
        """A volume by all readers, and all stages up to the preprocessed case."""
        readable = True
        for read in (read_image, read_labels, _read_with_spacing):
            try:
                read(self.file(name))
            except UserError:
                readable = False
        folder = self.inputs / name.split("/", maxsplit=1)[0]
        if not self._check(self.file("one.yaml"), folder):
            return False
        assert readable or "labels" not in name
        cases, output = ["--cases", self.out / "cases.json"], ["--output", self.out / "fingerprint.json"]
        spacing = json.dumps({"spacing": [1.0, 1.0, 1.0]})
        planned = ["--output", self.out / "plan.json", "--definition", spacing]
        stored = ["--plan", self.out / "plan.json", "--folder", self.out / "pre", "--output", self.out / "shard.json"]
        return (
            run_stage("fingerprint", *cases, *output)
            and run_stage("plan-preprocessing", *cases, "--fingerprint", self.out / "fingerprint.json", *planned)
            and run_stage("preprocess", *cases, *stored)
        )

    def _check(self, dataset: Path, folder: Path) -> bool:
        output = ["--checks", self.out / "checks.csv", "--output", self.out / "cases.json"]
        return run_stage("check", "--dataset", dataset, "--data", folder, *output)

    def read_weights(self) -> bool:
        """Weights, by `predict`."""
        return self.predict()

    def predict(self) -> bool:
        """The test cases of the fake study."""
        inputs = ["--plan", self.plan_file, "--weights", self.file("model.pt"), "--splits", self.fake.splits]
        cases = ["--split", "test", "--preprocessed", self.preprocessed, "--device", "cpu", "--threads", 1]
        return run_stage("predict", *inputs, *cases, "--output", self.out / "predictions")

    def read_state(self) -> bool:
        """A training state, taken up."""
        state = load_state(self.file("state"), key="some")
        if state is None:
            return False
        start_run(self.training_plan, self.fold, torch.device("cpu"), state)
        return True

    def read_cases(self) -> bool:
        """cases.json, by all light stages that read it."""
        cases = ["--cases", self.fake.cases]
        split = ["--folds", 2, "--seed", 1, "--output", self.out / "splits.json"]
        planned = [
            "--fingerprint",
            self.results / "fingerprint.json",
            "--definition",
            "{}",
            "--output",
            self.out / "p.json",
        ]
        found = [
            "--determine",
            "--predictions",
            self.results / "small/fold-0/validation",
            "--output",
            self.out / "k.json",
        ]
        done = [
            run_stage("split", *cases, *split),
            run_stage("plan-preprocessing", *cases, *planned),
            run_stage("postprocess", *cases, *found),
            self._preprocess(self.out / "preprocessed"),
            self._evaluate(),
        ]
        return all(done)

    def _evaluate(self) -> bool:
        inputs = ["--cases", self.fake.cases, "--splits", self.fake.splits, "--split", "validation", "--fold", "0"]
        predictions = self.results / "small/fold-0/validation"
        return run_stage("evaluate", predictions, *inputs, "--setting", "small", "--output", self.out / "scores.csv")

    def read_splits(self) -> bool:
        """splits.json, by what predicts and scores, and taken over as a ready-made file."""
        taken = ["--cases", self.fake.cases, "--folds", 2, "--seed", 1, "--splits", self.fake.splits]
        done = [self._evaluate(), self.predict(), run_stage("split", *taken, "--output", self.out / "splits.json")]
        return all(done)

    def read_fingerprint(self) -> bool:
        """fingerprint.json."""
        inputs = ["--cases", self.fake.cases, "--fingerprint", self.results / "fingerprint.json", "--definition", "{}"]
        return run_stage("plan-preprocessing", *inputs, "--output", self.out / "plan.json")

    def read_preprocessing_plan(self) -> bool:
        """The plan of a preprocessing."""
        inputs = ["--cases", self.fake.cases, "--preprocessing-plan", self.results / "pre/plan.json"]
        inputs += ["--study", self.file("study.yaml"), "--setting", "small", "--output", self.out / "plan.json"]
        done = [run_stage("plan", *inputs), self._preprocess(self.out / "preprocessed")]
        return all(done)

    def read_postprocessing(self) -> bool:
        """postprocessing.json."""
        inputs = ["--apply", self.file("postprocessing.json"), "--predictions", self.results / "small/test"]
        return run_stage("postprocess", *inputs, "--cases", self.fake.cases, "--output", self.out / "test")

    def read_results(self) -> bool:
        """Scores, histories, manifests and the definition, by the tables of the report."""
        stored = load_stored(self.results, str(self.fake.definition), need_cases=False)
        published, timings = read_published(self.file("published.csv")), read_timings([self.file("timings.csv")])
        write_tables(numbers(stored, published, timings), SHOWN, self.out / "tables")
        return True

    def read_scores(self) -> bool:
        """scores.csv: joined, and in tables."""
        joined = run_stage("evaluate", "--collect", self.results / "scores.csv", "--output", self.out / "scores.csv")
        return joined and self.read_results()


def _read_with_spacing(path: Path) -> None:
    open_volume(path, Hints(spacing=(1.0, 1.0, 1.0))).voxels(None)


def _content(folder: Path, name: str) -> dict[str, np.ndarray]:
    """All numbers of an array of a preprocessed case, by the function that training reads it with."""
    case, part = name.split(".")[:2]
    stored = open_case(folder, case)
    if part == "foreground":
        return {str(label): places for label, places in stored.foreground.items()}
    return {part: np.asarray((stored.image if part == "image" else stored.labels)[:])}


def _require_same(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert torch.equal(tensor, found[name]), f"{name} is another one"


def _require_place(geometry: Geometry, truth: Truth, unit: float = 1.0) -> None:
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(np.array(geometry.shape) - 1), 1]
    places = (corners @ geometry.affine.T)[:, :3] * unit
    np.testing.assert_allclose(places.min(axis=0), truth.first, atol=1e-3)
    np.testing.assert_allclose(places.max(axis=0), truth.last, atol=1e-3)


def run_stage(*arguments: object, told: bool = False, may_be_too_large: bool = False) -> bool:
    """Whether a stage ends well; False where it refuses with a message.

    Args:
        arguments: of the command line.
        told: whether a refusal is an error.
        may_be_too_large: whether a message may say that memory ran out.
    """
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = main([str(argument) for argument in arguments])
    assert status in (0, 1)
    if status == 1:
        message = errors.getvalue()
        assert not told, message
        assert f"megavoxel {arguments[0]}: error: " in message
        # These two are told in a line as well, but say nothing of what is wrong in the file.
        assert may_be_too_large or "memory ran out" not in message, message
        assert "the system says" not in message, message
        assert all(letter.isprintable() or letter == "\n" for letter in message), message
    return status == 0


@contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
