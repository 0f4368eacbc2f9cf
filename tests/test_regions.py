"""Regions that overlap, as nnU-Net reads them: loss, the way to label maps, scores and components."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dataset_folder import refusal
from helpers import preprocessing_plan, properties, tiny_plan, value_and_gradient
from megavoxel.config.dataset import Dataset
from megavoxel.config.records import from_plain, to_plain
from megavoxel.config.regions import Regions, label_scheme
from megavoxel.config.setting import Network, Setting
from megavoxel.config.source import Source
from megavoxel.config.training import Training
from megavoxel.datasets.cases import Case, Cases, load_cases, save_cases
from megavoxel.datasets.layout import read_layout
from megavoxel.errors import UserError
from megavoxel.evaluation.compared import label_counts
from megavoxel.evaluation.metrics import METRICS
from megavoxel.evaluation.pairs import Pair
from megavoxel.evaluation.postprocessing import determine_postprocessing
from megavoxel.evaluation.scoring import score_pair
from megavoxel.evaluation.targets import targets_of
from megavoxel.inference.decision import Decision
from megavoxel.inference.ensemble import mean_probabilities
from megavoxel.inference.logits import header_of, label_map, write_logits
from megavoxel.inference.sliding_window import Slab
from megavoxel.planning.plan import PreprocessingPlan
from megavoxel.planning.region_rules import require_supported
from megavoxel.preprocessing.foreground import count_classes, sample_foreground
from megavoxel.preprocessing.store import StoredCase
from megavoxel.training.loss import build_loss
from megavoxel.training.outputs import Outputs, outputs_of
from megavoxel.training.patches import foreground_start
from megavoxel.volumes.write import write_nifti

PEER = "the peer is not installed"
BRATS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}
ORDER = [1, 2, 3]
STRUCTURES = {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}
REGIONS = Regions(values=STRUCTURES, class_order=(1, 2, 3))
LABELS = {"value 1": 1, "value 2": 2, "enhancing tumor": 3}
RULES = preprocessing_plan(labels=LABELS, regions=REGIONS)
DECISION = Decision(labels=LABELS, regions=REGIONS)


def region_plan(**changes):
    network = replace(tiny_plan().network, classes=3)
    return tiny_plan(preprocessing=RULES, network=network, **changes)


def scheme(labels, order=None):
    return label_scheme(labels, order, "dataset.json")


def test_regions_and_the_ignore_label_of_dataset_json_are_read_as_they_are(tmp_path):
    labels = BRATS | {"ignore": 4}
    content = {"channel_names": {"0": "T1"}, "labels": labels, "regions_class_order": ORDER, "file_ending": ".nii.gz"}
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    (tmp_path / "imagesTr/a_0000.nii.gz").touch()
    (tmp_path / "labelsTr/a.nii.gz").touch()
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    layout = read_layout(tmp_path, Dataset(name="some", source=Source(folder="some")))
    assert layout.scheme.regions == REGIONS
    assert (layout.scheme.labels, layout.scheme.ignore_value) == (LABELS, 4)
    assert list(layout.scheme.structures.items()) == list(STRUCTURES.items())


@pytest.mark.parametrize("labels", [BRATS, BRATS | {"ignore": 4}, {"background": 0, "edema": [1], "rest": [2, 1]}])
def test_values_regions_and_outputs_are_those_of_nnunet(labels):
    handling = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling", reason=PEER)
    order = ORDER[: len(labels) - 1 - ("ignore" in labels)]
    theirs, ours = handling.LabelManager(labels, order), scheme(labels, order)
    assert [0, *ours.labels.values()] == theirs.all_labels
    assert list(ours.structures.values()) == [own if isinstance(own, tuple) else (own,) for own in theirs.all_regions]
    assert ours.ignore_value == theirs.ignore_label
    rules = preprocessing_plan(labels=ours.labels, regions=ours.regions, ignore_value=ours.ignore_value)
    assert rules.outputs == theirs.num_segmentation_heads


@pytest.mark.parametrize(
    ("labels", "order", "words"),
    [
        (BRATS, None, "'regions_class_order' is missing: list one value for each"),
        (BRATS, [1, 2], "regions_class_order: expected 3 values, one for each of whole tumor, tumor core"),
        (BRATS, [1, 2, 7], "regions_class_order: 7 is no label of any region; allowed: 1, 2, 3"),
        (BRATS | {"ignore": 2}, ORDER, r"'ignore' is \[2\]; it must be one value that no label and no region has"),
        ({"a": 1, "ignore": [2, 3]}, None, r"'ignore' is \[2, 3\]; it must be one value"),
        ({"a": [1, 1], "b": 2}, [1, 2], r"the region 'a' is \[1, 1\]; list each value once"),
        ({"a": [0, 1], "b": 2}, [1, 2], r"the region 'a' is \[0, 1\]; list each value once, and no 0"),
        ({"a": [1, "x"]}, [1], r"'a' has the value \[1, 'x'\]; allowed: whole numbers from 0 to 65535, or a list"),
        ({"background": 0}, None, "there is no label above 0"),
    ],
)
def test_contradictions_are_one_line_each(labels, order, words):
    with pytest.raises(UserError, match=words):
        scheme(labels, order)


def test_a_dataset_file_says_regions_in_the_same_words(tmp_path):
    file = "labels: {whole: [1, 2], core: 2, ignore: 3}\nregions_class_order: [1, 2]\n"
    path = tmp_path / "some.yaml"
    path.write_text(f"name: some\nsource: {{folder: source}}\n{file}")
    from megavoxel.config.dataset import load_dataset

    found = load_dataset(path).label_scheme
    assert (found.structures, found.ignore_value) == ({"whole": (1, 2), "core": (2,)}, 3)
    assert "it also needs 'labels'" in refusal(tmp_path, "regions_class_order: [1, 2]")


def test_plans_and_lists_of_cases_keep_regions_and_leave_the_keys_out_where_there_are_none(tmp_path):
    case = Case(id="a", images=("a.nii.gz",), label="b.nii.gz")
    keys = {"dataset": "d", "root": "r", "channels": ("T1",), "labels": LABELS, "cases": (case,)}
    cases = Cases(regions=REGIONS, ignore_value=4, nsd_tolerance_mm=dict.fromkeys(STRUCTURES, 1.0), **keys)
    save_cases(tmp_path / "cases.json", cases)
    assert load_cases(tmp_path / "cases.json") == cases
    save_cases(tmp_path / "plain.json", Cases(nsd_tolerance_mm=dict.fromkeys(LABELS, 1.0), **keys))
    assert not {"regions", "ignore_value"} & json.loads((tmp_path / "plain.json").read_text()).keys()
    assert from_plain(PreprocessingPlan, json.loads(json.dumps(to_plain(RULES))), where="x") == RULES
    assert len({RULES.hash, replace(RULES, regions=None).hash, replace(RULES, ignore_value=9).hash}) == 3


def samples(seed=0):
    """Logits in float32 and a target of the classes 0 to 3, with unannotated voxels as 4 where that is asked for."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, 6, generator=generator)
    target = torch.randint(0, 5, (2, 4, 5, 6), generator=generator)
    target[1, 2:] = 4
    return logits, target


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_and_gradient_are_those_of_nnunet(ignores, batch_dice):
    compound = pytest.importorskip("nnunetv2.training.loss.compound_losses", reason=PEER)
    dice = pytest.importorskip("nnunetv2.training.loss.dice")
    keys = {"batch_dice": batch_dice, "do_bg": True, "smooth": 1e-5, "ddp": False}
    theirs = compound.DC_and_BCE_loss({}, keys, use_ignore_label=ignores, dice_class=dice.MemoryEfficientSoftDiceLoss)
    logits, target = samples()
    target = target if ignores else target.clamp(max=3)
    regions = [torch.isin(target, torch.tensor(values)) for values in STRUCTURES.values()]
    one_hot = torch.stack(regions + [target == 4] * ignores, dim=1)
    expected, gradient = value_and_gradient(theirs, logits, one_hot)
    outputs = replace(outputs_of(region_plan()), ignores=ignores)
    ours = build_loss(Training(loss="dice_ce", batch_dice=batch_dice), outputs=outputs)
    value, own = value_and_gradient(ours, logits, target)
    torch.testing.assert_close(value, expected + 1)  # theirs is minus the Dice, ours one minus it
    torch.testing.assert_close(own, gradient)


def test_one_voxel_by_hand():
    logits = torch.tensor([1.0, -1.0, 2.0]).view(1, 3, 1, 1, 1)
    target = torch.full((1, 1, 1, 1), 2)  # in the first two regions
    loss = build_loss(Training(loss="cross_entropy", batch_dice=False), outputs=outputs_of(region_plan()))
    by_hand = F.binary_cross_entropy_with_logits(logits.flatten(), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(loss(logits, target), by_hand)


def test_validation_counts_each_region():
    logits = torch.full((1, 3, 1, 1, 3), -1.0)
    logits[0, :2, 0, 0, :2] = 1.0
    target = torch.tensor([3, 1, 4]).view(1, 1, 1, 3)
    outputs = Outputs(members=outputs_of(region_plan()).members, ignores=True)
    assert outputs.overlap(logits, target).tolist() == [[2, 1, 0], [2, 2, 0], [2, 1, 1]]


def test_label_maps_are_those_of_nnunet():
    handling = pytest.importorskip("nnunetv2.utilities.label_handling.label_handling", reason=PEER)
    manager = handling.LabelManager(BRATS, [2, 1, 3])
    logits = torch.randn(3, 6, 7, 8, generator=torch.Generator().manual_seed(1))
    ours = Decision(labels=LABELS, regions=Regions(values=STRUCTURES, class_order=(2, 1, 3)))
    np.testing.assert_array_equal(ours.values_of_logits(logits), manager.convert_logits_to_segmentation(logits))


def test_the_last_region_that_is_present_names_the_voxel():
    logits = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, -1.0, -1.0]])
    assert DECISION.values_of_logits(logits).tolist() == [1, 2, 3, 0, 2]
    assert DECISION.certain(torch.tensor([0, 1, 2, 3])).T.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]


def stored_logits(folder, values):
    """Logits of a case of 2 × 2 × 2 voxels whose last slice was cut off."""
    case = properties("case", (1, 2, 2), file_shape=(2, 2, 2), full_shape=(2, 2, 2), box=((0, 1), (0, 2), (0, 2)))
    return write_logits(folder, header_of(case, RULES), [Slab(start=0, stop=1, logits=torch.tensor(values))])


def test_outside_of_the_crop_no_region_is_present_and_ensembles_take_the_mean_probability(tmp_path):
    high, low = torch.full((3, 1, 2, 2), 3.0), torch.full((3, 1, 2, 2), -2.0)
    first = stored_logits(tmp_path / "a", high.tolist())
    second = stored_logits(tmp_path / "b", low.tolist())
    alone = label_map((2, 2, 2), first.header.decision, first.slabs())
    assert alone.tolist() == [[[3, 3], [3, 3]], [[0, 0], [0, 0]]]
    mean = next(iter(mean_probabilities([first, second], [None, None]))).logits
    torch.testing.assert_close(mean[:, 0], ((high.sigmoid() + low.sigmoid()) / 2)[:, 0], atol=1e-3, rtol=0)
    assert mean[:, 1].max() < 1e-6
    votes = np.full((2, 2, 2), -1, dtype=np.int16)
    votes[0, 0, 0] = 0
    changed = list(mean_probabilities([first, first], [votes, votes]))
    assert label_map((2, 2, 2), DECISION, changed, probable=True)[0].tolist() == [[0, 3], [3, 3]]


def pair_of(folder, prediction, reference):
    for name, labels in (("prediction", prediction), ("reference", reference)):
        write_nifti(folder / f"{name}.nii.gz", labels, np.eye(4))
    return Pair(
        case="a",
        prediction=folder / "prediction.nii.gz",
        reference=folder / "reference.nii.gz",
        labels=LABELS,
        ignored=9,
    )


def random_pair(folder):
    random = np.random.default_rng(0)
    values = ([0, 1, 2, 3], [0, 1, 2, 3, 9])
    return pair_of(folder, *(random.choice(own, (7, 8, 9)).astype(np.uint8) for own in values))


def test_scores_of_regions_are_those_of_their_masks_and_of_nnunet(tmp_path):
    pair = random_pair(tmp_path)
    cases = Cases(
        dataset="d", root="r", channels=("T1",), labels=LABELS, cases=(), regions=REGIONS, ignore_value=9,
        nsd_tolerance_mm=dict.fromkeys(STRUCTURES, 0.1),
    )  # fmt: skip
    rows = score_pair(pair, targets_of(cases), [METRICS["dsc"], METRICS["hd95"]]).rows
    ours = {name: value for _, name, metric, value in rows if metric == "DSC"}
    assert list(ours) == list(STRUCTURES)
    assert all(0 < value < 2 for _, _, _, value in rows)
    peer = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions", reason=PEER)
    reader = pytest.importorskip("nnunetv2.imageio.simpleitk_reader_writer").SimpleITKIO()
    regions = list(STRUCTURES.values())
    theirs = peer.compute_metrics(str(pair.reference), str(pair.prediction), reader, regions, 9)["metrics"]
    assert ours == pytest.approx({name: theirs[values]["Dice"] for name, values in STRUCTURES.items()})


def test_voxels_of_overlapping_regions_by_hand():
    prediction, reference = np.array([1, 2, 3, 0]), np.array([1, 3, 0, 3])
    both, predicted, referred = label_counts(prediction, reference, list(STRUCTURES.values()))
    assert (both.tolist(), predicted.tolist(), referred.tolist()) == ([2, 1, 0], [3, 2, 1], [3, 2, 2])


def test_components_of_regions_are_tried_one_after_the_other(tmp_path):
    reference = np.zeros((4, 4, 14), dtype=np.uint8)
    reference[:, :, :4] = 1
    reference[1:3, 1:3, 1:3] = 2
    prediction = reference.copy()
    prediction[0, 0, 10] = (
        2  # a false core beside the tumour: it goes with the whole tumour, and no core is left to cut
    )
    found = determine_postprocessing([pair_of(tmp_path, prediction, reference)], STRUCTURES)
    assert found.keep_largest.foreground
    assert found.keep_largest.labels == ()
    kept = determine_postprocessing(
        [pair_of(tmp_path, np.where(prediction == 2, 2, 1).astype(np.uint8), reference)], STRUCTURES
    )
    assert kept.keep_largest.labels == ("tumor core",)


def stored_case():
    """A case whose classes 1, 2 and 3 have 60, 30 and 10 voxels."""
    classes = np.zeros((4, 5, 10), dtype=np.uint8)
    classes.reshape(-1)[:100] = np.repeat([1, 2, 3], [60, 30, 10])
    voxels = tuple(map(int, count_classes(classes, 4)))
    return StoredCase(
        properties=properties("a", classes.shape, class_voxels=voxels),
        image=None,
        labels=classes,
        foreground=sample_foreground(classes, "a"),
        structures=RULES.members,
    )


def test_patches_are_centred_on_a_voxel_of_a_random_region():
    stored, random = stored_case(), np.random.default_rng(0)
    starts = [foreground_start(stored, (1, 1, 1), True, random) for _ in range(6000)]
    drawn = np.bincount([stored.labels[start] for start in starts], minlength=4) / len(starts)
    expected = [0, 60 / 100 / 3, (30 / 100 + 30 / 40) / 3, (10 / 100 + 10 / 40 + 1) / 3]
    np.testing.assert_allclose(drawn, expected, atol=0.025)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"training": Training(loss="dice_focal")}, "training.loss: dice_focal: not in a dataset with regions; set"),
        ({"training": Training(class_weights="inverse_frequency")}, "training.class_weights: not in a dataset with"),
        ({"stage1": ("low",)}, "stage1: not in a dataset with regions"),
    ],
)
def test_keys_that_take_classes_for_granted_are_refused_by_name(keys, words):
    with pytest.raises(UserError, match=words):
        require_supported(RULES, Setting(**({"name": "a", "training": Training(), "network": Network()} | keys)))
