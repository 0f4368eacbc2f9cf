"""Cases in three steps at the same time: one is read and another is written while a third is predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Predicted = TypeVar("Predicted")
Written = TypeVar("Written")
READ_AHEAD_BYTES = 2**28
"""Largest image, in float32, that is read whole before its turn: one at a time, beside that of the turn."""


def overlapped(
    items: Sequence[Item],
    read: Callable[[Item], Read],
    predict: Callable[[Read], Predicted],
    write: Callable[[Predicted], Written],
) -> Iterator[Written]:
    """Yields `write(predict(read(item)))` of each item, in their order.

    At most one item is read ahead, and one waits to be written. An error of a step is raised in the item's turn: those
    before it are written, and none behind it.

    Args:
        items: the cases.
        read: called in a thread of its own, for one item at a time.
        predict: called in this thread.
        write: called in a thread of its own, for one item at a time.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        coming: Future[Read] | None = None
        leaving: Future[Written] | None = None
        for item, following in zip(items, [*items, None][1:], strict=True):
            ready = (coming or reader.submit(read, item)).result()
            coming = None if following is None else reader.submit(read, following)
            predicted = predict(ready)
            del ready
            if leaving is not None:
                yield leaving.result()
            leaving = writer.submit(write, predicted)
            del predicted
        if leaving is not None:
            yield leaving.result()


def is_read_ahead(*shapes: Sequence[int]) -> bool:
    """Whether an image with parts of these shapes is small enough to be read before its turn."""
    return 4 * sum(map(math.prod, shapes)) <= READ_AHEAD_BYTES


def read_whole(image: Any) -> Any:
    """An array (channels, z, y, x) in memory; one that is too large to be read ahead stays where it is."""
    return image[:, :, :, :] if is_read_ahead(image.shape) else image
