"""PyTorch's own files (`.bin`, `.pth`, `.pth.tar`): a pickled state dict, with the arrays in a zip archive.

Only `torch.load(weights_only=True)` reads the pickle, which runs no code, and without loading the
arrays; these are then read in place. Files older than PyTorch 1.6 are not archives and are loaded
whole.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import StoredTensor, TensorFile
from convert.files.zip import ArchiveFile
from convert.network.dtypes import BY_NAME

if TYPE_CHECKING:
    from torch import Tensor

NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries in which training scripts keep the weights; averaged weights first, as timm takes them."""
MOST_NAMED = 8
UNSAFE = re.compile(r"GLOBAL (\S+)")
"""In PyTorch's error message about a pickle, the name of the class or function that it would call."""


class ZippedPickle(ArchiveFile):
    """A file of `torch.save`, opened for reading; `notes` names the parts that are ignored.

    Raises `CheckpointError` for a damaged file, for a pickle that would run code, and for anything
    but dense tensors.
    """

    container = "pytorch"

    def _open_directory(self) -> None:
        super()._open_directory()
        if any(info.compress_type != zipfile.ZIP_STORED for info in self.members.values()):
            raise CheckpointError(f"{self.path} is compressed, which torch.save does not do; save it again")
        for name in self.members:
            if name.endswith("/data.pkl"):
                deque(self.content(name), maxlen=0)  # checks the CRC-32 before the pickle is read
            elif name.endswith("/byteorder") and next(self.content(name, 16), b"") != b"little":
                raise CheckpointError(f"{self.path} holds big-endian numbers; save it on a little-endian machine")
        self._sizes = {self.offsets[name]: info.file_size for name, info in self.members.items()}
        state, self.notes = _state(self.path, _load(self.path, meta=True))
        self.tensors = {key: self._stored(key, tensor) for key, tensor in state.items()}

    def _stored(self, key: str, tensor: Tensor) -> StoredTensor:
        storage, order = tensor.untyped_storage(), _order(self.path, key, tensor)
        # Documented as the offset in the file of a tensor without elements. PyTorch computes it from the way
        # torch.save lays out a file and does not look it up, so it is checked against the members' offsets.
        start = storage._checkpoint_offset
        if start not in self._sizes or self._sizes[start] != storage.nbytes():
            raise CheckpointError(
                f"{self.path}: {key} is not where torch.save puts it; load it with PyTorch and save it again"
            )
        first = int(tensor.storage_offset()) * tensor.itemsize
        if not 0 <= first <= self._sizes[start] - tensor.nbytes:
            raise CheckpointError(f"{self.path}: {key} reaches beyond the storage it is in; the file is damaged")
        return StoredTensor(key, tuple(tensor.shape), BY_NAME[_dtype(tensor)], start + first, order)


class LegacyPickle(TensorFile):
    """A file of PyTorch before 1.6, which is held in memory as a whole; otherwise like `ZippedPickle`."""

    container = "pytorch"

    def _open_directory(self) -> None:
        self._loaded, self.notes = _state(self.path, _load(self.path))
        for key, tensor in self._loaded.items():
            self.tensors[key] = StoredTensor(key, tuple(tensor.shape), BY_NAME[_dtype(tensor)], 0)

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        import torch

        values = self._loaded[tensor.key].contiguous().reshape(-1)[start : start + out.size]
        out.view(np.uint8)[:] = values.view(torch.uint8).numpy()


def _load(path: Path, meta: bool = False) -> Any:
    """Unpickle a file, with the classes that weights need only; with `meta` the tensors have no elements."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    # The options of a training script, as timm saves them: names with values, and no code.
    known = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with known, FakeTensorMode() if meta else contextlib.nullcontext():
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise anything
        if unsafe := UNSAFE.search(str(error)):
            raise CheckpointError(f"{path} would run {unsafe[1]}, and was not loaded; save the weights alone") from None
        reason = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        lines = reason.strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is not a file of dense tensors that PyTorch can read ({lines[0]})") from None


def _state(path: Path, content: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict, wherever it is nested, and notes that name the entries beside it."""
    import torch

    notes: list[str] = []
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds an object of type {_kind(content)}, not a state dict")
    while found := [name for name in NESTED if isinstance(content.get(name), Mapping) and content[name]]:
        if len(notes) == len(NESTED):
            raise CheckpointError(f"{path} holds a state dict nested in itself")
        others = [name if isinstance(name, str) and name.isprintable() else repr(name) for name in content]
        others.remove(found[0])
        ignored = ", ".join(others[:MOST_NAMED]) + (", …" if len(others) > MOST_NAMED else "")
        notes.append(f"uses the weights in {found[0]}" + (f"; ignores {ignored}" if ignored else ""))
        content = content[found[0]]
    for key, value in content.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: the key {key!r:.100} is of type {_kind(key)}, not a tensor name")
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: {key:.100} is of type {_kind(value)}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or _dtype(value) not in BY_NAME:
            kind = value.layout if value.layout != torch.strided else value.dtype
            raise CheckpointError(
                f"{path}: {key} is a tensor of {kind}; expected a dense tensor of {', '.join(BY_NAME)}"
            )
        if value.is_meta:
            raise CheckpointError(f"{path}: {key} was saved without elements, on the device meta")
        if value.is_neg():
            raise CheckpointError(f"{path}: {key} is a view with negated numbers; save it as .resolve_neg()")
    return dict(content), notes


def _kind(value: object) -> str:
    return type(value).__name__.replace("FakeTensor", "Tensor")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _order(path: Path, key: str, tensor: Tensor) -> tuple[int, ...] | None:
    """Return the axes in storage order (channels last, for example); None if they are in their own order."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.ndim), key=lambda axis: (-strides[axis], -tensor.shape[axis])))
    if not tensor.permute(order).is_contiguous():
        raise CheckpointError(f"{path}: {key} is a view of a larger tensor; save it as .contiguous()")
    return order
