"""Recorded training steps of Google's own code, and the same steps with another implementation's gradients.

The recordings, and how they were made, are described in `reference_outputs/README.md`. The steps are SGD with momentum
in float64 NumPy; only the gradients come from the implementation, by the chain that `bit verify --gradients` uses.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from bit.config import BitConfig
from convert.layouts.google import GOOGLE
from convert.network.axes import Transform
from convert.network.gradients import Differentiable, backward, cross_entropy
from convert.network.inputs import images
from convert.network.parameters import ALL, KINDS, parameters
from convert.network.runner import run_network
from convert.network.taps import Array, parts
from convert.references.recordings import SHIPPED
from convert.sources.synthetic import parameter

FOLDER = SHIPPED / "training"
SAMPLE_SIZE = 64
"""Recorded values of each parameter's change."""


@dataclass(frozen=True)
class TrainingRecording:
    """A few training steps of Google's code on seeded weights."""

    name: str
    about: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float64]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises `OSError` or `SafetensorError` for an invalid file."""
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["training"])
            return cls(path.stem, about, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118

    @property
    def config(self) -> BitConfig:
        return BitConfig.from_architecture(self.about["architecture"]).replace(
            num_labels=self.about["classes"], id2label=None
        )


class WeightsInMemory:
    """The part of `Checkpoint` that references read: a configuration and the weights, which may change."""

    def __init__(self, config: BitConfig, values: dict[str, Array]) -> None:
        self.config, self.values = config, values
        self._axes = {item.name: item.axes for item in parameters(config)}

    def weights(
        self, name: str, channels: slice = ALL, *, axes: str | None = None, dtype: str = "float64"
    ) -> NDArray[Any]:
        """Return a copy of a parameter, see `Checkpoint.weights`."""
        moved = Transform(self._axes[name], axes or self._axes[name])(self.values[name][..., channels])
        return np.array(moved, dtype, order="C")


Load = Callable[[Any, str], Differentiable]
"""`load(checkpoint, dtype)` of a reference."""


@dataclass(frozen=True)
class MicroBatch:
    """Images of a step, with the classes of two losses that are added: the second is that of the partners in mixup."""

    images: Array
    """`[N, H, W, C]`, mixed already."""
    labels: NDArray[np.int64]
    partners: NDArray[np.int64]
    """The class of each image's partner."""
    ratio: float
    """The share of the first loss."""

    def loss(self, logits: Array) -> tuple[float, Array]:
        """Return the loss of logits `[N, classes]`, and the gradient with respect to them."""
        losses = [cross_entropy(logits, labels) for labels in (self.labels, self.partners)]
        (first, gradient), (second, of_partners) = losses
        ratio = self.ratio
        return ratio * first + (1 - ratio) * second, ratio * gradient + (1 - ratio) * of_partners


Gradients = Callable[[Mapping[str, Array], MicroBatch], tuple[float, Mapping[str, Array]]]
"""Returns the loss of a micro-batch, and its gradient for each parameter; weights and gradients by canonical name."""
Logits = Callable[[Mapping[str, Array], Array], Array]
"""Returns the logits of images, with these weights."""


def repeat_steps(recording: TrainingRecording, load: Load) -> dict[str, tuple[Array, Array]]:
    """Take the recorded steps with a reference's gradients, one part of the network at a time; see `repeat_with`."""
    config = recording.config
    checkpoint = WeightsInMemory(config, {})
    implementation = load(checkpoint, "float64")

    def gradients(values: Mapping[str, Array], batch: MicroBatch) -> tuple[float, Mapping[str, Array]]:
        checkpoint.values = dict(values)
        return _loss_and_gradients(implementation, config, batch)

    def logits(values: Mapping[str, Array], x: Array) -> Array:
        checkpoint.values = dict(values)
        *_, (_, found) = run_network(implementation, config, {"": x})
        return found[""]

    return repeat_with(recording, gradients, logits)


def repeat_with(recording: TrainingRecording, gradients: Gradients, logits: Logits) -> dict[str, tuple[Array, Array]]:
    """Take the recorded steps with these gradients.

    Returns pairs of what was found and what was recorded: `loss`, `logits_after`, and for each parameter, by canonical
    name, the sample and the norm of the change.
    """
    about, config = recording.about, recording.config
    before = dict(_initial(config, about))
    values, velocity, losses = dict(before), dict[str, Array](), list[float]()
    for step, rate in enumerate(recording.arrays["learning_rate"]):
        total: dict[str, Array] = {}
        for batch in range(about["batch_split"]):
            loss, found = gradients(values, micro_batch(recording, step, batch))
            losses.append(loss)
            for name, gradient in found.items():
                total[name] = total.get(name, 0) + gradient / about["batch_split"]
        for name, gradient in total.items():
            velocity[name] = about["momentum"] * velocity.get(name, 0) + gradient
            values[name] = values[name] - rate * velocity[name]
    outcome = {"loss": np.array(losses), "logits_after": logits(values, images(1, 2, 224, 224).astype(np.float64))}
    pairs = {name: (value, recording.arrays[name]) for name, value in outcome.items()}
    for item in parameters(config):
        key, change = GOOGLE.key(item.place), values[item.name] - before[item.name]
        chosen = np.random.RandomState(zlib.crc32(key.encode())).randint(0, change.size, SAMPLE_SIZE)
        recorded = [np.atleast_1d(recording.arrays[f"{key}/change_{kind}"]) for kind in ("sample", "norm")]
        sample = np.append(change.reshape(-1)[chosen], np.linalg.norm(change))
        pairs[item.name] = sample, np.concatenate(recorded)
    return pairs


def micro_batch(recording: TrainingRecording, step: int, batch: int) -> MicroBatch:
    """Return the images and classes of one micro-batch of a step."""
    about, config = recording.about, recording.config
    count, size, split = about["micro_batch"], about["image_size"], about["batch_split"]
    x = images(100 + step * split + batch, count, size, size).astype(np.float64)
    labels = (3 * np.arange(count) + step + batch) % config.num_labels
    ratio, partners = 1.0, np.arange(count)
    if about["mixup"]:
        ratio = round(np.random.RandomState(1000 + step).beta(0.1, 0.1), 6)
        partners = np.random.RandomState(2000 + step * split + batch).permutation(count)
        x = ratio * x + (1 - ratio) * x[partners]
    return MicroBatch(x, labels, labels[partners], ratio)


def _initial(config: BitConfig, about: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """Yield the seeded weights, with zeros in the head where the recording says so."""
    for item in parameters(config):
        values = parameter(GOOGLE.key(item.place), GOOGLE.shape(item), about["weights_seed"])
        moved = Transform(GOOGLE.axes(item.place), KINDS[item.place.kind])(values).astype(np.float64)
        yield item.name, moved * (0 if about["zero_head"] and item.name.startswith("head/") else 1)


def _loss_and_gradients(
    implementation: Differentiable, config: BitConfig, batch: MicroBatch
) -> tuple[float, dict[str, Array]]:
    """Return the loss of one micro-batch, and the gradient of every parameter."""
    outputs = dict(run_network(implementation, config, {"": batch.images}))
    every = parts(config)
    inputs = [{"": batch.images}, *(outputs[part.name] for part in every[:-1])]
    loss, gradient = batch.loss(outputs["logits"][""])
    found = dict[str, Array]()
    for _, gradients in backward(implementation, every, inputs, {"": gradient}):
        found |= gradients.parameters
    return loss, found
