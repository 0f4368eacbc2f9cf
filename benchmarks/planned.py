"""Plans of a study's settings, from what its dataset file declares."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from megavoxel.config.dataset import dataset_path, load_dataset
from megavoxel.config.study_file import load_study
from megavoxel.planning.declared import declared_dataset
from megavoxel.planning.plan import Plan
from megavoxel.planning.planner import plan_preprocessing, plan_setting

CONFIG = Path(__file__).parents[1] / "config"


@cache
def planned(study: str, setting: str) -> Plan:
    """The plan of a setting of config/studies/STUDY.yaml, not yet spread over devices."""
    path = CONFIG / "studies" / f"{study}.yaml"
    parsed = load_study(path)
    dataset = load_dataset(dataset_path(parsed.dataset, CONFIG / "datasets", source=str(path)))
    cases, fingerprint = declared_dataset(dataset)
    keys = parsed.setting(setting)
    preprocessing = plan_preprocessing(cases, fingerprint, keys.preprocessing)
    return plan_setting(cases, preprocessing, keys, study=parsed.name, seed=parsed.seed)
