"""BiT in Flax NNX, for JAX users, with the parameter names of google-research's JAX code.

The network: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370); names: big_transfer,
`bit_jax/models.py`. Images are `[N, H, W, C]` with values in [-1, 1], kernels `[h, w, i, o]`. The path of a
parameter in `nnx.state(model)`, joined by `/`, is the name in the file: `block1/unit01/conv1/kernel`.

A pure function, as Linen's `apply` is one, comes from `nnx.split`:

    graph, params = nnx.split(model)
    logits = jax.jit(lambda params, images: nnx.merge(graph, params)(images))(params, images)
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.flax import load_file

from bit.checks import check_layout, check_size, listed, mismatches
from bit.config import NORM_EPS, WEIGHTS_NAME, BitConfig
from bit.files import check_regular, one_line
from bit.images import check_images

Taps = dict[str, jax.Array]

LAST_NORM = "norm-pre-head"
"""The attribute of the norm after the last unit, which has Google's name for it."""


class GroupNorm(nnx.Module):
    """Group normalization (Wu and He, arXiv 1803.08494) with a scale and a bias `[1, 1, 1, C]`."""

    def __init__(self, channels: int, groups: int) -> None:
        self.groups = groups
        self.scale = nnx.Param(jnp.ones((1, 1, 1, channels)))
        self.bias = nnx.Param(jnp.zeros((1, 1, 1, channels)))

    def __call__(self, x: jax.Array) -> jax.Array:
        n, h, w, c = x.shape
        grouped = x.reshape(n, h, w, self.groups, c // self.groups)
        centered = grouped - grouped.mean(axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=(1, 2, 4), keepdims=True)
        normalized: jax.Array = (centered / jnp.sqrt(variance + NORM_EPS)).reshape(x.shape)
        return normalized * self.scale[...] + self.bias[...]


class StandardizedConv(nnx.Module):
    """A convolution, padded by half the kernel, that standardizes each filter (Qiao et al., arXiv 1903.10520)."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, eps: float = 1e-10, rngs: nnx.Rngs
    ) -> None:
        self.size, self.stride, self.eps = size, stride, eps
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (size, size, inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
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


class Unit(nnx.Module):
    """A pre-activation bottleneck (He et al., arXiv 1603.05027); the 3×3 convolution carries the stride."""

    def __init__(self, config: BitConfig, stage: int, first: bool, *, rngs: nnx.Rngs) -> None:
        middle, outputs = config.bottleneck_size(stage), config.hidden_sizes[stage]
        inputs = outputs if not first else config.hidden_sizes[stage - 1] if stage else config.embedding_size
        groups, eps, stride = config.num_groups, config.ws_eps, 2 if first and stage else 1
        self.gn1 = GroupNorm(inputs, groups)
        self.conv1 = StandardizedConv(inputs, middle, 1, eps=eps, rngs=rngs)
        self.gn2 = GroupNorm(middle, groups)
        self.conv2 = StandardizedConv(middle, middle, 3, stride=stride, eps=eps, rngs=rngs)
        self.gn3 = GroupNorm(middle, groups)
        self.conv3 = StandardizedConv(middle, outputs, 1, eps=eps, rngs=rngs)
        self.conv_proj = StandardizedConv(inputs, outputs, 1, stride=stride, eps=eps, rngs=rngs) if first else None

    def __call__(self, x: jax.Array) -> jax.Array:
        activated = nnx.relu(self.gn1(x))
        y = self.conv1(activated)
        y = self.conv2(nnx.relu(self.gn2(y)))
        y = self.conv3(nnx.relu(self.gn3(y)))
        # The shortcut is projected from the activated input, not from the raw one.
        return y + (x if self.conv_proj is None else self.conv_proj(activated))


class Stem(nnx.Module):
    """A 7×7 convolution of stride 2."""

    def __init__(self, config: BitConfig, *, rngs: nnx.Rngs) -> None:
        channels, width = config.num_channels, config.embedding_size
        self.conv_root = StandardizedConv(channels, width, 7, stride=2, eps=config.ws_eps, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv_root(x)


def max_pool(x: jax.Array) -> jax.Array:
    """Pool 3×3 windows with stride 2; a border of zeros surrounds `x`."""
    # Zeros, not −∞, as in Google's code: they exceed negative values at the border.
    pooled: jax.Array = nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
    return pooled


class Block(nnx.Module):
    """The units of a stage, with the names `unit01`, `unit02` and so on."""

    def __init__(self, config: BitConfig, stage: int, *, rngs: nnx.Rngs) -> None:
        self.names = tuple(f"unit{layer + 1:02d}" for layer in range(config.depths[stage]))
        for layer, name in enumerate(self.names):
            setattr(self, name, Unit(config, stage, layer == 0, rngs=rngs))

    def __call__(self, x: jax.Array) -> Taps:
        """Return the output of every unit by name."""
        outputs: Taps = {}
        for name in self.names:
            x = outputs[name] = getattr(self, name)(x)
        return outputs


class Head(nnx.Linear):
    """The linear classifier; zeros at first, from which BiT is fine-tuned (arXiv 1912.11370, section 3.3)."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        zeros, highest = nnx.initializers.zeros, jax.lax.Precision.HIGHEST
        super().__init__(channels, classes, kernel_init=zeros, precision=highest, rngs=rngs)


class BiT(nnx.Module):
    """The classifier: `BiT(config, rngs=nnx.Rngs(0))` has new weights, `load` those of a file."""

    def __init__(self, config: BitConfig, *, rngs: nnx.Rngs) -> None:
        self._network = _Hashable(config)
        self.root_block = Stem(config, rngs=rngs)
        for stage in range(len(config.depths)):
            setattr(self, f"block{stage + 1}", Block(config, stage, rngs=rngs))
        channels = config.hidden_sizes[-1]
        setattr(self, LAST_NORM, GroupNorm(channels, config.num_groups))
        self.conv_head = Head(channels, config.num_labels, rngs=rngs) if config.num_labels else None

    @property
    def config(self) -> BitConfig:
        """Sizes, constants and names of the classes."""
        return self._network.config

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits `[N, num_labels]` of `[N, H, W, num_channels]` in [-1, 1]; without a head, pooled features."""
        return list(self.taps(images).values())[-1]

    def taps(self, images: jax.Array) -> Taps:
        """Return every tap by name: `root_block/conv`, `root_block`, each unit, `pre_head`, `pooled`, `logits`.

        Raises `ValueError` for images that the network does not accept, see `check_images`.
        """
        check_images(self.config, images.shape)
        taps: Taps = {}
        x = taps["root_block/conv"] = self.root_block(jnp.asarray(images))
        x = taps["root_block"] = max_pool(x)
        for block in (f"block{stage + 1}" for stage in range(len(self.config.depths))):
            units = getattr(self, block)(x)
            taps |= {f"{block}/{unit}": output for unit, output in units.items()}
            x = list(units.values())[-1]
        x = taps["pre_head"] = nnx.relu(getattr(self, LAST_NORM)(x))
        x = taps["pooled"] = x.mean(axis=(1, 2))
        if self.conv_head is not None:
            taps["logits"] = self.conv_head(x)
        return taps


class _Hashable:
    """A configuration that JAX can hash and compare, to know when a network is compiled already."""

    def __init__(self, config: BitConfig) -> None:
        self.config = config
        self._content = json.dumps(config.to_dict(), sort_keys=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


def load(folder: str | Path) -> BiT:
    """Return the model from a folder that `bit convert --to flax` wrote.

    Parameters have the dtype of the file. Raises `OSError`, or `ValueError` for a folder of another layout, and unless
    the file holds every parameter once with the right shape.
    """
    check_layout(folder, "flax")
    config = BitConfig.from_pretrained(Path(folder))
    path = check_regular(Path(folder) / WEIGHTS_NAME)
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); download or convert it again") from None
    check_size(config, stored)
    graph, state = nnx.split(nnx.eval_shape(lambda: BiT(config, rngs=nnx.Rngs(0))))
    expected = {"/".join(map(str, key)): value.shape for key, value in nnx.to_flat_state(state)}
    if problems := mismatches(expected, {key: value.shape for key, value in stored.items()}):
        raise ValueError(f"{folder} does not hold this model: {listed(problems)}")
    return nnx.merge(graph, nnx.State(unflatten_dict(stored, sep="/")))
