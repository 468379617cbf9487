"""Running a part on a few images at a time computes the same as on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.networks import TINY

from convert.network import runner
from convert.network.runner import Batches, by_channels, run_network, run_part
from convert.network.taps import Part, parts, tap_names

POOLED = Part("pooled", ("doubled", "sum"), "norm")


class Counting:
    """Doubles each image and sums it up, and keeps the number of images of every call."""

    name, dtype, about = "counting", "float64", {}  # type: ignore[var-annotated]

    def __init__(self) -> None:
        self.pieces: list[dict[str, int]] = []

    def run(self, part: Part, x: Batches) -> list[Batches]:
        self.pieces.append({name: len(images) for name, images in x.items()})
        doubled = {name: images * 2 for name, images in x.items()}
        return [doubled, {name: images.sum((1, 2, 3))[:, None] for name, images in x.items()}]


class Noting:
    """Notes the parts that it runs, and adds one to the values."""

    name, dtype, about = "noting", "float64", {}  # type: ignore[var-annotated]

    def __init__(self) -> None:
        self.calls: list[tuple[Part, float]] = []

    def run(self, part: Part, x: Batches) -> list[Batches]:
        self.calls.append((part, float(x["a"].max())))
        return [{"a": x["a"] + 1}] * len(part.taps)


def _batches(counts: list[tuple[int, int]]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {str(index): rng.normal(size=(count, side, side, 2)) for index, (count, side) in enumerate(counts)}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4))
def test_pieces_change_nothing_and_are_small(counts: list[tuple[int, int]]) -> None:
    counting, inputs = Counting(), _batches(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "AT_ONCE", 300)
        found = dict(run_part(counting, POOLED, inputs))
    assert list(found) == ["doubled", "sum"]
    for tap, expected in zip(POOLED.taps, Counting().run(POOLED, inputs), strict=True):
        assert list(found[tap]) == list(inputs)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[tap][name], value)
    for piece in counting.pieces:
        size = sum(count * inputs[name][0].nbytes for name, count in piece.items())
        assert size <= 300 or list(piece.values()) == [1]


def test_each_part_runs_once_on_the_output_of_the_part_before() -> None:
    noting = Noting()
    taps = [tap for tap, _ in run_network(noting, TINY, {"a": np.zeros((1, 2, 2, 3))})]
    assert taps == tap_names(TINY)
    assert noting.calls == [(part, float(number)) for number, part in enumerate(parts(TINY))]


@given(st.integers(1, 500), st.integers(1, 10**9))
def test_every_output_channel_is_in_exactly_one_slice(count: int, nbytes: int) -> None:
    channels = [index for piece in by_channels(count, nbytes) for index in range(count)[piece]]
    assert channels == list(range(count))
