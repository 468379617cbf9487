"""An opened checkpoint: layout, configuration and the place of each parameter in the file."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit.config import CONFIG_NAME, BitConfig
from bit.files import read_json
from convert.checkpoints.architecture import Located, Shapes, bind, check_name, found_in_words, infer, match
from convert.checkpoints.epsilon import UNKNOWN, Training, epsilon_of
from convert.checkpoints.manifest import MANIFEST_NAME, Manifest
from convert.errors import CheckpointError
from convert.files.base import StoredTensor
from convert.files.containers import open_weights
from convert.layouts import LAYOUTS
from convert.network.axes import Transform, runs
from convert.network.oracle import Oracle
from convert.network.parameters import ALL, KINDS, Place, parameters
from convert.network.runner import by_channels
from convert.published import catalogue, labels
from convert.published.preprocessing import SIZED

SUFFIXES = (".weights.h5", ".pth.tar", ".safetensors.index.json", ".bin.index.json")
"""Endings that have more than one dot; of other names only the last ending is removed."""
PREFIXES = ("module.", "_orig_mod.", "timm_model.", "params/")
"""Prefixes that wrappers of PyTorch (`DataParallel`, `torch.compile`), transformers (`TimmWrapperModel`) and Flax put
before every name."""
TRAINING = ("opt/", "extra/")
"""Names of a training checkpoint's state beside `params/` (big_vision)."""

READ_BYTES = 1 << 20
"""Bytes read at once and copied to their places while they are in the second-level cache."""


def checkpoint_name(path: Path, manifest: Manifest | None = None) -> str:
    """Return the name in the manifest of the conversion that wrote `path`, else the name of the file or folder."""
    manifest = manifest or Manifest.beside(path)
    if manifest is not None:
        return manifest.name
    if path.is_dir():
        return path.resolve().name
    name = next((path.name.removesuffix(end) for end in SUFFIXES if path.name.endswith(end)), path.stem)
    return name if name.strip(".") else path.name


def common_dtype(names: Iterable[str]) -> str:
    """Return the dtype that all tensors have, or float32 if there are several."""
    found = set(names)
    return found.pop() if len(found) == 1 else "float32"


class Checkpoint(contextlib.AbstractContextManager["Checkpoint"]):
    """The weights of one BiT network in a file of any layout, or in shards, opened for reading.

    `path` is that file, the index of the shards, or a folder that holds either. `name` and `manifest`
    are found beside the weights unless they are given. Raises `CheckpointError` unless the file holds
    every parameter of one network once, in one layout, and the name does not state another network.

    With `expected`, the network that weights of unknown make should hold, what does not fit is listed in
    `faults`; the error is left for files without any parameter of BiT. `training` is what is known about the
    training besides.
    """

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        manifest: Manifest | None = None,
        expected: BitConfig | None = None,
        training: Training = UNKNOWN,
    ) -> None:
        self.path = path
        self.manifest = manifest or Manifest.beside(path)
        self._training, self._manifest_given = training, manifest is not None
        if not str(path.absolute()).isprintable():
            raise CheckpointError(f"the path {str(path)!r} has characters that cannot be printed; rename it")
        self.name = name or checkpoint_name(path, self.manifest)
        self.file = open_weights(path, incomplete=expected is not None)
        self._reading = threading.Lock()
        self.faults: tuple[str, ...] = tuple(self.file.faults)
        """Tensors and settings that are missing, unexpected or contradictory, if the network was `expected`."""
        self.states_ws_eps = self.manifest is not None
        """True if the manifest, `config.json` or the caller states the epsilon of weight standardization."""
        self.notes = list(self.file.notes)
        """Messages about parts of the file that were ignored."""
        self.assumption: str | None = None
        """A message about what was assumed because the file does not state it."""
        try:
            stored = self._unprefixed()
            shapes = {key: self.file.tensors[name].shape for key, name in stored.items()}
            self.layout = max(LAYOUTS.values(), key=lambda layout: len(layout.locate(shapes)))
            located = self.layout.locate(shapes)
            if not located:
                raise CheckpointError(f"has no BiT weights in a known layout ({found_in_words(shapes)})")
            self.config, keys = self._bound(located, shapes, expected)
            """`num_labels` is 0 for a network without a head."""
            self.keys = {place: stored[key] for place, key in keys.items()}
            if expected is None:
                check_name(self.name, self.config)
                self._read_stated()
            else:
                with self._faults_kept():
                    self._read_stated()
            self._parameters = {parameter.name: parameter for parameter in parameters(self.config)}
        except CheckpointError as error:
            self.file.close()
            raise CheckpointError(f"{self.file.path}: {error}", error.problems) from None

    @property
    def complete(self) -> bool:
        """True if every parameter of the network is there."""
        return all(parameter.place in self.keys for parameter in self._parameters.values())

    @property
    def profile(self) -> str:
        """The profile of preprocessing beside converted weights: that of the manifest, else that of the layout."""
        stated = self.manifest.options.profile if self.manifest is not None else None
        return stated or self.layout.export.profile or ""

    @property
    def own_profile(self) -> str | None:
        """The profile that the network was fine-tuned for, which every layout keeps; None if it has none of its own."""
        stated = self.manifest.options.profile if self.manifest is not None else None
        return stated if stated is not None and SIZED.fullmatch(stated) else None

    def companions(self) -> dict[str, dict[str, Any]]:
        """Return what the JSON files beside converted weights must hold, by name; the index of shards is left out."""
        return self.layout.export.companions(self.config, self.dtype, self.name, self.profile)

    def tensor(self, place: Place) -> StoredTensor:
        """Return where a parameter is stored in the file."""
        return self.file.tensors[self.keys[place]]

    def stored_axes(self, place: Place) -> str:
        """Return the letters of a parameter's axes as they are stored, slowest first."""
        axes, order = self.layout.axes(place), self.tensor(place).order
        return axes if order is None else "".join(axes[axis] for axis in order)

    def place(self, name: str) -> Place:
        """Return the place of the parameter with that canonical name."""
        return self._parameters[name].place

    def weights(
        self, name: str, channels: slice = ALL, *, axes: str | None = None, dtype: str = "float64"
    ) -> NDArray[Any]:
        """Return one parameter by canonical name, or a slice of the output channels (last canonical axis).

        `axes` and `dtype` choose the axes and the dtype of the result; the default is the canonical axes
        in float64. Reads piece by piece, so that little more memory is used than the result takes. Several
        threads may read at the same time.
        """
        place = self.place(name)
        tensor, stored = self.tensor(place), self.stored_axes(place)
        axis = stored.index(KINDS[place.kind][-1])
        shape = list(tensor.stored_shape)
        shape[axis] = len(range(shape[axis])[channels])
        transform = Transform(stored, axes or KINDS[place.kind])
        values = np.empty(transform.shape(tuple(shape)), dtype)
        as_stored = transform.inverse(values)
        for start, index in runs(tensor.stored_shape, READ_BYTES // tensor.dtype.itemsize, axis, channels):
            target = as_stored[index]
            bits = np.empty(target.shape, tensor.dtype.bits)
            with self._reading:
                self.file.read(tensor, start, bits.reshape(-1))
            target[...] = tensor.dtype.to_float64(bits)
        return values

    def pieces(self, name: str) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield one parameter as slices of output channels, each with the values that `weights` returns."""
        shape = self._parameters[name].shape
        for channels in by_channels(shape[-1], 8 * math.prod(shape)):
            yield channels, self.weights(name, channels)

    def oracle(self, dtype: type[np.floating[Any]] = np.float64) -> Oracle:
        """Return the oracle with these weights, computing in `dtype`."""
        return Oracle(self.weights, self.config, self.layout.folded, dtype)

    @property
    def dtype(self) -> str:
        """The name of the elements' dtype, float32 if there are several."""
        return common_dtype(self.tensor(place).dtype.name for place in self.keys)

    @property
    def nbytes(self) -> int:
        return sum(self.tensor(place).nbytes for place in self.keys)

    def close(self) -> None:
        self.file.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _bound(
        self, located: Located, shapes: Shapes, expected: BitConfig | None
    ) -> tuple[BitConfig, dict[Place, str]]:
        """Return the network in the file, and the stored name of each parameter.

        If the tensors are not those of any network, it is the `expected` one, with the names of what there is of it.
        """
        try:
            config = infer(self.layout, located, shapes)
            return config, bind(config, self.layout, located, shapes)
        except CheckpointError:
            if expected is None:
                raise
            keys, problems = match(expected, self.layout, located, shapes)
            if not keys:
                raise
            self.faults += problems
            return expected.replace(id2label=None), keys

    @contextlib.contextmanager
    def _faults_kept(self) -> Iterator[None]:
        """Add an error of the files beside the weights to the faults."""
        try:
            yield
        except CheckpointError as error:
            self.faults += (str(error),)

    def _read_stated(self) -> None:
        """Add to the configuration what the manifest, `config.json` and the file state beyond the tensors."""
        file, values = self.file.path.with_name(CONFIG_NAME), dict(self.file.stated)
        try:
            if not values and self.layout.export.reads_config and file.is_file():
                values = read_json(file)
            if values:
                self.config = self.layout.export.stated(self.config, values)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"{CONFIG_NAME} in the same folder does not fit the weights"
            if self.path.is_dir() or self.manifest is not None:
                raise CheckpointError(f"{message}: {error}") from None
            self.notes.append(f"{message} and is ignored ({error})")
            values = {}
        self._leave_out_stale_manifest(values)
        if self.file.labels:
            self.config = self._with_stored_labels()
        self.config = self._with_published_labels()
        epsilon = epsilon_of(self.layout, self.config, values, self.manifest, self._training)
        self.config = self.config.replace(ws_eps=epsilon.value)
        self.states_ws_eps, self.assumption = epsilon.stated, epsilon.assumption

    def _leave_out_stale_manifest(self, values: Mapping[str, Any]) -> None:
        """Forget the manifest beside weights that the layout's library has saved since, as after training them."""
        manifest = self.manifest
        if manifest is None or self._manifest_given or not self.layout.export.saved_by_library(values):
            return
        files = self.file.digests()
        if any(manifest.files.get(name) != file for name, file in files.items()):
            self.manifest = None
            self.notes.append(f"{MANIFEST_NAME} in the same folder describes other weights, and is ignored")

    def _with_stored_labels(self) -> BitConfig:
        """Return the configuration with the labels in the file. Raises `CheckpointError` if these do not fit."""
        stored = dict(enumerate(self.file.labels))
        if len(stored) != self.config.num_labels:
            raise CheckpointError(f"has labels for {len(stored)} classes, but a head for {self.config.num_labels}")
        try:
            return self.config.replace(id2label=stored)
        except ValueError as error:
            raise CheckpointError(f"has invalid labels ({error})") from None

    def _with_published_labels(self) -> BitConfig:
        """Return the configuration with the published labels and loss of the checkpoint, where none are stated.

        They apply to the published head only: not to a head with another number of classes, and not
        to one that a conversion put in place of it.
        """
        published, config = catalogue.published().get(self.name), self.config
        replaced = self.manifest is not None and self.manifest.origin.head != "keep"
        if published is None or published.classes != config.num_labels or replaced:
            return config
        label_set = published.labels if config.id2label is None else None
        return config.replace(
            id2label=labels.id2label(label_set) if label_set else config.id2label,
            problem_type=config.problem_type or published.problem_type,
        )

    def _unprefixed(self) -> dict[str, str]:
        """Map the names without a prefix that all share, and without training state, to the names in the file."""
        for key, reason in self.file.others.items():
            if not key.startswith(TRAINING):
                raise CheckpointError(f"{key} {reason}")
        stored = {key: key for key in self.file.tensors}
        weights = {key: key for key in stored if not key.startswith(TRAINING)}
        ignored = len(stored) + len(self.file.others) - len(weights)
        if ignored and all(key.startswith("params/") for key in weights):
            self.notes.append(f"{ignored} arrays of the training state ({' and '.join(TRAINING)}) are ignored")
            stored = weights
        # What the first and the last name in alphabetical order begin with, all begin with.
        ends, start = [min(stored, default=""), max(stored, default="")], 0
        while found := next((prefix for prefix in PREFIXES if all(key.startswith(prefix, start) for key in ends)), ""):
            self.notes.append(f"the prefix {found} of every name is ignored")
            start += len(found)
        return {key[start:]: name for key, name in stored.items()}
