"""Loss and gradients of a network that runs one part at a time: back-propagation through the parts.

An implementation differentiates one part by the automatic differentiation of its own framework; the chain through
the parts and the loss are here, in float64 NumPy. The weights and gradients of one part are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convert.network.runner import Batches, Implementation
from convert.network.taps import Array, Part

Labels = Mapping[str, NDArray[np.int64]]
"""For each input by name: the class of every image, `[N]`."""


@dataclass(frozen=True)
class PartGradients:
    """The gradients of one part: of a scalar with known derivatives with respect to the part's output."""

    inputs: Batches
    """With respect to the part's input, in the input's shape."""
    parameters: Mapping[str, Array]
    """With respect to each parameter, by canonical name, in the canonical shape; summed over all images."""


class Differentiable(Implementation, Protocol):
    """An implementation that also differentiates one part."""

    def differentiate(self, part: Part, x: Batches, cotangents: Batches) -> PartGradients:
        """Return the gradients of the sum of `cotangents` times the last tap of the part, which is given `x`."""


def cross_entropy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> tuple[float, Array]:
    """Return the mean cross-entropy of logits `[N, classes]`, and the gradient with respect to them."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    gradient = np.exp(shifted) / sums
    gradient[rows, labels] -= 1
    return float((np.log(sums[:, 0]) - shifted[rows, labels]).mean()), gradient / len(labels)


def backward(
    implementation: Differentiable, parts: Sequence[Part], inputs: Sequence[Batches], cotangents: Batches
) -> Iterator[tuple[Part, PartGradients]]:
    """Yield the gradients of every part, the last part first.

    `inputs` are those of each part in the forward pass, `cotangents` the gradient with respect to the last output.
    """
    for part, x in zip(reversed(parts), reversed(inputs), strict=True):
        gradients = implementation.differentiate(part, x, cotangents)
        cotangents = gradients.inputs
        yield part, gradients
