"""The clusters that these tests share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from get_apptainer import get_apptainer
from site_of_user import check_out
from slurm_cluster import Cluster, why_not
from training_job import SETTINGS, TIGHT_GIB, UNDISTURBED, run_here


def started(*, accounting: bool) -> Iterator[Cluster]:
    """A cluster from its start to its end; a reason for skipping where there can be none."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder=folder, accounting=accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster that keeps no accounts."""
    yield from started(accounting=False)


@pytest.fixture(scope="session")
def accounting_cluster() -> Iterator[Cluster]:
    """A cluster that keeps accounts."""
    yield from started(accounting=True)


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory) -> dict[str, str]:
    """Variables by which a real Apptainer is found: that of this machine, or Debian's in a folder of its own."""
    if shutil.which("apptainer"):
        return {}
    if os.geteuid() != 0 or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("no apptainer here, and to unpack Debian's for the test takes root and apt-get")
    return get_apptainer(tmp_path_factory.mktemp("apptainer"))


@pytest.fixture(scope="session")
def prepared(cluster, tmp_path_factory) -> Path:
    """A checkout with all that the jobs of `training_job` need, and with one of them done outside of the cluster."""
    folder = check_out(tmp_path_factory.mktemp("faults"), {"options": {"slurm-init-seconds-before-status-checks": 5}})
    plans = [f"state/faults/{name}/plan.json" for name in SETTINGS]
    run_here(folder, *plans, f"results/faults/{UNDISTURBED}/fold-0/model.pt")
    plan = folder / "state/faults/tight/plan.json"
    values = json.loads(plan.read_text())
    values["needs"]["training"]["memory_gib"] = TIGHT_GIB
    plan.write_text(json.dumps(values))
    return folder
