"""BiT in Keras 3 on TensorFlow, for TensorFlow users, with the weight names of google-research's TF2 code.

The network: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370); names: big_transfer,
`bit_tf2/models.py`. Images are `[N, H, W, C]` with values in [-1, 1], kernels `[h, w, i, o]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from bit.config import NORM_EPS, BitConfig
from bit.files import check_regular, one_line
from bit.images import check_images

WEIGHTS_NAME = "model.weights.h5"

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"bit.keras needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}")


class GroupNorm(keras.layers.Layer):  # type: ignore[misc]
    """Group normalization (Wu and He, arXiv 1803.08494) with `gamma` and `beta` `[C]`."""

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
    """A convolution, padded by half the kernel, that standardizes each filter (Qiao et al., arXiv 1903.10520)."""

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


class NamedConv(keras.layers.Layer):  # type: ignore[misc]
    """A convolution inside a layer that only names it: the stem or a projected shortcut."""

    def __init__(self, name: str, features: int, size: int, stride: int, eps: float) -> None:
        super().__init__(name=name)
        self.conv = StandardizedConv(features, size, stride, eps)

    def call(self, x: Any) -> Any:
        return self.conv(x)


class Branch(keras.layers.Layer):  # type: ignore[misc]
    """Norm, ReLU and convolution: `a`, `b` or `c` of a unit; `a` may also hold the projected shortcut."""

    def __init__(
        self, name: str, config: BitConfig, features: int, size: int, stride: int, projection: NamedConv | None = None
    ) -> None:
        super().__init__(name=name)
        self.norm = GroupNorm(config.num_groups)
        self.conv = StandardizedConv(features, size, stride, config.ws_eps)
        self.projection = projection

    def call(self, x: Any) -> tuple[Any, Any]:
        """Return the output of the convolution, and the projected shortcut or None."""
        activated = ops.relu(self.norm(x))
        # The shortcut is projected from the activated input, not from the raw one.
        return self.conv(activated), None if self.projection is None else self.projection(activated)


class Unit(keras.layers.Layer):  # type: ignore[misc]
    """A pre-activation bottleneck (He et al., arXiv 1603.05027); the 3×3 convolution carries the stride."""

    def __init__(self, config: BitConfig, stage: int, layer: int) -> None:
        super().__init__(name=f"unit{layer + 1:02d}")
        middle, outputs = config.bottleneck_size(stage), config.hidden_sizes[stage]
        stride = 2 if stage and not layer else 1
        projection = None if layer else NamedConv("proj", outputs, 1, stride, config.ws_eps)
        self.a = Branch("a", config, middle, 1, 1, projection)
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


class RootBlock(NamedConv):
    """The stem: a 7×7 convolution of stride 2. Keras names it after this class in files."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__("root_block", config.embedding_size, 7, 2, config.ws_eps)


def max_pool(x: Any) -> Any:
    """Pool 3×3 windows with stride 2; a border of zeros surrounds `x`."""
    # Zeros, not −∞, as in Google's code: they exceed negative values at the border.
    return ops.max_pool(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2, padding="valid")


class Head(keras.layers.Layer):  # type: ignore[misc]
    """The linear classifier; zeros at first, from which BiT is fine-tuned (arXiv 1912.11370, section 3.3)."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(name="head")
        self.dense = keras.layers.Dense(config.num_labels, kernel_initializer="zeros", name="dense")

    def call(self, x: Any) -> Any:
        return self.dense(x)


class BiT(keras.Model):  # type: ignore[misc]
    """The classifier, with weights already created."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(name="bit")
        self.config = config
        self.root = RootBlock(config)
        self.blocks = [Block(config, stage) for stage in range(len(config.depths))]
        self.norm = GroupNorm(config.num_groups)
        self.head = Head(config) if config.num_labels else None
        self(np.zeros((1, 64, 64, config.num_channels), np.float32))

    def __call__(self, images: Any, *arguments: Any, **options: Any) -> Any:
        """Check the images, and call the model; Keras would wrap an error of `call` in several lines."""
        self._check(images)
        return super().__call__(images, *arguments, **options)

    def call(self, images: Any) -> Any:
        """Return logits `[N, num_labels]` of `[N, H, W, num_channels]` in [-1, 1]; without a head, pooled features."""
        taps = self.taps(images)
        return taps["logits" if self.head else "pooled"]

    def taps(self, images: Any) -> dict[str, Any]:
        """Return every tap by name: `root_block/conv`, `root_block`, each unit, `pre_head`, `pooled`, `logits`.

        Raises `ValueError` for images that the network does not accept, see `check_images`.
        """
        self._check(images)
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

    def _check(self, images: Any) -> None:
        shape = images.shape if hasattr(images, "shape") else np.shape(images)
        if getattr(shape, "rank", 0) is not None:  # in a graph, TensorFlow may know nothing of a shape
            check_images(self.config, tuple(shape))


def load(folder: str | Path) -> BiT:
    """Return the model from a folder that `bit convert --to keras` wrote.

    Raises `OSError`, or `ValueError` for weights of another network.
    """
    config, path = BitConfig.from_pretrained(Path(folder)), check_regular(Path(folder) / WEIGHTS_NAME)
    # Keras creates every weight before it reads one.
    if path.stat().st_size < _least_bytes(config):
        raise ValueError(f"{path} is too small for the network that config.json describes ({config.architecture})")
    model = BiT(config)
    try:
        model.load_weights(path)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold this model ({one_line(error)})") from None
    return model


def _least_bytes(config: BitConfig) -> int:
    """Return the size of the kernels of all convolutions but the stem's, at the two bytes of the shortest dtype."""
    weights, channels = 0, config.embedding_size
    for stage, (units, size) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        middle = config.bottleneck_size(stage)
        weights += channels * size + channels * middle + (units - 1) * size * middle
        weights += units * middle * (9 * middle + size)
        channels = size
    return 2 * (weights + channels * config.num_labels)
