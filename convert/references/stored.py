"""The tensors of a converted folder, read by name as the folder's own library reads them, with safetensors' code."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from bit.mismatch import mismatches


class StoredTensors:
    """Reads the tensors of a safetensors file, or of an index's shards, and keeps none.

    Raises `ValueError` unless they are exactly the tensors of `network`.
    """

    def __init__(self, path: Path, network: nn.Module) -> None:
        paths = [path]
        if path.name.endswith(".index.json"):
            index = json.loads(path.read_text("utf-8"))
            paths = sorted({path.with_name(name) for name in index["weight_map"].values()})
        self._paths: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in paths:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (not a dictionary)
                    self._paths[key], shapes[key] = file, tuple(opened.get_slice(key).get_shape())
        expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        if problems := mismatches(expected, shapes):
            raise ValueError(f"{path} does not hold the tensors of {type(network).__name__}: {', '.join(problems)}")

    def __call__(self, key: str, channels: slice) -> Tensor:
        """Return the indices `channels` of a tensor's first axis."""
        # Opened anew each time: what was read through an open file stays in memory with it.
        with safe_open(self._paths[key], framework="pt") as file:
            tensor: Tensor = file.get_slice(key)[channels]
            return tensor.clone()
