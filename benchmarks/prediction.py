"""Seconds and memory of predicting one image on the CPU, against nnU-Net's predictor with the same weights.

From a preprocessed array of 1 mm voxels to the label map on the image's own grid of 128 x 256 x 256 voxels
(1.2 x 0.7 x 0.7 mm): windows of 64 x 96 x 96, half a window apart, Gaussian weights, all eight mirrored versions,
logits resampled, largest class. The network is nnU-Net's plain U-Net with 8, 16, 32 and 64 features and random weights.
Times: ours in the precision that it would choose for training here, and in float32 like theirs, in turns, each in a
process of its own. Memory: how far the peak of a fresh process rises.
Both in float32: the share of voxels with another label; their sums are kept in float16.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from benchmarks.made import made_plan
from benchmarks.measure import Row, in_process, larger_is_better, peak_mib, peer, seconds_of, smaller_is_better
from megavoxel.inference.logits import header_of, label_map, write_logits
from megavoxel.inference.predict import CasePredictor
from megavoxel.inference.sliding_window import gaussian_weights, outer_product
from megavoxel.network.device import choose_precision
from megavoxel.network.host_memory import return_large_tensors
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.planning.plan import Plan
from megavoxel.preprocessing.store import CaseProperties
from megavoxel.volumes.grid import resampled_shape, window_starts

CPU = torch.device("cpu")
SHAPE, SPACING = (128, 256, 256), (1.2, 0.7, 0.7)
NETWORK_SPACING = (1.0, 1.0, 1.0)
PATCH = (64, 96, 96)
LABELS = {f"organ-{number}": number for number in range(1, 5)}
REPEATS = 2
ACCEPTED_SHARE = 1e-3
"""Share of voxels whose label may differ from nnU-Net's."""
ACCEPTED_DIFFERENCE = 1e-3
"""Largest difference of Gaussian weights with peak 1; nnU-Net keeps them in float16."""


def run() -> list[Row]:
    """Rows for time, memory, labels, weights of a window and the places of windows."""
    predictor = peer("nnunetv2")
    name = in_process(precision_name)
    turns = [
        (in_process(our_seconds, name), in_process(our_seconds, "float32"), in_process(their_seconds))
        for _ in range(REPEATS)
    ]
    chosen, exact, theirs = (statistics.median(own) for own in zip(*turns, strict=True))
    our_memory, _ = in_process(ours_once, name)
    their_memory, their_labels = in_process(theirs_once)
    exact_memory, our_labels = in_process(ours_once, "float32")
    share = float((our_labels != their_labels).mean())
    starts, weights = window_differences()
    title = "prediction of 128 × 256 × 256 voxels, 5 classes"
    return [
        smaller_is_better(f"{title}, {name} as chosen", predictor, chosen, theirs, "s"),
        smaller_is_better(f"{title}, float32", predictor, exact, theirs, "s"),
        smaller_is_better(f"{title}, memory beyond the process at rest", predictor, our_memory, their_memory, "MiB"),
        smaller_is_better(
            f"{title}, float32, memory beyond the process at rest", predictor, exact_memory, their_memory, "MiB"
        ),
        smaller_is_better(
            "label map in float32: share of other labels", "own bound", max(share, 1e-9), ACCEPTED_SHARE, "1"
        ),
        smaller_is_better("Gaussian weights: largest difference", "own bound", weights, ACCEPTED_DIFFERENCE, "1"),
        larger_is_better("sizes with the same windows", predictor, 1 - starts, 1.0, "1"),
    ]


def make_plan() -> Plan:
    """The setting with which both predict."""
    return made_plan("prediction", patch=PATCH, labels=LABELS, features=(8, 16, 32, 64), batch=2)


def make_image() -> np.ndarray:
    """A preprocessed image, float32 (1, z, y, x): noise, smooth over a few voxels."""
    shape = resampled_shape(SHAPE, SPACING, NETWORK_SPACING)
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape).astype(np.float32), 3)
    return (image / image.std())[None]


def precision_name() -> str:
    """The precision that a training of this plan would choose here."""
    return choose_precision(make_plan(), CPU).name


def our_prediction(image: np.ndarray, precision: str, folder: Path) -> Callable[[], np.ndarray]:
    """A function that predicts once, its logits in `folder`."""
    return_large_tensors()  # as the stage does
    plan = make_plan()
    network = SegmentationNetwork(plan.network)
    save_weights(folder / "model.pt", network, plan_hash=plan.hash, precision=precision)
    predictor = CasePredictor.from_files(plan, [folder / "model.pt"], CPU)
    case = CaseProperties(
        case="case", file_shape=SHAPE[::-1], affine=tuple(map(tuple, np.diag([*SPACING[::-1], 1.0]).tolist())),
        full_shape=SHAPE, box=tuple((0, size) for size in SHAPE), spacing=SPACING, shape=image.shape[1:],
    )  # fmt: skip
    header = header_of(case, plan.preprocessing)

    def predict() -> np.ndarray:
        logits = write_logits(folder, header, predictor.slabs(image))
        return label_map(logits.canonical_shape, logits.header.decision, logits.slabs())

    return predict


def their_prediction(image: np.ndarray) -> Callable[[], np.ndarray]:
    """A function by which nnU-Net predicts once, with the same weights."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans, dataset = their_plans()
    configuration = plans.get_configuration("3d_fullres")
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(perform_everything_on_device=False, device=CPU, allow_tqdm=False)
    network = their_network()
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], dataset, "nnUNetTrainer", (0, 1, 2)
    )
    case = {
        "spacing": SPACING,
        "shape_after_cropping_and_before_resampling": SHAPE,
        "shape_before_cropping": SHAPE,
        "bbox_used_for_cropping": [[0, size] for size in SHAPE],
    }
    data = torch.from_numpy(image)

    def predict() -> np.ndarray:
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            predictor.predict_logits_from_preprocessed_data(data),
            plans, configuration, predictor.label_manager, case, num_threads_torch=torch.get_num_threads(),
        )  # fmt: skip

    return predict


def their_plans():
    """nnU-Net's plans with what its predictor reads, and its dataset file."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = {
        "architecture": {}, "patch_size": PATCH, "spacing": NETWORK_SPACING,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }  # fmt: skip
    plans = {
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
    }  # fmt: skip
    return PlansManager(plans), {"labels": {"background": 0, **LABELS}}


def their_network() -> nn.Module:
    """nnU-Net's plain U-Net with the weights of ours."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    plan = make_plan().network
    levels = len(plan.features)
    theirs = PlainConvUNet(
        plan.channels, levels, plan.features, nn.Conv3d, plan.kernels, plan.strides, (2,) * levels, plan.classes,
        (2,) * (levels - 1), True, nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU,
        {"inplace": True}, deep_supervision=False,
    )  # fmt: skip
    ours = SegmentationNetwork(plan)
    unused = set(theirs.decoder.seg_layers[:-1])
    for kind in (nn.Conv3d, nn.InstanceNorm3d, nn.ConvTranspose3d):
        found = [[m for m in one.modules() if isinstance(m, kind) and m not in unused] for one in (ours, theirs)]
        for mine, other in zip(*found, strict=True):
            other.load_state_dict(mine.state_dict())
    return theirs


def our_seconds(precision: str) -> float:
    """Seconds of the second of two predictions, in this process, whose allocator is set for it."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds_of_second(our_prediction(make_image(), precision, Path(folder)))


def their_seconds() -> float:
    """Seconds of the second of two predictions by nnU-Net."""
    return seconds_of_second(their_prediction(make_image()))


def seconds_of_second(predict: Callable[[], np.ndarray]) -> float:
    """Seconds of the second call."""
    predict()
    return seconds_of(predict)


def ours_once(precision: str) -> tuple[float, np.ndarray]:
    """MiB that the process grows by while it predicts once, and the label map."""
    with tempfile.TemporaryDirectory() as folder:
        return measured(our_prediction(make_image(), precision, Path(folder)))


def theirs_once() -> tuple[float, np.ndarray]:
    """MiB that the process grows by while nnU-Net predicts once, and the label map."""
    return measured(their_prediction(make_image()))


def measured(predict: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Peak memory in MiB beyond that just before, and the prediction."""
    before = peak_mib()
    labels = predict()
    return peak_mib() - before, labels


def window_differences() -> tuple[float, float]:
    """Share of random sizes, patches and steps with windows elsewhere; largest difference of window weights."""
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

    random, others = np.random.default_rng(0), 0
    for _ in range(1000):
        patch, step = int(random.integers(8, 200)), float(random.uniform(0.1, 1.0))
        size = patch + int(random.integers(0, 500))
        others += window_starts(size, patch, step) != compute_steps_for_sliding_window((size,), (patch,), step)[0]
    theirs = compute_gaussian(PATCH, device=CPU).float()
    ours = outer_product([gaussian_weights(size, 1 / 8) for size in PATCH])
    return others / 1000, float((ours - theirs).abs().max())
