"""Our pipeline beside PyTorch's own (`PipelineStage`, static), the network cut in the same places."""

from __future__ import annotations

import pytest
import torch

import pipeline_peer_worker
from stage_server import run_group

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_loss_and_gradients_are_those_of_pytorchs_pipeline(tmp_path, stages):
    """With three stages and more a skip passes others by."""
    run_group(pipeline_peer_worker.__file__, tmp_path, processes=stages)
    for rank in range(stages):
        for both in torch.load(tmp_path / f"{rank}.pt", weights_only=True).values():
            assert both["ours"]["loss"] == pytest.approx(both["theirs"]["loss"], abs=1e-5)
            assert both["ours"]["gradients"].keys() == both["theirs"]["gradients"].keys()
            for name, ours in both["ours"]["gradients"].items():
                torch.testing.assert_close(ours, both["theirs"]["gradients"][name], atol=1e-5, rtol=1e-4)
