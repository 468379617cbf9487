"""BiT in Keras 3 on TensorFlow, for TensorFlow users: the weight names of google-research's TF2 code.

The network: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370); names: big_transfer,
`bit_tf2/models.py`. Images are `[N, H, W, C]` with values in [-1, 1], kernels `[h, w, i, o]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from bit.config import BitConfig

NORM_EPS = 1e-5
"""Inside the root of every group normalization (big_transfer, `GroupNormalization`)."""

WEIGHTS_NAME = "model.weights.h5"

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"bit.keras computes with TensorFlow, Keras is set to {keras.backend.backend()}")


class GroupNorm(keras.layers.Layer):  # type: ignore[misc]
    """Mean 0 and variance 1 over each image's groups of channels, then `gamma` and `beta` `[C]`."""

    def __init__(self, groups: int) -> None:
        super().__init__(name="group_norm")
        self.groups = groups

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(shape[-1],), initializer="zeros", name="beta")

    def call(self, x: Any) -> Any:
        n, h, w, c = ops.shape(x)
        grouped = ops.reshape(x, (n, h, w, self.groups, c // self.groups))
        centered = grouped - ops.mean(grouped, axis=(1, 2, 4), keepdims=True)
        variance = ops.mean(ops.square(centered), axis=(1, 2, 4), keepdims=True)
        normalized = ops.reshape(centered / ops.sqrt(variance + NORM_EPS), (n, h, w, c))
        return normalized * self.gamma + self.beta


class StandardizedConv(keras.layers.Layer):  # type: ignore[misc]
    """A convolution, padded by half its kernel, whose filters have mean 0 and variance 1 (biased)."""

    def __init__(self, features: int, size: int, stride: int, eps: float) -> None:
        super().__init__(name="standardized_conv2d")
        self.features, self.size, self.stride, self.eps = features, size, stride, eps

    def build(self, shape: tuple[int | None, ...]) -> None:
        kernel = (self.size, self.size, shape[-1], self.features)
        self.kernel = self.add_weight(shape=kernel, initializer="he_normal", name="kernel")

    def call(self, x: Any) -> Any:
        centered = self.kernel - ops.mean(self.kernel, axis=(0, 1, 2))
        kernel = centered / ops.sqrt(ops.mean(ops.square(centered), axis=(0, 1, 2)) + self.eps)
        margin = self.size // 2
        if margin:
            x = ops.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        return ops.conv(x, kernel, strides=self.stride, padding="valid")


class Projection(keras.layers.Layer):  # type: ignore[misc]
    """The shortcut of a stage's first unit."""

    def __init__(self, config: BitConfig, features: int, stride: int) -> None:
        super().__init__(name="proj")
        self.conv = StandardizedConv(features, 1, stride, config.ws_eps)

    def call(self, x: Any) -> Any:
        return self.conv(x)


class Branch(keras.layers.Layer):  # type: ignore[misc]
    """Norm, ReLU and convolution, `a`, `b` or `c` of a unit; `a` may hold the projection of what it convolves."""

    def __init__(
        self, name: str, config: BitConfig, features: int, size: int, stride: int, projection: Projection | None = None
    ) -> None:
        super().__init__(name=name)
        self.norm = GroupNorm(config.num_groups)
        self.conv = StandardizedConv(features, size, stride, config.ws_eps)
        self.projection = projection

    def call(self, x: Any) -> tuple[Any, Any]:
        """What the convolution gives, and the projected shortcut or None."""
        activated = ops.relu(self.norm(x))
        # The shortcut is projected from the activated input, not from the raw one.
        return self.conv(activated), None if self.projection is None else self.projection(activated)


class Unit(keras.layers.Layer):  # type: ignore[misc]
    """A pre-activation bottleneck; its 3×3 convolution carries the stride."""

    def __init__(self, config: BitConfig, stage: int, layer: int) -> None:
        super().__init__(name=f"unit{layer + 1:02d}")
        middle, outputs = config.bottleneck_size(stage), config.hidden_sizes[stage]
        stride = 2 if stage and not layer else 1
        self.a = Branch("a", config, middle, 1, 1, None if layer else Projection(config, outputs, stride))
        self.b = Branch("b", config, middle, 3, stride)
        self.c = Branch("c", config, outputs, 1, 1)

    def call(self, x: Any) -> Any:
        y, shortcut = self.a(x)
        y, _ = self.b(y)
        y, _ = self.c(y)
        return y + (x if shortcut is None else shortcut)


class Block(keras.layers.Layer):  # type: ignore[misc]
    """The units of a stage."""

    def __init__(self, config: BitConfig, stage: int) -> None:
        super().__init__(name=f"block{stage + 1}")
        self.units = [Unit(config, stage, layer) for layer in range(config.depths[stage])]

    def call(self, x: Any) -> tuple[Any, dict[str, Any]]:
        taps = {}
        for unit in self.units:
            x = taps[f"{self.name}/{unit.name}"] = unit(x)
        return x, taps


class RootBlock(keras.layers.Layer):  # type: ignore[misc]
    """The stem: a 7×7 convolution of stride 2."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(name="root_block")
        self.conv = StandardizedConv(config.embedding_size, 7, 2, config.ws_eps)

    def call(self, x: Any) -> Any:
        return self.conv(x)


def max_pool(x: Any) -> Any:
    """3×3 with stride 2, a border of zeros around `x`."""
    # Zeros, not −∞: no ReLU comes before, so they win over negative values at the border.
    return ops.max_pool(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2, padding="valid")


class Head(keras.layers.Layer):  # type: ignore[misc]
    """The linear classifier, zero at first as BiT fine-tunes."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(name="head")
        self.dense = keras.layers.Dense(config.num_labels, kernel_initializer="zeros", name="dense")

    def call(self, x: Any) -> Any:
        return self.dense(x)


class BiT(keras.Model):  # type: ignore[misc]
    """The classifier, built; calling it gives logits `[N, num_labels]`, without a head the pooled features."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(name="bit")
        self.config = config
        self.root = RootBlock(config)
        self.blocks = [Block(config, stage) for stage in range(config.num_stages)]
        self.norm = GroupNorm(config.num_groups)
        self.head = Head(config) if config.num_labels else None
        self(np.zeros((1, 64, 64, config.num_channels), np.float32))

    def call(self, images: Any) -> Any:
        """Run `[N, H, W, num_channels]` in [-1, 1]."""
        taps = self.taps(images)
        return taps["logits" if self.head else "pooled"]

    def taps(self, images: Any) -> dict[str, Any]:
        """Every intermediate result, with the names and in the order of the definition's; last the logits."""
        taps: dict[str, Any] = {}
        x = taps["root_block/conv"] = self.root(ops.convert_to_tensor(images))
        x = taps["root_block"] = max_pool(x)
        for block in self.blocks:
            x, units = block(x)
            taps |= units
        x = taps["pre_head"] = ops.relu(self.norm(x))
        x = taps["pooled"] = ops.mean(x, axis=(1, 2))
        if self.head:
            taps["logits"] = self.head(x)
        return taps

    def named_weights(self) -> dict[str, Any]:
        """The weights by Google's names, `block1/unit01/a/group_norm/gamma` and so on."""
        return {weight.path.removeprefix(f"{self.name}/"): weight for weight in self.weights}

    def set_named_weights(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Set every weight by its name. Raises `ValueError` unless each is there once with its shape."""
        weights = self.named_weights()
        wanted = {name: tuple(weight.shape) for name, weight in weights.items()}
        found = {name: tuple(value.shape) for name, value in values.items()}
        if found != wanted:
            differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
            raise ValueError(f"missing, unexpected or misshapen: {', '.join(differing)}")
        for name, value in values.items():
            weights[name].assign(value)

    def load_google(self, path: str | Path) -> None:
        """Load an `.h5` of Google's TF2 code, written by Keras 2's `save_weights`.

        There each layer is a group and names stand twice, `block1/block1/unit01/…/kernel:0`.
        Raises `OSError` for another kind of file and `ValueError` for another network.
        """
        values: dict[str, NDArray[Any]] = {}

        def collect(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                layer = next(group for group in groups if name.startswith(f"{group}/{group}/"))
                values[name.removeprefix(f"{layer}/").removesuffix(":0")] = item[()]

        with h5py.File(path) as file:
            groups = [str(name.decode() if isinstance(name, bytes) else name) for name in file.attrs["layer_names"]]
            file.visititems(collect)
        self.set_named_weights(values)


def load(folder: str | Path) -> BiT:
    """The model from a folder that `bit convert --to keras` wrote.

    Raises `FileNotFoundError`, and `ValueError` for weights of another network.
    """
    model = BiT(BitConfig.from_pretrained(folder))
    model.load_weights(Path(folder) / WEIGHTS_NAME)
    return model
