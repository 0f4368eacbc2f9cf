"""The state of a run whose network lies in the stages of a pipeline, as if one process held it all.

A state therefore does not know into how many stages a network was cut: a run may go on with others, or on one device.
"""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.training.run import Run


def whole_state(run: Run) -> dict[str, Any]:
    """`run.state_dict()` with the weights and the optimiser's numbers of all stages.

    All processes call it together; the leading one is given the whole, the others their own part.
    """
    state = run.state_dict()
    if run.pipeline is None:
        return state
    own = {"network": state["network"], "optimizer": _by_name(run, state["optimizer"])}
    weights: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Tensor]] = {}
    for part in _parts_at_leader(run, own):
        weights |= part["network"]
        numbers |= part["optimizer"]
    names = {name: index for index, name in enumerate(run.pipeline.parameter_names)}
    (group,) = state["optimizer"]["param_groups"]
    optimizer = {
        "state": {names[name]: found for name, found in numbers.items()},
        "param_groups": [group | {"params": list(names.values())}],
    }
    return state | {"network": weights, "optimizer": optimizer}


def load_weights(run: Run, state: dict[str, Any]) -> None:
    """Gives a process its own weights and optimiser's numbers out of a whole state."""
    run.network.load_state_dict({name: state["network"][name] for name in run.network.state_dict()})
    optimizer = state["optimizer"]
    if run.pipeline is not None:
        names = {name: index for index, name in enumerate(run.pipeline.parameter_names)}
        own = [names[name] for name, _ in run.network.named_parameters()]
        (group,) = optimizer["param_groups"]
        optimizer = {
            "state": {place: optimizer["state"][index] for place, index in enumerate(own) if optimizer["state"]},
            "param_groups": [group | {"params": list(range(len(own)))}],
        }
    run.optimizer.load_state_dict(optimizer)


def whole_network(run: Run) -> SegmentationNetwork:
    """The trained network; of a pipeline the leading process has it whole, on the CPU, the others keep their stage."""
    if run.pipeline is None:
        return run.network
    state = whole_state(run)
    if not run.group.leads:
        return run.network
    network = SegmentationNetwork(run.plan.network)
    network.load_state_dict(state["network"])
    return network


def _by_name(run: Run, optimizer: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The optimiser's numbers under the names of the weights that they belong to."""
    names = [name for name, _ in run.network.named_parameters()]
    return {names[place]: found for place, found in optimizer["state"].items()}


def _parts_at_leader(run: Run, own: dict[str, Any]) -> list[dict[str, Any]]:
    """What the processes of the first pipeline hold, for the leading process; each of the others has its own."""
    member, parts = run.pipeline, [own]
    packed = io.BytesIO()
    torch.save(own, packed)
    content = torch.frombuffer(packed.getbuffer(), dtype=torch.uint8).to(run.device)
    sizes = [round(size) for size in run.group.all(content.numel())]
    if run.group.leads:
        for stage in range(1, len(member.stages)):
            arrived = member.peers.receive((sizes[stage],), torch.uint8, stage).wait().cpu()
            parts.append(torch.load(io.BytesIO(arrived.numpy().tobytes()), map_location="cpu", weights_only=True))
    elif run.group.rank < len(member.stages):
        member.peers.send(content, 0)
        member.peers.finish()
    return parts
