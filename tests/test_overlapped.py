"""Cases that are read, predicted and written at the same time."""

from __future__ import annotations

from threading import Event

import numpy as np
import pytest

from megavoxel.errors import UserError
from megavoxel.inference import overlap
from megavoxel.inference.overlap import overlapped, read_whole

PATIENCE = 30
"""Seconds after which a step that nobody came to meet fails."""


def test_results_come_in_order():
    found = list(overlapped(range(5), lambda one: one + 1, lambda one: one * 10, str))
    assert found == ["10", "20", "30", "40", "50"]
    assert list(overlapped([7], str, str, str)) == ["7"]
    assert list(overlapped([], str, str, str)) == []


def test_the_next_case_is_read_and_the_last_one_written_while_one_is_predicted():
    read, written = [Event() for _ in range(3)], [Event() for _ in range(3)]

    def note(events: list[Event], number: int) -> int:
        events[number].set()
        return number

    def predict(number: int) -> int:
        assert number == 2 or read[number + 1].wait(PATIENCE)
        assert number == 0 or written[number - 1].wait(PATIENCE)
        return number

    assert list(overlapped(range(3), lambda one: note(read, one), predict, lambda one: note(written, one))) == [0, 1, 2]


@pytest.mark.parametrize("where", ["read", "predict", "write"])
def test_an_error_comes_in_its_turn_and_nothing_behind_it_is_written(where):
    written = []

    def step(name: str, number: int) -> int:
        if (name, number) == (where, 1):
            raise UserError("case 1 is damaged")
        if name == "write":
            written.append(number)
        return number

    steps = (lambda one: step("read", one), lambda one: step("predict", one), lambda one: step("write", one))
    with pytest.raises(UserError, match="case 1 is damaged"):
        list(overlapped(range(4), *steps))
    assert written == [0]


def test_an_image_is_read_whole_up_to_a_size(monkeypatch):
    class Stored:
        shape = (1, 2, 3, 4)

        def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
            return np.ones(self.shape)[index]

    assert isinstance(read_whole(Stored()), np.ndarray)
    monkeypatch.setattr(overlap, "READ_AHEAD_BYTES", 4 * 23)
    assert isinstance(read_whole(Stored()), Stored)
