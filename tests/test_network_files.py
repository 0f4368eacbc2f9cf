"""Networks that ONNX Runtime and OpenVINO run: the numbers of PyTorch, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import RESIDUAL, preprocessing_plan, tiny_plan, woken
from megavoxel.config.regions import Regions
from megavoxel.config.setting import Inference
from megavoxel.errors import UserError
from megavoxel.inference.decision import Decision
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.run_times import OPSET, NetworkOfRunTime, device_of
from megavoxel.models import network_files
from megavoxel.models.network_files import FORMATS
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import Plan

REASON = "not installed; 'make test' installs requirements-optional.lock"
onnx = pytest.importorskip("onnx", reason=REASON)
for name in ("onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(name, reason=REASON)

CPU = torch.device("cpu")
LEVELS = {"features": (4, 8), "kernels": ((3, 3, 3),) * 2, "strides": ((1, 1, 1), (2, 2, 2))}
REGIONS = preprocessing_plan(
    labels={"rim": 1, "core": 2}, regions=Regions(values={"all": (1, 2), "core": (2,)}, class_order=(1, 2))
)


def made_plan(name: str) -> Plan:
    """Plans of networks of each kind, with as few layers as it can have."""
    plan = tiny_plan()
    small = replace(plan.network, **LEVELS)
    return {
        "plain": replace(plan, network=small, patch=(7, 12, 12)),
        "residual": replace(plan, network=replace(plan.network, **RESIDUAL)),
        "slices": replace(
            plan, patch=(1, 12, 12), preprocessing=preprocessing_plan(dimensions=2),
            network=replace(small, kernels=((1, 3, 3),) * 2, strides=((1, 1, 1), (1, 2, 2))),
        ),
        "regions": replace(plan, network=replace(small, classes=2), preprocessing=REGIONS),
    }[name]  # fmt: skip


def made_weights(plan: Plan, folder: Path) -> Path:
    """Weights of a network that has not learnt anything."""
    path = folder / "model.pt"
    save_weights(path, woken(SegmentationNetwork(plan.network, seed=1)), plan_hash=plan.hash, precision="float32")
    return path


def whole_logits(plan: Plan, path: Path, image: np.ndarray) -> Tensor:
    """Logits of a whole image by the sliding window."""
    logits = torch.zeros(plan.network.classes, *image.shape[1:])
    for slab in CasePredictor.from_files(plan, [path], CPU).slabs(image):
        logits[slab.place] = slab.logits
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [("onnx", "plain"), ("onnx", "slices"), ("openvino", "residual"), ("openvino", "regions")],
)
def test_the_sliding_window_has_the_logits_and_labels_of_pytorch(tmp_path, kind, name):
    plan = made_plan(name)
    weights, target = made_weights(plan, tmp_path), tmp_path / f"fold-0{FORMATS[kind].suffix}"
    FORMATS[kind].prepare(plan)
    FORMATS[kind].write(plan, weights, target)
    image = np.random.default_rng(0).normal(size=(1, 9, 20, 17)).astype(np.float32)
    ours, theirs = (whole_logits(plan, path, image) for path in (weights, target))
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-4
    assert not torch.equal(ours, theirs)  # another program has worked them out
    decision = REGIONS if name == "regions" else plan.preprocessing
    of_pytorch, of_run_time = (decided(decision, logits) for logits in (ours, theirs))
    assert len(np.unique(of_pytorch)) > 1
    assert (of_pytorch == of_run_time).mean() >= 0.9999


def decided(rules, logits: Tensor) -> np.ndarray:
    return Decision(labels=rules.labels, regions=rules.regions).values_of_logits(logits)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A plain network in ONNX, whose weights lie beside it as those of large networks do."""
    folder = tmp_path_factory.mktemp("plain")
    plan = made_plan("plain")
    weights = made_weights(plan, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_files, "LARGEST_FILE", 0)
        FORMATS["onnx"].write(plan, weights, folder / "fold-0.onnx")
    return folder / "fold-0.onnx"


@pytest.mark.slow
def test_large_weights_lie_beside_the_file_which_states_opset_shapes_and_plan_and_no_path_of_the_source(plain):
    read = onnx.load(plain, load_external_data=False)
    onnx.checker.check_model(str(plain))
    assert {entry.domain: entry.version for entry in read.opset_import} == {"": OPSET}
    (given,), (made,) = read.graph.input, read.graph.output
    shapes = [[side.dim_value for side in one.type.tensor_type.shape.dim] for one in (given, made)]
    assert (given.name, made.name, *shapes) == ("window", "logits", [1, 1, 7, 12, 12], [1, 3, 7, 12, 12])
    assert {entry.key: entry.value for entry in read.metadata_props} == {"plan_hash": made_plan("plain").hash}
    beside = plain.with_name("fold-0.onnx.data")
    assert beside.stat().st_size > plain.stat().st_size / 2
    assert b".py" not in plain.read_bytes() + beside.read_bytes()


@pytest.mark.slow
def test_a_damaged_or_foreign_file_is_one_line(plain, tmp_path):
    plan = made_plan("plain")
    for suffix in (".onnx", ".xml"):
        broken = tmp_path / f"fold-0{suffix}"
        broken.write_bytes(b"no network")
        with pytest.raises(UserError, match=rf"fold-0\{suffix}: no network of megavoxel, or damaged \("):
            NetworkOfRunTime(plan, broken, 1)
    with pytest.raises(UserError, match="was trained under another plan"):
        NetworkOfRunTime(replace(plan, seed=7), plain, 1)
    larger = replace(plan, inference=Inference(window=(8, 12, 12)))
    with pytest.raises(
        UserError, match=r"it has window float32 \[1, 1, 7, 12, 12\]; expected window float32 \[1, 1, 8"
    ):
        NetworkOfRunTime(larger, plain, 1)


class Bessel(nn.Module):
    """An operation that ONNX does not have."""

    def forward(self, activation: Tensor) -> Tensor:
        return torch.special.bessel_j0(activation)


@pytest.mark.slow
def test_a_block_that_onnx_cannot_express_is_named(tmp_path):
    plan = made_plan("plain")
    network = SegmentationNetwork(plan.network).eval()
    block = network.program.blocks["encoder1_convolution0"]
    block.module = nn.Sequential(block.module, Bessel())
    target = tmp_path / "fold-0.onnx"
    with pytest.raises(UserError, match=f"the block encoder1_convolution0 cannot be expressed in ONNX, opset {OPSET}"):
        network_files._write_program(network, plan, target)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_with_other_logits_than_pytorch_is_refused(plain):
    plan = made_plan("plain")
    other = SegmentationNetwork(plan.network, seed=2).eval()
    with pytest.raises(UserError, match=r"in ONNX, opset \d+ its logits differ by .* of the largest from PyTorch's"):
        network_files._compare(other, plan, plain, Path("model.pt"))


def test_windows_without_a_size_are_refused():
    plan = replace(tiny_plan(), inference=Inference(window="whole"))
    with pytest.raises(UserError, match=r"setting tiny: inference\.window is whole"):
        FORMATS["onnx"].prepare(plan)


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs .*{package}.*: pip install 'megavoxel\[{kind}\]'"):
        FORMATS[kind].prepare(tiny_plan())


def test_run_times_run_on_a_cpu():
    files = [Path("fold-0.onnx")]
    assert device_of(files, "auto") == "cpu"
    assert device_of([Path("fold-0.pt")], "auto") == "auto"
    with pytest.raises(UserError, match=r"--device cuda: fold-0\.onnx runs on a CPU"):
        device_of(files, "cuda")
