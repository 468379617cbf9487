"""Weights in several files, with an index that names the file of each tensor (transformers' format)."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bit.files import parse_json
from convert.errors import CheckpointError, UsageError
from convert.files.base import MAX_DIRECTORY, MAX_NAME, File, StoredTensor, Tensor, TensorFile, shown

INDEX_SUFFIX = ".index.json"
MAX_FILES = 500
"""Most files of one checkpoint, all of which are open: half of what Linux allows a process by default."""
SIZE = re.compile(r"(?=[0-9.]*[1-9])[0-9]{0,9}\.?[0-9]{1,9}\s?[KMGT]B", re.IGNORECASE)
"""Sizes that huggingface_hub reads, as far as they are finite and above zero."""


class Index(msgspec.Struct):
    """The content of `model.safetensors.index.json`."""

    weight_map: dict[str, str]
    """File name by tensor name."""


class ShardedFile(TensorFile):
    """All files that an index lists, as one.

    Raises `CheckpointError` unless every listed file is in the folder of the index and the files hold
    exactly the tensors that the index lists for them. With `incomplete`, what is missing or damaged is
    listed in `faults`, as long as one file can be read.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], TensorFile], incomplete: bool = False) -> None:
        self._open_file, self._incomplete = open_file, incomplete
        self._shards: dict[str, TensorFile] = {}
        self._holder: dict[str, TensorFile] = {}
        super().__init__(path)
        self.container = next(iter(self._shards.values())).container

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        self._holder[tensor.key].read(tensor, start, out)

    def digests(self, stop: threading.Event | None = None) -> dict[str, File]:
        files = {name: file for shard in self._shards.values() for name, file in shard.digests(stop).items()}
        return {**files, **super().digests(stop)}

    def _open_directory(self) -> None:
        weight_map = self._weight_map()
        names = sorted(set(weight_map.values()))
        if len(names) > MAX_FILES:
            raise CheckpointError(f"{self.path} lists {len(names)} files; at most {MAX_FILES} are read")
        for name in names:
            if Path(name).name != name or name in ("", ".", "..") or "\\" in name or shown(name, MAX_NAME) != name:
                raise CheckpointError(
                    f"{self.path} lists '{shown(name)}', which is not the name of a file in this folder"
                )
            if (file := self._opened(name)) is not None:
                self._shards[name] = file
                self.notes += [f"{name}: {note}" for note in file.notes]
        if not self._shards:
            raise CheckpointError(self.faults[0])
        for name, file in self._shards.items():
            for key, tensor in file.tensors.items():
                if key in self._holder:
                    raise CheckpointError(f"{self.path}: {key} is in two of the files")
                if (listed := weight_map.get(key)) != name:
                    where = f"in {listed}" if listed else "in no file"
                    raise CheckpointError(f"{self.path}: {key} is in {name}, but the index lists it {where}")
                self._holder[key], self.tensors[key] = file, tensor
        for key, name in weight_map.items():
            if key not in self.tensors and not self._incomplete:
                raise CheckpointError(f"{self.path} lists {key} in {name}, which does not hold it")

    def _opened(self, name: str) -> TensorFile | None:
        """Open one of the files; None if it is missing or damaged, and need not be there."""
        shard = self.path.with_name(name)
        try:
            if not shard.is_file():
                raise CheckpointError(f"{self.path} lists {name}, which is missing")
            return self.enter_context(self._open_file(shard))
        except CheckpointError as error:
            if not self._incomplete:
                raise
            self.faults.append(str(error))
            return None

    def _weight_map(self) -> dict[str, str]:
        if self.nbytes > MAX_DIRECTORY:
            raise CheckpointError(f"{self.path} is larger than {MAX_DIRECTORY} bytes; it is not an index")
        content = bytearray(self.nbytes)
        self._pread(memoryview(content), 0)
        try:
            index = msgspec.convert(parse_json(bytes(content)), Index)
        except ValueError as error:
            raise CheckpointError(f"{self.path} is a damaged index ({shown(error)})") from None
        if not index.weight_map:
            raise CheckpointError(f"{self.path} is a damaged index (weight_map lists no files)")
        self._check_names(list(index.weight_map))
        return index.weight_map


def check_size(size: str) -> None:
    """Raise `UsageError` unless it is a size such as `500MB` or `5GB`."""
    if not SIZE.fullmatch(size.strip()):
        raise UsageError(f"invalid shard size {size!r}; expected a size such as 500MB or 5GB")


def split(tensors: Sequence[Tensor], name: str, most: str) -> tuple[dict[str, list[str]], dict[str, Any] | None]:
    """Split tensors into files of at most `most` (`500MB`, `5GB`), as transformers does, by the same function.

    Returns the names of the tensors by file, and the index; the index is None if one file holds all.
    Raises `UsageError` for an invalid size.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    check_size(most)
    stem = name.removesuffix(".safetensors")
    plan = split_state_dict_into_shards_factory(
        {tensor.key: tensor for tensor in _as_registered(tensors)},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=stem + "{suffix}.safetensors",
        max_shard_size=most,
    )
    if not plan.is_sharded:
        return {name: [tensor.key for tensor in tensors]}, None
    total = {
        "total_parameters": sum(tensor.size for tensor in tensors),
        "total_size": sum(tensor.nbytes for tensor in tensors),
    }
    return plan.filename_to_tensors, {"metadata": total, "weight_map": plan.tensor_to_filename}


def _as_registered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the order of transformers' state dict, where a unit's projection comes first."""
    ordered: list[Tensor] = []
    for tensor in tensors:
        unit, projection, _ = tensor.key.partition("downsample.")
        others = (
            position
            for position, other in enumerate(ordered)
            if projection and other.key.startswith(unit) and other.dtype == tensor.dtype
        )
        ordered.insert(next(others, len(ordered)), tensor)
    return ordered
