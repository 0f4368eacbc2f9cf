"""What each worker of a group does in tests/test_classification_group.py; every one saves what it saw.

torchrun … tests/classification_worker.py DATA OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from megavoxel.classification.loop import fold_of, start_run, train_classifier
from megavoxel.classification.shares import ForeignFileError
from megavoxel.classification.step import ClassifierRun, pool, train_step
from megavoxel.distributed.group import Group, joined_group
from megavoxel.network.device import Precision
from megavoxel.planning.splits import Fold
from small_images import classifier, image_cases

CPU = torch.device("cpu")
PER_CLASS, VALIDATED = 10, 2
COUNTS = (3, 1, 0, 2)
"""Images of each worker in the step with unequal shares."""
SGD = {"training": {"optimizer": "sgd"}}


def fold(root: Path) -> Fold:
    """All images but the last of each class train."""
    cases = image_cases(root, PER_CLASS).cases
    late = [case.id for case in cases if case.id.endswith(tuple(f"/{PER_CLASS - 1 - n}.png" for n in range(VALIDATED)))]
    return Fold(training=tuple(case.id for case in cases if case.id not in late), validation=tuple(late))


def trained(root: Path, state: Path, group: Group, **keys: object) -> dict[str, object]:
    """Weights and history of a whole training."""
    plan = classifier(**keys)
    data = fold_of(plan, image_cases(root, PER_CLASS), fold(root), 0)
    run = train_classifier(plan, data, state, CPU, group)
    return {
        "weights": list(run.network.state_dict().values()), "history": run.history,
        "training": [[data.training[number].id for number in own] for own in data.shares.shares],
        "validation": [[data.validation[number].id for number in own] for own in data.validation_shares.shares],
    }  # fmt: skip


def unequal_step(root: Path, group: Group, counts: tuple[int, ...]) -> dict[str, object]:
    """Loss, gradients and weights of a step in which worker r has counts[r] images; a single process takes them all."""
    # SGD without momentum: Adam would amplify what rounding leaves of a gradient that is zero.
    plan = classifier(workers=group.size, training={"optimizer": "sgd", "momentum": 0.0})
    data = fold_of(plan, image_cases(root, PER_CLASS), fold(root), 0)
    run = start_run(plan, data, CPU, group)
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
    run = ClassifierRun(
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


def attempt(path: Path) -> str:
    """What opening a file leads to."""
    try:
        path.read_bytes()
    except ForeignFileError as error:
        return str(error)
    return "opened"


def main() -> None:
    """Joins the group, and saves what each worker found."""
    torch.set_num_threads(1)
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    with joined_group(CPU) as group:
        keys = {"workers": group.size, "batch": 2}
        shared = trained(root, output / "shared", group, **keys, **SGD, data_partition="shared")
        counts = COUNTS[: group.size]
        unequal = unequal_step(root, group, counts)
        private, opened = opened_by(lambda: trained(root, output / "private", group, **keys))
        others = [name for rank, part in enumerate(private["training"]) if rank != group.rank for name in part]
        attempts = {"own": attempt(root / private["training"][group.rank][0]), "other": attempt(root / others[0])}
        found = {
            "shared": shared,
            "unequal": unequal,
            "statistics": pooled_statistics(group, counts),
            "private": private,
            "attempts": attempts,
            "opened": sorted({name for name in opened if name.startswith(str(root))}),
        }
        torch.save(found, output / f"{group.rank}.pt")


if __name__ == "__main__":
    main()
