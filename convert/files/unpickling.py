"""Read the pickle of a state dict as data: no class is looked up and nothing is called.

`pickletools.genops` decodes the opcodes, and `read_pickle` follows those that `torch.save` writes with
the default protocol, the same that `torch.load(weights_only=True)` accepts. A tensor becomes a
description of where the elements are. Each opcode takes a bounded time in Python, so that a signal ends
the reading at once. `torch.load` gives no such promise: to hash a key made of nested tuples that share
their parts takes exponential time in C, where no signal is seen.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from convert.errors import CheckpointError
from convert.files.base import MAX_AXES, MAX_LENGTH, MAX_TENSORS, shown

MAX_OPCODES = 30 * MAX_TENSORS
"""Most opcodes in a pickle: a tensor takes about 30."""
FAILURES = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError)
"""Exceptions that a damaged pickle causes in `pickletools` and here."""
MAX_KEY = 1000
"""Longest text as a key, longest name of a class and most arguments of a call: a pickle can use one object a
hundred thousand times, and each time these are compared or copied."""
LARGEST_KEY = 1 << 60
"""Integers below are hashed to themselves; larger ones can be chosen so that all have one hash."""
DTYPES = {
    "Half": ("float16", 2),
    "Float": ("float32", 4),
    "Double": ("float64", 8),
    "BFloat16": ("bfloat16", 2),
    "Bool": ("bool", 1),
    "Byte": ("uint8", 1),
    "Char": ("int8", 1),
    "Short": ("int16", 2),
    "Int": ("int32", 4),
    "Long": ("int64", 8),
    "ComplexFloat": ("complex64", 8),
    "ComplexDouble": ("complex128", 16),
    "QInt8": ("qint8", 1),
    "QUInt8": ("quint8", 1),
    "QInt32": ("qint32", 4),
    "Untyped": ("uint8", 1),
}
"""Element types, with their size in bytes, by storage class (PyTorch, `torch.storage._dtype_to_storage_type_map`)."""
HARMLESS = re.compile(
    r"argparse\.Namespace|collections\.Counter|_codecs\.encode|(builtins|__builtin__)\.(bytearray|set|complex)"
    r"|torch\.(device|Tensor|(cuda\.|storage\.)?[A-Za-z0-9]+Storage|per_(tensor|channel)_\w+)"
    r"|torch\.(bool|(bfloat|float|complex|bcomplex|u?int|qu?int|bits)[0-9]\w*)"
)
"""Names whose calls are ignored. PyTorch, too, runs no code of the file for them.

The options of a training script (`Namespace`) are names with values, as timm saves them.
"""


@dataclass(frozen=True)
class Named:
    """A class or function by name or, with `made`, an object that calling it would give."""

    name: str
    made: bool = False


@dataclass(frozen=True)
class Storage:
    """A block of elements in the file: key, element type, number of elements and size in bytes."""

    key: str
    dtype: str
    count: int
    nbytes: int


@dataclass(frozen=True)
class View:
    """A tensor: a part of a storage; `offset` and `strides` count elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Unreadable:
    """A tensor whose elements cannot be read; `reason` continues a sentence that begins with the tensor's name."""

    reason: str


def read_pickle(file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Return the object whose pickle begins at the position of `file`, and every storage in it by key.

    The object consists of dictionaries, lists, tuples, plain values and the classes of this module; `file`
    is left behind the pickle. Raises `CheckpointError`, whose message continues a sentence that begins with
    the name of the file, for a damaged pickle, one that would run code, and one that `torch.save` does not write.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns about some invalid names
            return _followed(pickletools.genops(file))
    except CheckpointError:
        raise
    except FAILURES as error:
        raise CheckpointError(f"has a damaged pickle ({shown(error) or type(error).__name__})") from None


def _followed(opcodes: Iterable[Any]) -> tuple[Any, dict[str, Storage]]:
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(opcodes):
        if count == MAX_OPCODES:
            raise CheckpointError(f"has a pickle of more than {MAX_OPCODES} opcodes; save the weights alone")
        if opcode.name == "STOP":
            (content,) = machine.pop(1)
            return content, machine.storages
        machine.step(opcode.name, argument)
    raise ValueError("no end")


def kind(value: object) -> str:
    """Return the type of an object in a pickle, as an error message names it."""
    if isinstance(value, Named):
        return value.name.rpartition(".")[2] if value.made else "type"
    return "Tensor" if isinstance(value, View | Unreadable) else type(value).__name__


class _Machine:
    """The machine that pickles are written for: a stack with marks, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def pop(self, count: int) -> list[Any]:
        """Remove the last values from the stack and return them. Raises `IndexError` if a mark is among them."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise IndexError("a value is missing")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, opcode: str, argument: Any) -> None:
        """Follow one opcode, by the descriptions in `pickletools`."""
        push, pop = self.stack.append, self.pop
        match opcode:
            case "PROTO":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                push(argument)
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(pop(int(opcode[-1]))))
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                push(tuple(self._since_mark()))
            case "APPEND":
                items = pop(1)
                self._top(list).extend(items)
            case "APPENDS":
                items = self._since_mark()
                self._top(list).extend(items)
            case "SETITEM":
                items = pop(2)
                _fill(self._top(dict), [tuple(items)])
            case "SETITEMS":
                items = self._since_mark()
                _fill(self._top(dict), zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self._top(object)
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(_global(argument.replace(" ", ".", 1)))
            case "REDUCE" | "NEWOBJ":
                function, arguments = pop(2)
                push(_call(function, arguments))
            case "BUILD":  # attributes: the options in a Namespace, the version of each module in an OrderedDict
                pop(1)
                self._top(object)
            case "BINPERSID":
                storage = _storage(*pop(1))
                if self.storages.setdefault(storage.key, storage) != storage:
                    raise ValueError("one storage of two types or sizes")
                push(storage)
            case _:
                raise CheckpointError(f"has a pickle with the opcode {opcode}, which torch.save does not write")

    def _top(self, expected: type) -> Any:
        (value,) = self.pop(1)
        self.stack.append(value)
        if not isinstance(value, expected):
            raise TypeError(f"{kind(value)} instead of {expected.__name__}")
        return value

    def _since_mark(self) -> list[Any]:
        items = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return items


def _fill(target: dict[Any, Any], pairs: Iterable[Any]) -> None:
    """Add pairs of key and value. Raises `CheckpointError` for a key that is not plain, before it is hashed."""
    for key, value in pairs:
        if not _is_plain(key):
            raise CheckpointError(
                f"has a pickle with a dictionary key of type {kind(key)}, other than short text or a small integer; "
                "save the weights alone"
            )
        target[key] = value


def _is_plain(key: Any) -> bool:
    """Return True if a key is hashed and compared in a short time."""
    if isinstance(key, str):
        return len(key) <= MAX_KEY
    return key is None or (type(key) in (int, bool) and abs(key) < LARGEST_KEY)


def _global(name: str) -> Named:
    if len(name) > MAX_KEY or (not HARMLESS.fullmatch(name) and name not in CALLS):
        raise CheckpointError(f"would run {shown(name)}, and was not loaded; save the weights alone")
    return Named(name)


def _call(function: Any, arguments: Any) -> Any:
    """Return what calling a function gives, as a description."""
    if not isinstance(function, Named) or function.made or not isinstance(arguments, tuple):
        raise TypeError("a call of something that is not a function")
    if len(arguments) > MAX_KEY:
        raise ValueError("a call with too many arguments")
    if function.name in CALLS:
        return CALLS[function.name](*arguments)
    return Named(function.name, made=True)


def _storage(value: Any) -> Storage:
    """Return the storage with this persistent id. The legacy format adds a view, which is None since 2017."""
    if not isinstance(value, tuple) or len(value) not in (5, 6) or value[5:] not in ((), (None,)):
        raise ValueError("a storage of an unknown form")
    mark, storage, key, _location, count = value[:5]
    if mark != "storage" or not isinstance(key, str) or not _is_plain(key) or not _whole((count,)):
        raise ValueError("a storage without a key or a size")
    dtype, itemsize = DTYPES[storage.name.rpartition(".")[2].removesuffix("Storage")]
    return Storage(key, dtype, count, count * itemsize)


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    """Return an empty dictionary; the entries are set afterwards."""
    if arguments:
        raise CheckpointError("has a pickle of Python 2; save it again with Python 3")
    return {}


def _size(lengths: Any) -> tuple[int, ...]:
    if not _whole(lengths):
        raise ValueError("an invalid size")
    return tuple(lengths)


def _layout(name: Any) -> Named:
    if not isinstance(name, str) or not _is_plain(name):
        raise ValueError("an invalid layout")
    return Named(name)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View | Unreadable:
    """Follow `torch._utils._rebuild_tensor_v2`; `rest` are requires_grad, hooks and, if there is any, metadata."""
    metadata = rest[2] if len(rest) > 2 else None
    if not isinstance(storage, Storage) or not _whole((offset,)) or not _whole(shape) or not _whole(strides):
        raise TypeError("a tensor with an invalid storage, offset, shape or stride")
    if len(shape) != len(strides):
        raise ValueError("a tensor with another number of strides than axes")
    if isinstance(metadata, dict) and (metadata.get("neg") or metadata.get("conj")):
        return Unreadable("is a view with negated numbers; save it as .resolve_neg()")
    return View(storage, offset, shape, strides, storage.dtype)


def _whole(values: Any) -> bool:
    """Return True for a tuple of lengths that an array can have."""
    whole = isinstance(values, tuple) and len(values) <= MAX_AXES
    return whole and all(type(value) is int and 0 <= value <= MAX_LENGTH for value in values)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View | Unreadable:
    """Follow `torch._utils._rebuild_tensor_v3`, for types without a storage class; the dtype comes after the hooks."""
    grad, hooks, dtype, *metadata = rest
    view = _tensor(storage, offset, shape, strides, grad, hooks, *metadata)
    return replace(view, dtype=dtype.name.removeprefix("torch.")) if isinstance(view, View) else view


def _first(data: Any, *_rest: Any) -> Any:
    if not isinstance(data, View | Unreadable):
        raise TypeError("a parameter without a tensor")
    return data


CALLS: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._tensor._rebuild_from_type_v2": lambda function, _type, arguments, _state: _call(function, arguments),
    "torch.serialization._get_layout": _layout,
    "torch._utils._rebuild_sparse_tensor": lambda layout, _data: Unreadable(f"is a tensor of {shown(layout.name)}"),
    "torch._utils._rebuild_qtensor": lambda storage, *_: Unreadable(f"is a tensor of torch.{storage.dtype}"),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *_: Unreadable(
        "was saved without elements, on the device meta"
    ),
}
"""The functions that make a state dict, each as a function of descriptions."""
