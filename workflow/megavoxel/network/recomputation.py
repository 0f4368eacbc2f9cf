"""Tensors that are computed again in the backward pass instead of being kept for it.

Of a convolution, its norm and its activation function, autograd keeps two tensors: the output of the convolution, from
which the norm has its gradient, and that of the activation function, which the next convolution has as its input. The
second follows from the first. In the same way a join follows from a skip and an upsampled activation, and a pooled
activation from what it was before.

A tensor that follows from others is *remembered* together with the function that makes it. Inside of
`computing_again`, autograd keeps this recipe in place of every remembered tensor. The graph is that of the plain
network and runs in the same order, so gradients are equal to the bit. That cheap operations are worth computing again
is from Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv:1604.06174, section 4).

What a function learns from other processes is *noted* when it first runs, so that it asks nobody when it runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Recipe:
    """How a tensor is made from others, without gradients, and with the autocast of its first making.

    Backward functions ask for tensors in the order opposite to that in which they were made. So a tensor is kept from
    the first of the functions that ask for it to the last. The output of a convolution is kept, too, where it is an
    ingredient on the way to a tensor that is asked for: its own turn comes next. A skip is not on this way: its turn
    comes when the backward pass has been through all levels below.

    Args:
        function: called with the inputs.
        inputs: tensors, or the recipes of such as are remembered themselves. The first is made right before this one.
        notes: what the function noted when it first ran.
        device_type: of the tensor.
        convolution: whether the function is a convolution.
        channels_last: whether the tensor is laid with channels last.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor | Recipe, ...],
        notes: list[Any],
        device_type: str,
        *,
        convolution: bool,
        channels_last: bool,
    ) -> None:
        self.function, self.inputs, self.convolution = function, inputs, convolution
        self.channels_last = channels_last
        self.notes = notes
        self.device_type = device_type
        self.autocast = (torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type))
        self.waiting = 0
        """Backward functions that have yet to ask for the tensor."""
        self.kept: Tensor | None = None

    def taken(self) -> Tensor:
        """The tensor, for one of the backward functions that wait for it."""
        self.waiting -= 1
        result = self._made(keep=True)
        self.kept = result if self.waiting > 0 else None
        return result

    def _made(self, *, keep: bool) -> Tensor:
        if self.kept is not None:
            return self.kept
        enabled, kind = self.autocast
        first, *others = self.inputs
        given = [_ingredient(first, keep=keep), *(_ingredient(other, keep=False) for other in others)]
        repeated = _Notes(self.notes, repeats=True)
        with torch.no_grad(), torch.autocast(self.device_type, kind, enabled=enabled), repeated.used():
            result = self.function(*given)
            if self.channels_last:
                result = result.contiguous(memory_format=torch.channels_last_3d)
        self.kept = result if keep and self.convolution and self.waiting > 0 else None
        return result


def _ingredient(one: Tensor | Recipe, *, keep: bool) -> Tensor:
    return one if isinstance(one, Tensor) else one._made(keep=keep)


@dataclass(frozen=True, kw_only=True)
class _Active:
    """What `computing_again` was entered with."""

    convolutions: bool
    channels_last: bool


_RECIPES = WeakIdKeyDictionary()
"""Recipes by the storage that they make, for as long as it lives."""
_ACTIVE: ContextVar[_Active | None] = ContextVar("active", default=None)


class _Notes:
    """What one run of a remembered function notes, or is given again."""

    def __init__(self, told: list[Any], *, repeats: bool) -> None:
        self.told, self.repeats = told, repeats
        self._left = iter(told)

    @contextmanager
    def used(self) -> Iterator[None]:
        before = _NOTES.set(self)
        try:
            yield
        finally:
            _NOTES.reset(before)

    def next(self, make: Callable[[], Any]) -> Any:
        if self.repeats:
            return next(self._left)
        self.told.append(make())
        return self.told[-1]


_NOTES: ContextVar[_Notes | None] = ContextVar("notes", default=None)


@contextmanager
def computing_again(*, convolutions: bool = False, channels_last: bool = False) -> Iterator[None]:
    """Autograd keeps recipes in place of remembered tensors.

    Args:
        convolutions: whether the outputs of convolutions are among them.
        channels_last: whether what is computed again is laid with channels last. Convolutions whose weights lie so
            would else make a copy of it beside it.
    """
    before = _ACTIVE.set(_Active(convolutions=convolutions, channels_last=channels_last))
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _ACTIVE.reset(before)


def remembered(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    again: Callable[..., Tensor] | None = None,
    convolution: bool = False,
    relaid: bool = False,
) -> Tensor:
    """What `function` makes from `inputs`; inside of `computing_again` with the recipe.

    Args:
        function: the storage of what it makes must hold nothing else.
        inputs: kept for as long as the recipe, unless they have recipes of their own.
        again: called in the backward pass, with tensors without gradients, and gives the same to the bit; None:
            `function`. What changes the tensor in place after this call must be part of it.
        convolution: whether the function is a convolution.
        relaid: whether the tensor may lie with channels last where it did not.
    """
    active = _ACTIVE.get()
    if active is None or (convolution and not active.convolutions):
        return function(*inputs)
    notes: list[Any] = []
    with _Notes(notes, repeats=False).used():
        made = function(*inputs)
    given = tuple(_RECIPES.get(tensor.untyped_storage()) or tensor.detach() for tensor in inputs)
    _RECIPES[made.untyped_storage()] = Recipe(
        again or function,
        given,
        notes,
        made.device.type,
        convolution=convolution,
        channels_last=relaid and active.channels_last,
    )
    return made


def noted(make: Callable[[], Any]) -> Any:
    """What `make` gives; where a remembered function runs again, what it gave the first time."""
    notes = _NOTES.get()
    return make() if notes is None else notes.next(make)


def runs_again() -> bool:
    """Whether a remembered function is running in a backward pass."""
    notes = _NOTES.get()
    return notes is not None and notes.repeats


def has_channels_last(tensor: Tensor) -> bool:
    """Whether the numbers of a voxel of (batch, channels, z, y, x) lie beside one another, and no other way."""
    return (
        tensor.dim() == 5 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last_3d)
    )


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """The layout of (batch, channels, z, y, x): with channels last, or first."""
    return torch.channels_last_3d if has_channels_last(tensor) else torch.contiguous_format


def _pack(tensor: Tensor) -> Tensor | tuple[Recipe, torch.Size]:
    recipe = _RECIPES.get(tensor.untyped_storage())
    if recipe is None:
        return tensor
    recipe.waiting += 1
    # Autograd may keep a view of what the recipe makes: instance norm has samples and channels along one axis.
    return recipe, tensor.shape


def _unpack(packed: Tensor | tuple[Recipe, torch.Size]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    recipe, shape = packed
    return recipe.taken().view(shape)
