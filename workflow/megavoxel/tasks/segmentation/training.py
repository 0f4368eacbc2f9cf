"""Training of a segmentation network, phase by phase where the plan has a curriculum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megavoxel.config.setting import StartFile
from megavoxel.distributed.group import Group
from megavoxel.distributed.pipeline import join_pipeline
from megavoxel.distributed.space import join_space
from megavoxel.errors import UserError
from megavoxel.files import content_hash
from megavoxel.network.compiled import compile_norms
from megavoxel.network.device import TYPES, Precision, choose_precision
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import load_weights
from megavoxel.planning.plan import Plan
from megavoxel.tasks.segmentation.data import VolumeData, warn_of_silenced_classes, warn_of_what_is_not_taught
from megavoxel.training.annotation import annotation_table
from megavoxel.training.class_weights import class_weights
from megavoxel.training.kernels import choose_kernels
from megavoxel.training.loop import Samples, TrainingFunctions, train_plan
from megavoxel.training.on_device import DeviceAugmenter
from megavoxel.training.optimizer import build_optimizer, trained_weights
from megavoxel.training.outputs import outputs_of
from megavoxel.training.patches import (
    TRAINING,
    VALIDATION,
    PatchDataset,
    Share,
    patch_loader,
    validation_workers,
)
from megavoxel.training.pipeline import whole_network
from megavoxel.training.run import Part, Run
from megavoxel.training.start import fitted_start
from megavoxel.training.states.checkpoint import load_state
from megavoxel.training.states.lock import Lock
from megavoxel.training.states.resuming import kernels_of, precision_of, take_up
from megavoxel.training.step import replicated, train_step
from megavoxel.training.tiles import TileLoader
from megavoxel.training.validation import validate


def train(
    plan: Plan,
    data: VolumeData,
    state_folder: Path,
    device: torch.device,
    group: Group | None = None,
    lock: Lock | None = None,
) -> Run:
    """Trains a setting on a fold, going on from the run's states below `state_folder` if there are any.

    The phases of a curriculum are trained one after the other, each with a state of its own. On the CPU an interrupted
    and resumed run gives bit for bit the weights of an uninterrupted one. With `training.patience` it may end before
    the last epoch; the learning rate falls as if it would not.

    Args:
        group: the processes that share each batch; None: this one alone.
        lock: of the run's states, which the leading process checks before it writes them.

    Raises:
        UserError: as `train_plan`, or the weights to begin with cannot be read.
    """
    group = group or Group(device=device)
    if group.leads:
        warn_of_what_is_not_taught(plan, data)
        warn_of_silenced_classes(plan, data)
    weights, key = _starting_weights(plan, data, say_it=group.leads), data.key(plan)
    if not plan.phases:
        return _finished(train_plan(_from(weights), plan, data, state_folder / key, key, group, lock))
    history: list[dict[str, float]] = []
    peak: dict[str, Any] | None = None
    for number, phase in enumerate(plan.by_phase(), start=1):
        key = content_hash([key, number])
        if group.leads:
            print(f"phase {number} of {len(plan.phases)}", flush=True)
        run = train_plan(_from(weights), phase, data, state_folder / key, key, group, lock)
        history += [{"phase": number, **row, "epoch": len(history) + row["epoch"]} for row in run.history]
        peak = max(filter(None, (peak, run.peak_memory)), key=lambda found: found["gib"], default=None)
        if number < len(plan.phases):
            del run  # the next network needs its memory
            weights = load_state(state_folder / key, key=key)["network"]
    run.plan, run.history, run.epoch, run.peak_memory = plan, history, len(history), peak
    return _finished(run)


def start_run(
    plan: Plan,
    data: VolumeData,
    device: torch.device,
    state: dict[str, Any] | None = None,
    group: Group | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Run:
    """A new run, or the one that `state` was taken of.

    Args:
        weights: of the network to begin with, all of them but where they come from a file; None: random ones.

    Raises:
        UserError: the weights are of another network, or the state is damaged.
    """
    group = group or Group(device=device)
    precision = precision_of(state, plan) if state else _common_precision(plan, device, group)
    kernels = kernels_of(state, plan) if state else choose_kernels(plan, device, precision, group)
    kernels.use(device)
    network = SegmentationNetwork(plan.network, seed=plan.seed + data.number, checkpointing=plan.parallel.checkpointing)
    if weights is not None and state is None:
        if isinstance(plan.start, StartFile):
            network.load_state_dict(weights, strict=False)
        else:
            load_start(network, weights, plan)
    member = join_pipeline(network, plan, group, precision)
    network = network.to(device, memory_format=kernels.memory_format)
    space = join_space(network, plan, group)
    if kernels.compile:
        compile_norms(network)
    weights_of_classes = class_weights(plan, data.preprocessed, data.training)
    run = Run(
        plan=plan,
        device=device,
        precision=precision,
        kernels=kernels,
        network=network,
        optimizer=build_optimizer(trained_weights(network, plan.training), plan.training, kernels.optimizer),
        scaler=torch.amp.GradScaler(device.type, enabled=precision.name == "float16"),
        group=group,
        replica=replicated(network, group) if member is None and space is None else None,
        pipeline=member,
        space=space,
        class_weights=None if weights_of_classes is None else weights_of_classes.to(device),
        annotated=annotation_table(plan, device),
        outputs=outputs_of(plan, device),
    )
    if state:
        take_up(run, state)
    return run


def _starting_weights(plan: Plan, data: VolumeData, *, say_it: bool) -> dict[str, Tensor] | None:
    """The weights that the plan begins with; of a file those that fit, with a line on the others if `say_it`."""
    if data.start is None:
        return None
    if not isinstance(plan.start, StartFile):
        return load_weights(data.start)["weights"]
    donor, fitted = fitted_start(plan, data.start)
    if say_it:
        print("\n".join(fitted.lines(donor)), flush=True)
    return fitted.weights


def load_start(network: SegmentationNetwork, weights: dict[str, Tensor], plan: Plan) -> None:
    """Gives a new network the weights of another run.

    Raises:
        UserError: they do not have the same names and shapes.
    """
    wanted, found = _shapes(network.state_dict()), _shapes(weights)
    other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if other:
        raise UserError(
            f"setting {plan.setting}: start: the network of {plan.start or 'the phase before'} is another one: "
            f"{other[0]} has the shape {found.get(other[0])} there and {wanted.get(other[0])} here; give both the same "
            "'network', with 'for_patch' where their patches differ"
        )
    network.load_state_dict(weights)


def training_batches(run: Run, data: VolumeData) -> Iterable[Part]:
    """This process's share of all batches that the run has still to see.

    Images are (batch / processes, channels, z, y, x), targets (batch / processes, z, y, x); with `parallel.space` this
    process's tile of each.
    """
    training = run.plan.training
    count = training.epochs * training.iterations_per_epoch * run.plan.batch
    first = run.epoch * training.iterations_per_epoch + len(run.losses)
    return loader(run, data, TRAINING, count, first_iteration=first)


def loader(run: Run, data: VolumeData, stream: int, count: int, first_iteration: int = 0) -> Iterable[Part]:
    """This process's samples; of a pipeline only the first stage reads them, the others go through the motions."""
    if run.pipeline is not None and run.pipeline.stage.number > 0:
        return [(torch.empty(0), torch.empty(0))] * (count // run.plan.batch - first_iteration)
    dataset = PatchDataset(
        run.plan,
        data.preprocessed,
        data.training if stream == TRAINING else data.validation,
        fold=data.number,
        stream=stream,
        count=count,
        first_stage=data.first_stage,
    )
    share = Share(first_iteration=first_iteration, batch=run.plan.batch, rank=run.sharers.rank, ranks=run.sharers.size)
    workers, pin = data.loaders(run.plan), run.device.type == "cuda"
    if stream == VALIDATION:
        workers = validation_workers(workers)
    on_device = run.plan.augmentation.on_device and stream == TRAINING
    augmenter = DeviceAugmenter(run.plan, run.device) if on_device else None
    if run.space is not None:
        return TileLoader(dataset, share, run.space, workers=workers, pin=pin, augmenter=augmenter)
    batches = patch_loader(dataset, share, workers=workers, pin=pin)
    return batches if augmenter is None else augmenter.batches(batches)


def _samples(run: Run, data: VolumeData) -> Samples:
    training, batch = run.plan.training, run.plan.batch
    validation = loader(run, data, VALIDATION, training.validation_iterations * batch) if data.validation else ()
    return Samples(
        batches=iter(training_batches(run, data)),
        steps=training.iterations_per_epoch,
        batch=batch,
        validation=validation,
    )


def _means(run: Run) -> dict[str, float]:
    return {"training_loss": run.mean_loss(torch.stack(run.losses).sum().item()) / len(run.losses)}


def _validate(run: Run, batches: Iterable[Part]) -> dict[str, float]:
    return validate(run, batches, tuple(run.plan.preprocessing.structures))


def _from(weights: dict[str, Tensor] | None) -> TrainingFunctions:
    """The functions for a run that begins with some weights."""
    return replace(FUNCTIONS, start=partial(start_run, weights=weights))


def _finished(run: Run) -> Run:
    """The run with its whole network, also where a pipeline's stages held it in parts."""
    run.network = whole_network(run).requires_grad_(True)
    return run


def _common_precision(plan: Plan, device: torch.device, group: Group) -> Precision:
    """The precision that the first process chooses: what each measures may differ."""
    chosen, names = choose_precision(plan, device), list(TYPES)
    return replace(chosen, name=names[round(group.all(names.index(chosen.name))[0])])


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


FUNCTIONS = TrainingFunctions(
    start=start_run,
    samples=_samples,
    step=train_step,
    means=_means,
    validate=_validate,
    shown=(
        ("training_loss", "loss", 4),
        ("validation_loss", "validation loss", 4),
        ("pseudo_dice", "pseudo-Dice", 4),
    ),
)
"""What the training loop is given."""
