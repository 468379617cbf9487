"""BiT in Flax, for JAX users, with the parameter names of google-research's JAX code.

The network: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370); names: big_transfer,
`bit_jax/models.py`. Images are `[N, H, W, C]` with values in [-1, 1], kernels `[h, w, i, o]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.flax import load_file

from bit.config import NORM_EPS, WEIGHTS_NAME, BitConfig
from bit.files import check_regular, one_line
from bit.images import check_images
from bit.mismatch import check_size, listed, mismatches

Taps = dict[str, jax.Array]


class GroupNorm(nn.Module):
    """Group normalization (Wu and He, arXiv 1803.08494) with a scale and a bias `[1, 1, 1, C]`."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, c = x.shape
        scale = self.param("scale", nn.initializers.ones, (1, 1, 1, c))
        bias = self.param("bias", nn.initializers.zeros, (1, 1, 1, c))
        grouped = x.reshape(n, h, w, self.groups, c // self.groups)
        centered = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=(1, 2, 4), keepdims=True)
        normalized: jax.Array = (centered / jnp.sqrt(variance + NORM_EPS)).reshape(x.shape)
        return normalized * scale + bias


class StandardizedConv(nn.Module):
    """A convolution, padded by half the kernel, that standardizes each filter (Qiao et al., arXiv 1903.10520)."""

    features: int
    size: int
    stride: int
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        centered = kernel - kernel.mean(axis=(0, 1, 2))
        kernel = centered / jnp.sqrt(jnp.mean(jnp.square(centered), axis=(0, 1, 2)) + self.eps)
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            (self.stride, self.stride),
            [(self.size // 2, self.size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )


class Unit(nn.Module):
    """A pre-activation bottleneck (He et al., arXiv 1603.05027); the 3×3 convolution carries the stride."""

    config: BitConfig
    stage: int
    first: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        middle, outputs = config.bottleneck_size(self.stage), config.hidden_sizes[self.stage]
        stride = 2 if self.first and self.stage else 1
        activated = nn.relu(GroupNorm(config.num_groups, name="gn1")(x))
        y = StandardizedConv(middle, 1, 1, config.ws_eps, name="conv1")(activated)
        y = nn.relu(GroupNorm(config.num_groups, name="gn2")(y))
        y = StandardizedConv(middle, 3, stride, config.ws_eps, name="conv2")(y)
        y = nn.relu(GroupNorm(config.num_groups, name="gn3")(y))
        y = StandardizedConv(outputs, 1, 1, config.ws_eps, name="conv3")(y)
        # The shortcut is projected from the activated input, not from the raw one.
        shortcut = StandardizedConv(outputs, 1, stride, config.ws_eps, name="conv_proj")(activated) if self.first else x
        return y + shortcut


class Stem(nn.Module):
    """A 7×7 convolution of stride 2."""

    config: BitConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return StandardizedConv(self.config.embedding_size, 7, 2, self.config.ws_eps, name="conv_root")(x)


def max_pool(x: jax.Array) -> jax.Array:
    """Pool 3×3 windows with stride 2; a border of zeros surrounds `x`."""
    # Zeros, not −∞, as in Google's code: they exceed negative values at the border.
    pooled: jax.Array = nn.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
    return pooled


class Block(nn.Module):
    """The units of a stage."""

    config: BitConfig
    stage: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, Taps]:
        taps: Taps = {}
        for layer in range(self.config.depths[self.stage]):
            unit = f"unit{layer + 1:02d}"
            x = taps[f"{self.name}/{unit}"] = Unit(self.config, self.stage, layer == 0, name=unit)(x)
        return x, taps


class BiT(nn.Module):
    """The classifier; `apply({"params": params}, images)` runs it."""

    config: BitConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, Taps]:
        """Classify images `[N, H, W, num_channels]` in [-1, 1].

        Returns logits `[N, num_labels]`, or the pooled features if there is no head, and every tap
        by name: `root_block/conv`, `root_block`, each unit, `pre_head`, `pooled`, `logits`. Raises
        `ValueError` for images that the network does not accept, see `check_images`.
        """
        check_images(self.config, images.shape)
        config, taps = self.config, {}
        x = taps["root_block/conv"] = Stem(config, name="root_block")(images)
        x = taps["root_block"] = max_pool(x)
        for stage in range(len(config.depths)):
            x, units = Block(config, stage, name=f"block{stage + 1}")(x)
            taps |= units
        x = taps["pre_head"] = nn.relu(GroupNorm(config.num_groups, name="norm-pre-head")(x))
        x = taps["pooled"] = x.mean(axis=(1, 2))
        if not config.num_labels:
            return x, taps
        zeros = nn.initializers.zeros
        head = nn.Dense(config.num_labels, kernel_init=zeros, precision=jax.lax.Precision.HIGHEST, name="conv_head")
        logits = taps["logits"] = head(x)
        return logits, taps


def load(folder: str | Path) -> tuple[BiT, dict[str, Any]]:
    """Return the model and the parameters from a folder that `bit convert --to flax` wrote.

    Raises `OSError`, or `ValueError` unless the file holds every parameter once with the right shape.
    """
    config = BitConfig.from_pretrained(Path(folder))
    model = BiT(config)
    path = check_regular(Path(folder) / WEIGHTS_NAME)
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); download or convert it again") from None
    check_size(config, stored)
    image = jax.ShapeDtypeStruct((1, 64, 64, config.num_channels), jnp.float32)
    expected = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image)["params"], sep="/")
    shapes = [{key: value.shape for key, value in state.items()} for state in (expected, stored)]
    if problems := mismatches(*shapes):
        raise ValueError(f"{folder} does not hold this model: {listed(problems)}")
    return model, unflatten_dict(stored, sep="/")
