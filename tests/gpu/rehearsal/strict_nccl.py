"""A pipeline under NCCL's rules on one CPU: every stage is a thread.

Between two stages there is one queue, as NCCL has one communicator and one stream per pair of processes: an operation
begins when all before it on the same pair have ended, and a send ends when its receive has begun. `wait` holds the
stage, as it holds a GPU's own stream and all that is queued behind it: what is asked for after a wait begins after it.
What gloo forgives by buffering stands still here.

With `one_queue` there is one queue per stage for all pairs, which is what PyTorch does where `init_process_group` is
given a `device_id`.

Told apart are a circle of waits, a pair whose two sides both send or both receive, sizes or types that differ, tensors
that are not contiguous, and a tensor that was changed before it had left.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megavoxel.distributed.pipeline import Peers

PATIENCE = 60.0
"""Seconds after which a wait is taken for one that never ends."""


class StandstillError(RuntimeError):
    """What NCCL would do in silence: nothing any more, or something wrong."""


class Operation:
    """One side of a transfer."""

    def __init__(self, meeting: Meeting, stage: int, other: int, kind: str, tensor: Tensor) -> None:
        self.meeting, self.stage, self.other, self.kind, self.tensor = meeting, stage, other, kind, tensor
        self.before = tensor.clone() if kind == "send" else None
        self.done = False

    def is_completed(self) -> bool:
        """Whether the other side has met this one."""
        return self.done

    def wait(self) -> None:
        """Holds the stage until both sides have met."""
        self.meeting.wait(self)

    def __str__(self) -> str:
        return f"stage {self.stage} waits for a {self.kind} of {tuple(self.tensor.shape)}"


class Meeting:
    """Where the stages of a pipeline meet."""

    def __init__(self, stages: int, *, one_queue: bool = False) -> None:
        self.stages, self.one_queue = stages, one_queue
        self.changed = threading.Condition()
        self.queues: dict[tuple[object, int], deque[Operation]] = {}
        self.waiting: dict[int, Operation] = {}
        self.ended: set[int] = set()
        self.fault: str | None = None

    def post(self, stage: int, other: int, kind: str, tensor: Tensor) -> Operation:
        """Begins one side of a transfer."""
        with self.changed:
            operation = Operation(self, stage, other, kind, tensor)
            self._queue(stage, other).append(operation)
            while self.fault is None and any(self._meet(*pair) for pair in self._pairs()):
                pass
            self.changed.notify_all()
        return operation

    def wait(self, operation: Operation) -> None:
        """Returns when an operation has ended.

        Raises:
            StandstillError: it never will.
        """
        with self.changed:
            self.waiting[operation.stage] = operation
            everybody = len(self.waiting.keys() | self.ended) == self.stages
            if everybody and not any(other.done for other in self.waiting.values()):
                self.fail("circle of waits: " + "; ".join(map(str, self.waiting.values())))
            self.changed.wait_for(lambda: operation.done or self.fault, PATIENCE)
            self.waiting.pop(operation.stage, None)
            if not operation.done:
                self.fail(f"{operation} for {PATIENCE:g} s")
                raise StandstillError(self.fault)

    def leave(self, stage: int) -> None:
        """A stage has ended."""
        with self.changed:
            self.ended.add(stage)
            self.changed.notify_all()

    def fail(self, why: str) -> None:
        """Ends all waits; the first reason stays."""
        with self.changed:
            self.fault = self.fault or why
            self.changed.notify_all()

    def unmet(self) -> int:
        """Operations that nobody has met."""
        return sum(map(len, self.queues.values()))

    def _queue(self, stage: int, other: int) -> deque[Operation]:
        place = "all" if self.one_queue else (min(stage, other), max(stage, other))
        return self.queues.setdefault((place, stage), deque())

    def _pairs(self) -> list[tuple[int, int]]:
        return [(low, high) for high in range(self.stages) for low in range(high)]

    def _meet(self, low: int, high: int) -> bool:
        """Lets the first operations of two stages meet; says whether they have."""
        queues = self._queue(low, high), self._queue(high, low)
        if not all(queues) or queues[0][0].other != high or queues[1][0].other != low:
            return False
        one, two = queues[0][0], queues[1][0]
        if {one.kind, two.kind} != {"send", "receive"}:
            self.fail(f"stages {low} and {high} both {one.kind}")
            return False
        send, receive = (one, two) if one.kind == "send" else (two, one)
        if why := _unfit(send, receive):
            self.fail(why)
            return False
        receive.tensor.copy_(send.tensor.view(receive.tensor.shape))
        send.done = receive.done = True
        for queue in queues:
            queue.popleft()
        return True


def _unfit(send: Operation, receive: Operation) -> str | None:
    sizes = [(tuple(one.tensor.shape), one.tensor.dtype) for one in (send, receive)]
    if send.tensor.numel() != receive.tensor.numel() or send.tensor.dtype != receive.tensor.dtype:
        return f"stage {send.stage} sends {sizes[0]}, stage {receive.stage} receives {sizes[1]}"
    if not (send.tensor.is_contiguous() and receive.tensor.is_contiguous()):
        return f"stages {send.stage} and {receive.stage}: NCCL takes contiguous tensors alone"
    if not torch.equal(send.tensor.nan_to_num(), send.before.nan_to_num()):
        return f"stage {send.stage} changed a tensor before it had left"
    return None


class StrictPeers(Peers):
    """The product's transfers through a `Meeting`."""

    def __init__(self, meeting: Meeting, stage: int) -> None:
        super().__init__(0, torch.device("cpu"))
        self.meeting, self.stage = meeting, stage

    def _begin_to_send(self, tensor: Tensor, stage: int) -> Operation:
        return self.meeting.post(self.stage, stage, "send", tensor)

    def _begin_to_receive(self, tensor: Tensor, stage: int) -> Operation:
        return self.meeting.post(self.stage, stage, "receive", tensor)


def run_stages(meeting: Meeting, work: Callable[[int], object], stages: Sequence[int]) -> list[object]:
    """What `work` gives for each stage, all of them at once.

    Raises:
        StandstillError: they do not come to an end, or a stage ends with an error.
    """
    results: dict[int, object] = {}

    def own(stage: int) -> None:
        try:
            results[stage] = work(stage)
        except Exception as error:
            meeting.fail(f"stage {stage}: {error}")
        finally:
            meeting.leave(stage)

    threads = [threading.Thread(target=own, args=(stage,)) for stage in stages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * PATIENCE)
    if meeting.fault or meeting.unmet():
        raise StandstillError(meeting.fault or f"{meeting.unmet()} operations were never met")
    return [results[stage] for stage in stages]
