"""How many jobs share the cases of a study."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from megavoxel.config.dataset import Dataset
from megavoxel.files import read_json

CASES_PER_JOB, MOST_JOBS = 50, 2


def number_of_shares(cases: Path, dataset: Dataset, splits: Collection[str]) -> int:
    """Jobs that share the cases of these splits where the study does not say it.

    The cases are counted as checked, in `cases.json`, or, before that, as the dataset file says. Where it does not say
    how many they are, they are taken for many.
    """
    return max(1, min(MOST_JOBS, math.ceil(_count(cases, dataset, splits) / CASES_PER_JOB)))


def _count(path: Path, dataset: Dataset, splits: Collection[str]) -> int:
    if path.is_file():
        return sum(case["split"] in splits for case in read_json(path, what="cases")["cases"])
    phantom = dataset.source.phantom
    if phantom is None:
        return MOST_JOBS * CASES_PER_JOB
    numbers = {"training": phantom.training_cases, "test": phantom.test_cases}
    return sum(numbers[split] for split in splits)
