"""Accuracy, calibration and likelihood of logits, and how two sets of logits differ. All computed in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.evaluation.results import Bin, Scores

BINS = 15
"""Bins of equal width from 0 to 1, as in Guo et al. 2017 (arXiv 1706.04599, section 5)."""
FEW = 5
AT_ONCE = 4_000_000
"""Logits that are computed with at once: 32 MB in float64."""

Logits = NDArray[np.float32]
"""`[N, classes]`."""
Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def scores(logits: Logits, labels: Labels, sigmoid: bool = False) -> Scores:
    """Score logits `[N, classes]` by the right classes `[N]`.

    With `sigmoid` each class has a probability of its own, as a head for several labels was trained; the first class
    is the most probable one, and its probability is the confidence. Of equal logits the first class counts.
    """
    ranks, confidences, losses = (np.empty(len(labels)) for _ in range(3))
    for rows in _pieces(logits):
        values, right = logits[rows].astype(np.float64), labels[rows, None]
        own = np.take_along_axis(values, right, 1)
        before = (values == own) & (np.arange(values.shape[1]) < right)
        ranks[rows] = (values > own).sum(1) + before.sum(1)
        positive, negative = _log_probabilities(values, sigmoid)
        confidences[rows] = np.exp(positive.max(1))
        chosen = np.take_along_axis(positive, right, 1)[:, 0]
        if sigmoid:
            chosen = chosen + negative.sum(1) - np.take_along_axis(negative, right, 1)[:, 0]
        losses[rows] = -chosen
    bins = calibration(confidences, ranks == 0)
    gaps = sum(part.images * abs(part.accuracy - part.confidence) for part in bins)
    return Scores(
        top1=float(np.mean(ranks == 0)),
        top5=float(np.mean(ranks < FEW)) if logits.shape[1] > FEW else None,
        ece=gaps / len(labels),
        nll=float(losses.mean()),
        bins=bins,
    )


def calibration(confidences: Array, right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Return the bins of confidence; bin m holds the confidences from (m - 1) / 15, exclusive, to m / 15."""
    places = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    found = []
    for place in range(BINS):
        members = places == place
        count = int(members.sum())
        mean = (float(confidences[members].mean()), float(right[members].mean())) if count else (0.0, 0.0)
        found.append(Bin(count, *mean))
    return tuple(found)


@dataclass(frozen=True)
class Differences:
    """How the logits of two checkpoints differ, for each image."""

    first_class: tuple[NDArray[np.int64], NDArray[np.int64]]
    margin: tuple[Array, Array]
    """Difference between the two largest logits."""
    largest: Array
    """Largest difference of a logit."""
    kl: Array
    """Kullback-Leibler divergence of the second's probabilities from the first's, in nats."""
    relative_l2: float
    """Difference of all logits together, relative to those of the first."""


def differences(first: Logits, second: Logits, sigmoid: bool = False) -> Differences:
    """Compare logits `[N, classes]` of two checkpoints for the same images.

    With `sigmoid` the divergence is summed over the classes, each of which has a probability of its own.
    """
    count = len(first)
    largest, kl, margins = np.empty(count), np.empty(count), (np.empty(count), np.empty(count))
    squares = np.zeros(2)
    for rows in _pieces(first):
        one, other = first[rows].astype(np.float64), second[rows].astype(np.float64)
        difference = np.abs(one - other)
        largest[rows] = difference.max(1)
        squares += (difference**2).sum(), (one**2).sum()
        for values, margin in zip((one, other), margins, strict=True):
            two = -np.partition(-values, 1, axis=1)[:, :2]
            margin[rows] = two[:, 0] - two[:, 1]
        pairs = list(zip(_log_probabilities(one, sigmoid), _log_probabilities(other, sigmoid), strict=True))
        terms = [np.exp(mine) * (mine - theirs) for mine, theirs in (pairs if sigmoid else pairs[:1])]
        kl[rows] = np.maximum(sum(term.sum(1) for term in terms), 0)
    return Differences(
        first_class=(first.argmax(1), second.argmax(1)),
        margin=margins,
        largest=largest,
        kl=kl,
        relative_l2=float(np.sqrt(squares[0] / squares[1])) if squares[1] else float(squares[0] > 0),
    )


def _log_probabilities(values: Array, sigmoid: bool) -> tuple[Array, Array]:
    """Return the logarithm of the probability of each class, and, for a sigmoid, that of its absence."""
    if sigmoid:
        return -np.logaddexp(0, -values), -np.logaddexp(0, values)
    shifted = values - values.max(1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs, logs


def _pieces(logits: Logits) -> Iterator[slice]:
    """Yield the images, some at a time."""
    step = max(1, AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)
