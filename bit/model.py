"""BiT in PyTorch, with the parameter names of transformers and the function of google-research.

The network: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370); google-research/big_transfer,
`bit_pytorch/models.py`. Images are `[N, C, H, W]` with values in [-1, 1].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from bit.config import CONFIG_NAME, BitConfig

WEIGHTS_NAME = "model.safetensors"
NORM_EPS = 1e-5
"""Inside the root of every group normalization (big_transfer, `nn.GroupNorm`'s default)."""

Taps = dict[str, Tensor]


@dataclass
class BitModelOutput:
    last_hidden_state: Tensor
    """`[N, C, H/32, W/32]`, after the last norm and ReLU."""
    pooler_output: Tensor
    """`[N, C, 1, 1]`, the mean over the image."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The pooled stem and each stage, before the last norm; `[N, C, H, W]` each."""
    taps: Taps | None = None
    """Named intermediate results in order: `root_block/conv`, `root_block`, each unit, `pre_head`, `pooled`."""


@dataclass
class BitClassifierOutput:
    logits: Tensor
    """`[N, num_labels]`."""
    hidden_states: tuple[Tensor, ...] | None = None
    taps: Taps | None = None
    """As those of `BitModelOutput`, then `logits`."""


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1, biased and with `eps` inside the root."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, *, eps: float) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(variance + self.eps)
        return functional.conv2d(x, weight, None, self.stride, self.padding)


class GroupNormActivation(nn.GroupNorm):
    """Group normalization, then a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(super().forward(x))


class Embeddings(nn.Module):
    """The stem: a 7×7 convolution and a max-pool, both of stride 2."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.convolution = StandardizedConv2d(config.num_channels, config.embedding_size, 7, 2, eps=config.ws_eps)

    def forward(self, pixel_values: Tensor, taps: Taps) -> Tensor:
        x = taps["root_block/conv"] = self.convolution(pixel_values)
        # Zeros, not −∞: no ReLU comes before, so they win over negative values at the border.
        x = taps["root_block"] = functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2)
        return x


class Projection(nn.Module):
    """The shortcut of a stage's first unit, under the name that transformers gives it."""

    def __init__(self, inputs: int, outputs: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv = StandardizedConv2d(inputs, outputs, 1, stride, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(x)
        return output


class Unit(nn.Module):
    """A pre-activation bottleneck; its 3×3 convolution carries the stride."""

    def __init__(self, config: BitConfig, inputs: int, stage: int, layer: int) -> None:
        super().__init__()
        middle, outputs, eps = config.bottleneck_size(stage), config.hidden_sizes[stage], config.ws_eps
        stride = 2 if stage > 0 and layer == 0 else 1
        self.norm1 = GroupNormActivation(config.num_groups, inputs, NORM_EPS)
        self.conv1 = StandardizedConv2d(inputs, middle, 1, eps=eps)
        self.norm2 = GroupNormActivation(config.num_groups, middle, NORM_EPS)
        self.conv2 = StandardizedConv2d(middle, middle, 3, stride, eps=eps)
        self.norm3 = GroupNormActivation(config.num_groups, middle, NORM_EPS)
        self.conv3 = StandardizedConv2d(middle, outputs, 1, eps=eps)
        self.downsample = Projection(inputs, outputs, stride, eps) if layer == 0 else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.norm1(x)
        residual = self.conv1(activated)
        residual = self.conv2(self.norm2(residual))
        residual = self.conv3(self.norm3(residual))
        # The shortcut is projected from the activated input, not from the raw one.
        shortcut = x if self.downsample is None else self.downsample(activated)
        return torch.add(shortcut, residual)


class Stage(nn.Module):
    def __init__(self, config: BitConfig, stage: int) -> None:
        super().__init__()
        outputs = config.hidden_sizes[stage]
        inputs = config.hidden_sizes[stage - 1] if stage else config.embedding_size
        self.name = f"block{stage + 1}"
        self.layers = nn.Sequential(
            *(Unit(config, outputs if layer else inputs, stage, layer) for layer in range(config.depths[stage]))
        )

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        for layer, unit in enumerate(self.layers):
            x = taps[f"{self.name}/unit{layer + 1:02d}"] = unit(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(config.num_stages))


class PretrainedModel(nn.Module):
    """Loading from and saving to a folder with `config.json` and `model.safetensors`."""

    prefix = ""
    """What the names of these parameters begin with in a classification checkpoint."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        own = {"layer_type": "preactivation", "hidden_act": "relu", "global_padding": None, "output_stride": 32}
        for field, value in (own | {"embedding_dynamic_padding": False, "drop_path_rate": 0.0}).items():
            if getattr(config, field) != value:
                raise ValueError(f"{field} is {getattr(config, field)!r}; BiT's own networks have {value!r}")
        self.config = config

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model in `folder`, in the layout of transformers, in evaluation mode and the stored dtype.

        Raises `FileNotFoundError`, and `ValueError` unless every parameter of the model is there
        once with its shape.
        """
        config = BitConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = cls(config)
        stored = load_file(Path(folder) / WEIGHTS_NAME)
        if cls.prefix and any(name.startswith(cls.prefix) for name in stored):
            stored = {
                name.removeprefix(cls.prefix): value for name, value in stored.items() if name.startswith(cls.prefix)
            }
        expected = model.state_dict()
        problems = [f"missing {name}" for name in expected if name not in stored]
        problems += [f"unexpected {name}" for name in stored if name not in expected]
        problems += [
            f"misshapen {name}, {list(stored[name].shape)} instead of {list(value.shape)}"
            for name, value in expected.items()
            if name in stored and stored[name].shape != value.shape
        ]
        if problems:
            raise ValueError(f"{folder} does not hold this model: {'; '.join(problems)}")
        model.load_state_dict(stored, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, as transformers reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        content: dict[str, Any] = {"architectures": [type(self).__name__], **self.config.to_dict(), "dtype": dtype}
        (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})


class BitModel(PretrainedModel):
    """The network without its head."""

    prefix = "bit."

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.embedder = Embeddings(config)
        self.encoder = Encoder(config)
        self.norm = GroupNormActivation(config.num_groups, config.hidden_sizes[-1], NORM_EPS)

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_taps: bool = False
    ) -> BitModelOutput:
        """Run the network on `pixel_values` `[N, num_channels, H, W]`, in [-1, 1].

        Raises `ValueError` for another number of channels.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be [N, {self.config.num_channels}, H, W], not {list(pixel_values.shape)}"
            )
        taps: Taps = {} if output_taps else _Forgetful()
        x = self.embedder(pixel_values, taps)
        hidden_states = [x]
        for stage in self.encoder.stages:
            x = stage(x, taps)
            hidden_states.append(x)
        x = taps["pre_head"] = self.norm(x)
        pooled = x.mean(dim=(2, 3), keepdim=True)
        taps["pooled"] = pooled.flatten(1)
        return BitModelOutput(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            taps=taps if output_taps else None,
        )


class BitForImageClassification(PretrainedModel):
    """The network with a linear head on the pooled features."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = BitModel(config)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(config.hidden_sizes[-1], config.num_labels))

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_taps: bool = False
    ) -> BitClassifierOutput:
        """Classify `pixel_values` `[N, num_channels, H, W]`, in [-1, 1]; see `BitModel.forward`."""
        outputs: BitModelOutput = self.bit(pixel_values, output_hidden_states, output_taps)
        logits = self.classifier(outputs.pooler_output)
        if outputs.taps is not None:
            outputs.taps["logits"] = logits
        return BitClassifierOutput(logits, outputs.hidden_states, outputs.taps)


class _Forgetful(dict[str, Tensor]):
    """Takes taps that nobody asked for, and keeps none."""

    def __setitem__(self, name: str, value: Tensor) -> None:
        pass
