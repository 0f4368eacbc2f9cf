"""States written beside training: copies of their moment, one after the other, and no failure goes unseen."""

from __future__ import annotations

import threading

import pytest
import torch

from megavoxel.training.states import checkpoint
from megavoxel.training.states.checkpoint import load_state, on_host, save_state, state_writer


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """States are not written before this event."""
    event = threading.Event()

    def late(folder, state):
        assert event.wait(timeout=60)
        save_state(folder, state)

    monkeypatch.setattr(checkpoint, "save_state", late)
    return event


def test_a_state_is_that_of_its_moment_while_training_goes_on(gate, tmp_path):
    weights = torch.zeros(3)
    with state_writer(tmp_path) as writer:
        writer.write({"key": "k", "network": {"weights": weights}, "losses": [weights]})
        weights += 1  # the next step, while the state is not written yet
        assert not list(tmp_path.iterdir())
        gate.set()
    state = load_state(tmp_path, key="k")
    assert state["network"]["weights"].tolist() == state["losses"][0].tolist() == [0, 0, 0]


def test_the_newest_state_is_the_one_asked_for_last(tmp_path):
    with state_writer(tmp_path) as writer:
        for epoch in (1, 2, 3):
            writer.write({"key": "k", "epoch": epoch})
    assert load_state(tmp_path, key="k")["epoch"] == 3
    (tmp_path / "checkpoint.pt").unlink()
    assert load_state(tmp_path, key="k")["epoch"] == 2


def test_a_run_that_ends_by_an_error_has_its_state_written_first(gate, tmp_path):
    def told_to_end():
        with state_writer(tmp_path) as writer:
            writer.write({"key": "k", "epoch": 1})
            threading.Timer(0.1, gate.set).start()
            raise RuntimeError("told to end")

    with pytest.raises(RuntimeError, match="told to end"):
        told_to_end()
    assert load_state(tmp_path, key="k")["epoch"] == 1


@pytest.mark.parametrize("moment", ["next state", "end"])
def test_a_state_that_cannot_be_written_ends_the_run(tmp_path, moment):
    (tmp_path / "folder").write_text("a file where the folder should be")
    written = []

    def train_on():
        with state_writer(tmp_path / "folder") as writer:
            for _ in range(2 if moment == "next state" else 1):
                writer.write({"key": "k"})
                written.append("asked for")

    with pytest.raises(OSError, match="folder"):
        train_on()
    assert len(written) == 1


def test_a_copy_shares_no_memory_and_keeps_shape_type_and_layout():
    image = torch.rand(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)
    state = {"a": [image, (image.half(), 7)], "b": {"c": "text", "d": None}}
    copy = on_host(state)
    assert copy["a"][0].data_ptr() != image.data_ptr()
    assert copy["a"][0].stride() == image.stride()
    assert torch.equal(copy["a"][1][0], image.half())
    assert copy["a"][1][0].dtype == torch.float16
    assert (copy["a"][1][1], copy["b"]) == (7, {"c": "text", "d": None})
