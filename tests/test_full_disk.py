"""A disk that fills up half-way through a write: one clear error, and nothing half-written stays behind.

The limit on the size of a file stands in for the disk: a write beyond it fails in the middle, as on a full disk.
"""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import preprocessing_plan, properties, tiny_plan
from megavoxel import cli
from megavoxel.errors import UserError
from megavoxel.files import write_json
from megavoxel.inference.logits import header_of, write_logits
from megavoxel.inference.sliding_window import Slab
from megavoxel.network.segmentation import SegmentationNetwork
from megavoxel.network.weights import save_weights
from megavoxel.preprocessing.store import save_case
from megavoxel.training.states.checkpoint import load_state, save_state

LIMIT = 4096


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process can grow beyond LIMIT bytes.

    Only around the write itself: the limit holds for the test runner's own output too, where that goes to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def left_in(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_preprocessed_case_is_absent(tmp_path):
    image = np.random.default_rng(0).normal(size=(1, 20, 20, 20)).astype(np.float32)
    with pytest.raises(UserError, match=r"a\.image\.b2nd: could not be written .*free some space"), full_disk():
        save_case(tmp_path, properties("a", (20, 20, 20)), image, None, {}, (8, 8, 8))
    assert left_in(tmp_path) == []


def test_weights_are_absent(tmp_path):
    network = SegmentationNetwork(tiny_plan().network)
    with pytest.raises(UserError, match=r"model\.pt: could not be written"), full_disk():
        save_weights(tmp_path / "model.pt", network, plan_hash="x", precision="float32")
    assert left_in(tmp_path) == []


def test_the_state_before_stays(tmp_path):
    save_state(tmp_path, {"key": "k", "epoch": 1})
    with pytest.raises(UserError, match=r"checkpoint\.pt: could not be written"), full_disk():
        save_state(tmp_path, {"key": "k", "epoch": 2, "weights": torch.zeros(5000)})
    assert load_state(tmp_path, key="k")["epoch"] == 1
    assert left_in(tmp_path) == ["checkpoint.pt"]


def test_logits_are_absent(tmp_path):
    header = header_of(properties("a", (8, 20, 20)), preprocessing_plan())
    rows = [Slab(start=row, stop=row + 1, logits=torch.randn(3, 1, 20, 20)) for row in range(8)]
    with pytest.raises(UserError, match=r"a\.logits\.b2nd: could not be written"), full_disk():
        write_logits(tmp_path, header, rows)
    assert left_in(tmp_path) == []


def test_a_stage_says_so_in_one_line_and_leaves_no_folder(tmp_path, capsys):
    arguments = ["phantom", "--output", str(tmp_path / "made"), "--training-cases", "2", "--shape", "16", "24", "24"]
    with full_disk():
        assert cli.main(arguments) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("megavoxel phantom: error: no space left on the disk")
    assert "free some space" in message
    assert left_in(tmp_path) == []


def test_json_is_whole_or_the_old_one(tmp_path):
    write_json(tmp_path / "plan.json", {"a": 1})
    with pytest.raises(OSError, match="too large"), full_disk():
        write_json(tmp_path / "plan.json", {"a": "x" * 2 * LIMIT})
    assert json.loads((tmp_path / "plan.json").read_text()) == {"a": 1}
    assert left_in(tmp_path) == ["plan.json"]


def test_a_full_device_is_what_the_limit_stands_for():
    """The kernel's own full device gives the same class of error."""
    with pytest.raises(OSError, match="No space left") as caught, Path("/dev/full").open("wb", buffering=0) as device:
        device.write(b"x")
    assert caught.value.errno in cli.FULL_DISK
