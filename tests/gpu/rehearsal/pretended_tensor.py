"""Tensors that say they are on `cuda`, with their numbers in the host's memory.

PyTorch's CPU build dispatches, casts (AutocastCUDA) and differentiates tensors of the device type `cuda` as its CUDA
build does. What it lacks are kernels, memory and a driver. Here every operation on such tensors is run by the CPU's
kernel on the numbers behind them, and

- tensors of different devices in one operation raise, as on a GPU;
- whatever makes the host wait for the device is counted;
- memory is counted by storage, and beyond a limit the allocator's own error is raised.

Not seen: kernels (their workspace, speed, TF32, strides), what runs at the same time, fragmentation, pinned memory,
NCCL and compiled code.
"""

from __future__ import annotations

import collections
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CONTEXT_BYTES = 400 * 2**20
"""What the driver's context takes of a device."""
MAY_MIX = {"copy_", "_to_copy", "_foreach_copy_", "set_", "_copy_from", "_copy_from_and_resize"}
"""Operations on tensors of several devices."""
BY_INDEX = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
"""Operations whose indices may be on the host."""
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2", "bincount"}
"""Operations whose result, or its size, the host has to know before it goes on."""


class Memory:
    """Bytes of the storages behind pretended tensors, by number of the device."""

    def __init__(self) -> None:
        self.limit = 80 * 2**30
        """Bytes of each device, its context included."""
        self.others = 0
        """Bytes that other processes hold of each device."""
        self.live: collections.Counter[int] = collections.Counter()
        self.peak: collections.Counter[int] = collections.Counter()
        self._known: dict[int, int] = {}
        self._lock = threading.RLock()

    def add(self, storage: torch.UntypedStorage, index: int) -> None:
        """Counts a storage until nothing refers to it.

        Raises:
            torch.OutOfMemoryError: the device is full.
        """
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            if key in self._known:
                return
            if self.live[index] + size > self.limit - CONTEXT_BYTES - self.others:
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {size / 2**30:.2f} GiB. GPU {index} has a total capacity "
                    f"of {self.limit / 2**30:.2f} GiB of which some is free."
                )
            self._known[key] = size
            self.live[index] += size
            self.peak[index] = max(self.peak[index], self.live[index])
        weakref.finalize(storage, self._remove, key, index)

    def reset_peak(self, index: int) -> None:
        """Begins a new peak at what is live now."""
        self.peak[index] = self.live[index]

    def _remove(self, key: int, index: int) -> None:
        with self._lock:
            self.live[index] -= self._known.pop(key, 0)


memory = Memory()
waits: collections.Counter[str] = collections.Counter()
"""How often the host waited for a device, by what made it wait and the line of the product."""


def note_wait(kind: str) -> None:
    """Counts that the host waits."""
    frame = sys._getframe(1)
    while frame is not None and "/megavoxel/" not in frame.f_code.co_filename:
        frame = frame.f_back
    where = f"{frame.f_code.co_filename.split('/megavoxel/')[-1]}:{frame.f_lineno}" if frame else "elsewhere"
    waits[f"{kind} in {where}"] += 1


class PretendedTensor(torch.Tensor):
    """A tensor on `cuda:N` around `behind`, a tensor in the host's memory."""

    behind: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, behind: Tensor, device: torch.device) -> PretendedTensor:
        memory.add(behind.untyped_storage(), device.index)
        made = torch.Tensor._make_wrapper_subclass(
            cls, behind.size(), strides=behind.stride(), storage_offset=behind.storage_offset(),
            dtype=behind.dtype, device=device, requires_grad=False,
        )  # fmt: skip
        made.behind = behind
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(function, args, kwargs or {})

    def untyped_storage(self) -> torch.UntypedStorage:
        """The storage behind, which views share as they do on a GPU."""
        return self.behind.untyped_storage()

    def __reduce_ex__(self, protocol: int) -> Any:
        note_wait("a copy to a file")
        return self.behind.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        """The numbers, for which the host waits."""
        note_wait("tolist")
        return self.behind.tolist()

    def __format__(self, how: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), how)

    def __repr__(self, **_: Any) -> str:
        return f"pretended({self.behind!r})"


class Pretending(TorchDispatchMode):
    """Runs what is asked for on `cuda`, also by functions that have no tensor as an argument."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        on_cuda = asked is not None and torch.device(asked).type == "cuda"
        if on_cuda or any(isinstance(leaf, PretendedTensor) for leaf in tree_leaves((args, kwargs))):
            return run(function, args, kwargs)
        return function(*args, **kwargs)


current_device: Callable[[], int] = int
"""The number of the device that is set; given by `pretended_cuda.install`."""


def run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The operation's result, on the device on which a GPU would have it.

    Raises:
        RuntimeError: its tensors are on different devices.
    """
    name = function._opname if hasattr(function, "_opname") else function.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    pretended = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    asked = kwargs.get("device")
    target = pretended[0].device if pretended else None
    if asked is not None:
        target = _with_number(torch.device(asked)) if torch.device(asked).type == "cuda" else None
    if pretended and name not in MAY_MIX and function.namespace != "c10d":
        _require_one_device(function, name, args, tensors, pretended)
    _note_waits(name, args, kwargs, pretended, target)
    plain = {key: _bare(value) for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if asked is not None:
        plain["device"] = torch.device("cpu") if torch.device(asked).type in ("cuda", "cpu") else asked
    output = function(*_bare(args), **plain)
    if target is None or (name == "copy_" and not isinstance(args[0], PretendedTensor)):
        return output
    own = {id(tensor.behind): tensor for tensor in pretended}
    return tree_map(lambda leaf: _dressed(leaf, own, target), output)


def _require_one_device(function: Any, name: str, args: tuple, tensors: list, pretended: list) -> None:
    devices = {tensor.device for tensor in pretended}
    # Scalars of the host may stand beside tensors of a device.
    hosts = [t for t in tensors if not isinstance(t, PretendedTensor) and t.dim() > 0 and t.numel() > 0]
    if name in BY_INDEX:
        hosts = [t for t in hosts if t is args[0] or (len(args) > 2 and t is args[2])]
    if hosts or len(devices) > 1:
        found = ", ".join(sorted({str(tensor.device) for tensor in (*pretended, *hosts)}))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {found}! (in {function})"
        )


def _note_waits(name: str, args: tuple, kwargs: dict[str, Any], pretended: list, target: torch.device | None) -> None:
    """Counts waits: for numbers, and for copies that are not told to go on beside the host."""
    if pretended and name in WAITS:
        note_wait(name)
    if name == "_to_copy" and not kwargs.get("non_blocking"):
        source = pretended[0].device if pretended else None
        if source != target:
            note_wait("a copy to the host" if target is None else "a copy to the device")
    if name == "copy_" and pretended and not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
        to, source = args[:2]
        if isinstance(to, PretendedTensor) != isinstance(source, PretendedTensor) and source.dim() > 0:
            note_wait("a copy to the device" if isinstance(to, PretendedTensor) else "a copy to the host")


def _with_number(device: torch.device) -> torch.device:
    return torch.device("cuda", current_device()) if device.index is None else device


def _bare(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.behind if isinstance(leaf, PretendedTensor) else leaf, value)


def _dressed(leaf: Any, own: dict[int, PretendedTensor], target: torch.device) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, PretendedTensor) or leaf.device.type != "cpu":
        return leaf
    return own[id(leaf)] if id(leaf) in own else PretendedTensor(leaf, target)
