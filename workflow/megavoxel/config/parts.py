"""The parts of a dataset file for which the jobs of a stage run again, each a line of JSON; its words are in none."""

from __future__ import annotations

import json
from typing import Any

from megavoxel.config.dataset import Dataset
from megavoxel.config.records import to_plain

NOT_CHECKED = ("description", "licence", "reference", "source", "declared", "nsd_tolerance_mm")
"""Words, and keys that stages other than `check` read."""


def fetched_part(dataset: Dataset) -> str:
    """What `fetch` reads: the source, and how that is cut or merged where it is."""
    if dataset.patients:
        order = list(dataset.patients.drawn)
        return _line([dataset.source, dataset.patients, order, dataset.labels, list(dataset.exclude)])
    described = dataset.blocks or dataset.files
    return _line([dataset.source, described] if described else dataset.source)


def checked_part(dataset: Dataset) -> str:
    """What `check` reads."""
    return _line({key: value for key, value in to_plain(dataset).items() if key not in NOT_CHECKED})


def _line(value: Any) -> str:
    return json.dumps(to_plain(value), sort_keys=True)
