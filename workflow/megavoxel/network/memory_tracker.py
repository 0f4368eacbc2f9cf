"""Peak memory and FLOPs of PyTorch code that runs on fake tensors, or on real ones.

Every storage is counted once, from the operation that makes it until nothing refers to it, which is what a caching
allocator holds. Not seen: temporaries inside an operation (the workspace of cuDNN and oneDNN), the CUDA context, the
allocator's rounding and fragmentation.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from megavoxel.network.work import ANY, Work

FORWARD, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
NORMS = {torch.ops.aten.native_batch_norm: 0, torch.ops.aten.native_batch_norm_backward: 1}
"""Norms, with the place of their input among the arguments."""
EMPTY = (
    torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided, torch.ops.aten.new_empty,
    torch.ops.aten.new_empty_strided,
)  # fmt: skip
"""Operations that take memory and leave it as it is."""
BYTES_OF_FLOAT32 = 4
_FAKE = torch.library.Library("aten", "IMPL", "Meta")
"""Operations that PyTorch would run on real zeros under `FakeTensorMode`, because it has no fake ones."""


def _batch_norm_update_stats(x: Tensor, mean: Tensor | None, _variance: Tensor | None, _: float) -> tuple[Tensor, ...]:
    like = x if mean is None else mean
    return like.new_empty(x.shape[1]), like.new_empty(x.shape[1])


_FAKE.impl("batch_norm_update_stats", _batch_norm_update_stats)


class MemoryTracker(TorchDispatchMode):
    """Follows the bytes of all storages that are made while it is active, and of those that it is told of.

    Works under `FakeTensorMode` entered before it, through autocast, activation checkpointing and the backward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes now."""
        self.peak = 0
        """Most bytes since the start or since `reset_peak`."""
        self.largest_convolution = 0
        """Bytes of input and output of the largest convolution in float32: the scale of its workspace."""
        self._flops: Counter[int] = Counter()
        self._touched: Counter[int] = Counter()
        self._known: set[int] = set()

    @property
    def work(self) -> Work:
        """What convolutions compute, as PyTorch's `FlopCounterMode` counts it, and what all other operations read and
        write, temporaries inside of them left out."""
        return Work(flops=Counter(self._flops), touched=Counter(self._touched))

    @property
    def flops(self) -> int:
        """Floating-point operations of convolutions."""
        return self._flops.total()

    def reset_peak(self) -> None:
        """Begins a new peak at what is live now."""
        self.peak = self.live

    def include(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that were made before, until nothing refers to them either."""
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Runs the operation and counts the storages of its results."""
        output = function(*args, **(kwargs or {}))
        if function in (FORWARD, BACKWARD):
            self._note_convolution(function, args, kwargs or {}, output)
        elif function.namespace != "prim" and not (function.is_view or function.overloadpacket in EMPTY):
            leaves = tree_leaves((args, output))  # what keywords give is written, and an output
            touched = sum(leaf.numel() * leaf.itemsize for leaf in leaves if isinstance(leaf, Tensor))
            self._touched[_channels_of_norm(function, args)] += touched
        self.include(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        return output

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self._change(size)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._change(-size)

    def _change(self, size: int) -> None:
        """Counts a storage that has come, or one that has gone: its bytes are negative."""
        self.live += size
        self.peak = max(self.peak, self.live)

    def _note_convolution(self, function: Any, args: tuple, kwargs: dict, output: Any) -> None:
        flops = flop_registry[function.overloadpacket](*args, **kwargs, out_val=output)
        makes = _channels_made(function, args, output)
        for channels in makes:
            self._flops[channels] += flops // len(makes)
        elements = args[0].numel() + (output if function is FORWARD else args[1]).numel()
        self.largest_convolution = max(self.largest_convolution, elements * BYTES_OF_FLOAT32)


def _channels_made(function: Any, args: tuple, output: Any) -> list[int]:
    """Channels that a convolution makes; backward, those of the gradients of its input and of its weights."""
    if function is FORWARD:
        return [output.shape[1]]
    of_input, of_weights = args[10][:2]
    return [args[1].shape[1]] * of_input + [args[0].shape[1]] * of_weights


def _channels_of_norm(function: Any, args: tuple) -> int:
    """Channels of a norm whose input has them last, so that a processor takes several at once."""
    place = NORMS.get(function.overloadpacket)
    is_wide = place is not None and args[place].dim() > 1 and args[place].stride(1) == 1
    return args[place].shape[1] if is_wide else ANY
