"""BiT in PyTorch, with the interface of transformers and the function of google-research.

The network: Kolesnikov et al., "Big Transfer" (arXiv 1912.11370); google-research/big_transfer,
`bit_pytorch/models.py`. Images are `[N, C, H, W]` with values in [-1, 1].
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import register_pytree_node
from torch.utils.checkpoint import checkpoint

from bit.config import BitConfig
from bit.images import check_images
from bit.inference import split_batch
from bit.layers import Embeddings, GroupNormActivation, StandardizedConv2d, Unit
from bit.pretrained import PretrainedModel

Taps = dict[str, Tensor]


def _named(name: str) -> Any:
    """Return a property for the result of a name."""

    def read(outputs: ModelOutput) -> Any:
        return outputs.get(name)

    def write(outputs: ModelOutput, value: Any) -> None:
        outputs[name] = value

    return property(read, write)


class ModelOutput(dict[str, Any]):
    """Results by name, in order, as transformers' outputs are: a mapping without those that are None.

    `outputs.logits`, `outputs["logits"]` and, by position among the results that are there,
    `outputs[0]` are the same. As an attribute, a result that was not asked for is None. `taps` are an
    attribute alone. accelerate and `DataParallel` make an output from a mapping or from pairs.
    """

    names: ClassVar[tuple[str, ...]]
    """Names of the results, in order."""
    hidden_states: tuple[Tensor, ...] | None = _named("hidden_states")
    """The pooled stem and each stage, before the last norm; `[N, C, H, W]` each."""
    taps: Taps | None
    """Intermediate results in order: `root_block/conv`, `root_block`, each unit, `pre_head`, `pooled`, `logits`."""

    def __init__(self, results: Any = (), /, taps: Taps | None = None, **named: Any) -> None:
        given = dict(results, **named)
        super().__init__({name: given[name] for name in self.names if given.get(name) is not None})
        self.taps = taps

    def __init_subclass__(cls) -> None:
        """Tell PyTorch how to take an output apart: `torch.export` and distributed training do so."""
        register_pytree_node(
            cls,
            lambda outputs: ([*outputs.values(), outputs.taps], list(outputs)),
            lambda values, names: cls(zip(names, values, strict=False), taps=list(values)[-1]),
            serialized_type_name=f"bit.{cls.__name__}",
        )

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the results that were asked for, without taps."""
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), taps=self.taps), (dict(self),)


class BitModelOutput(ModelOutput):
    """Results of `BitModel`."""

    names = ("last_hidden_state", "pooler_output", "hidden_states")
    last_hidden_state: Tensor = _named("last_hidden_state")
    """`[N, C, H/32, W/32]`, after the last norm and activation."""
    pooler_output: Tensor = _named("pooler_output")
    """`[N, C, 1, 1]`, the mean over the image."""


class BitClassifierOutput(ModelOutput):
    """Results of `BitForImageClassification`."""

    names = ("loss", "logits", "hidden_states")
    loss: Tensor | None = _named("loss")
    """A scalar, or None if no labels were given."""
    logits: Tensor = _named("logits")
    """`[N, num_labels]`."""


class BitBackboneOutput(ModelOutput):
    """Results of `BitBackbone`."""

    names = ("feature_maps", "hidden_states")
    feature_maps: tuple[Tensor, ...] = _named("feature_maps")
    """The maps that `BitConfig.out_features` selects, `[N, C, H, W]` each."""


class Stage(nn.Module):
    """The units that share a resolution."""

    def __init__(self, config: BitConfig, stage: int, stride: int, dilation: int, drop_rates: list[float]) -> None:
        super().__init__()
        # The first unit of a stage that dilates instead of striding keeps the grid of the stage before.
        first_dilation = 1 if dilation in (1, 2) else 2
        self.name = f"block{stage + 1}"
        self.gradient_checkpointing = False
        self.checkpointing_options: dict[str, Any] = {}
        self.layers = nn.Sequential(
            Unit(config, stage, 0, stride, first_dilation, drop_rates[0]),
            *(Unit(config, stage, layer, 1, dilation, rate) for layer, rate in enumerate(drop_rates[1:], 1)),
        )

    def forward(self, x: Tensor, taps: Taps | None = None) -> Tensor:
        """Run every unit, and add each output to `taps`."""
        recompute = self.gradient_checkpointing and self.training
        for layer, unit in enumerate(self.layers):
            x = checkpoint(unit, x, **self.checkpointing_options) if recompute else unit(x)
            if taps is not None:
                taps[f"{self.name}/unit{layer + 1:02d}"] = x
        return x


class Encoder(nn.Module):
    """All stages; those beyond `BitConfig.output_stride` dilate instead of striding."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        units = sum(config.depths)
        rates = iter([config.drop_path_rate * unit / max(units - 1, 1) for unit in range(units)])
        self.stages = nn.ModuleList()
        shrunk, dilation = 4, 1
        for stage, depth in enumerate(config.depths):
            stride = 2 if stage else 1
            if shrunk >= config.output_stride:
                dilation, stride = dilation * stride, 1
            shrunk *= stride
            self.stages.append(Stage(config, stage, stride, dilation, list(islice(rates, depth))))


class BitModel(PretrainedModel):
    """The network without a head."""

    prefix = "bit."

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        config = self.network
        self.embedder = Embeddings(config)
        self.encoder = Encoder(config)
        normalizes = config.layer_type == "preactivation"
        self.norm = GroupNormActivation(config, config.hidden_sizes[-1]) if normalizes else nn.Identity()
        for module in self.modules():
            # Not on the meta device: to draw there, PyTorch would import a compiler, which takes 150 MB and a second.
            if isinstance(module, StandardizedConv2d) and not module.weight.is_meta:
                # As transformers and timm do: He et al., arXiv 1502.01852, by the number of outputs.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_taps: bool = False,
    ) -> BitModelOutput | tuple[Any, ...]:
        """Run the network on `pixel_values` `[N, num_channels, H, W]` in [-1, 1].

        Returns a `BitModelOutput`, or a tuple of the same results unless `return_dict`. What is None is
        as the configuration says. Raises `ValueError` for images that the network does not accept, see
        `check_images`.
        """
        check_images(self.network, pixel_values.shape, channels_last=False)
        output_hidden_states = self.wants_hidden_states(output_hidden_states)
        parts: tuple[Tensor, ...] = (pixel_values,)
        in_graph, on_cpu = torch.compiler.is_compiling(), pixel_values.device.type == "cpu"
        if not in_graph and on_cpu and self.get_input_embeddings().folded:
            parts = split_batch(pixel_values, self.network.embedding_size / 64)
        outputs = _concatenate([self._run(part, output_hidden_states, output_taps) for part in parts])
        return outputs if self.wants_mapping(return_dict) else outputs.to_tuple()

    def _run(self, pixel_values: Tensor, output_hidden_states: bool, output_taps: bool) -> BitModelOutput:
        taps: Taps | None = {} if output_taps else None
        x = self.embedder(pixel_values, taps)
        hidden_states: tuple[Tensor, ...] | None = (x,) if output_hidden_states else None
        for stage in self.encoder.stages:
            x = stage(x, taps)
            if hidden_states is not None:
                hidden_states = (*hidden_states, x)
        x = self.norm(x)
        pooled = x.mean(dim=(2, 3), keepdim=True)
        if taps is not None:
            taps |= {"pre_head": x, "pooled": pooled.flatten(1)}
        return BitModelOutput(last_hidden_state=x, pooler_output=pooled, hidden_states=hidden_states, taps=taps)


class BitForImageClassification(PretrainedModel):
    """The network with a linear head; without classes, the logits are the pooled features."""

    body = BitModel
    """The class of `self.bit`."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        config = self.network
        self.num_labels = config.num_labels
        self.bit = self.body(self.config)
        head = nn.Linear(config.hidden_sizes[-1], config.num_labels) if config.num_labels else nn.Identity()
        self.classifier = nn.Sequential(nn.Flatten(), head)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_taps: bool = False,
    ) -> BitClassifierOutput | tuple[Any, ...]:
        """Classify `pixel_values` `[N, num_channels, H, W]` in [-1, 1]; see `BitModel.forward`.

        `labels` are class indices `[N]`, zeros and ones `[N, num_labels]` if several classes may
        hold, or numbers to predict (regression, the default for a single label). The loss is that
        of transformers for the same `problem_type`.
        """
        body: BitModelOutput = self.bit(pixel_values, output_hidden_states, True, output_taps)
        logits = self.classifier(body.pooler_output)
        if body.taps is not None and self.num_labels:
            body.taps["logits"] = logits
        loss = None if labels is None else classification_loss(self.config, logits, labels)
        outputs = BitClassifierOutput(loss=loss, logits=logits, hidden_states=body.hidden_states, taps=body.taps)
        return outputs if self.wants_mapping(return_dict) else outputs.to_tuple()


class BitBackbone(PretrainedModel):
    """The network's feature maps, for detection and segmentation."""

    body = BitModel
    """The class of `self.bit`."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__(config)
        self.bit = self.body(self.config)

    @property
    def channels(self) -> list[int]:
        """Channels of each feature map."""
        sizes = (self.network.embedding_size, *self.network.hidden_sizes)
        return [sizes[index] for index in self.config.out_indices or ()]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_taps: bool = False,
    ) -> BitBackboneOutput | tuple[Any, ...]:
        """Return the feature maps that `BitConfig.out_features` selects; see `BitModel.forward`."""
        body: BitModelOutput = self.bit(pixel_values, True, True, output_taps)
        states = body.hidden_states or ()
        maps = tuple(states[index] for index in self.config.out_indices or ())
        kept = states if self.wants_hidden_states(output_hidden_states) else None
        outputs = BitBackboneOutput(feature_maps=maps, hidden_states=kept, taps=body.taps)
        return outputs if self.wants_mapping(return_dict) else outputs.to_tuple()


def classification_loss(config: BitConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss that transformers computes, chosen in the same way (`ForSequenceClassificationLoss`)."""
    problem, single = config.problem_type, config.num_labels == 1
    if problem == "regression" or (problem is None and single):
        if single:
            logits, labels = logits.squeeze(), labels.squeeze()
        return functional.mse_loss(logits, labels)
    if problem == "single_label_classification" or (problem is None and labels.dtype in (torch.int64, torch.int32)):
        return functional.cross_entropy(logits, labels.view(-1))
    return functional.binary_cross_entropy_with_logits(logits, labels)


def _concatenate(parts: list[BitModelOutput]) -> BitModelOutput:
    """Join the results of the parts of a batch, whose images do not affect each other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    states = zip(*(part.hidden_states or () for part in parts), strict=True)
    return BitModelOutput(
        last_hidden_state=torch.cat([part.last_hidden_state for part in parts]),
        pooler_output=torch.cat([part.pooler_output for part in parts]),
        hidden_states=None if first.hidden_states is None else tuple(map(torch.cat, states)),
        taps=first.taps and {name: torch.cat([(part.taps or {})[name] for part in parts]) for name in first.taps},
    )
