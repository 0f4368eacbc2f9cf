"""A batch through the stages of a pipeline: GPipe (Huang et al., arXiv:1811.06965).

Every process of a pipeline holds some consecutive blocks of the network. A batch goes through in equal micro-batches:
all of them forward, then all of them backward, in the opposite order. While a stage works on one, the stage before it
works on the next. Skips go straight from the stage that stashes them to the one that pops them, and so do their
gradients.

Only the first stage reads patches; it sends the targets to the stages that hold heads. The Dice sums of a whole batch
(`batch_dice`) need no forward pass of their own: before the first backward pass the logits of all micro-batches are
there.

Autograd keeps the storage of every leaf and of every root for as long as its graph lives. But a received skip is needed
only until it is joined to an activation, and a sent tensor only until it has arrived. So neither is a leaf or a root
here (`as_received`, `backward_root`): its memory is given up as soon as no block's backward pass needs it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.profiler import record_function

from megavoxel.distributed.pipeline import Arrival, PipelineMember
from megavoxel.network.device import to_device
from megavoxel.network.partition import ACTIVATION, Transfer, tensor_of
from megavoxel.network.program import RunState
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.training.annotation import sent_target_dtype
from megavoxel.training.loss import counted_voxels, mean_count
from megavoxel.training.run import Run
from megavoxel.training.soft_dice import dice_sums_of_batch
from megavoxel.training.sum_loss import sums_of_whole
from megavoxel.training.supervision import Loss, downsample_target, supervised_loss, supervision_weights

GivenGradient = Callable[[], Tensor]
"""Gives the gradient that has come back for a tensor, called once. It may be overwritten."""


def as_received(tensor: Tensor, transfer: Transfer, gradients: dict[Transfer, Tensor]) -> Tensor:
    """The tensor, which is no leaf of the graph; the backward pass puts its gradient into `gradients`."""
    if not torch.is_grad_enabled():
        return tensor
    return _AsReceived.apply(tensor, torch.empty(0, requires_grad=True), transfer, gradients)


def backward_root(tensor: Tensor, gradient: GivenGradient) -> Tensor:
    """A scalar from which a backward pass begins with `gradient`; it does not keep the tensor's memory."""
    return _BackwardRoot.apply(tensor, gradient)


def add_gradient(tensor: Tensor, gradient: GivenGradient) -> None:
    """Adds `gradient` to what the backward pass finds for a tensor that the stage goes on to use itself.

    In the memory of the one that came, where autograd would make a third tensor of their size.
    """
    tensor.register_hook(lambda own: gradient().add_(own))


class _AsReceived(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, _: Tensor, transfer: Transfer, gradients: dict[Transfer, Tensor]) -> Tensor:
        ctx.transfer, ctx.gradients = transfer, gradients
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        ctx.gradients[ctx.transfer] = gradient
        return None, None, None, None


class _BackwardRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gradient: GivenGradient) -> Tensor:
        ctx.gradient = gradient
        return tensor.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient(), None


FORWARD, BACKWARD = "micro-batch {} forward", "micro-batch {} backward"
"""Names in a profiler's trace; a backward pass includes waiting for its gradient."""


@dataclass(kw_only=True)
class Held:
    """What a stage keeps of a micro-batch between its forward and its backward pass, besides autograd's graph."""

    gradients: dict[Transfer, Tensor]
    """Gradients of the received tensors, as the backward pass finds them."""
    roots: list[Tensor]
    """Scalars that the backward pass begins from, besides the loss."""
    logits: dict[int, Tensor]
    """Logits of the stage's own heads, by level: (samples, classes, z, y, x) without padding."""
    target: Tensor | None
    """(samples, z, y, x), where the stage has heads."""


def forward_and_backward(run: Run, image: Tensor, target: Tensor) -> Tensor:
    """Adds the gradients of a process's share of a batch to its stage; returns the loss of its heads, detached.

    Args:
        run: with a pipeline.
        image: float32 (samples, channels, z, y, x), read by the first stage alone.
        target: (samples, z, y, x), the same, as `encode_target` gives it.
    """
    count = run.plan.parallel.accumulate
    values = [
        _backward(run, _forward(run, part, own), parts=count)
        for part, own in zip(_chunks(run, image, count), _chunks(run, target, count), strict=True)
    ]
    run.pipeline.peers.finish()
    return torch.stack(values).sum()


@torch.no_grad()
def finest_logits(run: Run, image: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Loss, logits and target of each micro-batch at full resolution; empty in stages that do not hold that head."""
    results = []
    count = run.plan.parallel.accumulate
    for part, own in zip(_chunks(run, image, count), _chunks(run, target, count), strict=True):
        held = _forward(run, part, own)
        losses = _losses(run, held)
        if 0 in losses:
            results += [(losses[0](one.logits[0], one.target), one.logits[0], one.target) for one in held]
    run.pipeline.peers.finish()
    return results


def _chunks(run: Run, tensor: Tensor, count: int) -> Sequence[Tensor]:
    """Equal parts of what the first stage reads; the others have nothing to cut."""
    return tensor.chunk(count) if run.pipeline.stage.number == 0 else [tensor] * count


def _forward(run: Run, image: Tensor, target: Tensor) -> list[Held]:
    """All micro-batches forward, each sent on as soon as it is done."""
    count = run.plan.parallel.micro_batches
    images, targets = _chunks(run, image, count), _chunks(run, target, count)
    expected = [_expect(run)]
    held = []
    with run.precision.casting_once(run.device):
        for number in range(count):
            if number + 1 < count:  # asked for before the stage is busy with the one that has arrived
                expected.append(_expect(run))
            held.append(_run_micro_batch(run, number, expected.pop(0), images[number], targets[number]))
    return held


def _expect(run: Run) -> dict[Transfer | None, Arrival]:
    """Begins to receive a micro-batch; the target stands under None."""
    member, plan = run.pipeline, run.plan
    arrivals: dict[Transfer | None, Arrival] = {}
    if member.stage.number > 0 and member.stage.number in member.head_stages:
        shape = (plan.batch // plan.parallel.parts, *plan.patch)
        arrivals[None] = member.peers.receive(shape, sent_target_dtype(run.plan), 0)
    for transfer in member.stage.receives:
        arrivals[transfer] = member.peers.expect(member.specs[transfer], transfer.source)
    return arrivals


def _run_micro_batch(
    run: Run, number: int, arrivals: dict[Transfer | None, Arrival], image: Tensor, target: Tensor
) -> Held:
    member = run.pipeline
    gradients: dict[Transfer, Tensor] = {}
    if member.stage.number == 0:
        state = run.network.enter(to_device(image, run.device, run.kernels.memory_format))
        own = target.to(run.device, non_blocking=True)
        for stage in member.head_stages:
            if stage > 0:
                member.peers.send(own.to(sent_target_dtype(run.plan)), stage)
    else:
        own = arrivals.pop(None).wait() if None in arrivals else None
        state = _arrived_state(member, arrivals, gradients)
    with record_function(FORWARD.format(number)), run.precision.autocast(run.device):
        state = run.network.program.run(state, again=run.network.again)
    roots = _send(member, state)
    own = own if member.stage.number in member.head_stages else None
    return Held(gradients=gradients, roots=roots, logits=_own_logits(run, state), target=own)


def _arrived_state(
    member: PipelineMember, arrivals: dict[Transfer, Arrival], gradients: dict[Transfer, Tensor]
) -> RunState:
    """What other stages have sent, emptied from `arrivals`."""
    tensors = {}
    for transfer in list(arrivals):
        tensor = arrivals.pop(transfer).wait()
        needs_gradient = member.specs[transfer].needs_gradient
        tensors[transfer.name] = as_received(tensor, transfer, gradients) if needs_gradient else tensor
    return RunState(activation=tensors.pop(ACTIVATION), stashed=tensors)


def _send(member: PipelineMember, state: RunState) -> list[Tensor]:
    """Sends what leaves the stage, and has its gradients received when the backward pass gets there.

    Not before: the gradient of the largest skip would lie there while the deeper levels run. The backward pass wants
    them in the order of `PipelineStage.sends`, in which they are sent.

    Returns what the backward pass begins from. That is the activation; on its way there every skip was used.
    """
    roots = []
    for transfer in member.stage.sends:
        tensor, spec = tensor_of(state, transfer.name), member.specs[transfer]
        member.peers.send(tensor, transfer.target, channels_last=spec.channels_last)
        if tensor.requires_grad:
            gradient = partial(_gradient_of, member, transfer)
            if transfer.name == ACTIVATION:
                roots.append(backward_root(tensor, gradient))
            else:
                add_gradient(tensor, gradient)
    return roots


def _gradient_of(member: PipelineMember, transfer: Transfer) -> Tensor:
    """What comes back for something that was sent."""
    return member.peers.expect(member.specs[transfer], transfer.target).wait()


def _own_logits(run: Run, state: RunState) -> dict[int, Tensor]:
    return run.network.logits_by_level(state, run.plan.patch)


def _losses(run: Run, held: Sequence[Held]) -> dict[int, Loss]:
    """The loss of each of the stage's heads for a micro-batch, by level, from the logits of all micro-batches."""
    levels = list(held[0].logits)
    if not (run.plan.training.batch_dice or run.outputs.ignores):
        return dict.fromkeys(levels, run.loss())
    return {level: _loss_of_level(run, held, level) for level in levels}


@torch.no_grad()
def _loss_of_level(run: Run, held: Sequence[Held], level: int) -> Loss:
    """The loss with what it takes from the whole batch: Dice sums, and how many voxels are annotated."""
    stride, replicas = run.network.shape.logits_strides[level], run.pipeline.replicas
    pairs = [(one.logits[level], downsample_target(one.target, stride)) for one in held]
    complete, counted = None, None
    if run.plan.training.batch_dice:
        sums = [dice_sums_of_batch(*pair, run.annotated, run.outputs) for pair in pairs]
        whole = replicas.sum(torch.stack(sums).sum(dim=0))
        complete = partial(sums_of_whole, whole=whole, parts=len(held) * replicas.size)
    if run.outputs.ignores:
        counts = [counted_voxels(target, run.outputs, run.plan.network.classes) for _, target in pairs]
        samples = sum(len(target) for _, target in pairs) * replicas.size
        counted = mean_count(replicas.sum(torch.stack(counts).sum()), samples)
    return run.loss(complete, counted=counted)


def _backward(run: Run, held: list[Held], *, parts: int) -> Tensor:
    """All micro-batches backward, the last one first; returns their loss in one of `parts` equal parts of a batch."""
    member, losses, share = run.pipeline, _losses(run, held), len(held) * parts
    member.peers.finish()  # no gradient comes back before all that was sent has arrived; its memory is needed now
    values = [torch.zeros((), device=run.device)]
    run.scaler.scale(values[0])  # where a stage has no loss to scale, the scaler would have no scale
    while held:
        one = held.pop()
        roots = one.roots
        if losses:
            loss = _weighted(run, one, losses) / share
            values.append(loss.detach())
            roots = [*roots, run.scaler.scale(loss)]
            del loss
        with record_function(BACKWARD.format(len(held))):
            torch.autograd.backward(roots)
        for way in member.stage.receives:
            if member.specs[way].needs_gradient:
                member.peers.send(one.gradients.pop(way), way.source, channels_last=member.specs[way].channels_last)
    return torch.stack(values).sum()


def _weighted(run: Run, one: Held, losses: dict[int, Loss]) -> Tensor:
    """The stage's share of the loss over all levels."""
    shape = run.network.shape
    weights = dict(zip(shape.supervised_levels, supervision_weights(len(shape.supervised_levels)), strict=True))
    return supervised_loss(
        list(losses.values()),
        [one.logits[level] for level in losses],
        one.target,
        [shape.logits_strides[level] for level in losses],
        [weights[level] for level in losses],
    )


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
