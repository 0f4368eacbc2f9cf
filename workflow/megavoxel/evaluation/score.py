"""Scores of one case or of many, from files to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from megavoxel.evaluation.overlap import dice_per_label
from megavoxel.evaluation.pairs import Pair, read_pair
from megavoxel.evaluation.surface import surface_dice_per_label
from megavoxel.evaluation.targets import Target
from megavoxel.evaluation.tidy import Score
from megavoxel.parallel import map_cases
from megavoxel.volumes.grid import rounded_spacing


def score_pairs(pairs: Sequence[Pair], targets: Sequence[Target], *, processes: int = 1) -> list[Score]:
    """Scores of all pairs, case by case in the given order; the number of processes does not change them.

    Raises:
        UserError: a file cannot be read, or a prediction lies on another grid than its reference.
    """
    per_case = map_cases(partial(score_pair, targets=targets), pairs, processes=processes, title="scoring")
    return [score for scores in per_case for score in scores]


def score_pair(pair: Pair, targets: Sequence[Target]) -> list[Score]:
    """DSC and NSD of each label of a case, but for those that are skipped; raises as `score_pairs` does."""
    targets = [target for target in targets if target.name not in pair.skipped]
    prediction, reference, geometry = read_pair(pair)
    values = [target.value for target in targets]
    dsc = dice_per_label(prediction, reference, values)
    # A float32 affine says 1.2500001 mm where 1.25 is meant, which would put whole surfaces beyond a tolerance.
    spacing = rounded_spacing(geometry.spacing)
    tolerances = [target.tolerance for target in targets]
    nsd = surface_dice_per_label(prediction, reference, values, tolerances=tolerances, spacing=spacing)
    return [
        Score(case=pair.case, label=target.name, dsc=float(dice), nsd=float(surface))
        for target, dice, surface in zip(targets, dsc, nsd, strict=True)
    ]
