"""What a segmentation run trains on: preprocessed cases, a first stage's labels, weights to begin with."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megavoxel.config.hardware import DeviceKeys, load_device
from megavoxel.config.records import to_plain
from megavoxel.config.setting import ALL, StartFile
from megavoxel.datasets.folder import require_unchanged
from megavoxel.errors import UserError
from megavoxel.files import content_hash, file_sha256
from megavoxel.planning.plan import Plan, load_plan, require_first_stage
from megavoxel.planning.splits import fold_of, load_splits
from megavoxel.preprocessing.first_stage import first_stage_path
from megavoxel.preprocessing.store import stored_classes
from megavoxel.training.annotation import unannotated_classes
from megavoxel.training.class_weights import class_names, class_weights, silenced_classes
from megavoxel.training.run import Run, RunData


@dataclass(frozen=True, kw_only=True)
class VolumeData(RunData):
    """Preprocessed cases; `training` and `validation` are their ids."""

    preprocessed: Path
    """Folder of the preprocessed cases."""
    folds: int = 1
    """Folds of the study."""
    first_stage: tuple[Path, ...] = ()
    """Folders with a first stage's labels of these cases, for a plan with `stage1`."""
    first_stage_data: str | None = None
    """Hash of the first stage's labels; None: there is no first stage."""

    workers: int = DeviceKeys.workers
    """Processes that load patches for a device, where the plan leaves it open."""

    def loaders(self, plan: Plan) -> int:
        """Processes that load training patches for a device; 0: the training process itself."""
        return plan.training.loaders(self.workers)

    @property
    def hashed(self) -> tuple[Any, ...]:
        """The first stage's labels and the weights to begin with, where there are any."""
        return tuple(filter(None, (self.first_stage_data, self.start_data)))

    def facts(self, run: Run) -> dict[str, Any]:
        """What `manifest.json` says of the cases and of the devices."""
        plan = run.plan
        data = {
            "dataset": plan.dataset,
            "checksums_sha256": self.data,
            "start": self._start(plan),
            "training": list(self.training),
            "validation": list(self.validation),
            "labels_never_seen": labels_never_seen(plan, self.preprocessed, self.training),
            "cases_without_annotation": cases_without_annotation(plan, self.training),
        }
        if run.class_weights is not None:
            data["class_weights"] = dict(zip(class_names(plan), run.class_weights.tolist(), strict=True))
        return {"data": data, "parallel": to_plain(plan.parallel), "workers": self.loaders(plan)}

    def _start(self, plan: Plan) -> dict[str, Any] | None:
        """What training began with; of a file also which blocks of the network it has given."""
        if plan.start is None:
            return None
        if isinstance(plan.start, str):
            return {"setting": plan.start, "weights_sha256": self.start_data}
        from megavoxel.training.start import fitted_start

        donor, fitted = fitted_start(plan, self.start)
        given = {key: getattr(fitted, key) for key in ("loaded", "changed", "random", "unused")}
        return {"file": str(self.start), "origin": donor.origin, "weights_sha256": self.start_data, **to_plain(given)}


def data_of(arguments: argparse.Namespace) -> tuple[Plan, VolumeData]:
    """What `megavoxel train` names: the plan of a setting, and the cases of a fold.

    Raises:
        UserError: the plan cannot be read, there is no such fold, something that the plan needs is not given, or
            something that it has no use for is.
    """
    plan = load_plan(arguments.plan)
    if arguments.preprocessed is None:
        raise UserError(f"setting {plan.setting}: give --preprocessed, the folder of its preprocessed cases")
    splits = load_splits(arguments.splits)
    split = fold_of(splits, arguments.fold, source=arguments.splits)
    if arguments.fold == ALL and plan.training.patience is not None:
        raise UserError(
            f"setting {plan.setting}: training.patience looks at validation cases, and fold all has none; leave it out"
        )
    _check_stages(plan)
    require_first_stage(plan, arguments.stage1, option="--stage1")
    _check_start(plan, arguments.weights)
    cases = (*split.training, *split.validation)
    labels = [first_stage_path(arguments.stage1, case) for case in cases] if arguments.stage1 else []
    return plan, VolumeData(
        number=len(splits.folds) if arguments.fold == ALL else arguments.fold,
        is_of_all=arguments.fold == ALL,
        folds=len(splits.folds),
        preprocessed=arguments.preprocessed,
        training=tuple(split.training),
        validation=tuple(split.validation),
        first_stage=tuple(arguments.stage1),
        data=require_unchanged(arguments.checksums) if arguments.checksums else None,
        first_stage_data=content_hash([file_sha256(path) for path in labels]) if labels else None,
        start=arguments.weights,
        start_data=file_sha256(arguments.weights) if arguments.weights else None,
        workers=_workers_of_device(arguments),
    )


def labels_never_seen(plan: Plan, folder: Path, cases: Sequence[str]) -> list[str]:
    """Names of the structures without an annotated voxel in any of the preprocessed cases.

    Args:
        plan: the setting; says which labels are not annotated.
    """
    seen: set[int] = set()
    for case in cases:
        seen |= stored_classes(folder, case) - set(unannotated_classes(plan, case))
    pairs = zip(plan.preprocessing.structures, plan.preprocessing.members, strict=True)
    return [name for name, members in pairs if not seen.intersection(members)]


def cases_without_annotation(plan: Plan, cases: Sequence[str]) -> dict[str, int]:
    """How many of the cases lack the annotation of a label, by its name; labels that all cases have are left out."""
    missing = Counter(label for case in cases for label in plan.unannotated.get(case, ()))
    return {label: missing[label] for label in plan.preprocessing.labels if missing[label]}


def background_never_seen(plan: Plan, cases: Sequence[str]) -> bool:
    """Whether each of the cases lacks the annotation of some label, so that no voxel is known to be background."""
    return all(plan.unannotated.get(case) for case in cases)


def warn_of_what_is_not_taught(plan: Plan, data: VolumeData) -> None:
    """Prints which labels, or that the background, a network cannot learn from the training cases."""
    absent = labels_never_seen(plan, data.preprocessed, data.training)
    if absent:
        print(
            f"warning: fold {data.fold}: no training case has {', '.join(absent)} annotated; the network cannot "
            "learn it, and validation cases that have it score 0 for it",
            flush=True,
        )
    if background_never_seen(plan, data.training):
        print(
            f"warning: fold {data.fold}: every training case lacks the annotation of some label, so that no voxel is "
            "known to be background; only a loss with Dice teaches it, as what is none of the labels",
            flush=True,
        )


def warn_of_silenced_classes(plan: Plan, data: VolumeData) -> None:
    """Prints which classes the rule of `training.class_weights` leaves without a weight."""
    weights = class_weights(plan, data.preprocessed, data.training)
    silent = [] if weights is None else silenced_classes(plan, weights.tolist())
    if silent:
        pairs = zip(class_names(plan), weights.tolist(), strict=True)
        shown = ", ".join(f"{name} {weight:.3g}" for name, weight in pairs)
        print(
            f"warning: fold {data.fold}: training.class_weights softmax_of_inverse gives {shown}: cross-entropy does "
            f"not see {', '.join(silent)}; inverse_square_root does not saturate",
            flush=True,
        )


def _workers_of_device(arguments: argparse.Namespace) -> int:
    """What the hardware file says of the device that was asked for; of another kind than that, its default."""
    if arguments.hardware is None:
        return DeviceKeys.workers
    device = load_device(Path(arguments.hardware[0]), arguments.hardware[1], source="--hardware")
    is_tried_on_cpu = device.kind == "gpu" and arguments.device == "cpu"
    return DeviceKeys.workers if is_tried_on_cpu else device.workers


def _check_stages(plan: Plan) -> None:
    count = plan.parallel.pipeline
    if count > 1 and len(plan.stages) != count:
        raise UserError(
            f"setting {plan.setting}: its plan.json asks for a pipeline over {count} devices and cuts the network into "
            f"{len(plan.stages)} stages; run 'megavoxel plan' again, which writes both"
        )


def _check_start(plan: Plan, start: Path | None) -> None:
    if isinstance(plan.start, StartFile) and start is None:
        raise UserError(
            f"setting {plan.setting}: it begins with the weights in {plan.start.file}; give --weights with that file, "
            "of a folder the one for this fold"
        )
    if plan.start is not None and start is None:
        raise UserError(
            f"setting {plan.setting}: it begins with the weights of {plan.start}; give --weights with the model.pt of "
            "that setting's same fold"
        )
    if start is not None and plan.start is None:
        raise UserError(f"--weights: setting {plan.setting} begins with random weights; leave it out")
    if isinstance(plan.start, StartFile) and not start.is_file():
        raise UserError(f"--weights {start}: there is no such file of weights")
    if start is not None and not start.is_file():
        raise UserError(f"--weights {start}: no such file; train {plan.start} on this fold first")
