"""Read the arrays of a file of any container, and check every checksum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.files.base import TensorFile
from convert.files.containers import open_weights


def load_all(path: Path, opened: Callable[[Path], TensorFile] = open_weights) -> dict[str, NDArray[np.generic]]:
    """Return every array, as bits."""
    with opened(path) as file:
        found = {}
        for key, tensor in file.tensors.items():
            out = np.empty(tensor.size, tensor.dtype.bits)
            file.read(tensor, 0, out)
            stored = out.reshape(tensor.stored_shape)
            found[key] = stored if tensor.order is None else stored.transpose(np.argsort(tensor.order))
        file.digests()
        return found


def load(path: Path, key: str = "a") -> NDArray[np.generic]:
    return load_all(path)[key]
