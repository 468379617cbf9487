"""Weights as their own library reads them from a folder that was written for it: by name, with safetensors' code."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class StoredTensors:
    """The tensors of a safetensors file, or of shards beside their index; none is kept."""

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Path] = {}
        if path.name.endswith(".index.json"):
            shards = json.loads(path.read_text("utf-8"))["weight_map"]
            self._files = {key: path.with_name(name) for key, name in shards.items()}
        else:
            with safe_open(path, framework="pt") as file:
                self._files = dict.fromkeys(file.keys(), path)

    def __call__(self, key: str, channels: slice) -> Tensor:
        """The indices `channels` of a tensor's first axis."""
        # Opened anew each time: what was read through an open file stays in memory with it.
        with safe_open(self._files[key], framework="pt") as file:
            tensor: Tensor = file.get_slice(key)[channels]
            return tensor.clone()

    @property
    def keys(self) -> set[str]:
        return set(self._files)
