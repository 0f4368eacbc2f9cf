"""Two accounts of one group in one folder: the second goes on with what the first has made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workflow_runs import PHANTOM

GROUP, FIRST, SECOND = 64999, 64001, 64002
"""Numbers that no account of this machine has: a process needs no entry to run under one."""
DEFAULTS = {"patch": [8, 16, 16], "batch": 2, "network": {"base_features": 4, "levels": 3}}
SPACINGS = {FIRST: [2.0, 2.0, 2.0], SECOND: [2.0, 3.0, 3.0]}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can run programs under other accounts"
    ),
]


@pytest.fixture
def shared(tmp_path) -> Path:
    """A folder as docs/hpc.md says: of the group, which all that is made in it belongs to as well."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "dataset.yaml").write_text(yaml.safe_dump(PHANTOM))
    for account, spacing in SPACINGS.items():
        study = {
            "study": f"of-{account}",
            "folds": 2,
            "dataset": str(folder / "dataset.yaml"),
            "settings": {"only": {}},
        }
        study["defaults"] = DEFAULTS | {"preprocessing": {"spacing": spacing}}
        (folder / f"{account}.yaml").write_text(yaml.safe_dump(study))
    os.chown(folder, -1, GROUP)
    folder.chmod(0o2775)
    return folder


def preprocess(repository: Path, shared: Path, account: int) -> str:
    """What Snakemake says as it takes the study of an account up to preprocessing."""
    # It may read whatever root may, such as Python's own files, and write where the permissions say so.
    command = ["setpriv", f"--reuid={account}", f"--regid={GROUP}", "--clear-groups"]
    command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command += [sys.executable, "-m", "snakemake", "--snakefile", str(repository / "Snakefile"), "--cores", "2"]
    command += ["--configfile", str(shared / f"{account}.yaml"), "--until", "preprocess", "split"]
    home = shared / f"home-{account}"
    home.mkdir()
    os.chown(home, account, GROUP)
    names = {"HOME": str(home), "TMPDIR": str(home), "USER": str(account), "LOGNAME": str(account)}
    done = subprocess.run(
        command, cwd=shared, env={**os.environ, **names, "XDG_CACHE_HOME": str(home), "OMP_NUM_THREADS": "1"},
        umask=0o002, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_second_account_goes_on_with_the_data_of_the_first(repository, shared):
    first, second = (preprocess(repository, shared, account) for account in (FIRST, SECOND))
    assert "rule fetch:" in first
    assert "rule fetch:" not in second
    assert "rule preprocess:" in second
    made = [path for path in shared.rglob("*") if path.lstat().st_uid in (FIRST, SECOND)]
    assert {path.lstat().st_uid for path in made} == {FIRST, SECOND}
    work = [path for path in made if not path.relative_to(shared).parts[0].startswith("home-")]
    assert all(path.is_symlink() or path.stat().st_mode & 0o060 == 0o060 for path in work)
    assert {path.lstat().st_gid for path in work} == {GROUP}
