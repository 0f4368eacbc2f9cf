"""What a study has used and should cite: those entries of references.bib of which plans or metrics say so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from megavoxel.reporting.stored import Stored

Holds = Callable[[Stored], bool]


def used_references(stored: Stored) -> dict[str, str]:
    """The entries of what a study has used, in BibTeX by key."""
    return {key: entry for key, entry in _entries().items() if USED[key](stored)}


def bibliography(references: Mapping[str, str]) -> str:
    """A file in BibTeX."""
    return "\n\n".join(references.values()) + "\n"


def author_and_year(entry: str) -> str:
    """An entry as a text names it, such as `Guo et al. 2017`."""
    names = [name.partition(",")[0] for name in _field(entry, "author").split(" and ")]
    shown = f"{names[0]} et al." if len(names) > 2 or "others" in names else " and ".join(names)
    return f"{_plain(shown)} {_field(entry, 'year')}"


def cited(keys: Iterable[str], used: Mapping[str, str], *, markdown: bool) -> str:
    """A citation of those that are used, with a space before it: `[@key; @key]`, or authors and years in brackets."""
    own = [key for key in keys if key in used]
    if not own:
        return ""
    if markdown:
        return f" [{'; '.join(f'@{key}' for key in own)}]"
    return f" ({'; '.join(author_and_year(used[key]) for key in own)})"


@cache
def _entries() -> dict[str, str]:
    text = (files("megavoxel.reporting") / "references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"\n(?=@)", text)]
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in entries}


def _field(entry: str, name: str) -> str:
    return re.search(rf"^  {name} = {{(.*)}},$", entry, re.MULTILINE).group(1)


def _plain(text: str) -> str:
    """A text without BibTeX's accents and braces."""
    return re.sub(r"[{}]", "", text.replace('{\\"o}', "ö").replace('{\\"a}', "ä").replace("{\\'a}", "á"))


def _always(_: Stored) -> bool:
    return True


def _segments(stored: Stored) -> bool:
    return not stored.definition.classifies


def _compares(stored: Stored) -> bool:
    return _segments(stored) and len(stored.definition.models) > 1


def _in_a_plan(holds: Callable[[Any], bool]) -> Holds:
    """Whether something holds of a plan of a study of segmentation."""
    return lambda stored: _segments(stored) and any(map(holds, stored.plans.values()))


def _has_metric(key: str) -> Holds:
    return lambda stored: _segments(stored) and any(metric.key == key for metric in stored.metrics)


def _has_optimizer(name: str) -> Holds:
    return lambda stored: any(plan.training.optimizer == name for plan in stored.plans.values())


def _classifies_by(holds: Callable[[Any], bool]) -> Holds:
    """Whether something holds of a plan of a study of classification."""
    return lambda stored: not _segments(stored) and any(map(holds, stored.plans.values()))


USED: dict[str, Holds] = {
    "isensee2021nnunet": _segments,
    "isensee2024revisited": _in_a_plan(lambda plan: plan.network.architecture == "residual"),
    "wang2022meunet": _in_a_plan(lambda plan: plan.expanded_patch is not None),
    "zhu2020lamp": _in_a_plan(lambda plan: plan.parallel.pipeline > 1 or bool(plan.phases)),
    "huang2019gpipe": _in_a_plan(lambda plan: plan.parallel.pipeline > 1),
    "chen2016sublinear": _in_a_plan(lambda plan: plan.parallel.checkpointing != "none"),
    "lin2017focal": _in_a_plan(lambda plan: plan.training.loss == "dice_focal"),
    "pandit2021": _classifies_by(lambda plan: plan.workers > 1),
    "he2016resnet": _classifies_by(lambda plan: plan.network == "resnet50"),
    "huang2017densenet": _classifies_by(lambda plan: plan.network == "densenet169"),
    "simonyan2015vgg": _classifies_by(lambda plan: plan.network == "vgg16"),
    "kingma2015adam": _has_optimizer("adam"),
    "loshchilov2019adamw": _has_optimizer("adamw"),
    "dice1945": _has_metric("dsc"),
    "nikolov2021": _has_metric("nsd"),
    "shit2021cldice": _has_metric("cldice"),
    "kirillov2019panoptic": _has_metric("pq"),
    "cheng2021boundary": _has_metric("boundary_iou"),
    "guo2017calibration": lambda stored: stored.definition.confidence,
    "wilcoxon1945": _compares,
    "holm1979": _compares,
    "wiesenfarth2021": _compares,
    "paszke2019pytorch": _always,
    "cardoso2022monai": lambda stored: not _segments(stored) or _has_metric("nsd")(stored),
    "moelder2021snakemake": _always,
}
"""Whether a study has used what an entry describes, by its key."""
