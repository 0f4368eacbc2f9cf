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
from fuzz_guard import guarded
from megavoxel.cli import main
from megavoxel.config.hardware import load_device
from megavoxel.config.study_file import load_study
from megavoxel.config.training import Training
from megavoxel.errors import UserError
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import load_plan
from megavoxel.reporting.costs import read_timings
from megavoxel.reporting.published import read_published
from megavoxel.reporting.stored import load_stored
from megavoxel.reporting.tables import SHOWN, numbers, write_tables
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run
from megavoxel.training.states.checkpoint import load_state, save_state
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

    def accepts(self, name: str, content: bytes, reader: Reader) -> bool:
        """What the reader says of a file with that content, with all the guards of `guarded`."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        with self._in_place(name, content), _quiet(), guarded(self.out):
            try:
                return reader()
            except UserError as refusal:
                return not str(refusal).strip()

    @contextmanager
    def _in_place(self, name: str, content: bytes) -> Iterator[None]:
        sound = self.sound(name)
        self.file(name).write_bytes(content)
        try:
            yield
        finally:
            self.file(name).write_bytes(sound)

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

    def _short_plan(self) -> Any:
        return replace(self.plan, training=Training(epochs=2, precision="float32", workers=0))

    def _preprocess(self, folder: Path) -> bool:
        plan = self.results / "pre/plan.json"
        output = ["--folder", folder, "--output", folder.parent / "shard-0.json", "--patch", 8, 8, 8]
        return run_stage("preprocess", "--cases", self.fake.cases, "--plan", plan, *output)

    # Readers: each calls what reads a file of its kind.

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


def run_stage(*arguments: object) -> bool:
    """Whether a stage ends well; False where it refuses with a message."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = main([str(argument) for argument in arguments])
    assert status in (0, 1)
    if status == 1:
        message = errors.getvalue()
        assert f"megavoxel {arguments[0]}: error: " in message
        # These two are told in a line as well, but say nothing of what is wrong in the file.
        assert "memory ran out" not in message, message
        assert "the system says" not in message, message
        assert all(letter.isprintable() or letter == "\n" for letter in message), message
    return status == 0


@contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
