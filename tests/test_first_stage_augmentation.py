"""Random faults of first-stage label maps: against SciPy with explicit balls, on maps that can be counted, and against
batchgeneratorsv2, which nnU-Net's trainer uses, where it is installed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from megavoxel.config.training import Augmentation
from megavoxel.training.first_stage_augmentation import (
    RADII,
    augment_first_stage,
    change_shape,
    closing,
    dilation,
    erosion,
    opening,
    remove_components,
)

OPERATIONS = (dilation, erosion, opening, closing)
DRAWS = 3000


def ball(radius: float) -> np.ndarray:
    """The voxels at most `radius` from the centre of a cube with an odd number of voxels per axis."""
    reach = int(radius)
    z, y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1]
    return z**2 + y**2 + x**2 <= radius**2


def by_scipy(operation, mask: np.ndarray, radius: float) -> np.ndarray:
    """The operation with an explicit ball; outside of the array everything is background to a dilation, and foreground
    to an erosion."""

    def dilated(voxels: np.ndarray) -> np.ndarray:
        return ndimage.binary_dilation(voxels, ball(radius))

    def eroded(voxels: np.ndarray) -> np.ndarray:
        return ndimage.binary_erosion(voxels, ball(radius), border_value=1)

    steps = {dilation: [dilated], erosion: [eroded], opening: [eroded, dilated], closing: [dilated, eroded]}
    for step in steps[operation]:
        mask = step(mask)
    return mask


def blobs(seed: int, shape: tuple[int, ...] = (19, 24, 22), labels: int = 3) -> np.ndarray:
    """Labels of smooth shapes, some of which touch the border."""
    noise = np.random.default_rng(seed).normal(size=(labels + 1, *shape))
    return ndimage.gaussian_filter(noise, (0, 2, 2, 2)).argmax(axis=0).astype(np.uint8)


def whole(classes: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in classes.shape)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("radius", [1.0, 1.5, 2.0, 4.5, 7.5])
def test_operations_are_those_of_scipy_with_a_ball(operation, radius):
    for seed in range(3):
        mask = blobs(seed) == 1
        assert 0 < mask.sum() < mask.size / 2
        for voxels in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
            np.testing.assert_array_equal(operation(voxels, radius), by_scipy(operation, voxels, radius))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("corner", [(0, 0, 0), (13, 7, 9), (3, 12, 0)])
def test_a_small_box_around_a_label_gives_what_the_whole_map_gives(operation, corner):
    part = (blobs(5, (11, 10, 9), labels=1) == 1).astype(np.uint8)
    classes = np.zeros((24, 22, 18), dtype=np.uint8)
    box = tuple(slice(first, first + size) for first, size in zip(corner, part.shape, strict=True))
    classes[box] = part
    for radius in RADII:
        changed = classes.copy()
        change_shape(changed, 1, box, operation, radius)
        np.testing.assert_array_equal(changed, by_scipy(operation, classes == 1, radius))


def test_a_label_gains_from_others_and_loses_to_the_background():
    classes = np.array([1, 1, 1, 2, 2, 0, 0, 3], dtype=np.uint8).reshape(1, 1, 8)
    grown, shrunk = classes.copy(), classes.copy()
    change_shape(grown, 2, whole(classes), dilation, 2.0)
    np.testing.assert_array_equal(grown.ravel(), [1, 2, 2, 2, 2, 2, 2, 3])
    change_shape(shrunk, 1, whole(classes), erosion, 1.5)
    np.testing.assert_array_equal(shrunk.ravel(), [1, 1, 0, 2, 2, 0, 0, 3])


def test_the_probabilities_of_dilation_erosion_opening_and_closing():
    """A voxel by itself grows when dilated, goes when eroded or opened, and stays when closed."""
    labels = np.zeros((1, 17, 17, 17), dtype=np.uint8)
    labels[0, 8, 8, 8] = 1
    keys, random = Augmentation(stage1_morphology=0.4, stage1_removal=0.0), np.random.default_rng(0)
    sizes = Counter(int(augment_first_stage(labels, keys, random).sum()) for _ in range(DRAWS))
    assert_probability(sizes[0], 0.4 * 0.5 * 2 / 4)
    assert_probability(sizes[1], 1 - 0.4 * 0.5 * 3 / 4)
    balls = {int(ball(radius).sum()) for radius in RADII}
    assert set(sizes) == {0, 1, *balls}
    for size in balls:
        assert_probability(sizes[size], 0.4 * 0.5 / 4 / len(RADII))


def test_the_probability_that_a_component_is_removed():
    labels = np.zeros((1, 5, 5, 5), dtype=np.uint8)
    labels[0, 0, 0, 0] = labels[0, 2, 2, 2] = 1
    labels[0, 4, 4, 4] = 2
    keys, random = Augmentation(stage1_morphology=0.0, stage1_removal=0.2), np.random.default_rng(0)
    left = Counter()
    for _ in range(DRAWS):
        found = augment_first_stage(labels, keys, random)[0]
        left[int(found[0, 0, 0]), int(found[2, 2, 2]), int(found[4, 4, 4])] += 1
    assert_probability(left[1, 1, 2], 0.8 + 0.2 * 0.25)
    assert_probability(left[0, 1, 2], 0.2 * 0.125)
    assert_probability(left[1, 0, 2], 0.2 * 0.125)
    assert_probability(left[1, 1, 0], 0.2 * 0.25)
    assert_probability(left[0, 1, 0], 0.2 * 0.125)
    assert (left[0, 0, 0], left[0, 0, 2]) == (0, 0)


@pytest.mark.parametrize(("voxels", "goes"), [(149, True), (150, False), (151, False)])
def test_a_component_of_15_percent_of_the_patch_stays(voxels, goes):
    classes = np.zeros(1000, dtype=np.uint8)
    classes[:voxels] = 1
    classes = classes.reshape(10, 10, 10)
    left = set()
    for seed in range(30):
        changed = classes.copy()
        remove_components(changed, np.random.default_rng(seed))
        left.add(int(changed.sum()))
    assert left == ({voxels, 0} if goes else {voxels})


def test_voxels_that_touch_at_a_corner_go_together():
    classes = np.zeros((4, 4, 4), dtype=np.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = 1
    left = set()
    for seed in range(30):
        changed = classes.copy()
        remove_components(changed, np.random.default_rng(seed))
        left.add(int(changed.sum()))
    assert left == {0, 2}


def test_every_branch_has_draws_of_its_own():
    labels = np.zeros((2, 5, 5, 5), dtype=np.uint8)
    labels[:, 2, 2, 2] = 1
    keys, random = Augmentation(stage1_morphology=0.0, stage1_removal=1.0), np.random.default_rng(0)
    left = Counter(tuple(augment_first_stage(labels, keys, random).sum((1, 2, 3))) for _ in range(DRAWS))
    for state in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert_probability(left[state], 0.25)


def test_the_result_is_a_function_of_the_generator_and_the_input_is_left_alone():
    labels = np.stack([blobs(0), blobs(1)])
    before, keys = labels.copy(), Augmentation(stage1_morphology=1.0, stage1_removal=1.0)
    first, again, other = (augment_first_stage(labels, keys, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(labels, before)
    assert (first != other).any()
    assert (first != labels).any()
    assert first.dtype == np.uint8


def test_nothing_happens_at_probability_zero_or_without_labels():
    never, always = (Augmentation(stage1_morphology=p, stage1_removal=p) for p in (0.0, 1.0))
    labels = blobs(0)[None]
    np.testing.assert_array_equal(augment_first_stage(labels, never, np.random.default_rng(0)), labels)
    np.testing.assert_array_equal(augment_first_stage(labels * 0, always, np.random.default_rng(0)), labels * 0)


@pytest.mark.parametrize("name", ["dilation", "erosion", "opening", "closing"])
def test_the_same_operations_one_after_the_other_give_what_batchgeneratorsv2_gives(name):
    """Same labels, order and radii: their one-hot channels are our map."""
    torch = pytest.importorskip("torch")
    theirs = peer("random_binary_operator")
    operation = {function.__name__: function for function in OPERATIONS}[name]
    chosen = {"apply_to_channels": [2, 0, 1], "strel_size": [3, 1, 4]}
    chosen["operators"] = [getattr(theirs, f"binary_{name}_torch")] * 3
    for seed in range(3):
        classes = blobs(seed)
        onehot = torch.from_numpy(np.stack([classes == label for label in (1, 2, 3)]).astype(np.float32))
        expected = theirs.ApplyRandomBinaryOperatorTransform([0, 1, 2])._apply_to_image(onehot, **chosen).numpy()
        for channel, radius in zip(chosen["apply_to_channels"], chosen["strel_size"], strict=True):
            change_shape(classes, channel + 1, whole(classes), operation, float(radius))
        assert expected.sum(axis=0).max() == 1
        np.testing.assert_array_equal(classes, (expected * np.array([1, 2, 3]).reshape(3, 1, 1, 1)).sum(axis=0))


def test_balls_are_as_large_as_those_that_nnunet_draws():
    footprints = pytest.importorskip("skimage.morphology", reason="scikit-image comes with batchgeneratorsv2, a peer")
    drawn = Counter(footprints.ball(radius).shape[0] for radius in np.arange(1.05, 8, 0.1))
    np.testing.assert_array_equal(sorted(drawn), 2 * RADII + 1)
    assert set(drawn.values()) == {5}


def test_states_are_as_frequent_as_with_the_transforms_of_nnunets_trainer():
    """A voxel of label 1 by itself, two of label 2: how often each is grown, gone or as it was."""
    torch = pytest.importorskip("torch")
    operators, removal = peer("random_binary_operator"), peer("remove_connected_components")
    random_transform = pytest.importorskip("batchgeneratorsv2.transforms.utils.random").RandomTransform
    shapes = operators.ApplyRandomBinaryOperatorTransform([0, 1], strel_size=(1, 8), p_per_label=0.5)
    components = removal.RemoveRandomConnectedComponentFromOneHotEncodingTransform([0, 1], 0, 0.15, 0.5)
    steps = [random_transform(shapes, apply_probability=0.4), random_transform(components, apply_probability=0.2)]
    labels = np.zeros((1, 9, 9, 9), dtype=np.uint8)
    labels[0, 2, 2, 2] = 1
    labels[0, 6, 6, 6] = labels[0, 6, 2, 6] = 2
    onehot = torch.from_numpy(np.concatenate([labels == 1, labels == 2]).astype(np.float32))
    random, ours, theirs, draws = np.random.default_rng(0), Counter(), Counter(), 1500
    torch.manual_seed(0)
    np.random.seed(0)
    for _ in range(draws):
        found = augment_first_stage(labels, Augmentation(), random)[0]
        ours[state(int((found == 1).sum()), int((found == 2).sum()))] += 1
        sample = {"image": onehot.clone()}
        for step in steps:
            sample = step(**sample)
        theirs[state(*(int(channel.sum()) for channel in sample["image"]))] += 1
    assert len(ours) > 5
    for seen in set(ours) | set(theirs):
        share = (ours[seen] + theirs[seen]) / (2 * draws)
        assert abs(ours[seen] - theirs[seen]) < 4 * (2 * draws * share * (1 - share)) ** 0.5 + 4, seen


def state(first: int, second: int) -> tuple[str, str]:
    """What became of a label of one voxel and of one of two."""
    return (("gone", "there", "grown")[min(first, 2)], ("gone", "half", "there", "grown")[min(second, 3)])


def peer(name: str):
    """A module of batchgeneratorsv2 with transforms of cascades."""
    return pytest.importorskip(
        f"batchgeneratorsv2.transforms.nnunet.{name}", reason="batchgeneratorsv2 is a peer, not a dependency"
    )


def assert_probability(count: int, expected: float) -> None:
    """A count of `DRAWS` is within four standard deviations of what is expected."""
    assert abs(count - DRAWS * expected) < 4 * (DRAWS * expected * (1 - expected)) ** 0.5
