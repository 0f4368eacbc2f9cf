"""What each worker of a group does in tests/test_classification_group.py; every one saves what it saw.

RANK=… WORLD_SIZE=… python tests/classification_worker.py DATA OUTPUT
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from megavoxel.distributed.group import Group, joined_group
from megavoxel.network.device import Precision
from megavoxel.planning.splits import Fold
from megavoxel.tasks.classification.audit_hook import ForeignFileError
from megavoxel.tasks.classification.data import draw_data
from megavoxel.tasks.classification.samples import Place, TrainingImages, training_batches
from megavoxel.tasks.classification.splits import Assignment
from megavoxel.tasks.classification.training import pool, start_run, train, train_step
from megavoxel.training.run import Run
from small_images import classifier, image_cases

CPU = torch.device("cpu")
PER_CLASS, VALIDATED = 10, 2
UNUSED = "bright/unused.png"
"""An image of the dataset's folder that no worker trains on."""
COUNTS = (3, 1, 0, 2)
"""Images of each worker in the step with unequal shares."""
SGD = {"training": {"optimizer": "sgd"}}


def linked(root: Path, folder: Path) -> Path:
    """Hard links to all images, in a folder of their own."""
    for path in root.rglob("*.png"):
        (folder / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(root)).hardlink_to(path)
    return folder


def fold(root: Path) -> Fold:
    """All images but the last of each class train."""
    cases = image_cases(root, PER_CLASS).cases
    late = [case.id for case in cases if case.id.endswith(tuple(f"/{PER_CLASS - 1 - n}.png" for n in range(VALIDATED)))]
    return Fold(training=tuple(case.id for case in cases if case.id not in late), validation=tuple(late))


def trained(root: Path, state: Path, group: Group, **keys: object) -> dict[str, object]:
    """Weights and history of a whole training."""
    plan = classifier(**keys)
    data = draw_data(plan, image_cases(root, PER_CLASS), fold(root), 0)
    run = train(plan, data, state, CPU, group)
    return {
        "weights": list(run.network.state_dict().values()), "history": run.history,
        "training": [[data.training[number].id for number in own] for own in data.shares.shares],
        "validation": [[data.validation[number].id for number in own] for own in data.validation_shares.shares],
    }  # fmt: skip


def unequal_step(root: Path, group: Group, counts: tuple[int, ...]) -> dict[str, object]:
    """Loss, gradients and weights of a step in which worker r has counts[r] images; a single process takes them all."""
    # SGD without momentum: Adam would amplify what rounding leaves of a gradient that is zero.
    plan = classifier(workers=group.size, training={"optimizer": "sgd", "momentum": 0.0})
    data = draw_data(plan, image_cases(root, PER_CLASS), fold(root), 0)
    run = start_run(plan, data, CPU, group=group)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(sum(counts), 3, 32, 32, generator=generator)
    first = sum(counts[: group.rank])
    own = slice(first, first + counts[group.rank]) if group.size > 1 else slice(None)
    sums = train_step(run, image[own], (torch.arange(sum(counts)) % 2)[own])
    return {
        "loss": run.group.sum(sums), "gradients": [weight.grad.clone() for weight in run.network.parameters()],
        "weights": list(run.network.state_dict().values()),
    }  # fmt: skip


def pooled_statistics(group: Group, counts: tuple[int, ...]) -> torch.Tensor:
    """The running mean of a batch norm after a step, where that of worker r was r before."""
    network = torch.nn.BatchNorm2d(1)
    network.running_mean.fill_(group.rank)
    run = Run(
        plan=classifier(), device=CPU, precision=Precision(name="float32", reason="test"), network=network,
        optimizer=torch.optim.SGD(network.parameters()), group=group,
    )  # fmt: skip
    pool(run, share=torch.tensor(counts[group.rank] / sum(counts)))
    return network.running_mean


def opened_by(work: object) -> tuple[object, list[str]]:
    """What `work()` gives, and all files that the process opened meanwhile."""
    opened, on = [], [True]

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and on[0] and isinstance(arguments[0], str | Path):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    result = work()
    on[0] = False
    return result, opened


def attempt(work: Callable[[], object]) -> str:
    """What trying to read a file leads to."""
    try:
        work()
    except ForeignFileError as error:
        return str(error)
    return "opened"


def attempts(root: Path, own: str, other: str, unused: str, link: Path) -> dict[str, str]:
    """What the ways to read a file lead to."""
    folder = os.open(root / Path(other).parent, os.O_RDONLY)
    return {
        "own": attempt((root / own).read_bytes),
        "other": attempt((root / other).read_bytes),
        "unused": attempt((root / unused).read_bytes),
        "hard link": attempt(link.read_bytes),
        "open folder": attempt(lambda: os.open(Path(other).name, os.O_RDONLY, dir_fd=folder)),
        "program": attempt(lambda: subprocess.run(["cat", root / other], check=True, capture_output=True)),
    }


def loaded(root: Path, group: Group, name: str) -> str:
    """What it leads to that a loader of this worker, a process of its own, is to read an image."""
    plan = classifier(workers=group.size, batch=1, training={"loaders": 1, "epochs": 1})
    cases = image_cases(root, PER_CLASS)
    images = TrainingImages(plan, cases, cases.select([name]), fold=0)
    alone = Assignment(partition="private", shares=((0,),) * group.size)
    place = Place(rank=group.rank)
    return attempt(lambda: list(training_batches(images, alone, place, fold=0, pin=False)))


def main() -> None:
    """Joins the group, and saves what each worker found."""
    torch.set_num_threads(1)
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    with joined_group(CPU) as group:
        links = linked(root, output / f"links-{group.rank}")
        keys = {"workers": group.size, "batch": 2}
        shared = trained(root, output / "shared", group, **keys, **SGD, data_partition="shared")
        counts = COUNTS[: group.size]
        unequal = unequal_step(root, group, counts)
        private, opened = opened_by(lambda: trained(root, output / "private", group, **keys))
        others = [name for rank, part in enumerate(private["training"]) if rank != group.rank for name in part]
        own = private["training"][group.rank][0]
        found = {
            "shared": shared,
            "unequal": unequal,
            "statistics": pooled_statistics(group, counts),
            "private": private,
            "attempts": attempts(root, own, others[0], UNUSED, links / others[0]),
            "loaders": [loaded(root, group, own), loaded(root, group, others[0])],
            "opened": sorted({name for name in opened if name.startswith(str(root))}),
        }
        torch.save(found, output / f"{group.rank}.pt")


if __name__ == "__main__":
    main()
