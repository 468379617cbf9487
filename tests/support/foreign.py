"""Weights as other programs write them, and the mistakes that their conversions make."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import transformers
from ml_dtypes import bfloat16
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from support.conversions import GOOGLE, arrays_of, convert
from support.networks import TINY
from timm.models import save_for_hf

from bit.config import BitConfig
from convert.layouts import LAYOUTS
from convert.network.axes import Transform
from convert.network.parameters import parameters
from convert.references.timm import build
from convert.sources.synthetic import parameter, write_npz

State = dict[str, NDArray[np.float32]]
WEIGHTS = "model.safetensors"


def state_of(config: BitConfig, layout: str, seed: int = 0) -> State:
    """Return the seeded weights of `write_npz` under the names and in the axes of a layout."""
    found: State = {}
    for item in parameters(config):
        key, shape = GOOGLE.key(item.place), GOOGLE.shape(item)
        transform = Transform(GOOGLE.axes(item.place), LAYOUTS[layout].axes(item.place))
        found[LAYOUTS[layout].key(item.place)] = np.ascontiguousarray(transform(parameter(key, shape, seed)))
    return found


def tensors_of(config: BitConfig, layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in state_of(config, layout, seed).items()}


def in_transformers(config: BitConfig, **options: Any) -> transformers.BitForImageClassification:
    model = transformers.BitForImageClassification(
        transformers.BitConfig(
            embedding_size=config.embedding_size,
            hidden_sizes=list(config.hidden_sizes),
            depths=list(config.depths),
            num_labels=config.num_labels,
            **options,
        )
    )
    model.load_state_dict(tensors_of(config, "transformers"))
    return model


def saved_by_transformers(config: BitConfig, folder: Path, **options: Any) -> Path:
    in_transformers(config).save_pretrained(folder, **options)
    return folder


def saved_by_timm(config: BitConfig, folder: Path, **options: Any) -> Path:
    model = build(config.replace(ws_eps=1e-8))
    model.load_state_dict(tensors_of(config, "timm"))
    model.pretrained_cfg = timm.get_pretrained_cfg("resnetv2_50x1_bit").to_dict()
    save_for_hf(model, folder, **options)
    return folder


def saved_by_torch(config: BitConfig, folder: Path, zipped: bool = True) -> Path:
    folder.mkdir()
    torch.save(tensors_of(config, "timm"), folder / "weights.pth", _use_new_zipfile_serialization=zipped)
    return folder / "weights.pth"


def saved_by_numpy(config: BitConfig, folder: Path) -> Path:
    folder.mkdir()
    np.savez(folder / "weights.npz", **arrays_of(config))
    return folder / "weights.npz"


def saved_by_keras(config: BitConfig, folder: Path) -> Path:
    """Let Keras write what it read from a conversion."""
    from bit.keras import load

    write_npz(folder.with_suffix(".npz"), config)
    model = load(convert(folder.with_suffix(".npz"), "keras", folder.with_suffix(".read")))
    folder.mkdir()
    model.save_weights(folder / "model.weights.h5")
    return folder


WRITERS: dict[str, Callable[[BitConfig, Path], Path]] = {
    "transformers": saved_by_transformers,
    "transformers in shards": partial(saved_by_transformers, max_shard_size="100KB"),
    "timm": saved_by_timm,
    "torch": saved_by_torch,
    "torch in the legacy format": partial(saved_by_torch, zipped=False),
    "keras": saved_by_keras,
    "numpy": saved_by_numpy,
}


@dataclass(frozen=True)
class Mistake:
    """A mistake in a folder of `TINY` that transformers saved, and the words that name it."""

    name: str
    words: tuple[str, ...]
    weights: Callable[[State], None] | None = None
    config: Callable[[dict[str, Any]], None] | None = None

    def plant(self, folder: Path) -> None:
        if self.weights is not None:
            state = load_file(folder / WEIGHTS)
            self.weights(state)
            state = {key: np.ascontiguousarray(value) for key, value in state.items()}
            save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        if self.config is not None:
            values = json.loads((folder / "config.json").read_text())
            self.config(values)
            (folder / "config.json").write_text(json.dumps(values))


FIRST, SECOND = (f"bit.encoder.stages.0.layers.{layer}." for layer in (0, 1))
KERNEL = SECOND + "conv2.weight"
STEM = "bit.embedder.convolution.weight"
HEAD, BIAS = "classifier.1.weight", "classifier.1.bias"
NORM, NORM_BIAS = FIRST + "norm2.weight", FIRST + "norm2.bias"
ORDER = [2, 0, 1, 4, 3]


def altered(key: str, change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[key] = change(state[key].copy()).astype(np.float32)

    return apply


def with_values(key: str, index: Any, change: Callable[[Any], Any]) -> Callable[[State], None]:
    def at_index(values: NDArray[np.float32]) -> NDArray[np.float32]:
        values[index] = change(values[index])
        return values

    return altered(key, at_index)


def exchanged(first: str, second: str) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[first], state[second] = state[second], state[first]

    return apply


def copied(source: str, target: str) -> Callable[[State], None]:
    def apply(state: State) -> None:
        state[target] = state[source]

    return apply


def removed(*parts: str) -> Callable[[State], None]:
    def apply(state: State) -> None:
        for key in [key for key in state if any(part in key for part in parts)]:
            del state[key]

    return apply


def _all(*changes: Callable[[State], None]) -> Callable[[State], None]:
    def apply(state: State) -> None:
        for change in changes:
            change(state)

    return apply


def _another_head(state: State) -> None:
    state |= {HEAD: np.ones((7, 256), np.float32), BIAS: np.zeros(7, np.float32)}


def _new_norm(state: State) -> None:
    state["bit.new.weight"] = np.ones(3, np.float32)


def _tail(values: NDArray[np.float32]) -> NDArray[np.float32]:
    values.reshape(-1)[-1000:] = 0
    return values


def _cut(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _standardized(values: NDArray[np.float32]) -> NDArray[np.float32]:
    axes = (1, 2, 3)
    return (values - values.mean(axes, keepdims=True)) / np.sqrt(values.var(axes, keepdims=True) + 1e-10)


def _random(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.random.default_rng(1).standard_normal(values.shape) * values.std()


def _of_another_seed(state: State) -> None:
    state[KERNEL] = state_of(TINY, "transformers", seed=1)[KERNEL]


DIFFERS = f"{KERNEL} does not hold resnet/block1/unit02/b/standardized_conv2d/kernel of the source: "
CLASSES = {"id2label": {str(index): f"LABEL_{index}" for index in range(7)}}


def _stated(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(values)


MISTAKES = (
    Mistake(
        "two kernels exchanged",
        (f"{KERNEL} does not hold", "block1/unit01/conv2/kernel and block1/unit02/conv2/kernel are exchanged"),
        exchanged(FIRST + "conv2.weight", KERNEL),
    ),
    Mistake(
        "kernel transposed",
        (DIFFERS + "height and width exchanged",),
        altered(KERNEL, lambda k: k.transpose(0, 1, 3, 2)),
    ),
    Mistake("kernel flipped", (DIFFERS + "turned by 180°",), altered(KERNEL, lambda k: k[:, :, ::-1, ::-1])),
    Mistake(
        "channels exchanged",
        (DIFFERS + "input and output channels exchanged",),
        altered(KERNEL, lambda k: k.transpose(1, 0, 2, 3)),
    ),
    Mistake(
        "reshaped, not transposed",
        (DIFFERS + "a reshape in the place of a transpose",),
        altered(KERNEL, lambda k: np.ascontiguousarray(k.transpose(2, 3, 1, 0)).reshape(k.shape)),
    ),
    Mistake(
        "transposed and flipped",
        (DIFFERS + "rows and columns are exchanged, the order of the rows is reversed",),
        altered(KERNEL, lambda k: k.transpose(0, 1, 3, 2)[:, :, ::-1]),
    ),
    Mistake(
        "filters in another order",
        (DIFFERS + "32 of 32 output channels are in another order",),
        altered(KERNEL, lambda k: np.roll(k, 1, axis=0)),
    ),
    Mistake(
        "scale and bias of a norm exchanged",
        (NORM, NORM_BIAS, "block1/unit01/norm2/bias and block1/unit01/norm2/scale are exchanged"),
        exchanged(NORM, NORM_BIAS),
    ),
    Mistake(
        "a kernel of another unit",
        (DIFFERS + "block1/unit02/conv2/kernel holds the values of block1/unit01/conv2/kernel",),
        copied(FIRST + "conv2.weight", KERNEL),
    ),
    Mistake(
        "one value off by 1 %",
        (DIFFERS + "1 of 9216 values differ, by up to 1.00%",),
        with_values(KERNEL, (5, 3, 1, 2), lambda x: x * np.float32(1.01)),
    ),
    Mistake(
        "a filter zeroed", (DIFFERS + "output channels 3 of 32 are zero",), with_values(KERNEL, 3, lambda x: 0 * x)
    ),
    Mistake(
        "an input channel negated",
        (DIFFERS + "input channels 4 of 32 are negated",),
        with_values(KERNEL, (slice(None), 4), lambda x: -x),
    ),
    Mistake("negated", (DIFFERS + "every value is negated",), altered(KERNEL, np.negative)),
    Mistake(
        "scaled by 1.001",
        (DIFFERS + "every value is 1.001 times the expected one",),
        altered(KERNEL, lambda k: k * np.float32(1.001)),
    ),
    Mistake(
        "rounded to bfloat16 and back",
        (DIFFERS + "every value is rounded to bfloat16",),
        altered(KERNEL, lambda k: k.astype(bfloat16)),
    ),
    Mistake(
        "rounded to float16 and back",
        (DIFFERS + "every value is rounded to float16",),
        altered(KERNEL, lambda k: k.astype(np.float16)),
    ),
    Mistake(
        "cut off to bfloat16",
        (DIFFERS + "every value is cut off to bfloat16 instead of rounded",),
        altered(KERNEL, _cut),
    ),
    Mistake("the tail not written", (DIFFERS + "the last 1000 of 9216 values are zero",), altered(KERNEL, _tail)),
    Mistake(
        "standardized already",
        (DIFFERS + "every filter is standardized already, with epsilon 1e-10",),
        altered(KERNEL, _standardized),
    ),
    Mistake("weights of another seed", (DIFFERS + "the values are unrelated",), _of_another_seed),
    Mistake(
        "bytes of two values reversed",
        (DIFFERS + "2 of 9216 values have their bytes in reverse order",),
        with_values(KERNEL, (0, 0, 0, slice(2)), lambda x: x.byteswap()),
    ),
    Mistake(
        "not finite",
        (DIFFERS + "1 of 9216 values are not finite",),
        with_values(KERNEL, (0, 0, 0, 0), lambda x: np.nan),
    ),
    Mistake("stem takes BGR", (f"{STEM} does not hold", "BGR for RGB"), altered(STEM, lambda k: k[:, ::-1])),
    Mistake(
        "classes in another order",
        (f"{HEAD} does not hold", "5 of 5 classes are in another order", f"{BIAS} does not hold"),
        _all(altered(HEAD, lambda w: w[ORDER]), altered(BIAS, lambda b: b[ORDER])),
    ),
    Mistake("random head", (f"{HEAD} does not hold", "the values are unrelated"), altered(HEAD, _random)),
    Mistake("bias of zeros", (f"{BIAS} does not hold", "every value is zero"), altered(BIAS, np.zeros_like)),
    Mistake("head dropped", ("the network has no head; the source has a head of 5 classes",), removed("classifier")),
    Mistake("bias missing", (f"missing {BIAS}",), removed(BIAS)),
    Mistake(
        "head of another task",
        ("the network has a head of 7 classes; the source has a head of 5 classes",),
        _another_head,
        _stated(**CLASSES),
    ),
    Mistake("projection missing", (f"missing {FIRST}downsample.conv.weight",), removed(f"{FIRST}downsample")),
    Mistake("a unit missing", ("the network is units 1-1", "the source is units 2-1"), removed(SECOND)),
    Mistake("a tensor too many", ("unexpected bit.new.weight",), _new_norm),
    Mistake("another epsilon", ("config.json states epsilon 1e-06", "expected 1e-10"), None, _stated(ws_eps=1e-6)),
    Mistake(
        "another kind of layer", ("config.json", "layer_type is 'bottleneck'"), None, _stated(layer_type="bottleneck")
    ),
    Mistake("other sizes", ("config.json", "hidden_sizes is"), None, _stated(hidden_sizes=[256, 512])),
)
