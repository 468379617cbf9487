"""What the field checks after a conversion, on the logits of the right and of the mutated network in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from convert.network.inputs import images

Logits = NDArray[np.float64]

IMAGE = images(7, 1, 96, 96)
"""The one image of most checks."""
HUNDRED = images(8, 100, 32, 32)
"""The images of the check of classes. The network takes any size; small ones are a fiftieth of the cost of 224×224."""


def _allclose(found: Logits, expected: Logits) -> bool:
    return np.allclose(found, expected, atol=1e-3)


def _three(found: Logits, expected: Logits) -> bool:
    return np.allclose(found[0, :3], expected[0, :3], rtol=1e-4, atol=1e-4)


def _validation(found: Logits, expected: Logits) -> bool:
    return np.allclose(found, expected, atol=1e-4)


def _cosine(found: Logits, expected: Logits) -> bool:
    x, y = found.reshape(-1), expected.reshape(-1)
    return bool(x @ y > 0.999 * np.linalg.norm(x) * np.linalg.norm(y))


@cache
def photographs() -> NDArray[np.uint8]:
    """Return images `[N, H, W, 3]` of 8 bits; twenty, because preparing them is most of the cost."""
    return ((images(9, 20, 120, 150) + 1) * 127.5).round().astype(np.uint8)


CHECKS: Mapping[str, tuple[str, Callable[[Logits, Logits], bool]]] = {
    "allclose": ("numpy.allclose(atol=1e-3) of the logits of one image", _allclose),
    "three logits": ("the first three logits of one image within 1e-4, as in transformers' tests of BiT", _three),
    "Optimum": ("the outputs for one input within 1e-4, as Optimum validates an export of a vision model", _validation),
    "cosine": ("cosine similarity of the logits of one image over 0.999", _cosine),
    "top-1": (
        "the same class for 100 images",
        lambda found, expected: bool((found.argmax(1) == expected.argmax(1)).all()),
    ),
}
"""A description of each check, and whether it accepts logits `[N, classes]`; `top-1` is given a hundred images."""


def killed(one: tuple[Logits, Logits], hundred: tuple[Logits, Logits]) -> dict[str, bool]:
    """Return which checks notice a mutant, from (found, expected) for one image and for a hundred."""
    found = {}
    for name, (_, accepts) in CHECKS.items():
        values, expected = hundred if name == "top-1" else one
        same = values.shape == expected.shape and np.isfinite(values).all()
        found[name] = not (same and accepts(values.astype(np.float64), expected.astype(np.float64)))
    return found
