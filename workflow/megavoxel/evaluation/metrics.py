"""The table of segmentation metrics: files, tables, figures, pages and tests ask it for all that they say of one.

A metric is added by one entry here, and a test of its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megavoxel.errors import UserError
from megavoxel.evaluation.components import MATCH_IOU

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
    direction: Literal["higher", "lower", "zero", "none"] = "higher"
    """Which of two values is the better one: the higher, the lower, the one nearer to zero, or neither."""
    takes_tolerance: bool = False
    """Whether it depends on the tolerance of a label."""
    of_components: bool = False
    """Whether it counts connected components, which then stand in the table of lesions."""
    both_empty: float = math.nan
    """Value of a label that neither map has; NaN leaves it out of means."""
    one_empty: float | None = 0.0
    """Value of a label that one map alone has; infinity: the length of the image's diagonal in mm; None: what the
    function says of it."""
    function: Callable[..., Any]
    """Works out the value. A metric of segmentation is given a `Compared` label that both maps have (with `one_empty`
    of None: that one of them has), one of classification targets, probabilities and weights
    (`megavoxel.tasks.classification.metrics`)."""

    @property
    def key(self) -> str:
        """Its name in study files, and the beginning of its columns' and figures' names."""
        return self.name.lower()

    @property
    def head(self) -> str:
        """Its name with the unit."""
        return f"{self.shown} ({self.unit})" if self.unit else self.shown

    @property
    def higher_is_better(self) -> bool:
        """Whether the better of two values is the higher one."""
        return self.direction == "higher"

    @property
    def ranks(self) -> bool:
        """Whether means of its values tell which model or case is better: those of signed values cancel one another."""
        return self.direction in ("higher", "lower")

    @property
    def sign(self) -> int:
        """1 where a higher value is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def said(self) -> str:
        """The direction as a sentence; nothing where the higher value is better, as one expects, or neither is."""
        return {"lower": "A lower value is better.", "zero": "The nearer to 0 the better."}.get(self.direction, "")

    def goodness(self, values: Any) -> Any:
        """Numbers of which the higher one is better, for an array or a table of values."""
        return -abs(values) if self.direction == "zero" else self.sign * values

    def of(self, label: Compared) -> float:
        """The value of a label in two maps."""
        present = bool(label.predicted), bool(label.referred)
        if not any(present):
            return self.both_empty
        if all(present) or self.one_empty is None:
            return float(self.function(label))
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


def mean_distance(label: Compared) -> float:
    """The mean in mm of all distances from a border voxel of one mask to the nearest one of the other."""
    return float(np.concatenate(label.border_distances).mean())


def sensitivity(label: Compared) -> float:
    """The share of the reference's voxels that the prediction has; NaN where the reference has none."""
    return label.both / label.referred if label.referred else math.nan


def precision(label: Compared) -> float:
    """The share of the prediction's voxels that the reference has; NaN where the prediction has none."""
    return label.both / label.predicted if label.predicted else math.nan


def boundary_iou(label: Compared) -> float:
    """Intersection over union of the bands along both masks' borders: `Compared.bands`."""
    ours, theirs = label.bands
    return np.count_nonzero(ours & theirs) / np.count_nonzero(ours | theirs)


def centreline_dice(label: Compared) -> float:
    """The harmonic mean of the shares of both centre lines that lie in the other mask; 0 where both are 0."""
    ours, theirs = label.skeletons
    precise = np.count_nonzero(ours & label.reference) / np.count_nonzero(ours)
    sensitive = np.count_nonzero(theirs & label.prediction) / np.count_nonzero(theirs)
    return 2 * precise * sensitive / (precise + sensitive) if precise + sensitive else 0.0


def lesion_f1(label: Compared) -> float:
    """Components that are the same, over the mean number of both masks' components."""
    return label.components.f1


def panoptic_quality(label: Compared) -> float:
    """The sum of the intersections over union of components that are the same, over the mean number of both masks'
    components."""
    return label.components.panoptic_quality


def volume(label: Compared) -> float:
    """Volume of the prediction in ml."""
    return label.predicted * label.voxel_ml


def volume_error(label: Compared) -> float:
    """Volume of the prediction minus that of the reference, in ml."""
    return (label.predicted - label.referred) * label.voxel_ml


COMPONENTS = (
    "components, of voxels that touch by a corner at least, are the same from an intersection over union of "
    f"{MATCH_IOU:g} on"
)
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
            direction="lower",
            one_empty=math.inf,
            function=hausdorff_95,
        ),
        Metric(
            name="ASSD",
            shown="ASSD",
            title="average symmetric surface distance",
            definition="the mean of the distances from all border voxels of both maps to the nearest one of the other, "
            "as MONAI defines it; a label that one map alone has gets the length of the image's diagonal",
            unit="mm",
            high=math.inf,
            direction="lower",
            one_empty=math.inf,
            function=mean_distance,
        ),
        Metric(
            name="Boundary_IoU",
            shown="Boundary IoU",
            title="boundary intersection over union",
            definition="the intersection over union of the voxels of each map within the tolerance of its own border "
            "(Cheng et al. 2021, arXiv:2103.16562, with a width in mm)",
            takes_tolerance=True,
            function=boundary_iou,
        ),
        Metric(
            name="Sensitivity",
            shown="Sensitivity",
            title="sensitivity or recall",
            definition="the share of the reference's voxels that the prediction has; no value where the reference is "
            "empty",
            one_empty=None,
            function=sensitivity,
        ),
        Metric(
            name="Precision",
            shown="Precision",
            title="precision or positive predictive value",
            definition="the share of the prediction's voxels that the reference has; no value where the prediction is "
            "empty",
            one_empty=None,
            function=precision,
        ),
        Metric(
            name="clDice",
            shown="clDice",
            title="centreline Dice",
            definition="the harmonic mean of the shares of both maps' centre lines that lie in the other map (Shit et "
            "al. 2021, arXiv:2003.07311), with the thinning of Lee et al. 1994",
            function=centreline_dice,
        ),
        Metric(
            name="Lesion_F1",
            shown="Lesion F1",
            title="lesion-wise F1",
            definition="components that are the same in both maps, twice, over the components of both; " + COMPONENTS,
            of_components=True,
            function=lesion_f1,
        ),
        Metric(
            name="PQ",
            shown="PQ",
            title="panoptic quality",
            definition="the sum of the intersections over union of the components that are the same, twice, over the "
            f"components of both maps (Kirillov et al. 2019, arXiv:1801.00868); {COMPONENTS}",
            of_components=True,
            function=panoptic_quality,
        ),
        Metric(
            name="Volume",
            shown="Volume",
            title="volume of the prediction",
            definition="voxels times their size",
            unit="ml",
            high=math.inf,
            direction="none",
            both_empty=0.0,
            one_empty=None,
            function=volume,
        ),
        Metric(
            name="Volume_error",
            shown="Volume error",
            title="error of the volume",
            definition="the prediction's volume minus the reference's, so that too much is above zero",
            unit="ml",
            low=-math.inf,
            high=math.inf,
            direction="zero",
            both_empty=0.0,
            one_empty=None,
            function=volume_error,
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
