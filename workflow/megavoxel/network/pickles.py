"""Reads through the pickle of a file of PyTorch without building anything, and refuses what no such file needs.

`torch.load(weights_only=True)` runs no code of strangers. It still builds what a pickle asks for: gigabytes of zeros, a
list that holds itself twice and again twice, a tensor that reaches beyond its numbers. What is allowed here is what
`torch.save` writes for tensors, numbers, text, and dictionaries, lists and tuples of them, each of which is in one
place: what a program then reads, copies or prints grows with the file and not faster.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

ITEM_BYTES = {
    "DoubleStorage": 8, "LongStorage": 8, "FloatStorage": 4, "IntStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
"""Bytes of a number, by PyTorch's name for an array of them."""
ORDERED, PARAMETER = "collections OrderedDict", "torch._utils _rebuild_parameter"
TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
GLOBALS = {ORDERED, PARAMETER, *TENSORS, *(f"torch {name}" for name in ITEM_BYTES)}
CODED, DEVICE, KIND = "_codecs encode", "torch device", "numpy dtype"
SCALARS = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
OF_OTHERS = {CODED, DEVICE, KIND, *SCALARS}
"""What the checkpoints of nnU-Net hold besides: single numbers of NumPy, in its log, and the device."""
NUMBER_BYTES = {"f8": 8, "f4": 4, "f2": 2, "i8": 8, "i4": 4, "u1": 1, "b1": 1}
"""Bytes of such a number, by NumPy's name of its kind."""
MOST_STEPS = 1_000_000
"""Opcodes of a pickle; a network of a thousand tensors with its optimiser has less than a tenth."""
MOST_STEPS_OF_OTHERS = 20_000_000
"""Opcodes where a log is among them: about ten per epoch and label."""
MOST_LETTERS = 2**26
"""Signs and values that would be written if everything were printed."""
MOST_SHARED = 4
"""How often the numbers of a file may be part of a tensor, on average: networks of nnU-Net hold each of their encoder
four times, under as many names."""
UNNATURAL = (AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Value:
    """What the unpickler would have on its stack."""

    kind: str
    """`atom`, `name`, `tuple`, `open` (a list or dictionary, or a tuple with one), `storage`, `tensor`; of others also
    `bytes`, and `kind`, of a number."""
    size: int = 1
    """Values and letters in it."""
    content: Any = None
    """An atom or name, the values of a tuple, or the length of a storage, of bytes or of a number."""


def storages_in(pickled: bytes | BinaryIO, *, of_others: bool = False) -> dict[str, int]:
    """Bytes of the arrays of numbers that a pickle refers to, by their key.

    Args:
        pickled: the pickle; of a file that is open, the part from its position to the end of the pickle is read.
        of_others: whether what checkpoints of nnU-Net hold besides is allowed.

    Raises:
        ValueError: the pickle has something in it that no file of tensors needs, or claims what cannot be.
    """
    reading, most = _Reading(of_others=of_others), MOST_STEPS_OF_OTHERS if of_others else MOST_STEPS
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if steps > most or reading.letters > MOST_LETTERS:
                raise ValueError("it holds more values than any network has")
            reading.step(opcode.name, argument)
    except UNNATURAL as fault:
        detail = " ".join(str(fault).split())[:150]
        raise ValueError(f"it is not what megavoxel or PyTorch writes for tensors: {detail}") from None
    if reading.tensor_bytes > MOST_SHARED * sum(reading.storages.values()):
        raise ValueError("its tensors hold the same numbers again and again")
    return reading.storages


@dataclass(kw_only=True)
class _Reading:
    """The unpickler's stack, with the size of things in place of the things."""

    of_others: bool = False
    stack: list[_Value] = field(default_factory=list)
    below: list[list[_Value]] = field(default_factory=list)
    """Stacks below a mark."""
    memo: dict[int, _Value] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)
    tensor_bytes: int = 0
    letters: int = 0

    def step(self, name: str, argument: Any) -> None:
        """Takes one opcode."""
        if name in ATOMS:
            self._push("atom", size=1 + (len(argument) if isinstance(argument, str) else 0), content=argument)
        elif name in TRUTHS:
            self._push("atom", content=TRUTHS[name])
        elif name in TUPLES:
            parts = self._to_mark() if name == "TUPLE" else self._last(TUPLES[name])
            self._push_tuple(parts)
        elif name in MUTABLES:
            self._push("open")
        elif name in FILLING:
            parts = self._to_mark() if name.endswith("S") else self._last(FILLING[name])
            self._require(self.stack[-1].kind == "open", name)
            del parts
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._push_again(self.memo[argument])
        else:
            self._step_rarely(name, argument)

    def _step_rarely(self, name: str, argument: Any) -> None:
        if name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name == "GLOBAL":
            self._require(argument in GLOBALS or (self.of_others and argument in OF_OTHERS), argument)
            self._push("name", content=argument)
        elif name == "BINPERSID":
            self._push_storage(self.stack.pop().content)
        elif name == "REDUCE":
            arguments, function = self.stack.pop(), self.stack.pop()
            self._reduce(function, arguments)
        elif name == "BUILD":  # the versions of modules, which PyTorch adds to the weights of a network
            state = self.stack.pop()
            self._require({state.kind, self.stack[-1].kind} == {"open"} or self._is_order_of_bytes(state), name)
        elif name == "PROTO":
            self._require(argument == 2, f"protocol {argument}")
        elif name == "STOP":
            self._require(len(self.stack) == 1 and not self.below, name)
        else:
            self._require(False, name)

    def _reduce(self, function: _Value, arguments: _Value) -> None:
        self._require(function.kind == "name", "REDUCE")
        parts = arguments.content
        if function.content == ORDERED:
            self._push("open")
        elif function.content == PARAMETER:
            self._require(parts[0].kind == "tensor", "parameter")
            self._push("tensor")
        elif function.content in OF_OTHERS:
            self._reduce_of_others(function.content, parts)
        else:
            self._require(function.content in TENSORS, function.content)
            self._push_tensor(*parts[:4])

    def _reduce_of_others(self, function: str, parts: list[_Value]) -> None:
        if function == CODED:
            text, code = (part.content for part in parts)
            self._require(isinstance(text, str) and code == "latin1", function)
            self._push("bytes", size=1 + len(text), content=len(text))
        elif function == KIND:
            self._require([part.content for part in parts[1:]] == [False, True], function)
            self._push("kind", content=NUMBER_BYTES[parts[0].content])
        elif function == DEVICE:
            self._require(all(part.kind == "atom" for part in parts), function)
            self._push("atom")
        else:
            self._require([part.kind for part in parts] == ["kind", "bytes"], function)
            self._require(parts[0].content == parts[1].content, "length of a number")
            self._push("atom")

    def _is_order_of_bytes(self, state: _Value) -> bool:
        """Whether a kind of numbers is told that its lowest byte comes first, or that it has one byte."""
        if self.stack[-1].kind != "kind" or state.kind != "tuple":
            return False
        return [part.content for part in state.content] in ([3, sign, None, None, None, -1, -1, 0] for sign in "<|")

    def _push_tensor(self, storage: _Value, offset: _Value, shape: _Value, strides: _Value) -> None:
        self._require(storage.kind == "storage", "tensor")
        key, length = storage.content
        start, sizes, steps = offset.content, _numbers(shape), _numbers(strides)
        self._require(len(sizes) == len(steps) and start >= 0 and min((0, *sizes, *steps)) >= 0, "shape of a tensor")
        count = math.prod(sizes)
        last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        self._require(count == 0 or (count <= length and last < length), "a tensor reaches beyond its numbers")
        self.tensor_bytes += count * self.storages[key] // max(length, 1)
        self._push("tensor")

    def _push_storage(self, parts: Sequence[_Value]) -> None:
        """An array that lies elsewhere in the file: (`storage`, its type, key, device, length)."""
        word, kind, key, _, length, *view = (part.content for part in parts)
        self._require(word == "storage" and isinstance(key, str) and view in ([], [None]), "storage")
        self._require(isinstance(length, int) and length >= 0, "length of a storage")
        size = length * ITEM_BYTES[kind.removeprefix("torch ")]
        self._require(self.storages.setdefault(key, size) == size, "two sizes of one storage")
        self._push("storage", content=(key, length))

    def _push(self, kind: str, *, size: int = 1, content: Any = None) -> None:
        self.stack.append(_Value(kind=kind, size=size, content=content))
        self.letters += size

    def _push_tuple(self, parts: list[_Value]) -> None:
        kind = "open" if any(part.kind == "open" for part in parts) else "tuple"
        value = _Value(kind=kind, size=1 + sum(part.size for part in parts), content=parts)
        self.stack.append(value)
        self.letters += 1

    def _push_again(self, value: _Value) -> None:
        self._require(value.kind != "open", "one list or dictionary in two places")
        self.stack.append(value)
        self.letters += value.size

    def _to_mark(self) -> list[_Value]:
        parts, self.stack = self.stack, self.below.pop()
        return parts

    def _last(self, count: int) -> list[_Value]:
        if count == 0:
            return []
        parts = self.stack[-count:]
        self._require(len(parts) == count, "stack")
        del self.stack[-count:]
        return parts

    @staticmethod
    def _require(is_sound: bool, what: str) -> None:
        if not is_sound:
            raise ValueError(what)


def _numbers(shape: _Value) -> list[int]:
    return [int(part.content) for part in shape.content]


ATOMS = ("BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
TRUTHS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": -1}
MUTABLES = ("EMPTY_DICT", "EMPTY_LIST")
FILLING = {"APPEND": 1, "SETITEM": 2, "APPENDS": -1, "SETITEMS": -1}
"""How many values they take from the stack; -1: all above the mark."""
