"""Early stopping: whether the validation pseudo-Dice still rises. A function of a run's history and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from megavoxel.config.study import Training

Row = dict[str, float]


def best_epoch(history: Sequence[Row]) -> int:
    """The epoch with the highest pseudo-Dice, counted from 1; of equal ones the first; 0 where none has a score.

    Args:
        history: one row per epoch with `pseudo_dice`, NaN where no validation patch has a label.
    """
    scores = [-math.inf if math.isnan(row["pseudo_dice"]) else row["pseudo_dice"] for row in history]
    return 1 + scores.index(max(scores)) if max(scores, default=-math.inf) > -math.inf else 0


def has_stalled(history: Sequence[Row], training: Training) -> bool:
    """Whether the pseudo-Dice has not risen for `training.patience` epochs; never without that key."""
    return training.patience is not None and len(history) - best_epoch(history) >= training.patience


def has_ended(history: Sequence[Row], training: Training) -> bool:
    """Whether a run with this history is finished: all epochs are done, or it has stalled."""
    return len(history) >= training.epochs or has_stalled(history, training)


def stop_reason(history: Sequence[Row], training: Training) -> str:
    """Why a stalled run stopped, for the log."""
    best = best_epoch(history)
    why = "no epoch has a pseudo-Dice: no validation patch has a label"
    if best:
        why = f"the pseudo-Dice has not risen above the {history[best - 1]['pseudo_dice']:.4f} of epoch {best} since"
    return (
        f"stopped after epoch {len(history)} of {training.epochs} (training.patience: {training.patience}): {why}; the "
        "weights are those of the last epoch"
    )
