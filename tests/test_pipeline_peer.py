"""Our pipeline beside PyTorch's own (`PipelineStage`, static), the network cut in the same places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_loss_and_gradients_are_those_of_pytorchs_pipeline(tmp_path, stages):
    """With three stages and more a skip passes others by."""
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(stages)]
    command = [*runner, str(TESTS / "pipeline_peer_worker.py"), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    for rank in range(stages):
        for both in torch.load(tmp_path / f"{rank}.pt", weights_only=True).values():
            assert both["ours"]["loss"] == pytest.approx(both["theirs"]["loss"], abs=1e-5)
            assert both["ours"]["gradients"].keys() == both["theirs"]["gradients"].keys()
            for name, ours in both["ours"]["gradients"].items():
                torch.testing.assert_close(ours, both["theirs"]["gradients"][name], atol=1e-5, rtol=1e-4)
