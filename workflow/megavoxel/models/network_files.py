"""The file of a network in an exported model: PyTorch's weights as they are, or the whole network for another program.

A network for another program is the plain one, in float32, for windows of the plan's size. It is compared with PyTorch
before the model appears.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megavoxel.errors import UserError
from megavoxel.inference.run_times import (
    LOGITS,
    OPENVINO_ROOT,
    OPSET,
    PLAN_HASH,
    RUN_TIMES,
    WINDOW,
    NetworkOfRunTime,
    shapes_of,
)
from megavoxel.planning.plan import Plan

if TYPE_CHECKING:  # PyTorch is loaded when there is something to export
    from torch import nn

    from megavoxel.network.segmentation import SegmentationNetwork

LARGEST_FILE = 2**31 - 2**24
"""Bytes of weights up to which a file of ONNX holds them; those of a larger one lie in a file beside it, since Protocol
Buffers end at 2 GiB."""
ACCEPTED = 1e-4
"""Largest difference from PyTorch's logits, as a share of the largest logit, or of 1."""
PACKAGES_OF_ONNX = ("onnx", "onnxscript")
"""What PyTorch needs to write ONNX."""


@dataclass(frozen=True, kw_only=True)
class NetworkFormat:
    """How the networks of an exported model are kept."""

    suffix: str
    write: Callable[[Plan, Path, Path], None]
    """By the plan, the `model.pt` of a fold, and the file to write."""
    prepare: Callable[[Plan], object] = lambda _: None
    """Refuses, before anything is written, what cannot be."""


def _copy(plan: Plan, weights: Path, target: Path) -> None:
    from megavoxel.network.weights import load_weights

    load_weights(weights, plan_hash=plan.hash)
    shutil.copyfile(weights, target)


def _write_onnx(plan: Plan, weights: Path, target: Path) -> None:
    network = _network(plan, weights)
    _write_program(network, plan, target)
    _compare(network, plan, target, weights)


def _write_openvino(plan: Plan, weights: Path, target: Path) -> None:
    openvino = RUN_TIMES[target.suffix].module()
    network = _network(plan, weights)
    between = target.with_suffix(".onnx")
    _write_program(network, plan, between)
    model = openvino.Core().read_model(between)
    model.set_rt_info(plan.hash, [*OPENVINO_ROOT, PLAN_HASH])
    openvino.save_model(model, target, compress_to_fp16=False)
    for file in target.parent.glob(f"{between.name}*"):
        file.unlink()
    _compare(network, plan, target, weights)


def _prepare(suffix: str) -> Callable[[Plan], object]:
    def prepare(plan: Plan) -> None:
        RUN_TIMES[suffix].module(*PACKAGES_OF_ONNX)
        shapes_of(plan, f"setting {plan.setting}")

    return prepare


FORMATS = {
    "model": NetworkFormat(suffix=".pt", write=_copy),
    "onnx": NetworkFormat(suffix=".onnx", write=_write_onnx, prepare=_prepare(".onnx")),
    "openvino": NetworkFormat(suffix=".xml", write=_write_openvino, prepare=_prepare(".xml")),
}
"""By `--format`."""


def _network(plan: Plan, weights: Path) -> SegmentationNetwork:
    from megavoxel.inference.predict import filled_network
    from megavoxel.network.weights import load_weights

    return filled_network(plan, weights, load_weights(weights, plan_hash=plan.hash)).eval()


def _write_program(network: SegmentationNetwork, plan: Plan, target: Path) -> None:
    """Writes a network as ONNX; weights beyond `LARGEST_FILE` to a file `*.onnx.data` beside it.

    Raises:
        UserError: ONNX cannot express one of its blocks; names it.
    """
    import torch

    window = torch.zeros(shapes_of(plan, target)[0])
    try:
        program = _translated(_finest_logits(network), window)
    except Exception as fault:
        name, told = _first_inexpressible(network, window), " ".join(str(fault).split())[:200]
        raise UserError(
            f"setting {plan.setting}: {f'the block {name}' if name else 'the network'} cannot be expressed in ONNX, "
            f"opset {OPSET} ({told}); leave out --format, and take the model with PyTorch's weights"
        ) from None
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # lines and paths of the source, as they are where the model is made
    model.metadata_props[PLAN_HASH] = plan.hash
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    program.save(target, external_data=size > LARGEST_FILE)


def _finest_logits(network: SegmentationNetwork) -> nn.Module:
    from torch import nn

    class FinestLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, window: Any) -> Any:
            return self.network(window)[0]

    return FinestLogits()


def _translated(module: nn.Module, *inputs: Any) -> Any:
    import torch

    with torch.no_grad(), _in_silence():
        return torch.onnx.export(
            module, inputs, dynamo=True, opset_version=OPSET, input_names=[WINDOW], output_names=[LOGITS], verbose=False
        )


def _first_inexpressible(network: SegmentationNetwork, window: Any) -> str | None:
    """Name of the first block that cannot be translated alone; None: each of them can."""
    import torch

    with torch.no_grad():
        state = network.enter(window)
        for number, block in enumerate(network.program):
            popped = [state.stashed[name] for name in block.pops]
            try:
                _translated(block, state.activation.clone(), *popped)
            except Exception:
                return block.name
            state = network.program.run(state, start=number, stop=number + 1)
    return None


def _compare(network: SegmentationNetwork, plan: Plan, file: Path, weights: Path) -> None:
    """Refuses a file whose logits of noise are not those of PyTorch."""
    import torch

    noise = torch.randn(shapes_of(plan, file)[0], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = network(noise)[0]
    (theirs,) = NetworkOfRunTime(plan, file, torch.get_num_threads())(noise)
    difference = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
    if not difference <= ACCEPTED:  # NaN as well
        raise UserError(
            f"{weights}: in {RUN_TIMES[file.suffix].format} its logits differ by {difference:.2g} of the largest from "
            f"PyTorch's; accepted: {ACCEPTED:g}; leave out --format, and take the model with PyTorch's weights"
        )


@contextmanager
def _in_silence() -> Iterator[None]:
    """Keeps from the user what the exporter says of itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
