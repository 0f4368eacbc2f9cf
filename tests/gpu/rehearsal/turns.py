"""Windows in tiles in turn on a pretended GPU, and whole windows on the CPU: run by `rehearsal.py`.

python turns.py FOLDER prints a line of JSON for each precision.
"""

from __future__ import annotations

import json
from dataclasses import replace
from unittest.mock import patch

import torch
from pretended_tensor import PretendedTensor, memory
from variants import plan_of

from megavoxel.config.setting import Inference
from megavoxel.forecast.window import window_costs
from megavoxel.inference.predict import CasePredictor
from megavoxel.network.segmentation import SegmentationNetwork

SHAPE = (28, 64, 60)
TILES = (1, 2, 2)


def told(precision: str) -> dict[str, object]:
    """The logits of an image beside those of the CPU, and the memory of the GPU beside its forecast."""
    inference = Inference(window="whole", mirror=False, tiles=TILES)
    plan = replace(plan_of({"network": {"squeeze_excitation": 4}}), inference=inference)
    network = SegmentationNetwork(plan.network, seed=1)
    image = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)).numpy()
    at_once = CasePredictor(
        replace(plan, inference=Inference(window="whole", mirror=False)), [network], precision, torch.device("cpu")
    )
    wanted = torch.cat([slab.logits.clone() for slab in at_once.slabs(image)], dim=1)
    network = SegmentationNetwork(plan.network, seed=1)
    in_turn = CasePredictor(plan, [network], precision, torch.device("cuda:0"))
    memory.reset_peak(0)
    with patch.object(torch, "inference_mode", torch.no_grad):  # tensors that pretend cannot be sliced in it
        slabs = list(in_turn.slabs(image))
    found = torch.cat([slab.logits for slab in slabs], dim=1)
    (cost,) = window_costs(plan, (28, 64, 60), networks=1, precision=precision)
    return {
        "on_gpu": all(isinstance(value, PretendedTensor) for value in network.parameters()),
        "on_host": not any(isinstance(slab.logits, PretendedTensor) for slab in slabs),
        "apart": float((found - wanted).abs().max() / wanted.abs().max()),
        "bytes": memory.peak[0],
        "foretold": cost.peak_bytes,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in ("float32", "bfloat16"):
        print(json.dumps({"name": name, **told(name)}), flush=True)
