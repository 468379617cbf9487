"""PyTorch's own files (`.bin`, `.pth`, `.pth.tar`): a pickled state dict, and the arrays.

The pickle is read as data (see `unpickling`), without PyTorch; the arrays are then read in place. They are
members of a zip archive or, before PyTorch 1.6, follow the pickles one after the other.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

from convert.errors import CheckpointError
from convert.files.base import MAX_DIRECTORY, StoredTensor, TensorFile, shown
from convert.files.unpickling import Storage, Unreadable, View, kind, read_pickle
from convert.files.zip import ArchiveFile
from convert.network.dtypes import BY_NAME

NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries in which training scripts keep the weights; averaged weights first, as timm takes them."""
MOST_NAMED = 8
PICKLE = "/data.pkl"
"""End of the name of the member that holds the pickle."""


class _PickledFile(TensorFile):
    """A state dict in a pickle, with the storages elsewhere in the file; `notes` names the parts that are ignored."""

    container = "pytorch"

    def _unpickled(self, file: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
        try:
            return read_pickle(file)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path} {error}") from None

    def _add_tensors(self, content: Any, starts: Mapping[str, int]) -> None:
        """Add the tensors of the state dict in `content`; `starts` has the offset of each storage by key."""
        for key, view in self._state(content).items():
            start = starts.get(view.storage.key)
            if start is None:
                raise CheckpointError(f"{self.path}: the array of {key} is missing, or has another size than stated")
            dtype = BY_NAME[view.dtype]
            offset = start + view.offset * dtype.itemsize
            tensor = StoredTensor(key, view.shape, dtype, offset, self._order(key, view))
            self._check_size(tensor, tensor.nbytes)
            if offset + tensor.nbytes > start + view.storage.nbytes:
                raise CheckpointError(f"{self.path}: {key} reaches beyond the storage it is in; the file is damaged")
            self.tensors[key] = tensor

    def _state(self, content: dict[str, Any]) -> dict[str, View]:
        """Return the state dict, wherever it is nested; add notes that name the entries beside it."""
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.path} holds an object of type {kind(content)}, not a state dict")
        while found := [name for name in NESTED if isinstance(content.get(name), dict) and content[name]]:
            if len(self.notes) == len(NESTED):
                raise CheckpointError(f"{self.path} holds a state dict nested in itself")
            self.notes.append(
                f"uses the weights in {found[0]}" + _ignored(name for name in content if name != found[0])
            )
            content = content[found[0]]
        for key in content:
            if not isinstance(key, str):
                raise CheckpointError(f"{self.path}: the key {key} is of type {kind(key)}, not a tensor name")
        self._check_names(list(content))
        for key, value in content.items():
            if isinstance(value, Unreadable):
                raise CheckpointError(f"{self.path}: {key} {value.reason}")
            if not isinstance(value, View):
                raise CheckpointError(f"{self.path}: {key} is of type {kind(value)}, not a tensor")
            if value.dtype not in BY_NAME:
                raise CheckpointError(
                    f"{self.path}: {key} is a tensor of torch.{shown(value.dtype)}; "
                    f"expected a dense tensor of {', '.join(BY_NAME)}"
                )
        return content

    def _order(self, key: str, view: View) -> tuple[int, ...] | None:
        """Return the axes in storage order (channels last, for example); None if they are in their own order."""
        shape, strides = view.shape, view.strides
        own = tuple(range(len(shape)))
        if 0 in shape or _is_contiguous(view, own):
            return None
        order = tuple(sorted(own, key=lambda axis: (-strides[axis], -shape[axis])))
        if not _is_contiguous(view, order):
            raise CheckpointError(f"{self.path}: {key} is a view of a larger tensor; save it as .contiguous()")
        return order


class ZippedPickle(ArchiveFile, _PickledFile):
    """A file of `torch.save`, opened for reading.

    Raises `CheckpointError` for a damaged file, for a pickle that would run code, and for anything
    but dense tensors.
    """

    container = "pytorch"

    def _open_directory(self) -> None:
        super()._open_directory()
        if any(info.compress_type != zipfile.ZIP_STORED for info in self.members.values()):
            raise CheckpointError(f"{self.path} is compressed, which torch.save does not do; save it again")
        pickles = [name for name in self.members if name.endswith(PICKLE)]
        if len(pickles) != 1 or self.members[pickles[0]].file_size > MAX_DIRECTORY:
            raise CheckpointError(f"{self.path} must hold one {PICKLE} of at most {MAX_DIRECTORY} bytes")
        folder = pickles[0].removesuffix(PICKLE)
        if f"{folder}/byteorder" in self.members and next(self.content(f"{folder}/byteorder", 16), b"") != b"little":
            raise CheckpointError(f"{self.path} holds big-endian numbers; save it on a little-endian machine")
        content, storages = self._unpickled(io.BytesIO(b"".join(self.content(pickles[0]))))  # checks the CRC-32, too
        members = {key: f"{folder}/data/{key}" for key in storages}
        self._add_tensors(
            content,
            {
                key: self.offsets[name]
                for key, name in members.items()
                if name in self.members and self.members[name].file_size == storages[key].nbytes
            },
        )


class LegacyPickle(_PickledFile):
    """A file of PyTorch before 1.6; otherwise like `ZippedPickle`.

    It holds five pickles: a mark, the version of the format, facts about the machine, the content, and the
    keys of the storages. These follow, each after the number of elements in eight bytes
    (`torch.serialization._legacy_save`).
    """

    def _open_directory(self) -> None:
        start = bytearray(min(self.nbytes, MAX_DIRECTORY))
        self._pread(memoryview(start), 0)
        file = io.BytesIO(start)
        (_, _), (version, _), (_, _), (content, storages), (keys, _) = (self._unpickled(file) for _ in range(5))
        if version != 1001 or not isinstance(keys, list):
            raise CheckpointError(f"{self.path} has a pickle of an unknown version; save it with a newer PyTorch")
        position, starts, count = file.tell(), {}, bytearray(8)
        for key in keys:
            if not isinstance(key, str) or key in starts or key not in storages:
                raise CheckpointError(f"{self.path} lists a storage that no tensor names, or lists it twice")
            self._pread(memoryview(count), position)
            if int.from_bytes(count, "little") != storages[key].count:
                raise CheckpointError(f"{self.path} has a storage of another size than the tensor; it is damaged")
            starts[key] = position + 8
            position = starts[key] + storages[key].nbytes
        if position > self.nbytes:
            raise CheckpointError(f"{self.path} ends before the last array; it is truncated")
        self._add_tensors(content, starts)


def _ignored(names: Iterable[object]) -> str:
    """Return the end of a note that names entries; empty if there are none."""
    found = [shown(name if isinstance(name, str) and name.isprintable() else repr(name)) for name in names]
    return f"; ignores {', '.join(found[:MOST_NAMED])}{', …' if len(found) > MOST_NAMED else ''}" if found else ""


def _is_contiguous(view: View, order: tuple[int, ...]) -> bool:
    """Return True if the elements follow one another without gaps, with the axes in this order."""
    expected = 1
    for axis in reversed(order):
        if view.shape[axis] != 1 and view.strides[axis] != expected:
            return False
        expected *= view.shape[axis]
    return True
