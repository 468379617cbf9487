"""PyTorch's own files (`.bin`, `.pth`, `.pth.tar`): a pickle of a state dict, with its arrays in a zip archive.

The pickle is read by `torch.load(weights_only=True)` alone, which runs no code, and without the
arrays: these are then read from their offsets. Files older than PyTorch 1.6 are no archives and
are loaded whole.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import re
import zipfile
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
"""Where training scripts keep the weights in what they save; averaged ones first, as timm takes them."""
MOST_NAMED = 8
UNSAFE = re.compile(r"GLOBAL (\S+)")
"""In what PyTorch says of a pickle, the name of what it would run or make an object of."""


class ZippedPickle(ArchiveFile):
    """A file of `torch.save`, opened for reading.

    Raises `CheckpointError` for one that is damaged, whose pickle would run code, or that holds
    anything but dense tensors; `notes` says what was left out.
    """

    container = "pytorch"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            if any(info.compress_type != zipfile.ZIP_STORED for info in self.members.values()):
                raise CheckpointError(f"{path} is compressed, which torch.save does not do")
            for name in self.members:
                if name.endswith("/data.pkl"):
                    for _ in self.content(name):  # the CRC-32, before anything is made of it
                        pass
                elif name.endswith("/byteorder") and self.start_of(name, 16) != b"little":
                    raise CheckpointError(f"{path} holds big-endian numbers; save it on a little-endian machine")
            self._sizes = {self.offsets[name]: info.file_size for name, info in self.members.items()}
            for key, tensor in _state(path, _load(path, meta=True), self.notes).items():
                self.tensors[key] = self._stored(key, tensor)
        except BaseException:
            self.close()
            raise

    def _stored(self, key: str, tensor: Tensor) -> StoredTensor:
        storage, order = tensor.untyped_storage(), _order(self.path, key, tensor)
        # Documented as what a tensor without elements knows of its file. It is computed from how
        # torch.save lays a file out, not looked up there, so it is held to where the members lie.
        start = storage._checkpoint_offset
        if start not in self._sizes or self._sizes[start] != storage.nbytes():
            raise CheckpointError(
                f"{self.path}: {key} does not lie where torch.save puts it; load it with PyTorch and save it again"
            )
        first = int(tensor.storage_offset()) * tensor.itemsize
        if not 0 <= first <= self._sizes[start] - tensor.nbytes:
            raise CheckpointError(f"{self.path}: {key} reaches beyond its storage")
        return StoredTensor(key, tuple(tensor.shape), BY_NAME[_dtype(tensor)], start + first, order)


class LegacyPickle(TensorFile):
    """A file of PyTorch before 1.6, which is held in memory whole; otherwise as `ZippedPickle`."""

    container = "pytorch"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._state = _state(path, _load(path), self.notes)
            for key, tensor in self._state.items():
                self.tensors[key] = StoredTensor(key, tuple(tensor.shape), BY_NAME[_dtype(tensor)], 0)
        except BaseException:
            self.close()
            raise

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        import torch

        values = self._state[tensor.key].contiguous().reshape(-1)[start : start + out.size]
        out.view(np.uint8)[:] = values.view(torch.uint8).numpy()


def _load(path: Path, meta: bool = False) -> Any:
    """What was pickled, of classes that weights need; with `meta` the tensors have no elements."""
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError(f"{path} is a PyTorch file; reading it needs PyTorch: pip install -e '.[torch]'")
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    # The options of a training script, as timm's saves them: names with values, and no code.
    known = torch.serialization.safe_globals([argparse.Namespace])
    try:
        with known, FakeTensorMode() if meta else contextlib.nullcontext():
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise anything
        if unsafe := UNSAFE.search(str(error)):
            raise CheckpointError(
                f"{path} holds more than weights, and what it would run is not run: {unsafe[1]}"
            ) from None
        said = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
        lines = said.strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path} is not a file of dense tensors that PyTorch can read ({lines[0]})") from None


def _state(path: Path, content: Any, notes: list[str]) -> dict[str, Tensor]:
    """The state dict, wherever it is nested."""
    import torch

    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds an object of type {_kind(content)}, not a state dict")
    while found := [name for name in NESTED if isinstance(content.get(name), Mapping) and content[name]]:
        if len(notes) == len(NESTED):
            raise CheckpointError(f"{path} holds a state dict in a state dict without end")
        others = [name if isinstance(name, str) and name.isprintable() else repr(name) for name in content]
        others.remove(found[0])
        beside = ", ".join(others[:MOST_NAMED]) + (", …" if len(others) > MOST_NAMED else "")
        notes.append(f"its weights are those under {found[0]}; beside it lies {beside or 'nothing'}")
        content = content[found[0]]
    for key, value in content.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: {key!r:.100} is of type {_kind(key)}, and no name of a tensor")
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: {key:.100} is of type {_kind(value)}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or _dtype(value) not in BY_NAME:
            kind = value.layout if value.layout != torch.strided else value.dtype
            raise CheckpointError(f"{path}: {key} is a tensor of {kind}; weights are dense, {', '.join(BY_NAME)}")
        if value.is_meta:
            raise CheckpointError(f"{path}: {key} was saved without its elements, on the device meta")
        if value.is_neg():
            raise CheckpointError(f"{path}: {key} is a view that negates its numbers; save it as .resolve_neg()")
    return dict(content)


def _kind(value: object) -> str:
    return type(value).__name__.replace("FakeTensor", "Tensor")


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _order(path: Path, key: str, tensor: Tensor) -> tuple[int, ...] | None:
    """The axes as they lie in the file; channels last, say."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = tuple(sorted(range(tensor.ndim), key=lambda axis: (-strides[axis], -tensor.shape[axis])))
    if not tensor.permute(order).is_contiguous():
        raise CheckpointError(f"{path}: {key} is a view of a larger tensor; save it as .contiguous()")
    return order
