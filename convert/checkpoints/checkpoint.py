"""A checkpoint that was opened: which layout and which network it is, and where each parameter lies."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bit.config import CONFIG_NAME, BitConfig
from convert.checkpoints.architecture import bind, check_name, found_in_words, infer
from convert.checkpoints.manifest import Manifest
from convert.errors import CheckpointError
from convert.files.base import StoredTensor
from convert.files.detect import open_weights
from convert.layouts import LAYOUTS
from convert.layouts.layout import Layout, Located
from convert.network.axes import Transform, runs
from convert.network.parameters import ALL, KINDS, Place, parameters
from convert.network.runner import by_channels
from convert.published import catalogue, labels

SUFFIXES = (".weights.h5", ".pth.tar", ".safetensors.index.json", ".bin.index.json")
"""Endings of two words; of others the last goes."""
PREFIXES = ("module.", "_orig_mod.", "params/")
"""What wrappers of PyTorch (`DataParallel`, `torch.compile`) and Flax put before every name."""
TRAINING = ("opt/", "extra/")
"""What lies beside `params/` in a training checkpoint (big_vision)."""

AT_ONCE = 1 << 20
"""Bytes that are read at once to be put in their places: they stay in the second-level cache."""


def checkpoint_name(path: Path) -> str:
    """What a file or folder is called: as the conversion that wrote it recorded, else by its own name."""
    record = Manifest.beside(path)
    if record is not None:
        return record.name
    if path.is_dir():
        return path.resolve().name
    name = next((path.name.removesuffix(end) for end in SUFFIXES if path.name.endswith(end)), path.stem)
    return name if name.strip(".") else path.name


def common_dtype(names: Iterable[str]) -> str:
    """The type that all have, float32 if there are several."""
    found = set(names)
    return found.pop() if len(found) == 1 else "float32"


class Checkpoint:
    """Weights of one BiT network in a file of any layout, or in shards.

    `path` is that file, the shards' index, or a folder that holds either. Raises `CheckpointError`
    unless they hold every parameter of one network once, in one layout, and the name states no
    other network. A network without a head has `config.num_labels` 0.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.record = Manifest.beside(path)
        if not str(path.absolute()).isprintable():
            raise CheckpointError(f"the name {str(path)!r} cannot be recorded; rename it")
        self.name = name or checkpoint_name(path)
        self.file = open_weights(path)
        self.notes = list(self.file.notes)
        """What of the file was left aside, in words."""
        self.assumption: str | None = None
        """What is taken for granted because nothing says it, in words."""
        try:
            stored = self._unprefixed()
            shapes = {key: self.file.tensors[name].shape for key, name in stored.items()}
            self.layout, located = _detect(shapes)
            self.config: BitConfig = infer(self.layout, located, shapes)
            keys = bind(self.config, self.layout, located, shapes)
            self.keys = {place: stored[key] for place, key in keys.items()}
            check_name(self.name, self.config)
            self._read_stated()
            self._parameters = {parameter.name: parameter for parameter in parameters(self.config)}
        except CheckpointError as error:
            self.file.close()
            raise CheckpointError(f"{self.file.path}: {error}", error.problems) from None

    def tensor(self, place: Place) -> StoredTensor:
        """Where a parameter lies in the file."""
        return self.file.tensors[self.keys[place]]

    def stored_axes(self, place: Place) -> str:
        """The letters of a parameter's axes as they lie in the file, slowest first."""
        axes, order = self.layout.axes(place), self.tensor(place).order
        return axes if order is None else "".join(axes[axis] for axis in order)

    def place(self, name: str) -> Place:
        """Which parameter a canonical name means."""
        return self._parameters[name].place

    def weights(
        self, name: str, channels: slice = ALL, *, axes: str | None = None, dtype: str = "float64"
    ) -> NDArray[Any]:
        """One parameter by its canonical name, or some output channels of it: of its last canonical axis.

        In float64 or another dtype, with its canonical axes or those given. Read a piece at a time:
        no more memory than the result takes.
        """
        place = self.place(name)
        tensor, stored = self.tensor(place), self.stored_axes(place)
        axis = stored.index(KINDS[place.kind][-1])
        shape = list(tensor.stored_shape)
        shape[axis] = len(range(shape[axis])[channels])
        transform = Transform(stored, axes or KINDS[place.kind])
        values = np.empty(transform.shape(tuple(shape)), dtype)
        as_stored = transform.inverse(values)
        for start, index in runs(tensor.stored_shape, AT_ONCE // tensor.dtype.itemsize, axis, channels):
            target = as_stored[index]
            bits = np.empty(target.shape, tensor.dtype.bits)
            self.file.read(tensor, start, bits.reshape(-1))
            target[...] = tensor.dtype.to_float64(bits)
        return values

    def pieces(self, name: str) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """One parameter as `weights` gives it, some output channels at a time: which, and their values."""
        shape = self._parameters[name].shape
        for channels in by_channels(shape[-1], 8 * math.prod(shape)):
            yield channels, self.weights(name, channels)

    @property
    def dtype(self) -> str:
        """The name of the elements' type, float32 if there are several."""
        return common_dtype(self.tensor(place).dtype.name for place in self.keys)

    @property
    def nbytes(self) -> int:
        return sum(self.tensor(place).nbytes for place in self.keys)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_stated(self) -> None:
        """What the record, `config.json` and the file itself say that the arrays do not."""
        values: dict[str, Any] = {}
        try:
            if values := _stated_values(self.file.path.parent):
                self.config = self.layout.stated(self.config, values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if self.path.is_dir() or self.record is not None:
                raise CheckpointError(f"{CONFIG_NAME} beside it does not fit: {error}") from None
            self.notes.append(f"{CONFIG_NAME} beside it does not fit, and is not read ({error})")
        if named := self.file.labels:
            self.config = self.config.replace(id2label=dict(enumerate(named)))
        self.config = self._with_published_labels()
        if self.record is not None:
            self.config = self.config.replace(ws_eps=self.record.ws_eps)
        elif self.layout.ws_eps != self.config.ws_eps and "ws_eps" not in values:
            self.assumption = (
                f"nothing says with which epsilon these weights were trained: taken to be Google's, with "
                f"{self.config.ws_eps:g}, where {self.layout.library} has {self.layout.ws_eps:g}"
            )

    def _with_published_labels(self) -> BitConfig:
        """The configuration, with what `zoo` knows of the head of that name where nothing else is stated.

        Only the head that was published is meant: one of another number of classes is another, and so
        is one that a conversion put in its place.
        """
        published, config = catalogue.published().get(self.name), self.config
        another = self.record is not None and self.record.origin.head != "keep"
        if published is None or published.classes != config.num_labels or another:
            return config
        named = published.labels if config.id2label is None else None
        return config.replace(
            id2label=labels.id2label(named) if named else config.id2label,
            problem_type=config.problem_type or published.problem_type,
        )

    def _unprefixed(self) -> dict[str, str]:
        """The file's names without what stands before all of them, with the full ones."""
        for key, reason in self.file.others.items():
            if not key.startswith(TRAINING):
                raise CheckpointError(f"{key} {reason}")
        stored = {key: key for key in self.file.tensors}
        inside = {key: name for key, name in stored.items() if not key.startswith(TRAINING)}
        aside = len(stored) + len(self.file.others) - len(inside)
        if aside and all(key.startswith("params/") for key in inside):
            self.notes.append(f"{aside} arrays of the training, {' and '.join(TRAINING)}, are left aside")
            stored = inside
        while found := [prefix for prefix in PREFIXES if stored and all(key.startswith(prefix) for key in stored)]:
            self.notes.append(f"every name begins with {found[0]}, which is left out")
            stored = {key.removeprefix(found[0]): name for key, name in stored.items()}
        return stored


def _stated_values(folder: Path) -> dict[str, Any]:
    """The `config.json` in a folder, nothing if there is none. Raises `ValueError` and others for a damaged one."""
    file = folder / CONFIG_NAME
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def _detect(shapes: dict[str, tuple[int, ...]]) -> tuple[Layout, Located]:
    """The layout that knows most of the names."""
    candidates = [(layout, layout.locate(shapes)) for layout in LAYOUTS.values()]
    layout, located = max(candidates, key=lambda candidate: len(candidate[1].keys))
    if not located.keys:
        raise CheckpointError(f"holds no BiT weights of a known layout ({found_in_words(shapes)})")
    return layout, located
