"""Running a part on a few images at a time is running it on all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.network import runner
from convert.network.runner import Batches, Taps, run


class Counting:
    """Doubles each image and takes its sum, and keeps what it was given at once."""

    name, dtype, about = "counting", "float64", {}  # type: ignore[var-annotated]

    def __init__(self) -> None:
        self.pieces: list[dict[str, int]] = []

    def run(self, part: str, inputs: Batches) -> Taps:
        self.pieces.append({name: len(images) for name, images in inputs.items()})
        yield "doubled", {name: images * 2 for name, images in inputs.items()}
        yield "sum", {name: images.sum((1, 2, 3))[:, None] for name, images in inputs.items()}


def _batches(counts: list[tuple[int, int]]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return {str(index): rng.normal(size=(count, side, side, 2)) for index, (count, side) in enumerate(counts)}


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4))
def test_pieces_change_nothing_and_are_small(counts: list[tuple[int, int]]) -> None:
    counting, inputs = Counting(), _batches(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "AT_ONCE", 300)
        found = dict(run(counting, "block1/unit01", inputs))
    assert list(found) == ["doubled", "sum"]
    for tap, expected in Counting().run("", inputs):
        assert list(found[tap]) == list(inputs)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[tap][name], value)
    for piece in counting.pieces:
        size = sum(count * inputs[name][0].nbytes for name, count in piece.items())
        assert size <= 300 or list(piece.values()) == [1]
