"""What the files of a study say to the items of CLAIM, the checklist for AI in medical imaging (Mongan, Moy and Kahn
2020, Radiology: Artificial Intelligence 2:e200029). The other items are for authors to fill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from megavoxel.datasets.cases import Cases
from megavoxel.reporting.provenance import flattened
from megavoxel.reporting.statistics import RESAMPLES
from megavoxel.reporting.stored import Stored, StoredClassification

ITEMS = 42
SOFTWARE = "versions."
STATISTICS = (
    f"percentile bootstrap intervals (95 %, {RESAMPLES} resamples of {{units}}); two-sided Wilcoxon signed-rank tests "
    "of paired differences, corrected by Holm's method"
)


def claim_table(stored: Stored, findings: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """One line per item that can be filled: `Item`, `Topic`, `This study`.

    Args:
        findings: of the data check, with severity and case.
    """
    items: dict[int, tuple[str, Callable[[], str]]] = {
        7: ("Data sources", lambda: _data(stored)),
        8: ("Eligibility", lambda: _excluded(findings)),
        9: ("Preprocessing", lambda: each_setting(stored, _preprocessing)),
        13: ("Missing data", lambda: _missing(stored)),
        20: ("Assignment to partitions", lambda: _partitions(stored)),
        21: ("Level at which partitions are disjoint", lambda: _level(stored)),
        22: ("Model", lambda: each_setting(stored, _network)),
        23: ("Software", lambda: _stated(stored, ("code.version", "code.commit", SOFTWARE))),
        24: ("Initial weights", lambda: each_setting(stored, _initial)),
        25: ("Training", lambda: each_setting(stored, _training)),
        26: ("Choice of the final model", lambda: "the weights of the last epoch of each fold"),
        27: ("Ensembles", lambda: _ensembles(stored)),
        28: ("Metrics", lambda: "; ".join(f"{metric.shown}: {metric.definition}" for metric in stored.metrics)),
        29: ("Statistics", lambda: STATISTICS.format(units=_drawn(stored))),
        33: ("Numbers of cases", lambda: _counts(stored)),
        35: ("Performance", lambda: "section Scores"),
        36: ("Precision of the estimates", lambda: "section Scores, columns with 95 % intervals"),
        37: ("Failures", lambda: "first paragraph; section Confusion" if _is_of_images(stored) else "section Cases"),
        41: ("Protocol", lambda: _protocol(stored)),
    }
    rows = [{"Item": number, "Topic": topic, "This study": tell()} for number, (topic, tell) in items.items()]
    return pd.DataFrame([row for row in rows if row["This study"]])


def items_left(table: pd.DataFrame) -> list[str]:
    """The other items, consecutive ones as `1–6`."""
    runs: list[list[int]] = []
    for item in sorted(set(range(1, ITEMS + 1)) - set(table["Item"])):
        if runs and item == runs[-1][-1] + 1:
            runs[-1].append(item)
        else:
            runs.append([item])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]


def claim_checklist(stored: Stored, findings: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """One line per item, those that `claim_table` lacks with a note for the authors."""
    filled = claim_table(stored, findings).set_index("Item")
    whole = filled.reindex(pd.RangeIndex(1, ITEMS + 1, name="Item")).reset_index()
    return whole.fillna({"Topic": "", "This study": "to be filled in by the authors"})


def _is_of_images(stored: Stored) -> bool:
    return isinstance(stored, StoredClassification)


def each_setting(stored: Stored, tell: Callable[[Stored, str], str]) -> str:
    """What a function says of the settings: once if it is the same of all, else with the settings' names."""
    found: dict[str, list[str]] = {}
    for setting in stored.plans:
        found.setdefault(tell(stored, setting), []).append(setting)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(settings)}: {text}" for text, settings in found.items())


def stated_values(stored: Stored, key: str) -> list[str]:
    """Different values of an entry of the manifests."""
    flat = [dict(flattened(manifest)) for own in stored.manifests.values() for manifest in own.values()]
    return list(dict.fromkeys(str(entries[key]) for entries in flat if entries.get(key) is not None))


def _stated(stored: Stored, beginnings: tuple[str, ...]) -> str:
    keys = dict.fromkeys(
        key
        for own in stored.manifests.values()
        for manifest in own.values()
        for key, _ in flattened(manifest)
        if key.startswith(beginnings)
    )
    texts = {key.removeprefix(SOFTWARE).replace("code.", "megavoxel "): stated_values(stored, key) for key in keys}
    return ", ".join(f"{name.removesuffix(' version')} {' and '.join(own)}" for name, own in texts.items() if own)


def _data(stored: Stored) -> str:
    sums = stated_values(stored, "data.checksums_sha256")
    count = f", {len(stored.cases.cases)} cases" if stored.cases is not None else ""
    return f"dataset {stored.definition.dataset}{count}" + (f"; SHA-256 of its checksums: {sums[0]}" if sums else "")


def _excluded(findings: Sequence[Mapping[str, str]]) -> str:
    names = [finding["case"] for finding in findings if finding["severity"] in ("excluded", "error")]
    return f"left out by the data check or the dataset file: {len(names)} ({', '.join(names)})" if names else ""


def _preprocessing(stored: Stored, setting: str) -> str:
    plan = stored.plans[setting]
    if _is_of_images(stored):
        return f"scaled to {plan.resolution} × {plan.resolution} pixels"
    own = plan.preprocessing
    schemes = dict.fromkeys(channel.scheme for channel in own.normalisation)
    return f"resampled to {own.shown_spacing} mm; intensities normalised by scheme {', '.join(schemes)}"


def _missing(stored: Stored) -> str:
    if not isinstance(stored.cases, Cases):
        return ""
    lacking = [case.id for case in stored.cases.cases if case.unannotated]
    return f"labels without an annotation in {len(lacking)} cases: neither trained nor scored there" if lacking else ""


def _partitions(stored: Stored) -> str:
    folds = len({fold for own in stored.histories.values() for fold in own})
    seeds = ", ".join(
        stated_values(stored, "seed") or map(str, dict.fromkeys(plan.seed for plan in stored.plans.values()))
    )
    test = "; test cases are in no fold" if "test" in stored.splits else ""
    return f"splits.json: cross-validation, {folds} folds trained, seed {seeds}{test}"


def _level(stored: Stored) -> str:
    if stored.groups:
        return "group of cases, by 'groups' of the dataset file"
    return "patient" if _is_of_images(stored) else "case: whether two are of one patient is for authors to say"


def _drawn(stored: Stored) -> str:
    return "patients" if _is_of_images(stored) else "groups of cases" if stored.groups else "cases"


def _network(stored: Stored, setting: str) -> str:
    plan = stored.plans[setting]
    numbers = {manifest["parameters"] for manifest in stored.manifests[setting].values() if "parameters" in manifest}
    size = f", {max(numbers):,d} parameters" if numbers else ""
    if _is_of_images(stored):
        return f"{plan.network}{size}"
    network = plan.network
    return f"{network.architecture}, {len(network.features)} levels{size}, patch {times(plan.patch)}"


def _initial(stored: Stored, setting: str) -> str:
    plan = stored.plans[setting]
    if _is_of_images(stored):
        return "published weights of ImageNet" if plan.pretrained else "random"
    if plan.start is None:
        return "random"
    if isinstance(plan.start, str):
        return f"those of setting {plan.start}"
    return f"{plan.start.parts} of {plan.start.file}"


def _training(stored: Stored, setting: str) -> str:
    plan = stored.plans[setting]
    training = plan.training
    found = getattr(training, "search", ())
    rates = ", ".join(f"{rate:g}" for rate in found)
    rate = f"learning rate searched among {rates}" if found else f"learning rate {training.learning_rate:g}"
    text = f"{training.optimizer}, {rate}, batch {plan.batch}, {training.epochs} epochs"
    if _is_of_images(stored):
        return text
    return f"{training.loss}, {text} of {training.iterations_per_epoch} steps, schedule {training.schedule}"


def _ensembles(stored: Stored) -> str:
    named = [f"{name}: {', '.join(members)}" for name, members in stored.definition.ensembles.items()]
    of_folds = ["test cases: mean of all folds"] if "test" in stored.splits else []
    return "; ".join([*of_folds, *named])


def _counts(stored: Stored) -> str:
    counts = stored.scores.groupby("split")["case"].nunique()
    return ", ".join(f"{counts[split]} scored in {split}" for split in stored.splits)


def _protocol(stored: Stored) -> str:
    return "; ".join(f"plan {plan.hash} ({setting})" for setting, plan in stored.plans.items())


def times(numbers: Iterable[Any]) -> str:
    """Numbers along axes, as `16 × 32 × 32`."""
    return " × ".join(f"{number:g}" for number in numbers)
