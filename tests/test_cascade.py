"""Cascades: where the first stage's labels join the network, which of them a fold is given, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from helpers import store_case, tiny_plan
from megavoxel.config.study_file import parse_study
from megavoxel.errors import UserError
from megavoxel.network.first_stage import ImageWithFirstStage, one_hot_branches
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.planning.extensions import plan_cascade
from megavoxel.planning.plan import Plan, require_first_stage
from megavoxel.preprocessing.checksums import write_checksums
from megavoxel.preprocessing.store import Box, read_box, save_array
from megavoxel.training.patches import TRAINING, VALIDATION, PatchDataset
from test_expansion import UNCHANGED
from workflow_runs import PHANTOM, snakemake

BRANCHES = ("coarse", "wide")


def cascade_plan(fusion: str = "post", **changes) -> Plan:
    plan = tiny_plan(stage1=BRANCHES, **changes)
    return replace(plan, network=replace(plan.network, prior_channels=4, fusion=fusion))


def written_out(network: SegmentationNetwork, image: torch.Tensor, priors: dict[int, torch.Tensor]) -> torch.Tensor:
    """The tiny network's logits at full resolution, the labels joined where Wang et al. (2022) say."""
    part = {block.name: block.module for block in network.program}
    first = part["encoder0_convolution1"](part["encoder0_convolution0"](image))
    second = part["encoder1_convolution1"](part["encoder1_convolution0"](first))
    bottom = part["encoder2_convolution1"](part["encoder2_convolution0"](second))
    up = torch.cat([part["decoder1_upsample"].upsample(bottom), second, priors[1]], 1)
    up = part["decoder1_convolution1"](part["decoder1_convolution0"](up))
    up = torch.cat([part["decoder0_upsample"].upsample(up), first, priors[0]], 1)
    return part["head0"](part["decoder0_convolution1"](part["decoder0_convolution0"](up)))


def test_post_concatenation_joins_every_decoder_level_written_out():
    plan = cascade_plan()
    network = SegmentationNetwork(plan.network, seed=1)
    image, prior = torch.randn(2, 1, 8, 12, 12), (torch.rand(2, 4, 8, 12, 12) > 0.5).float()
    halved = F.interpolate(prior, size=(4, 6, 6), mode="nearest-exact")
    expected = written_out(network, image, {0: prior, 1: halved})
    assert torch.equal(network(torch.cat([image, prior], dim=1))[0], expected)
    first = next(iter(network.program)).module[0]
    assert first.in_channels == 1  # the encoder does not see the labels


def test_pre_concatenation_joins_the_image_alone():
    network = SegmentationNetwork(cascade_plan("pre").network, seed=1)
    plain = replace(tiny_plan().network, channels=5)
    image = torch.randn(1, 5, 8, 12, 12)
    assert torch.equal(network(image)[0], SegmentationNetwork(plain, seed=1)(image)[0])


def test_both_patches_of_an_expansion_are_given_the_labels():
    plan = cascade_plan(expanded_patch=(12, 16, 16))
    network = SegmentationNetwork(replace(plan.network, expanded_head=True), seed=1)
    image = torch.randn(1, 5, 12, 16, 16)
    logits = network.forward_expanded(image)
    changed = network.forward_expanded(torch.cat([image[:, :1], image[:, 1:] + 1], dim=1))
    assert logits.shape == (1, 3, 6, 8, 8)
    assert not torch.equal(logits, changed)


def store_labels(folder, case: str, labels: np.ndarray) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    path = folder / f"{case}.stage1.b2nd"
    save_array(path, labels, (8, 12, 12))
    write_checksums(path.with_suffix(".sha256"), [path], {})
    return labels


def random_labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, (2, 14, 18, 16), dtype=np.uint8)


@pytest.mark.parametrize("stream", [TRAINING, VALIDATION])
def test_a_sample_holds_the_labels_of_its_own_case_and_place(tmp_path, stream):
    classes = store_case(tmp_path, "a", seed=1)
    branches = store_labels(tmp_path / "fold-0", "a", random_labels(2))
    keys = replace(UNCHANGED, stage1_morphology=0.0, stage1_removal=0.0)
    plan = cascade_plan(augmentation=keys, patch=(14, 18, 16))
    folders = [tmp_path / "fold-0", tmp_path / "fold-1"]
    dataset = PatchDataset(plan, tmp_path, ["a"], fold=0, stream=stream, count=1, first_stage=folders)
    image, target = dataset[0]
    assert torch.equal(target, torch.from_numpy(classes).long())
    expected = [branches[branch] == label for branch in (0, 1) for label in (1, 2)]
    assert image.shape == (5, 14, 18, 16)
    assert np.array_equal(image[1:].numpy(), np.stack(expected))


def test_the_labels_are_turned_and_mirrored_with_the_image(tmp_path):
    """Labels that equal the reference stay equal to it whatever the spatial augmentation does."""
    classes = store_case(tmp_path, "a", seed=1)
    store_labels(tmp_path / "fold-0", "a", np.stack([classes, classes]))
    keys = replace(UNCHANGED, rotation=1.0, scaling=1.0, mirror_axes=(0, 1, 2), stage1_morphology=0, stage1_removal=0)
    plan = cascade_plan(augmentation=keys)
    dataset = PatchDataset(plan, tmp_path, ["a"], fold=0, stream=TRAINING, count=6, first_stage=[tmp_path / "fold-0"])
    for image, target in (dataset[number] for number in range(6)):
        assert torch.equal(image[1] + 2 * image[2], target.float())
        assert torch.equal(image[1:3], image[3:5])


def test_a_case_without_labels_of_the_first_stage_is_named(tmp_path):
    store_case(tmp_path, "a", seed=1)
    with pytest.raises(UserError, match=r"case a: none of these folders holds .*a\.stage1\.b2nd"):
        PatchDataset(cascade_plan(), tmp_path, ["a"], fold=0, stream=TRAINING, count=1, first_stage=[tmp_path])


def test_prediction_reads_image_and_labels_together_also_beyond_the_border(tmp_path):
    store_case(tmp_path, "a", seed=1)
    labels = store_labels(tmp_path / "fold-0", "a", random_labels(2))
    image = np.random.default_rng(0).normal(size=(1, 14, 18, 16)).astype(np.float32)
    joined = ImageWithFirstStage(image=image, first_stage=labels, classes=3)
    whole = np.concatenate([image, one_hot_branches(labels, 3).numpy()])
    assert joined.shape == whole.shape
    box = Box(start=(-2, 5, 10), shape=(8, 8, 12))
    assert np.array_equal(read_box(joined, box), read_box(whole, box))


def test_the_plan_counts_a_channel_per_branch_and_label():
    setting = parse_study(study(), source="s").setting("second")
    network, notes = plan_cascade(setting, tiny_plan().network)
    assert (network.prior_channels, network.input_channels, network.fusion) == (4, 5, "post")
    assert "the labels of first and other, one-hot in 4 channels, join the start of every decoder level" in notes[0]


@pytest.mark.parametrize(
    ("plan", "folders", "message"),
    [
        (cascade_plan(), [], "setting tiny: it is the second stage after coarse and wide; give --stage1"),
        (tiny_plan(), ["somewhere"], "--stage1: setting tiny has no first stage; leave it out"),
    ],
)
def test_labels_are_asked_for_where_they_belong(plan, folders, message):
    with pytest.raises(UserError, match=re.escape(message)):
        require_first_stage(plan, folders, option="--stage1")


def study(**second) -> dict:
    settings = {"first": {}, "other": {}, "second": {"stage1": ["first", "other"], **second}}
    return {"study": "s", "dataset": "d", "folds": 3, "settings": settings}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"second": {"stage1": ["second"]}},
            "settings.second.stage1: the settings refer to one another in a circle: second -> second",
        ),
        (
            {"first": {"stage1": ["second"]}},
            "settings.first.stage1: the settings refer to one another in a circle: first -> second -> first",
        ),
        ({"second": {"stage1": ["furst"]}}, "settings.second.stage1: there is no setting 'furst'; allowed:"),
        (
            {"first": {"folds": [0]}},
            "settings.second.stage1: 'first' is trained on 1 of the 3 folds; a second stage trains on predictions by",
        ),
        (
            {"first": {"seeds": [1, 2]}},
            "settings.second.stage1: 'first' has repeats (first-seed1, first-seed2), and none with the seed of this",
        ),
    ],
)
def test_cascades_that_cannot_be_are_refused(change, message):
    values = study()
    values["settings"] |= {name: values["settings"][name] | keys for name, keys in change.items()}
    with pytest.raises(UserError, match=re.escape(message)):
        parse_study(values, source="s.yaml")


def test_a_repeat_follows_the_first_stage_of_its_own_seed():
    values = study(seeds=[1, 2])
    values["settings"]["first"] = {"seeds": [2, 1]}
    parsed = parse_study(values, source="s.yaml")
    assert parsed.setting("second-seed1").stage1 == ("first-seed1", "other")
    assert parsed.setting("second-seed2").stage1 == ("first-seed2", "other")


def test_post_fusion_without_a_decoder_is_refused():
    setting = parse_study(study(), source="s").setting("second")
    flat = replace(tiny_plan().network, features=(4,), kernels=((3, 3, 3),), strides=((1, 1, 1),))
    with pytest.raises(UserError, match="setting second: fusion 'post' joins the first stage at decoder levels"):
        plan_cascade(setting, flat)


def dry_run(repository, folder) -> dict[tuple[str, str, str], set[str]]:
    """Inputs of the jobs of a cascade of three folds, by rule, setting and fold."""
    values = study(fusion="pre") | {"study": "cascade", "dataset": "small.yaml"}
    (folder / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "small.yaml").write_text(yaml.safe_dump(PHANTOM))
    done = snakemake(repository, folder, "--configfile", "study.yaml", "-n")
    assert done.returncode == 0, done.stderr
    jobs = {}
    for job in re.split(r"\n(?=(?:local)?rule )", done.stdout + done.stderr):
        found = re.search(
            r"rule (\w+):.*?input: (.*?)\n.*?wildcards: setting=(\w+)(?:, (?:fold|share)=(\d))?(?:, total=1)?\n",
            job,
            re.DOTALL,
        )
        if found:
            rule, inputs, setting, fold = found.groups()
            jobs[rule, setting, fold or ""] = set(inputs.split(", "))
    return jobs


@pytest.mark.slow
def test_the_dry_run_shows_the_edges_of_every_fold(repository, tmp_path):
    jobs = dry_run(repository, tmp_path)
    root = "results/cascade"
    for fold in "012":
        given = {path for path in jobs["train", "second", fold] if "stage1" in path}
        assert given == {f"{root}/second/stage1/fold-{other}" for other in "012"}
        brought = {path for path in jobs["stage1_validation", "second", fold] if path.endswith("validation")}
        assert brought == {f"{root}/first/fold-{fold}/validation", f"{root}/other/fold-{fold}/validation"}
        for first in ("first", "other"):
            weights = {path for path in jobs["predict_validation", first, fold] if path.endswith("model.pt")}
            assert weights == {f"{root}/{first}/fold-{fold}/model.pt"}
            assert not any("stage1" in path for path in jobs["train", first, fold])
        own = {path for path in jobs["predict_validation", "second", fold] if "stage1" in path}
        assert own == {f"{root}/second/stage1/fold-{fold}"}
    tested = {path for path in jobs["stage1_test", "second", ""] if "test-raw" in path}
    assert tested == {f"{root}/first/test-raw", f"{root}/other/test-raw"}
    assert f"{root}/second/stage1/test" in jobs["predict_test", "second", "0"]
