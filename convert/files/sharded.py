"""Weights in several files with an index of which holds what (transformers, `model.safetensors.index.json`)."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckpointError
from convert.files.base import File, StoredTensor, Tensor, TensorFile
from convert.files.safetensors import no_duplicates

INDEX_SUFFIX = ".index.json"
SIZE = re.compile(r"[0-9.]*[1-9][0-9.]*\s*[KMGT]B", re.IGNORECASE)
"""Of the sizes that huggingface_hub reads those that are finite and more than none."""


class ShardedFile(TensorFile):
    """All files that an index lists, as one.

    Raises `CheckpointError` unless every tensor that the index names is in the file that it names,
    there is no other, and each file lies beside the index.
    """

    def __init__(self, path: Path, open_file: Callable[[Path], TensorFile]) -> None:
        super().__init__(path)
        self._shards: dict[str, TensorFile] = {}
        self._holder: dict[str, TensorFile] = {}
        try:
            self._open(_weight_map(path), open_file)
        except BaseException:
            self.close()
            raise
        self.container = next(iter(self._shards.values())).container

    def read(self, tensor: StoredTensor, start: int, out: NDArray[np.generic]) -> None:
        self._holder[tensor.key].read(tensor, start, out)

    def digests(self, stop: threading.Event | None = None) -> dict[str, File]:
        files = {name: file for shard in self._shards.values() for name, file in shard.digests(stop).items()}
        return {**files, **super().digests(stop)}

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()
        super().close()

    def _open(self, weight_map: Mapping[str, str], open_file: Callable[[Path], TensorFile]) -> None:
        for name in sorted(set(weight_map.values())):
            if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
                raise CheckpointError(f"{self.path} names {name!r}, which is not beside it")
            shard = self.path.with_name(name)
            if not shard.is_file():
                raise CheckpointError(f"{self.path} lists {name}, which is missing")
            self._shards[name] = file = open_file(shard)
            self.notes += [f"{name}: {note}" for note in file.notes]
        for name, file in self._shards.items():
            for key, tensor in file.tensors.items():
                if key in self._holder:
                    raise CheckpointError(f"{self.path}: {key} is in two of its files")
                if weight_map.get(key) != name:
                    raise CheckpointError(
                        f"{self.path}: {key} is in {name}, the index lists it under {weight_map.get(key, 'none')}"
                    )
                self._holder[key] = file
                self.tensors[key] = tensor
        for key, name in weight_map.items():
            if key not in self.tensors:
                raise CheckpointError(f"{self.path} lists {key} in {name}, where it is not")


def _weight_map(path: Path) -> Mapping[str, str]:
    try:
        index = json.loads(path.read_text("utf-8"), object_pairs_hook=no_duplicates)
        found = index["weight_map"]
        if not found or not all(isinstance(name, str) for name in found.values()):
            raise ValueError("weight_map lists no files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is a damaged index ({error})") from None
    return dict(found)


def split(tensors: list[Tensor], name: str, most: str) -> tuple[dict[str, list[str]], dict[str, Any] | None]:
    """The names of the tensors by file, none larger than `most` (`500MB`, `5GB`), and the index.

    As transformers splits, by the same function; the index is None where one file holds all.
    Raises `CheckpointError` for a size that is none.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    if not SIZE.fullmatch(most.strip()):
        raise CheckpointError(f"the shard size {most!r} is none; 500MB or 5GB is")
    stem = name.removesuffix(".safetensors")
    try:
        plan = split_state_dict_into_shards_factory(
            {tensor.key: tensor for tensor in _as_registered(tensors)},
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern=stem + "{suffix}.safetensors",
            max_shard_size=most,
        )
    except ValueError as error:
        raise CheckpointError(f"the shard size {most!r} is none ({error}); 500MB or 5GB is") from None
    if not plan.is_sharded:
        return {name: [tensor.key for tensor in tensors]}, None
    total = {
        "total_parameters": sum(tensor.size for tensor in tensors),
        "total_size": sum(tensor.nbytes for tensor in tensors),
    }
    return plan.filename_to_tensors, {"metadata": total, "weight_map": plan.tensor_to_filename}


def _as_registered(tensors: list[Tensor]) -> list[Tensor]:
    """In the order of transformers' state dict, in which a unit's projection comes first."""
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
