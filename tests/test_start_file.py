"""Weights of a file that training begins with, a frozen encoder, and learning rates by level."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import RESIDUAL, three_cases, tiny_plan, woken
from megavoxel.config.setting import Parallel, Setting, StartFile
from megavoxel.config.study_file import parse_study
from megavoxel.config.training import Training
from megavoxel.distributed.group import Group
from megavoxel.errors import UserError
from megavoxel.forecast.step import training_step
from megavoxel.forecast.ways import check_parallel
from megavoxel.network.device import Precision
from megavoxel.network.donors import read_donor
from megavoxel.network.fitting import fit
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.tensor_files import load_tensors
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import NetworkPlan, Plan
from megavoxel.tasks.segmentation.training import start_run, train
from megavoxel.training.memory import tracked_step
from megavoxel.training.optimizer import build_optimizer, trained_weights
from megavoxel.training.run import Run
from megavoxel.training.start import require_fitting_start
from megavoxel.training.step import train_step
from nnunet_files import checkpoint, saved

CPU = torch.device("cpu")
NETWORKS = {"plain": {}, "residual": RESIDUAL}
NNSSL = {"key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem"}


def network_plan(kind: str = "plain", **changes) -> NetworkPlan:
    return replace(tiny_plan().network, **{**NETWORKS[kind], **changes})


def plan_of(kind: str = "plain", start: StartFile | None = None, training: dict | None = None) -> Plan:
    return tiny_plan(training=training, start=start, network=network_plan(kind))


def network_of(kind: str = "plain", seed: int = 5, **changes) -> SegmentationNetwork:
    return woken(SegmentationNetwork(network_plan(kind, **changes), seed=seed))


def fitted(plan: NetworkPlan, path, parts="body"):
    return fit(SegmentationNetwork(plan).state_dict(), read_donor(path), parts, where="setting tiny: start")


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_checkpoint_of_nnunet_gives_all_its_weights(tmp_path, kind):
    donor = network_of(kind)
    path = saved(tmp_path / "checkpoint_final.pth", checkpoint(donor))
    found = fitted(network_plan(kind), path, "all")
    own = donor.state_dict()
    assert found.weights.keys() == own.keys()
    assert all(torch.equal(found.weights[name], own[name]) for name in own)
    assert (found.changed, found.random, found.unused) == ({}, {}, ("head1",))
    assert read_donor(path).facts["_best_ema"] == 0.25


@pytest.mark.parametrize("kind", NETWORKS)
def test_heads_stay_random_unless_they_are_asked_for(tmp_path, kind):
    path = saved(tmp_path / "x.pth", checkpoint(network_of(kind)))
    found = fitted(network_plan(kind, classes=7), path)
    assert list(found.random) == ["head0"]
    assert {name.split(".")[2] for name in found.weights} >= {"decoder0_convolution0", "decoder1_upsample"}
    encoder = fitted(network_plan(kind), path, "encoder")
    assert {name.split(".")[2][:7] for name in encoder.weights} == {"encoder"}


def test_an_encoder_of_nnssl_is_spread_over_channels_and_flattened(tmp_path):
    donor = network_of("residual", features=(4, 8, 8, 8), blocks=(1, 2, 2, 1), kernels=((3, 3, 3),) * 4,
                       strides=((1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 2, 2)))  # fmt: skip
    content = checkpoint(donor, nnssl_adaptation_plan=NNSSL)
    path = saved(tmp_path / "x.pth", {key: content[key] for key in ("network_weights", "nnssl_adaptation_plan")})
    plan = network_plan("residual", channels=2, kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)))
    found, own = fitted(plan, path), donor.state_dict()
    stem = "program.blocks.encoder0_stem.module.0.weight"
    torch.testing.assert_close(found.weights[stem][:, 1], own[stem][:, 0].mean(dim=1, keepdim=True) / 2)
    second = "program.blocks.encoder2_block1_convolution1.module.0.weight"
    assert torch.equal(found.weights[second], own[second])
    assert found.changed["encoder0_stem"] == (
        "its one channel is repeated 2 times and divided by 2 and kernels averaged along axis 0"
    )
    assert "encoder3_block0_convolution0" in found.unused
    assert set(found.random.values()) == {"not in the file", "not among the parts 'body'"}
    assert "decoder0_upsample" in found.random
    (first, *_) = found.lines(read_donor(path))
    assert re.search(r"x\.pth \(nnssl\): \d+ blocks taken as they are, 3 changed, 5 at random", first)


@pytest.mark.parametrize(
    ("donor", "parts", "message"),
    [
        ({"kind": "residual"}, "body", "holds another kind of network than this setting's, which is one without"),
        ({"features": (6, 8, 8)}, "body", "of 6 features in its first level, this setting's has 4"),
        ({"channels": 3}, "body", "reads 3 channels, this setting's network 1; only weights of one channel"),
        ({"classes": 5}, "all", "has heads for 5 classes, the dataset has 3; leave them out with 'parts: body'"),
        ({"kernels": ((5, 3, 3),) * 3}, "body", "has a kernel of [5, 3, 3], this setting's network [3, 3, 3]"),
    ],
)
def test_weights_of_another_network_are_refused_before_training(tmp_path, donor, parts, message):
    path = saved(tmp_path / "x.pth", checkpoint(network_of(**donor)))
    wanted = plan_of(start=StartFile(file=str(path), parts=parts))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        require_fitting_start(wanted, range(1))
    assert str(caught.value).startswith("setting tiny: start: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"a": 1}, {"weights": {"a": 1}}, {"weights": {"a": torch.tensor([torch.nan])}}])
def test_a_file_without_sound_weights_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(UserError, match="no weights to begin with, or damaged") as caught:
        read_donor(saved(tmp_path / "x.pth", content))
    assert "\n" not in str(caught.value)


class Odd:
    """Pickles as a call that no checkpoint needs."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "odd",
    [
        Odd(np.dtype, ("O", False, True)),
        Odd(np.dtype, ("f8", True, True)),
        Odd(np.float64(1).__reduce__()[0], (np.dtype("f8"), b"1234")),
        Odd(bytes, ("x",)),
        Odd(np.empty, (2**40,)),
        Odd(eval, ("1",)),
    ],
)
def test_of_numpy_a_checkpoint_may_hold_single_numbers_alone(tmp_path, odd):
    path = saved(tmp_path / "x.pth", {"network_weights": {}, "odd": odd})
    with pytest.raises(ValueError, match="it is not what megavoxel or PyTorch writes for tensors"):
        load_tensors(path, of_others=True)


def test_numbers_of_numpy_are_read_of_others_alone(tmp_path):
    numbers = [np.float64(0.5), np.float32(0.25), np.int64(-3), np.bool_(1)]
    path = saved(tmp_path / "x.pth", {"numbers": numbers})
    assert load_tensors(path, of_others=True) == {"numbers": [0.5, 0.25, -3, True]}
    with pytest.raises(ValueError, match="not what megavoxel or PyTorch writes"):
        load_tensors(path)


def test_training_begins_with_the_weights_of_the_file_and_says_so(tmp_path, capsys):
    donor, fold = network_of(), three_cases(tmp_path)
    save_weights(tmp_path / "model" / "fold-0.pt", donor, plan_hash="x", precision="float32")
    start = StartFile(file=str(tmp_path / "model"))
    assert start.of_fold(3) == start.of_fold(0) == tmp_path / "model" / "fold-0.pt"
    plan = plan_of(start=start, training={"epochs": 1, "learning_rate": 1e-12})
    run = train(plan, replace(fold, start=start.of_fold(0), start_data="s"), tmp_path / "state", CPU)
    own, random = donor.state_dict(), SegmentationNetwork(plan.network, seed=plan.seed).state_dict()
    for name, found in run.network.state_dict().items():
        torch.testing.assert_close(found, (random if "head" in name else own)[name])
    assert "1 at random" in capsys.readouterr().out
    facts = replace(fold, start=start.of_fold(0), start_data="s").facts(run)["data"]["start"]
    assert (facts["origin"], facts["weights_sha256"]) == ("megavoxel", "s")
    assert facts["random"] == {"head0": "not among the parts 'body'"}


def run_of(plan: Plan) -> Run:
    network = SegmentationNetwork(plan.network, seed=3)
    return Run(
        plan=plan, device=CPU, precision=Precision(name="float32", reason="test"), network=network, group=Group(),
        optimizer=build_optimizer(trained_weights(network, plan.training), plan.training),
    )  # fmt: skip


def batch_of(plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(plan.batch, 1, *plan.patch, generator=generator)
    return image, torch.randint(0, 3, (plan.batch, *plan.patch), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_a_frozen_encoder_stays_and_the_decoder_learns_as_without_it(kind, checkpointing):
    plain = replace(plan_of(kind), parallel=Parallel(checkpointing=checkpointing))
    frozen = replace(plain, training=replace(plain.training, freeze_encoder=True, gradient_clip=1e9))
    whole = replace(plain, training=replace(plain.training, gradient_clip=1e9))
    runs = [run_of(frozen), run_of(whole)]
    before = {name: value.clone() for name, value in runs[0].network.state_dict().items()}
    losses = [train_step(run, *batch_of(plain)) for run in runs]
    assert torch.equal(*losses)
    for name, value in runs[0].network.state_dict().items():
        expected = before[name] if ".encoder" in name else runs[1].network.state_dict()[name]
        assert torch.equal(value, expected), name
    assert len(runs[0].optimizer.state) == sum("encoder" not in name for name in before)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_forecast_of_a_frozen_encoder_is_what_a_step_takes(kind):
    plan = replace(plan_of(kind), patch=(16, 32, 32))
    frozen = replace(plan, training=replace(plan.training, freeze_encoder=True))
    forecast = training_step(frozen, samples=plan.batch, parallel=Parallel(), precision="float32")
    run = run_of(frozen)
    run.network.to(memory_format=torch.channels_last_3d)
    _, peak = tracked_step(run, *batch_of(frozen))
    assert forecast.peak_bytes == pytest.approx(peak, rel=0.05)
    whole = training_step(plan, samples=plan.batch, parallel=Parallel(), precision="float32")
    assert forecast.peak_bytes < 0.8 * whole.peak_bytes
    assert forecast.flops < whole.flops


def test_rates_fall_level_by_level_to_the_image():
    keys = {"momentum": 0.0, "weight_decay": 0.0, "gradient_clip": 1e9, "learning_rate": 0.1}
    steps = []
    for decay in (1.0, 0.5):
        run = run_of(plan_of(training={**keys, "encoder_rate_decay": decay}))
        before = {name: value.clone() for name, value in run.network.named_parameters()}
        for group in run.optimizer.param_groups:
            group["lr"] = 0.1 * group.get("factor", 1.0)
        train_step(run, *batch_of(run.plan))
        steps.append({name: value.detach() - before[name] for name, value in run.network.named_parameters()})
    factors = {"encoder2": 0.5, "encoder1": 0.25, "encoder0": 0.125}
    for name, step in steps[0].items():
        factor = factors.get(name.split(".")[2][:8], 1.0)
        torch.testing.assert_close(steps[1][name], step * factor, rtol=1e-3, atol=1e-7)


def test_a_run_with_several_rates_goes_on_where_it_stopped(tmp_path):
    plan, fold = plan_of(training={"encoder_rate_decay": 0.5}), three_cases(tmp_path)
    whole = train(plan, fold, tmp_path / "whole", CPU)
    half = train(plan, fold, tmp_path / "state", CPU)  # its last state is that of the whole run
    again = start_run(plan, fold, CPU, {**half.state_dict(), "key": ""})
    assert [group["factor"] for group in again.optimizer.param_groups] == [0.125, 0.25, 0.5, 1.0]
    assert [row["training_loss"] for row in whole.history] == [row["training_loss"] for row in again.history]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"training": {"freeze_encoder": True}}, "training.freeze_encoder: its weights would stay random; give"),
        ({"training": {"freeze_encoder": True}, "start": {"file": "x"}, "expansion": {"factor": 2}},
         "training.freeze_encoder: it does not go with 'expansion'"),
        ({"start": {"path": "x"}}, "start"),
        ({"start": {"file": "x", "parts": "decoder"}}, "start"),
    ],
)  # fmt: skip
def test_keys_that_do_not_go_together_are_refused(keys, message):
    study = {"study": "s", "dataset": "chaos", "settings": {"a": keys}}
    with pytest.raises(UserError, match=re.escape(message)):
        parse_study(study, source="s.yaml")


def test_a_setting_may_begin_with_a_file_that_inherits_and_repeats():
    settings = {"a": {"start": {"file": "m"}, "seeds": [1, 2]}}
    study = parse_study({"study": "s", "dataset": "chaos", "settings": settings}, source="s.yaml")
    assert [setting.start for setting in study.settings] == [StartFile(file="m")] * 2
    assert isinstance(study.settings[0], Setting)


@pytest.mark.parametrize("training", [{"freeze_encoder": True}, {"encoder_rate_decay": 0.9}])
def test_a_pipeline_has_one_rate_for_all_weights(training):
    plan = replace(tiny_plan(), training=replace(Training(), **training))
    with pytest.raises(UserError, match=r"parallel\.pipeline: all weights go by one learning rate in a pipeline"):
        check_parallel(plan, Parallel(pipeline=2))
