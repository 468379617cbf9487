"""Valid files to start from: a seeded network as small as BiT can be, and files of a few bytes.

As a program it stores the small ones in the corpus.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import onnx as onnx_package
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import set_external_data
from safetensors.numpy import save as safetensors_bytes
from support.reading import load_all

from bit.config import CONFIG_NAME, BitConfig
from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.manifest import ATTESTATION_NAME, MANIFEST_NAME, VERIFICATION_NAME
from convert.layouts import LAYOUTS

if TYPE_CHECKING:
    from fuzzing.readers import Workplace

SMALLEST = BitConfig(num_channels=1, embedding_size=32, hidden_sizes=(128,), depths=(1,), num_labels=2)
"""One unit, whose groups have one channel each."""
PART: Mapping[str, NDArray[Any]] = {
    "stages.0.blocks.0.norm1.weight": np.arange(6, dtype="f4").reshape(2, 3),
    "stages.0.blocks.0.conv1.weight": np.arange(8, dtype="f2").reshape(2, 2, 1, 2),
    "step": np.array(3.0, "f8"),
}
"""Arrays of several dtypes in a file of hundreds of bytes, where a change seldom hits a weight."""
MOST_STORED = 12_000
"""Largest seed, in bytes, that is stored in the corpus; the others are made when they are needed."""

Seeds = dict[str, bytes]


def npz(place: Workplace) -> Seeds:
    return {
        f"{name}-{save.__name__}.npz": _saved(lambda file, save=save, values=values: save(file, **values))
        for name, values in (("part", PART), ("network", _network(place, "google")))
        for save in (np.savez, np.savez_compressed)
    }


def safetensors(place: Workplace) -> Seeds:
    part = safetensors_bytes(dict(PART), {"format": "pt"})
    return {"part.safetensors": part, "network.safetensors": safetensors_bytes(_network(place, "timm"))}


def h5(version: str) -> Callable[[Workplace], Seeds]:
    """Return a function that gives HDF5 files of the format `earliest` or `latest`, as h5py names them."""

    def files(place: Workplace) -> Seeds:
        packed = {"chunks": True, "compression": "gzip", "shuffle": True}
        return {
            "part.h5": _saved(lambda file: _write_h5(file, version, PART)),
            "packed.h5": _saved(lambda file: _write_h5(file, version, dict(list(PART.items())[:2]), **packed)),
            "network.h5": _saved(lambda file: _write_h5(file, version, _network(place, "google-tf2"))),
        }

    return files


def pytorch(place: Workplace, **how: Any) -> Seeds:
    network = _tensors(_network(place, "timm"))
    part = _tensors(PART)
    kernel = "stages.0.blocks.0.conv1.weight"
    training = {
        "state_dict": part | {kernel: part[kernel].to(memory_format=torch.channels_last)},
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, model="resnetv2_50x1_bit"),
    }
    contents = {"part": part, "training": training, "network": network}
    return {
        f"{name}.pth": _saved(lambda file, content=content: torch.save(content, file, **how))
        for name, content in contents.items()
    }


def pytorch_legacy(place: Workplace) -> Seeds:
    return pytorch(place, _use_new_zipfile_serialization=False)


def keras(place: Workplace) -> Seeds:
    """Return a model as it is converted, and one of a few bytes as Keras packs it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("metadata.json"), _json({"keras_version": "3.10.0"}))
        description = {"class_name": "BiT", "registered_name": "bit>BiT", "config": {"network": SMALLEST.to_dict()}}
        archive.writestr(zipfile.ZipInfo("config.json"), _json(description))
        weights = _saved(lambda file: _write_h5(file, "earliest", {**PART, "optimizer.vars.0": np.array(3)}))
        archive.writestr(zipfile.ZipInfo("model.weights.h5"), weights)
    return {
        "part.keras": packed.getvalue(),
        "network.keras": (place.converted("keras-saved") / "model.keras").read_bytes(),
    }


def onnx(place: Workplace) -> Seeds:
    model = onnx_package.load(place.converted("onnx") / "model.onnx")
    part, outside = onnx_package.ModelProto(), onnx_package.ModelProto()
    for small in (part, outside):
        small.CopyFrom(model)
        del small.graph.initializer[2:], small.graph.node[2:]
        for item in small.graph.initializer:
            item.dims[:], item.raw_data = [1], bytes(4)
    for item in outside.graph.initializer:
        set_external_data(item, "input.onnx.data", 0, 4)
        item.ClearField("raw_data")
    models = {"part": part, "outside": outside, "network": model}
    return {f"{name}.onnx": found.SerializeToString(deterministic=True) for name, found in models.items()}


def index(place: Workplace) -> Seeds:
    return {"index.json": (place.shards / "model.safetensors.index.json").read_bytes()}


def manifest(place: Workplace) -> Seeds:
    return {MANIFEST_NAME: (place.verified / MANIFEST_NAME).read_bytes()}


def verification(place: Workplace) -> Seeds:
    return {VERIFICATION_NAME: (place.verified / VERIFICATION_NAME).read_bytes()}


def signed(name: str) -> Callable[[Workplace], Seeds]:
    """Return a function that gives that file of a signed folder."""
    return lambda place: {name: (place.signed / name).read_bytes()}


def statements(place: Workplace) -> Seeds:
    """Return what the attestation of a signed folder holds, without the signatures."""
    lines = (place.signed / ATTESTATION_NAME).read_bytes().splitlines()
    return {"statements.jsonl": b"\n".join(base64.b64decode(json.loads(line)["payload"]) for line in lines)}


def config(layout: str) -> Callable[[Workplace], Seeds]:
    """Return a function that gives the configuration of a layout, with and without class names."""

    def files(place: Workplace) -> Seeds:
        companions = LAYOUTS[layout].export.companions
        labelled = SMALLEST.replace(id2label={0: "cat", 1: "dog"}, problem_type="multi_label_classification")
        return {
            f"{name}.json": _json(companions(network, "float32", "tiny", "google")[CONFIG_NAME])
            for name, network in (("plain", SMALLEST), ("labelled", labelled))
        }

    return files


def own_config(place: Workplace) -> Seeds:
    labelled = BitConfig(id2label={0: "cat", 1: "dog"}, num_labels=2, out_features=("stem", "stage2"))
    return {"config.json": _json(labelled.to_dict())}


def preprocessor(place: Workplace) -> Seeds:
    small = {"shortest_edge": 16}, {"height": 15, "width": 17}
    return {
        "edge.json": _json(BitImageProcessorPil.from_profile("timm", size=small[0], crop_size=small[1]).to_dict()),
        "square.json": _json(BitImageProcessorPil.from_profile("google", size=small[1], small_size=small[1]).to_dict()),
    }


def labels(place: Workplace) -> Seeds:
    return {"labels.json": _json(["cat", "dog"])}


def onnx_with_labels(model_bytes: bytes, text: bytes) -> bytes:
    """Return a model with class names `text`, as far as a protocol buffer can hold it."""
    model = onnx_package.load_from_string(model_bytes)
    del model.metadata_props[:]
    model.metadata_props.add(key="labels", value=text.decode("utf-8", "replace"))
    return model.SerializeToString()


def _network(place: Workplace, layout: str) -> dict[str, NDArray[np.float16]]:
    """Return the network in a layout, rounded, so that a file of it takes 40 kB."""
    (path,) = (path for path in place.converted(layout).iterdir() if path.suffix not in (".json", ".md"))
    return {key: bits.view(np.float32).astype(np.float16) for key, bits in load_all(path).items()}


def _tensors(values: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value.copy()) for key, value in values.items()}


def _write_h5(file: io.BytesIO, version: str, values: Mapping[str, NDArray[Any]], **how: Any) -> None:
    with h5py.File(file, "w", libver=version) as target:
        for key, value in values.items():
            target.create_dataset(key.replace(".", "/"), data=value, track_times=False, **how)


def _saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2).encode()


def main() -> None:
    from fuzzing.readers import CORPUS, READERS, Workplace

    with tempfile.TemporaryDirectory() as name:
        place = Workplace(Path(name))
        for reader, found in READERS.items():
            (CORPUS / reader).mkdir(parents=True, exist_ok=True)
            for file, data in found.seeds(place).items():
                if len(data) <= MOST_STORED:
                    (CORPUS / reader / file).write_bytes(data)


if __name__ == "__main__":
    main()
