"""Every reader of files from outside, as a function of the file's bytes.

`READERS` is the table. A reader gets the bytes as a user would hand them over, in a file, and may raise
only errors of the tree in `convert/errors.py` and `OSError`; `bit`, which has no tree, plain `ValueError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import resource
import shutil
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from fuzzing import mutators, seeds
from fuzzing.mutators import Mutator, Native
from PIL import Image
from support.conversions import convert as converted
from support.conversions import verified
from support.signing import signed, signer, trust, write_key

import convert
from bit.config import CONFIG_NAME, BitConfig
from bit.image_processing import PREPROCESSOR_NAME, BitImageProcessor, BitImageProcessorPil
from convert.checkpoints.manifest import ATTESTATION_NAME, MANIFEST_NAME, SIGNATURE_NAME, VERIFICATION_NAME, Manifest
from convert.errors import ConvertError
from convert.files.containers import open_weights
from convert.files.h5_reader import H5Reader
from convert.progress import silent
from convert.publishing.card import card
from convert.publishing.gate import check_folder
from convert.signing.bundle import write_signature
from convert.signing.check import check_folder_signature
from convert.sources.synthetic import write_npz

CORPUS = Path(__file__).with_name("corpus")
"""A folder for each reader with small valid files, and with those that once were a finding."""
MAX_SECONDS = 10
"""Longest time, of this process, that a small file may take."""
MAX_MEGABYTES = 1500
"""Most memory that a small file may take."""


MAX_MESSAGE = 2000
"""Most characters of an error message, which must be one line without control characters."""


class Workplace:
    """A folder with what a reader needs beside the file that it reads, all from one seeded network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, name: str, data: bytes) -> Path:
        """Write a file into a folder that has no other."""
        path = self.folder / "input" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    @cached_property
    def source(self) -> Path:
        """The network in google's layout."""
        path = self.folder / "tiny.npz"
        write_npz(path, seeds.SMALLEST)
        return path

    @cache  # noqa: B019 (one workplace a process)
    def converted(self, layout: str, most: str | None = None) -> Path:
        """Return a conversion as if another program had written it: without a manifest."""
        folder = converted(self.source, layout, self.folder / f"{layout}-{most}", max_shard_size=most)
        (folder / MANIFEST_NAME).unlink()
        return folder

    @cached_property
    def shards(self) -> Path:
        """Several files of weights and their index."""
        return self.converted("transformers", "50KB")

    @cached_property
    def verified(self) -> Path:
        """A verified conversion, not to be changed."""
        folder = converted(self.source, "transformers", self.folder / "verified")
        assert verified(folder, self.source).passed
        return folder

    @cached_property
    def signed(self) -> Path:
        """The same with a signature, not to be changed."""
        signed(self.verified, self.keys[0], self.folder / "signed", "me/tiny")
        return self.folder / "signed"

    @cached_property
    def keys(self) -> tuple[Path, Path]:
        """A private and a public key."""
        return write_key(self.folder)

    @cache  # noqa: B019
    def copy(self, folder: Path) -> Path:
        """Return a copy of one of these folders, beside it, for files to be replaced in."""
        return shutil.copytree(folder, folder.with_name(f"{folder.name}-copy"))

    @cached_property
    def onnx(self) -> bytes:
        """A part of an ONNX model."""
        return seeds.onnx(self)["part.onnx"]


@dataclass(frozen=True)
class Reader:
    """A reader, the valid files to start from, and the way to change them."""

    read: Callable[[Workplace, bytes], None]
    """Reads the bytes from end to end; raises for what is invalid."""
    seeds: Callable[[Workplace], Mapping[str, bytes]]
    """Returns valid files by name."""
    change: Mutator
    entry: Callable[[Workplace, bytes], None] | None = None
    """The way that users go, where `read` is a quicker one that may also hang or crash."""

    def mutate(self, data: bytes, rng: random.Random, native: Native) -> bytes:
        """Return a changed file; one that cannot be taken apart is changed blindly."""
        try:
            return self.change(data, rng, native)
        except Exception:  # a damaged file can raise anything
            return native(data)


@dataclass(frozen=True)
class Finding:
    """An input that a reader must not answer in this way."""

    kind: str
    """The class of the exception, or `message`, `time` or `memory`."""
    where: str
    """The innermost line of our own code, or the amount."""
    details: str

    @property
    def raised(self) -> bool:
        return self.kind not in ("time", "memory")

    @property
    def name(self) -> str:
        """The name of the file that keeps the input: the same for all inputs that fail in the same place."""
        place = f"{self.kind} {self.where if self.raised else ''}"
        return f"{self.kind}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    @property
    def text(self) -> str:
        return f"{self.kind} {self.where}\n\n{self.details}"


def attempt(reader: Reader, place: Workplace, data: bytes, *, entry: bool = True) -> Finding | None:
    """Read `data`, with `entry` as users do; return what is wrong with the way in which that ended, or None."""
    read = reader.entry if entry and reader.entry is not None else reader.read
    start, peak = time.process_time(), _peak()
    try:
        with warnings.catch_warnings(action="error"):  # what a warning shows, nobody has escaped
            warnings.simplefilter("ignore", DeprecationWarning)  # not shown to users
            read(place, data)
    except KeyboardInterrupt:
        raise
    except (ConvertError, OSError) as error:
        if not str(error).isprintable() or len(str(error)) > MAX_MESSAGE:
            return Finding("message", _innermost(error), f"is not a short line: {str(error)!r:.1000}\n")
    except BaseException as error:  # a panic of Rust is not an `Exception`
        return Finding(type(error).__name__, _innermost(error), "".join(traceback.format_exception(error)))
    if (seconds := time.process_time() - start) > MAX_SECONDS:
        return Finding("time", f"{seconds:.0f} s", f"took {seconds:.1f} s; at most {MAX_SECONDS} s are allowed\n")
    if (megabytes := _peak() - peak) > MAX_MEGABYTES:
        amount = f"{megabytes:.0f} MB"
        return Finding("memory", amount, f"took {amount}; at most {MAX_MEGABYTES} MB are allowed\n")
    return None


def corpus(name: str) -> dict[str, bytes]:
    """Return the stored files of a reader by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).glob("*"))}


def _peak() -> float:
    """Return the most memory that this process or one that it started ever held, in megabytes."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(usage.ru_maxrss for usage in usages) / 1024


def _innermost(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if {"bit", "convert"} & set(Path(frame.filename).parts)]
    frame = (ours or list(frames))[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"


@contextlib.contextmanager
def _documented() -> Iterator[None]:
    """Let the plain `ValueError` pass that `bit` documents, but no subclass of it."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise


def _weights(name: str) -> Callable[[Workplace, bytes], None]:
    """Return a function that reads a file of weights of that name."""
    return lambda place, data: _read_weights(place.file(name, data))


def _read_weights(path: Path) -> None:
    """Read a checkpoint as `bit inspect` does; of one that holds no BiT, read every array all the same."""
    try:
        convert.inspect(path)
    except ConvertError:
        with open_weights(path) as file:
            for tensor in file.tensors.values():
                file.read(tensor, 0, np.empty(tensor.size, tensor.dtype.bits))
            file.digests()


def _h5(place: Workplace, data: bytes) -> None:
    """Read with the HDF5 library in this process, as the process does that the reader starts."""
    with H5Reader(place.file("input.h5", data)) as file:
        for key in file.packed:
            deque(file.unpack(key), maxlen=0)


def _index(place: Workplace, data: bytes) -> None:
    path = place.shards / "model.safetensors.index.json"
    path.write_bytes(data)
    _read_weights(path)


def _onnx(place: Workplace, data: bytes) -> None:
    path = place.file("input.onnx", data)
    place.file("input.onnx.data", bytes(64))
    _read_weights(path)


def _labels(place: Workplace, data: bytes) -> None:
    _onnx(place, seeds.onnx_with_labels(place.onnx, data))


def _manifest(place: Workplace, data: bytes) -> None:
    """Read a manifest with a report that vouches for it, as a forger would write."""
    report = json.loads((place.verified / VERIFICATION_NAME).read_bytes())
    report["files"][MANIFEST_NAME] = hashlib.sha256(data).hexdigest()
    folder = _with_files(place, place.verified, {MANIFEST_NAME: data, VERIFICATION_NAME: json.dumps(report).encode()})
    Manifest.read(folder)
    with contextlib.suppress(ConvertError):
        convert.convert(place.source, out=folder)
    _push(folder)


def _verification(place: Workplace, data: bytes) -> None:
    """Read a report as a push does; one that is accepted, also as a conversion to the same folder does."""
    manifest = (place.verified / MANIFEST_NAME).read_bytes()
    folder = _with_files(place, place.verified, {MANIFEST_NAME: manifest, VERIFICATION_NAME: data})
    _push(folder)
    convert.convert(place.source, out=folder)


def _signature(place: Workplace, data: bytes) -> None:
    attestation = (place.signed / ATTESTATION_NAME).read_bytes()
    folder = _with_files(place, place.signed, {ATTESTATION_NAME: attestation, SIGNATURE_NAME: data})
    check_folder_signature(folder, trust(place.keys[1]), silent)


def _attestation(place: Workplace, data: bytes) -> None:
    """Read an attestation under a signature that covers it, as one who has the key would write."""
    folder = _with_files(place, place.signed, {ATTESTATION_NAME: data})
    (folder / SIGNATURE_NAME).unlink()
    write_signature(folder, signer(place.keys[0]))
    check_folder_signature(folder, trust(place.keys[1]), silent)


def _statements(place: Workplace, data: bytes) -> None:
    """Read statements, one a line, under both signatures."""
    key = signer(place.keys[0])
    _attestation(place, b"".join(key.sealed(line) + b"\n" for line in data.split(b"\n")))


def _with_files(place: Workplace, folder: Path, files: Mapping[str, bytes]) -> Path:
    """Return the copy of a folder with these files in it."""
    copy = place.copy(folder)
    for name, data in files.items():
        (copy / name).write_bytes(data)
    return copy


def _push(folder: Path) -> None:
    """Check a folder and write the card, without what a push sends."""
    found = check_folder(folder, silent)
    card(found.manifest, found.verification, "me/tiny", checked=found.checked)


def _config(layout: str) -> Callable[[Workplace, bytes], None]:
    """Return a function that reads a `config.json` beside weights, for a conversion and as a model."""

    def read(place: Workplace, data: bytes) -> None:
        from bit.model import BitForImageClassification

        folder = place.converted(layout)
        (folder / CONFIG_NAME).write_bytes(data)
        with contextlib.suppress(ConvertError):
            convert.inspect(folder)
        with _documented():
            BitForImageClassification.from_pretrained(folder)

    return read


def _own_config(place: Workplace, data: bytes) -> None:
    with _documented():
        config = BitConfig.from_pretrained(place.file(CONFIG_NAME, data).parent)
        BitConfig.from_dict(config.to_dict())


def _preprocessor(place: Workplace, data: bytes) -> None:
    """Read the preprocessing, and prepare a small image in both ways."""
    folder = place.file(PREPROCESSOR_NAME, data).parent
    for kind in (BitImageProcessorPil, BitImageProcessor):
        with _documented():
            kind.from_pretrained(folder)(Image.new("RGB", (12, 9)), return_tensors="np")


READERS = {
    "npz": Reader(_weights("input.npz"), seeds.npz, mutators.npz),
    "safetensors": Reader(_weights("input.safetensors"), seeds.safetensors, mutators.safetensors),
    "h5-earliest": Reader(_h5, seeds.h5("earliest"), mutators.plain, _weights("input.h5")),
    "h5-latest": Reader(_h5, seeds.h5("latest"), mutators.h5, _weights("input.h5")),
    "pytorch": Reader(_weights("input.pth"), seeds.pytorch, mutators.pytorch),
    "pytorch-legacy": Reader(_weights("input.bin"), seeds.pytorch_legacy, mutators.pickle),
    "onnx": Reader(_onnx, seeds.onnx, mutators.onnx),
    "index": Reader(_index, seeds.index, mutators.json),
    "manifest": Reader(_manifest, seeds.manifest, mutators.json),
    "verification": Reader(_verification, seeds.verification, mutators.json),
    "signature": Reader(_signature, seeds.signed(SIGNATURE_NAME), mutators.lines),
    "attestation": Reader(_attestation, seeds.signed(ATTESTATION_NAME), mutators.lines),
    "statements": Reader(_statements, seeds.statements, mutators.lines),
    "config-transformers": Reader(_config("transformers"), seeds.config("transformers"), mutators.json),
    "config-timm": Reader(_config("timm"), seeds.config("timm"), mutators.json),
    "config-bit": Reader(_own_config, seeds.own_config, mutators.json),
    "preprocessor": Reader(_preprocessor, seeds.preprocessor, mutators.json),
    "labels": Reader(_labels, seeds.labels, mutators.json),
}
"""By name; `make fuzz` runs all."""
