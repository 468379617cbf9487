"""Small HDF5 files, made by h5py and by the writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from convert.files.base import Metadata, Tensor
from convert.files.h5 import H5Writer
from convert.network.dtypes import FLOAT32

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def save(path: Path, array: NDArray[np.generic] = ARRAY, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("group/a", data=array, **options)
    return path


def written(path: Path, arrays: dict[str, NDArray[Any]]) -> Path:
    """Write float32 arrays with `H5Writer`."""
    tensors = [Tensor(key, array.shape, FLOAT32) for key, array in arrays.items()]
    writer = H5Writer(
        path, tensors, Metadata({"/": {"layer_names": ["group"]}, "group": {"weight_names": list(arrays)}})
    )
    for tensor in tensors:
        writer.write(tensor, [arrays[tensor.key].reshape(-1)])
    writer.finish()
    writer.close()
    return path


def everything(file: h5py.File) -> list[str]:
    names: list[str] = []
    file.visit(names.append)
    return names
