"""Voxels that nobody annotated: in no term of the loss, no sample of their own and no score, as in nnU-Net."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset_folder import Folder
from helpers import preprocessing_plan, properties, tiny_plan, value_and_gradient
from megavoxel.config.setting import Network, Parallel, Setting
from megavoxel.config.training import Training
from megavoxel.datasets.cases import load_cases
from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.pairs import Pair
from megavoxel.evaluation.postprocessing import determine_postprocessing
from megavoxel.evaluation.scoring import score_pair
from megavoxel.evaluation.targets import Target
from megavoxel.forecast.ways import check_parallel
from megavoxel.planning.region_rules import require_supported
from megavoxel.preprocessing.case import preprocess_labels
from megavoxel.preprocessing.foreground import count_classes, sample_foreground
from megavoxel.preprocessing.store import open_case, save_case
from megavoxel.tasks.segmentation.data import VolumeData
from megavoxel.tasks.segmentation.training import start_run
from megavoxel.training.annotation import encode_target, target_dtype
from megavoxel.training.loss import build_loss
from megavoxel.training.outputs import Outputs
from megavoxel.training.patches import foreground_start
from megavoxel.training.step import train_step
from megavoxel.training.supervision import supervised_loss
from megavoxel.training.validation import validate
from megavoxel.volumes.write import write_nifti

PEER = "the peer is not installed"
IGNORED = 3
SPARSE = Outputs(ignores=True)
RULES = preprocessing_plan(ignore_value=9)
CPU = torch.device("cpu")


def samples(seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64 and a target, the second sample of which has fewer annotated voxels than the first."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (batch, 4, 5, 6), generator=generator)
    target[1, 1:] = IGNORED
    return logits, target


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_and_gradient_are_those_of_nnunet(batch_dice):
    compound = pytest.importorskip("nnunetv2.training.loss.compound_losses", reason=PEER)
    dice = pytest.importorskip("nnunetv2.training.loss.dice")
    keys = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = compound.DC_and_CE_loss(keys, {}, ignore_label=IGNORED, dice_class=dice.MemoryEfficientSoftDiceLoss)
    logits, target = samples()
    expected, gradient = value_and_gradient(theirs, logits.float(), target[:, None])
    ours = build_loss(Training(loss="dice_ce", batch_dice=batch_dice), outputs=SPARSE)
    value, own = value_and_gradient(ours, logits.float(), target)
    torch.testing.assert_close(value, expected + 1)  # theirs is minus the Dice, ours one minus it
    torch.testing.assert_close(own, gradient)


@pytest.mark.parametrize("name", ["dice_ce", "dice_focal", "dice", "cross_entropy"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_what_lies_in_unannotated_voxels_changes_neither_value_nor_gradient(name, batch_dice):
    logits, target = samples()
    loss = build_loss(Training(loss=name, batch_dice=batch_dice), outputs=SPARSE)
    value, gradient = value_and_gradient(loss, logits, target)
    hidden = (target == IGNORED)[:, None].expand_as(logits)
    assert (gradient[hidden] == 0).all()
    again, same = value_and_gradient(loss, torch.where(hidden, logits.flip(0) * 7, logits), target)
    torch.testing.assert_close((again, same), (value, gradient))


def test_cross_entropy_is_the_mean_over_the_annotated_voxels_of_the_batch():
    logits, target = samples()
    loss = build_loss(Training(loss="cross_entropy", batch_dice=False), outputs=SPARSE)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target, ignore_index=IGNORED))


def test_a_sample_without_any_annotated_voxel_teaches_nothing():
    logits, target = samples()
    loss = build_loss(Training(loss="dice_ce", batch_dice=False), outputs=SPARSE)
    value, gradient = value_and_gradient(loss, logits, torch.full_like(target, IGNORED))
    assert value == 0
    assert (gradient == 0).all()


def sparse_plan(*, training=None, **changes):
    return tiny_plan(preprocessing=RULES, training={"batch_dice": False} | (training or {}), **changes)


def test_targets_have_one_more_class_for_unannotated_voxels():
    plan = sparse_plan()
    assert target_dtype(plan) == torch.uint8
    assert encode_target(torch.tensor([0, 1, 2, 3]), (), plan).tolist() == [0, 1, 2, 3]
    many = {f"l{value}": value for value in range(10, 265)}
    rules = replace(RULES, labels=many)
    network = replace(plan.network, classes=256)
    assert target_dtype(replace(plan, preprocessing=rules, network=network)) == torch.int16


def test_the_ignore_value_is_a_class_of_its_own_on_the_network_s_grid_and_is_never_drawn():
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    labels[0], labels[1], labels[2] = 9, 3, 1
    rules = RULES
    classes = preprocess_labels(labels, properties("a", labels.shape), rules)
    assert [set(np.unique(slab)) for slab in classes] == [{3}, {2}, {1}, {0}]
    drawn = sample_foreground(classes, "a", rules.ignored_class)
    assert {number: len(voxels) for number, voxels in drawn.items()} == {0: 16, 1: 16, 2: 16}
    assert (drawn[0][:, 0] == 3).all()


def sparse_case(folder, name="a"):
    """A stored case of (10, 14, 16) voxels, of which only the slices 4 and 5 are annotated."""
    shape = (10, 14, 16)
    classes = np.full(shape, IGNORED, dtype=np.uint8)
    classes[4:6] = 0
    classes[4, 5:8, 5:8] = 1
    classes[5, 2:4, 2:4] = 2
    found = sample_foreground(classes, name, IGNORED)
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    voxels = tuple(map(int, count_classes(classes, 3)))
    save_case(folder, properties(name, shape, class_voxels=voxels), image, classes, found, (8, 12, 12))
    return open_case(folder, name)


def test_patches_are_centred_on_annotated_voxels_alone(tmp_path):
    stored = replace(sparse_case(tmp_path), ignored=RULES.ignored_class)
    random = np.random.default_rng(1)
    for on_foreground in (False, True):
        starts = np.array([foreground_start(stored, (3, 3, 3), on_foreground, random) for _ in range(100)])
        assert set(starts[:, 0] + 1) == {4, 5}
    centres = starts[:, 1:] + 1
    assert centres.max() <= 7


def pair_of(tmp_path, prediction, reference, ignored=9):
    for name, labels in (("prediction", prediction), ("reference", reference)):
        write_nifti(tmp_path / f"{name}.nii.gz", labels, np.eye(4))
    return Pair(
        case="a",
        prediction=tmp_path / "prediction.nii.gz",
        reference=tmp_path / "reference.nii.gz",
        labels={"ball": 1, "cube": 3},
        ignored=ignored,
    )


def test_scores_leave_out_voxels_that_nobody_annotated(tmp_path):
    reference = np.zeros((6, 6, 6), dtype=np.uint8)
    reference[:, :, 3:] = 9
    reference[1:3, 1:3, 1:3] = 1
    prediction = np.zeros_like(reference)
    prediction[1:3, 1:3, 1:6] = 1
    prediction[5, 5, 5] = 3
    pair = pair_of(tmp_path, prediction, reference)
    targets = [Target(name=name, values=value, tolerance=0.5) for name, value in pair.labels.items()]
    rows = score_pair(pair, targets, [METRICS["dsc"], METRICS["hd95"]]).rows
    assert rows[:2] == [("a", "ball", "DSC", 1.0), ("a", "ball", "HD95", 0.0)]
    assert all(np.isnan(value) for _, name, _, value in rows if name == "cube")
    with pytest.raises(UserError, match=r"prediction.nii.gz has the undeclared value 9"):
        score_pair(pair_of(tmp_path, reference, reference), targets, [METRICS["dsc"]])


def test_dice_of_random_maps_is_that_of_nnunet(tmp_path):
    peer = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions", reason=PEER)
    reader = pytest.importorskip("nnunetv2.imageio.simpleitk_reader_writer").SimpleITKIO()
    random = np.random.default_rng(0)
    pair = pair_of(
        tmp_path,
        random.choice([0, 1, 3], (7, 8, 9)).astype(np.uint8),
        random.choice([0, 1, 3, 9], (7, 8, 9)).astype(np.uint8),
    )
    theirs = peer.compute_metrics(str(pair.reference), str(pair.prediction), reader, [1, 3], 9)["metrics"]
    targets = [Target(name=name, values=value, tolerance=1.0) for name, value in pair.labels.items()]
    ours = {name: value for _, name, _, value in score_pair(pair, targets, [METRICS["dsc"]]).rows}
    assert ours == pytest.approx({"ball": theirs[1]["Dice"], "cube": theirs[3]["Dice"]})


def test_components_are_those_of_the_whole_prediction_and_judged_by_annotated_voxels(tmp_path):
    reference = np.zeros((4, 4, 12), dtype=np.uint8)
    reference[:, :, 6:] = 9
    reference[1:3, 1:3, 1:3] = 1
    prediction = reference * (reference == 1)
    prediction[:, :, 8:] = 1  # larger than the true ball, and where nobody annotated
    found = determine_postprocessing([pair_of(tmp_path, prediction, reference)], {"ball": 1})
    assert not found.changes_anything
    assert (found.evidence[0].before, found.evidence[0].after) == (1.0, 0.0)


@pytest.mark.parametrize("parallel", [{}, {"accumulate": 2}, {"accumulate": 4}])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(tmp_path, parallel, batch_dice):
    plan = sparse_plan(batch=4, training={"batch_dice": batch_dice}, parallel=Parallel(**parallel))
    sparse_case(tmp_path)
    data = VolumeData(number=0, preprocessed=tmp_path, training=("a",), validation=("a",))
    run = start_run(plan, data, CPU)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, *plan.patch, generator=generator)
    target = torch.randint(0, 4, (4, *plan.patch), generator=generator).to(torch.uint8)
    target[0, 2:], target[1] = IGNORED, IGNORED
    run.network.double()
    loss = train_step(run, image.double(), target)
    strides = [run.network.shape.logits_strides[level] for level in run.network.shape.supervised_levels]
    other = start_run(plan, data, CPU)
    other.network.double()
    whole = build_loss(plan.training, outputs=SPARSE)
    expected = supervised_loss(whole, other.network(image.double()), target, strides)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=0)


def test_validation_counts_annotated_voxels_alone(tmp_path):
    plan = sparse_plan()
    sparse_case(tmp_path)
    run = start_run(plan, VolumeData(number=0, preprocessed=tmp_path, training=("a",), validation=("a",)), CPU)
    target = torch.full((2, *plan.patch), IGNORED, dtype=torch.uint8)
    found = validate(run, [(torch.randn(2, 1, *plan.patch), target)], ("ball", "cube"))
    assert np.isnan(found["pseudo_dice"])
    target[:, 0, 0, 0] = 1
    found = validate(run, [(torch.randn(2, 1, *plan.patch), target)], ("ball", "cube"))
    assert found["pseudo_dice_ball"] in (0.0, 2 / 3, 1.0)


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"loss": "dice_topk"}, "training.loss: dice_topk: not in a dataset with an ignore label; set dice_ce"),
        ({"loss": "dice_perimeter"}, "training.loss: dice_perimeter: not in a dataset with an ignore label"),
        ({"sampling": "roulette"}, "training.sampling: roulette: not in a dataset with an ignore label"),
    ],
)
def test_keys_that_look_at_all_voxels_are_refused_by_name(training, words):
    with pytest.raises(UserError, match=words):
        require_supported(RULES, Setting(name="a", training=Training(**training), network=Network()))


def test_a_pipeline_that_accumulates_is_refused_because_it_does_not_see_the_whole_batch():
    plan = sparse_plan(batch=4, training={"batch_dice": False})
    with pytest.raises(UserError, match="accumulate: an ignore label needs the sums of the whole batch"):
        check_parallel(plan, Parallel(pipeline=2, accumulate=2))


def test_sparse_label_maps_are_sound_in_training_and_refused_in_a_test_case(tmp_path, capsys):
    folder = Folder(tmp_path, cases=3)
    folder.content["labels"] = {"background": 0, "one": 1, "two": 2, "ignore": 3}
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3], labels[0, 0] = 3, 1
    folder.write("labelsTr/case_0", labels)
    assert folder.check() == 0
    cases = load_cases(tmp_path / "cases.json")
    assert (cases.labels, cases.ignore_value) == ({"one": 1, "two": 2}, 3)
    assert folder.check(keys="test_cases: [case_0]\n") == 1
    assert "labelsTr/case_0.nii.gz has voxels of the ignore label (3); test cases are scored" in capsys.readouterr().err
