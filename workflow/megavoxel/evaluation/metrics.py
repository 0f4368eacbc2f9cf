"""The table of segmentation metrics: files, tables, figures, pages and tests ask it for all that they say of one.

A metric is added by one entry here, and a test of its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megavoxel.errors import UserError

if TYPE_CHECKING:
    from megavoxel.evaluation.compared import Compared

DEFAULT = ("dsc", "nsd")
"""The metrics of a study that names none."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: how its values are worked out, and what has to be known to show them."""

    name: str
    """Its name in score files and in files of published numbers."""
    shown: str
    """Heads its columns, and names its axes."""
    title: str
    """Its full name."""
    definition: str
    """What it measures, and the source of the definition: a clause of the report's page."""
    unit: str = ""
    """Unit of its values; empty for shares."""
    low: float = 0.0
    """Least possible value."""
    high: float = 1.0
    """Greatest possible value; infinity where there is none."""
    higher_is_better: bool = True
    takes_tolerance: bool = False
    """Whether it depends on the tolerance of a label."""
    both_empty: float = math.nan
    """Value of a label that neither map has; NaN leaves it out of means."""
    one_empty: float = 0.0
    """Value of a label that one map alone has; infinity: the length of the image's diagonal in mm."""
    function: Callable[..., Any]
    """Works out the value. A metric of segmentation is given a `Compared` label that both maps have, one of
    classification targets, probabilities and weights (`megavoxel.tasks.classification.metrics`)."""

    @property
    def key(self) -> str:
        """Its name in study files, and the beginning of its columns' and figures' names."""
        return self.name.lower()

    @property
    def head(self) -> str:
        """Its name with the unit."""
        return f"{self.shown} ({self.unit})" if self.unit else self.shown

    @property
    def sign(self) -> int:
        """1 where a higher value is better, else -1."""
        return 1 if self.higher_is_better else -1

    def of(self, label: Compared) -> float:
        """The value of a label in two maps."""
        present = bool(label.predicted), bool(label.referred)
        if all(present):
            return float(self.function(label))
        if not any(present):
            return self.both_empty
        return label.diagonal_mm if math.isinf(self.one_empty) else self.one_empty


def dice(label: Compared) -> float:
    """Twice the voxels that both masks have, over the sum of their voxels."""
    return 2.0 * label.both / (label.predicted + label.referred)


def surface_share(label: Compared) -> float:
    """The share of both surfaces that lies within the tolerance of the other one: `Compared.surface_dice`."""
    return label.surface_dice


def hausdorff_95(label: Compared) -> float:
    """The larger of both directions' 95th percentiles of the distances in mm between the masks' border voxels.

    Border voxels are those with a face to a voxel outside the mask, percentiles are interpolated linearly: the value
    of `monai.metrics.compute_hausdorff_distance(percentile=95)`.
    """
    return max(float(np.percentile(distances, 95)) for distances in label.border_distances)


METRICS = {
    metric.key: metric
    for metric in (
        Metric(
            name="DSC",
            shown="DSC",
            title="Dice similarity coefficient",
            definition="twice the voxels that both maps have, over the voxels of one and of the other (Dice 1945)",
            function=dice,
        ),
        Metric(
            name="NSD",
            shown="NSD",
            title="normalised surface distance",
            definition="the share of both surfaces' area that lies within a tolerance of the other surface, in the "
            "surface-based definition of Nikolov et al. 2018 (arXiv:1809.04430)",
            takes_tolerance=True,
            function=surface_share,
        ),
        Metric(
            name="HD95",
            shown="HD95",
            title="95th percentile of the Hausdorff distance",
            definition="the larger of both directions' 95th percentiles of the distances between border voxels, as "
            "MONAI defines it; a label that one map alone has gets the length of the image's diagonal",
            unit="mm",
            high=math.inf,
            higher_is_better=False,
            one_empty=math.inf,
            function=hausdorff_95,
        ),
    )
}


def metrics_of(keys: Iterable[str], *, where: str, allowed: Sequence[str] = tuple(METRICS)) -> tuple[Metric, ...]:
    """Metrics by key, in the given order.

    Args:
        keys: as in study files.
        allowed: the keys that may be given.

    Raises:
        UserError: there is no such metric.
    """
    unknown = [key for key in keys if key not in allowed]
    if unknown:
        raise UserError(f"{where}: there is no metric '{unknown[0]}'; allowed: {', '.join(allowed)}")
    return tuple(METRICS[key] for key in dict.fromkeys(keys))


def metrics_in(names: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of the table that a score file has, by their names there, in the order of the table."""
    present = set(names)
    return tuple(metric for metric in METRICS.values() if metric.name in present)
