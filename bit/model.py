"""BiT in PyTorch, with the interface of transformers and the function of google-research.

The network: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370); google-research/big_transfer,
`bit_pytorch/models.py`. Images are `[N, C, H, W]` with values in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bit.config import BitConfig
from bit.layers import UNITS, Embeddings, GroupNormActivation
from bit.pretrained import PretrainedModel

Taps = dict[str, Tensor]

CACHED_PIXELS = 4 * 224 * 224
"""So many pixels at once, divided by the width, run fastest on a CPU after `for_inference`: what is
between layers then stays in the caches. Measured on an AMD EPYC (Zen 5) with R50x1."""


@dataclass
class ModelOutput:
    """Named results, also by index; None stands for what was not asked for and has no index."""

    def to_tuple(self) -> tuple[Any, ...]:
        values = (getattr(self, field.name) for field in fields(self) if field.name != "taps")
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())


@dataclass
class BitModelOutput(ModelOutput):
    last_hidden_state: Tensor
    """`[N, C, H/32, W/32]`, after the last norm and activation."""
    pooler_output: Tensor
    """`[N, C, 1, 1]`, the mean over the image."""
    hidden_states: tuple[Tensor, ...] | None = None
    """The pooled stem and each stage, before the last norm; `[N, C, H, W]` each."""
    taps: Taps | None = None
    """Named intermediate results in order: `root_block/conv`, `root_block`, each unit, `pre_head`, `pooled`."""


@dataclass
class BitClassifierOutput(ModelOutput):
    loss: Tensor | None
    """A scalar, where labels were given."""
    logits: Tensor
    """`[N, num_labels]`."""
    hidden_states: tuple[Tensor, ...] | None = None
    taps: Taps | None = None
    """As those of `BitModelOutput`, then `logits`."""


@dataclass
class BitBackboneOutput(ModelOutput):
    feature_maps: tuple[Tensor, ...]
    """Those of `BitConfig.out_features`, `[N, C, H, W]` each."""
    hidden_states: tuple[Tensor, ...] | None = None
    taps: Taps | None = None


class Stage(nn.Module):
    def __init__(self, config: BitConfig, stage: int, stride: int, dilation: int, drop_rates: list[float]) -> None:
        super().__init__()
        unit = UNITS[config.layer_type]
        outputs = config.hidden_sizes[stage]
        inputs = config.hidden_sizes[stage - 1] if stage else config.embedding_size
        # The first unit of a stage that dilates instead of striding keeps the grid of the one before.
        first_dilation = 1 if dilation in (1, 2) else 2
        self.name = f"block{stage + 1}"
        self.gradient_checkpointing = False
        self.layers = nn.Sequential(
            unit(config, inputs, stage, True, stride, first_dilation, drop_rates[0]),
            *(unit(config, outputs, stage, False, 1, dilation, rate) for rate in drop_rates[1:]),
        )

    def forward(self, x: Tensor, taps: Taps) -> Tensor:
        for layer, unit in enumerate(self.layers):
            again = self.gradient_checkpointing and self.training
            x = checkpoint(unit, x, use_reentrant=False) if again else unit(x)
            taps[f"{self.name}/unit{layer + 1:02d}"] = x
        return x


class Encoder(nn.Module):
    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        units = sum(config.depths)
        rates = iter([config.drop_path_rate * unit / max(units - 1, 1) for unit in range(units)])
        self.stages = nn.ModuleList()
        shrunk, dilation = 4, 1
        for stage in range(config.num_stages):
            stride = 2 if stage else 1
            if shrunk >= config.output_stride:
                dilation, stride = dilation * stride, 1
            shrunk *= stride
            self.stages.append(Stage(config, stage, stride, dilation, list(islice(rates, config.depths[stage]))))


class BitModel(PretrainedModel):
    """The network without its head."""

    prefix = "bit."

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.embedder = Embeddings(config)
        self.encoder = Encoder(config)
        normalizes = config.layer_type == "preactivation"
        self.norm = GroupNormActivation(config, config.hidden_sizes[-1]) if normalizes else nn.Identity()
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        output_taps: bool = False,
    ) -> BitModelOutput | tuple[Any, ...]:
        """Run the network on `pixel_values` `[N, num_channels, H, W]`, in [-1, 1].

        Returns a `BitModelOutput`, or a tuple of its values unless `return_dict`. Raises
        `ValueError` for another number of axes or channels.
        """
        outputs = self.run(pixel_values, output_hidden_states, output_taps)
        return outputs if return_dict else outputs.to_tuple()

    def run(
        self, pixel_values: Tensor, output_hidden_states: bool = False, output_taps: bool = False
    ) -> BitModelOutput:
        """As `forward`, always with names."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be [N, {self.config.num_channels}, H, W], not {list(pixel_values.shape)}"
            )
        stem = self.embedder.convolution
        if not stem.folded or pixel_values.device.type != "cpu" or torch.compiler.is_compiling():
            return self._run(pixel_values, output_hidden_states, output_taps)
        area = pixel_values.shape[2] * pixel_values.shape[3] * self.config.embedding_size / 64
        parts = pixel_values.split(max(1, int(CACHED_PIXELS // area)))
        return _joined([self._run(part, output_hidden_states, output_taps) for part in parts])

    def _run(self, pixel_values: Tensor, output_hidden_states: bool, output_taps: bool) -> BitModelOutput:
        taps: Taps = {} if output_taps else _Forgetful()
        x = self.embedder(pixel_values, taps)
        hidden_states = [x] if output_hidden_states else None
        for stage in self.encoder.stages:
            x = stage(x, taps)
            if hidden_states is not None:
                hidden_states.append(x)
        x = taps["pre_head"] = self.norm(x)
        pooled = x.mean(dim=(2, 3), keepdim=True)
        taps["pooled"] = pooled.flatten(1)
        return BitModelOutput(
            last_hidden_state=x,
            pooler_output=pooled,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            taps=taps if output_taps else None,
        )


class BitForImageClassification(PretrainedModel):
    """The network with a linear head on the pooled features, which are the logits where it has no classes."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = BitModel(config)
        head = nn.Linear(config.hidden_sizes[-1], config.num_labels) if config.num_labels else nn.Identity()
        self.classifier = nn.Sequential(nn.Flatten(), head)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        output_taps: bool = False,
    ) -> BitClassifierOutput | tuple[Any, ...]:
        """Classify `pixel_values` `[N, num_channels, H, W]`, in [-1, 1]; see `BitModel.forward`.

        `labels`: class indices `[N]`; or zeros and ones `[N, num_labels]`, of which several may
        hold; or numbers to predict (regression, by default for a single label). The loss is
        transformers' for the same `problem_type`.
        """
        outputs = self.run(pixel_values, labels, output_hidden_states, output_taps)
        return outputs if return_dict else outputs.to_tuple()

    def run(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_taps: bool = False,
    ) -> BitClassifierOutput:
        """As `forward`, always with names."""
        body = self.bit.run(pixel_values, output_hidden_states, output_taps)
        logits = self.classifier(body.pooler_output)
        if body.taps is not None and self.config.num_labels:
            body.taps["logits"] = logits
        loss = None if labels is None else classification_loss(self.config, logits, labels)
        return BitClassifierOutput(loss, logits, body.hidden_states, body.taps)


class BitBackbone(PretrainedModel):
    """The network's feature maps, for detection and segmentation."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = BitModel(config)

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map."""
        sizes = (self.config.embedding_size, *self.config.hidden_sizes)
        return [sizes[index] for index in self.config.out_indices or ()]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        output_taps: bool = False,
    ) -> BitBackboneOutput | tuple[Any, ...]:
        """The feature maps of `pixel_values`, selected by `BitConfig.out_features`; see `BitModel.forward`."""
        body = self.bit.run(pixel_values, True, output_taps)
        states = body.hidden_states or ()
        maps = tuple(states[index] for index in self.config.out_indices or ())
        outputs = BitBackboneOutput(maps, states if output_hidden_states else None, body.taps)
        return outputs if return_dict else outputs.to_tuple()


def classification_loss(config: BitConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss that transformers computes (`ForSequenceClassificationLoss`), chosen alike."""
    problem = config.problem_type
    if problem is None:
        indices = labels.dtype in (torch.int64, torch.int32)
        problem = "single_label_classification" if indices else "multi_label_classification"
        problem = "regression" if config.num_labels == 1 else problem
    if problem == "regression":
        if config.num_labels == 1:
            logits, labels = logits.squeeze(), labels.squeeze()
        return functional.mse_loss(logits, labels)
    if problem == "single_label_classification":
        return functional.cross_entropy(logits, labels.view(-1))
    return functional.binary_cross_entropy_with_logits(logits, labels)


def _joined(parts: list[BitModelOutput]) -> BitModelOutput:
    """The results of parts of a batch, as of the whole; images do not see each other in this network."""
    if len(parts) == 1:
        return parts[0]
    states = [part.hidden_states for part in parts if part.hidden_states is not None]
    taps = [part.taps for part in parts if part.taps is not None]
    return BitModelOutput(
        last_hidden_state=torch.cat([part.last_hidden_state for part in parts]),
        pooler_output=torch.cat([part.pooler_output for part in parts]),
        hidden_states=tuple(map(torch.cat, zip(*states, strict=True))) if states else None,
        taps={name: torch.cat([part[name] for part in taps]) for name in taps[0]} if taps else None,
    )


class _Forgetful(dict[str, Tensor]):
    """Takes taps that nobody asked for, and keeps none."""

    def __setitem__(self, name: str, value: Tensor) -> None:
        pass
