"""Interpreter of the pickles in torch files: it calls, imports and constructs nothing of a file.

Only the opcodes that `torch.save` and TorchScript write are known. Tensors become descriptions,
objects of classes become records of their attributes, and neither is ever called. Work and memory
are proportional to the length of the pickle.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_OPCODES = 1_000_000
MAX_DEPTH, MAX_NAME = 50, 400  # of nested containers; characters of a flattened name
MAX_INTEGER_BITS = 128
MAX_DIMENSIONS, MAX_ELEMENTS = 16, 1 << 40

PUSH_ARGUMENT = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
})  # fmt: skip
PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
PUSH_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
PUSH_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IGNORED = frozenset({"PROTO", "FRAME"})
_MARK = object()


class BadPickleError(Exception):
    """A pickle that is damaged, too large, or of another kind than torch writes."""


@dataclass(frozen=True, slots=True)
class Global:
    """Name of a class or function, which is not looked up."""

    name: str


class Record(dict[Any, Any]):
    """Attributes and items of an object whose class is not constructed."""


@dataclass(frozen=True, slots=True)
class StorageSpec:
    """Storage of a tensor.

    Attributes:
        kind: Name of the storage class without `Storage`, such as `Float` or `Untyped`.
        key: Name of its entry in the archive.
        length: Number of elements; of bytes if untyped.
    """

    kind: str
    key: str
    length: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Tensor as a view of a storage; nothing is checked yet.

    Attributes:
        storage: The storage.
        offset: First element.
        size, stride: Shape and distances of elements.
        dtype: Name of the type if the storage is untyped, else an empty string.
    """

    storage: StorageSpec
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


def interpret(data: bytes) -> tuple[Any, int]:
    """Interpret a pickle; return its object and the number of its opcodes.

    Raises:
        BadPickleError: The pickle is damaged, too long, or has opcodes that torch does not write.
    """
    machine, count = _Machine(), 0
    try:
        for opcode, argument, _ in pickletools.genops(data):
            count += 1
            if count > MAX_OPCODES:
                raise BadPickleError(f"more than {MAX_OPCODES:,} pickle opcodes")
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        return machine.stack.pop(), count
    except BadPickleError:
        raise
    except Exception as exc:  # a damaged pickle can raise almost anything
        raise BadPickleError(f"damaged pickle ({type(exc).__name__})") from exc


class _Machine:
    """Stack and memo of an unpickler."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute an opcode."""
        push = self.stack.append
        if name in PUSH_ARGUMENT:
            if type(argument) is int and argument.bit_length() > MAX_INTEGER_BITS:
                raise BadPickleError("an integer of more than 128 bits")
            push(argument)
        elif name in PUSH_CONSTANT:
            push(PUSH_CONSTANT[name])
        elif name in PUSH_EMPTY:
            push(PUSH_EMPTY[name]())
        elif name in PUSH_TUPLE:
            count = PUSH_TUPLE[name]
            self.stack[-count:] = [tuple(self._top(count))]
        elif (method := OPCODES.get(name)) is not None:
            method(self, argument)
        elif name not in IGNORED:
            raise BadPickleError(f"pickle opcode {name}, which torch does not write")

    def _top(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise BadPickleError("damaged pickle (empty stack)")
        return self.stack[-count:]

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def _put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        if isinstance(target := self.stack[-1], list):
            target.extend(items)
        elif not isinstance(target, Record):  # items of an unknown kind of list are left out
            raise BadPickleError("items appended to something that is no list")

    def _set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self, _: Any) -> None:
        self._update(self._pop_to_mark())

    def _update(self, items: list[Any]) -> None:
        if not isinstance(target := self.stack[-1], dict):
            raise BadPickleError("items set in something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) in (str, int):  # others cannot be part of a name, and hashing may be slow
                target[key] = value

    def _global(self, argument: str) -> None:
        self.stack.append(Global(argument.replace(" ", ".", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(f"{module}.{name}" if type(name) is type(module) is str else ""))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if isinstance(function, Global) else ""
        made: Any = Record()
        if name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], TensorSpec):
            made = arguments[0]
        elif name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"):
            made = _tensor(arguments, typed=name.endswith("v2"))
        elif name == "collections.OrderedDict":
            made = {}
        self.stack.append(made)

    def _new_object(self, _: Any) -> None:
        self.stack[-2:] = [Record()]

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record) and isinstance(state, dict):
            target.update(state)

    def _persistent(self, _: Any) -> None:
        self.stack.append(_storage(self.stack.pop()))


OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark, "POP": _Machine._pop, "TUPLE": _Machine._tuple,
    "BINPUT": _Machine._put, "LONG_BINPUT": _Machine._put, "MEMOIZE": _Machine._memoize,
    "BINGET": _Machine._get, "LONG_BINGET": _Machine._get,
    "APPEND": _Machine._append, "APPENDS": _Machine._appends,
    "SETITEM": _Machine._set_item, "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global, "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce, "NEWOBJ": _Machine._new_object, "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}  # fmt: skip


def _storage(identity: Any) -> StorageSpec:
    """Describe a storage by ("storage", class, key, device, length)."""
    word, kind, key, _, length = identity
    if word != "storage" or type(key) is not str or type(length) is not int or length < 0:
        raise BadPickleError("a storage that torch does not write")
    return StorageSpec(kind.name.rpartition(".")[2].removesuffix("Storage"), key, length)


def _tensor(arguments: Any, *, typed: bool) -> TensorSpec:
    """Describe a tensor by (storage, offset, size, stride, requires_grad, hooks[, dtype])."""
    storage, offset, size, stride = arguments[:4]
    dtype = "" if typed else arguments[6].name.removeprefix("torch.")
    numbers = (offset, *size, *stride)
    valid = isinstance(storage, StorageSpec) and len(size) == len(stride) <= MAX_DIMENSIONS
    valid = valid and all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in numbers)
    if not valid or math.prod(n or 1 for n in size) >= MAX_ELEMENTS:
        raise BadPickleError("a tensor that torch does not write")
    return TensorSpec(storage, offset, tuple(size), tuple(stride), dtype)


def flatten(data: Any, max_items: int) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested containers by dotted names; a list's items are numbered.

    Containers that contain themselves are not entered twice.

    Raises:
        BadPickleError: The containers are nested too deeply, or have more than `max_items` items
            with those that occur several times.
    """
    left = max_items

    def visit(name: str, item: Any, path: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
        nonlocal left
        left -= 1
        if left < 0 or len(name) > MAX_NAME or len(path) > MAX_DEPTH:
            raise BadPickleError("containers repeated or nested too often")
        if isinstance(item, dict):
            children: Iterator[tuple[Any, Any]] = iter(item.items())
        elif isinstance(item, (list, tuple)):
            children = iter(enumerate(item))
        else:
            yield name, item
            return
        if id(item) not in path:
            for key, child in children:
                if len(key := str(key)) > MAX_NAME:
                    raise BadPickleError("a name that is too long")
                yield from visit(f"{name}.{key}" if path else key, child, (*path, id(item)))

    return visit("", data, ())
