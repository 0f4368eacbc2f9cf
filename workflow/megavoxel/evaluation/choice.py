"""Which metrics labels are scored by: the same for all of them, or others for some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from megavoxel.errors import UserError
from megavoxel.evaluation.metrics import DEFAULT, METRICS, Metric, metrics_of

OTHERS = "default"
"""Stands in a study file for all labels that are not named."""
Chosen = Sequence[str] | Mapping[str, Sequence[str]]
"""Keys of metrics: a list for all labels, or a list by label and one of `default`."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The metrics of each label."""

    others: tuple[Metric, ...]
    """Metrics of all labels that are not named."""
    named: dict[str, tuple[Metric, ...]] = field(default_factory=dict)
    """Metrics of single labels, by name."""

    def of(self, label: str) -> tuple[Metric, ...]:
        """The metrics of a label."""
        return self.named.get(label, self.others)

    def of_all(self, labels: Iterable[str] | None) -> tuple[Metric, ...]:
        """The metrics that any of the labels has, in the order of the choice: those of `default` first.

        Args:
            labels: None: they are not known, and may be others than those that are named.
        """
        has_others = labels is None or any(label not in self.named for label in labels)
        groups = [self.others if has_others else (), *self.named.values()]
        return tuple(dict.fromkeys(metric for group in groups for metric in group))

    @property
    def words(self) -> list[str]:
        """The choice as `evaluate --metrics` takes it."""
        own = [f"{label}={','.join(metric.key for metric in metrics)}" for label, metrics in self.named.items()]
        return [*(metric.key for metric in self.others), *own]


def read_choice(chosen: Chosen, *, where: str, labels: Iterable[str] | None = None) -> Choice:
    """Metrics of each label, of a study file or a definition.

    Args:
        labels: what is scored; None: that is not known.

    Raises:
        UserError: there is no such metric or label.
    """
    if not isinstance(chosen, Mapping):
        return Choice(others=metrics_of(chosen, where=where))
    known = None if labels is None else list(labels)
    unknown = [label for label in chosen if label != OTHERS and known is not None and label not in known]
    if unknown:
        raise UserError(f"{where}: there is no label '{unknown[0]}'; allowed: {', '.join([OTHERS, *known])}")
    found = {label: metrics_of(keys, where=f"{where}: {label}") for label, keys in chosen.items()}
    return Choice(others=found.pop(OTHERS, metrics_of(DEFAULT, where=where)), named=found)


def parse_choice(words: Sequence[str], labels: Iterable[str]) -> Choice:
    """Metrics of each label from words such as `dsc` and `vessel=cldice,nsd`; without words, those of `DEFAULT`.

    Args:
        labels: what is scored.

    Raises:
        UserError: there is no such metric or label, or a label comes twice.
    """
    others = [word for word in words if "=" not in word]
    chosen: dict[str, Sequence[str]] = {OTHERS: others or DEFAULT}
    for label, _, keys in (word.rpartition("=") for word in words if "=" in word):
        if label in chosen:
            raise UserError(f"--metrics {label}={keys}: metrics of '{label}' were given before; give them once")
        chosen[label] = keys.split(",")
    return read_choice(chosen, where="--metrics", labels=labels)


def require_ranking(metrics: Sequence[Metric], *, where: str) -> None:
    """Refuses a study whose first metric cannot rank models and cases.

    Raises:
        UserError: the first metric is one of which neither the higher nor the lower value is better.
    """
    if not metrics[0].ranks:
        able = ", ".join(metric.key for metric in METRICS.values() if metric.ranks)
        raise UserError(
            f"{where}: '{metrics[0].key}' stands first, and cannot rank models: neither more nor less of it is better; "
            f"put one of these first: {able}"
        )
