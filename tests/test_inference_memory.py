"""No step from an image to its label map makes a tensor of classes × volume, however long the image is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import properties, tiny_plan
from megavoxel.config.setting import Inference
from megavoxel.inference import logits, sliding_window
from megavoxel.inference.ensemble import mean_probabilities
from megavoxel.inference.logits import header_of, label_map, write_logits
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights

DEPTH, FULL_DEPTH = 64, 80
PLANE = (12, 12)
CLASSES = 3


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keys=None):
        result = function(*arguments, **(keys or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.fixture
def predictor(tmp_path, monkeypatch) -> CasePredictor:
    plan = tiny_plan(inference=Inference(mirror=False))
    weights = tmp_path / "model.pt"
    save_weights(weights, SegmentationNetwork(plan.network), plan_hash=plan.hash, precision="float32")
    for module in (sliding_window, logits):
        monkeypatch.setattr(module, "SLAB_BYTES", 4 * CLASSES * 6 * PLANE[0] * PLANE[1])
    return CasePredictor.from_files(plan, [weights], torch.device("cpu"))


def test_memory_is_bounded_by_a_row_of_windows_and_a_slab(predictor, tmp_path):
    image = np.random.default_rng(0).normal(size=(1, DEPTH, *PLANE)).astype(np.float32)
    case = properties("a", (FULL_DEPTH, *PLANE), shape=(DEPTH, *PLANE), spacing=(DEPTH / FULL_DEPTH, 1.0, 1.0))
    header = header_of(case, predictor.plan.preprocessing)
    everything = CLASSES * DEPTH * PLANE[0] * PLANE[1]
    with LargestTensor() as largest:
        stored = write_logits(tmp_path / "logits", header, predictor.slabs(image))
    # More than a row of windows has the network's first level: eight features of one window, where the skip joins in.
    assert largest.elements <= 8 * predictor.plan.patch[0] * PLANE[0] * PLANE[1] < everything / 2
    with LargestTensor() as largest:
        label_map(stored.canonical_shape, header.decision, stored.slabs())
        label_map(stored.canonical_shape, header.decision, mean_probabilities([stored, stored], [None, None]))
    # Source rows of a slab of 6, one more on each side.
    assert largest.elements <= CLASSES * 8 * PLANE[0] * PLANE[1] < everything / 7


def test_slabs_are_no_larger_than_they_may_be(predictor):
    image = np.zeros((1, DEPTH, *PLANE), dtype=np.float32)
    sizes = [slab.logits.nbytes for slab in predictor.slabs(image)]
    assert max(sizes) <= sliding_window.SLAB_BYTES
    assert sum(sizes) == 4 * CLASSES * DEPTH * PLANE[0] * PLANE[1]
