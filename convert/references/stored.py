"""The tensors of a converted folder, read by name as the folder's own library reads them, with safetensors' code."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from bit.checks import listed, mismatches
from bit.files import read_json
from convert.references.torch_streaming import Read


def stored_tensors(path: Path, network: nn.Module) -> Read:
    """Return the tensors of a safetensors file, or of an index's shards; each is read when it is asked for.

    Raises `ValueError` unless they are exactly the tensors of `network`.
    """
    names = {path.name}
    if path.name.endswith(".index.json"):
        names = set(read_json(path)["weight_map"].values())
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.with_name(name) for name in names):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dictionary)
                files[key], shapes[key] = file, tuple(opened.get_slice(key).get_shape())
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    if problems := mismatches(expected, shapes):
        raise ValueError(f"{path} does not hold the tensors of {type(network).__name__}: {listed(problems)}")

    def read(key: str, channels: slice) -> Tensor:
        # Opened anew each time: what was read through an open file stays in memory with it.
        with safe_open(files[key], framework="pt") as opened:
            tensor: Tensor = opened.get_slice(key)[channels]
            return tensor.clone()

    return read
