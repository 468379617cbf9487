"""Models that Keras 3 saves, `.keras`: a zip archive with a description in JSON and the weights in HDF5.

The archive has three members that are stored, not compressed, so the weights are read and written in place
(keras/src/saving/saving_lib.py, `_save_model_to_fileobj`).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bit.checks import REGISTERED
from bit.files import parse_json
from convert.errors import CheckpointError
from convert.files.base import CHUNK, NO_METADATA, Metadata, Tensor, Writer, shown
from convert.files.h5 import H5Arrays, lay_out
from convert.files.zip import ArchiveFile

METADATA_NAME, CONFIGURATION_NAME, WEIGHTS_NAME = "metadata.json", "config.json", "model.weights.h5"
MAX_DESCRIPTION = 4 << 20
"""Largest description in bytes, several times that of R152x4."""


class KerasFile(ArchiveFile, H5Arrays):
    """A `.keras` file opened for reading. Nothing that the description names is run or imported.

    Raises `CheckpointError` for a damaged file, and for weights that are compressed.
    """

    container = "keras"

    def _open_directory(self) -> None:
        super()._open_directory()
        missing = [name for name in (CONFIGURATION_NAME, WEIGHTS_NAME) if name not in self.members]
        if missing:
            raise CheckpointError(f"{self.path} is not a complete keras file ({missing[0]} is missing)")
        weights = self.members[WEIGHTS_NAME]
        if weights.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{self.path}: {WEIGHTS_NAME} is compressed; save the model again with Keras")
        self._described: dict[str, bytes] = {}
        for name, member in self.members.items():
            if name == WEIGHTS_NAME:
                continue
            if member.file_size > MAX_DESCRIPTION:
                raise CheckpointError(f"{self.path}: {name} has more than {MAX_DESCRIPTION} bytes; BiT has fewer")
            self._described[name] = b"".join(self.content(name))
        try:
            description = parse_json(self._described[CONFIGURATION_NAME])
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {CONFIGURATION_NAME} is not valid JSON ({shown(error)})") from None
        if not isinstance(description, dict):
            raise CheckpointError(f"{self.path}: {CONFIGURATION_NAME} does not describe a model")
        if description.get("registered_name") == REGISTERED:
            self.stated = _network(description)
        self._open_h5(self.offsets[WEIGHTS_NAME], weights.file_size)

    def without_weights(self) -> Mapping[str, bytes]:
        """Return the content of all members but the weights, by name."""
        return self._described


class KerasWriter(Writer):
    """A new `.keras` file: the members of `metadata`, then the weights, with neither times nor checksums to fill in.

    HDF5 lays the weights out in an empty file, whose structure is then written around the arrays, from front to back.
    """

    buffering = io.DEFAULT_BUFFER_SIZE

    def __init__(self, path: Path, tensors: Sequence[Tensor], metadata: Metadata = NO_METADATA) -> None:
        if metadata.graph is None:
            raise ValueError("a .keras file needs the description of a model")
        super().__init__(path, tensors, metadata)
        structure, self._offsets, self._end = _structure(tensors)
        self._structure, self._position = self.enter_context(structure), 0
        self._archive = zipfile.ZipFile(_Forward(self._file), "w", zipfile.ZIP_STORED)  # type: ignore[call-overload]
        self.callback(setattr, self._archive, "fp", None)  # leaves an unfinished archive without a directory
        for name, content in metadata.graph().items():
            self._archive.writestr(zipfile.ZipInfo(name), content)
        self._member = self._archive.open(zipfile.ZipInfo(WEIGHTS_NAME), "w", force_zip64=True)
        self.callback(self._abandon)

    @staticmethod
    def ordered(tensors: Iterable[Tensor]) -> list[Tensor]:
        listed = list(tensors)
        structure, offsets, _ = _structure(listed)
        structure.close()
        return sorted(listed, key=lambda tensor: offsets[tensor.key])

    def write(self, tensor: Tensor, blocks: Iterable[NDArray[np.generic]]) -> None:
        self._write_structure(self._offsets[tensor.key])
        for block in blocks:
            self._position += self._member.write(block.view(np.uint8).data)
        super().finish()

    def finish(self) -> None:
        self._write_structure(self._end)
        self._member.close()
        self._archive.close()
        super().finish()

    def _write_structure(self, end: int) -> None:
        """Write what HDF5 stores from the present position to the next array or to the end."""
        self._structure.seek(self._position)
        while self._position < end:
            self._position += self._member.write(self._structure.read(min(CHUNK, end - self._position)))

    def _abandon(self) -> None:
        """Close the last member; of a file that is not finished, its end does not matter."""
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            self._member.close()


class _Forward:
    """A file that `zipfile` does not seek in, so that checksums follow the members and bytes never change again."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write, self.flush = file.write, file.flush


def _structure(tensors: Iterable[Tensor]) -> tuple[IO[bytes], dict[str, int], int]:
    """Return an HDF5 file without elements, the offset of each array in it, and its size; it takes little space."""
    with tempfile.TemporaryDirectory(prefix="bit-keras-") as folder:
        path = Path(folder, WEIGHTS_NAME)
        offsets = lay_out(path, sorted(tensors, key=lambda tensor: tensor.key))
        return path.open("rb"), offsets, path.stat().st_size


def _network(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of `bit.keras.BiT`; empty if there is none."""
    config = description.get("config")
    network = config.get("network") if isinstance(config, dict) else None
    return network if isinstance(network, dict) else {}
