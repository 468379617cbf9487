"""The text of a model card, and the code in it."""

from __future__ import annotations

import re
from typing import Any

from convert.checkpoints.manifest import Manifest
from convert.publishing.card import card
from convert.publishing.gate import Checked

REPOSITORY = "me/a-bit"
NOTHING = Checked()


def text_of(manifest: Manifest, repository: str = REPOSITORY, checked: Checked = NOTHING) -> str:
    return card(manifest, results(), repository, checked=checked)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def results() -> dict[str, Any]:
    """Return the parts of a `verification.json` that a card shows."""
    run = {"reference": "recordings", "implementation": "oracle", "side": "converted", "dtype": "float64"}
    other = {**run, "implementation": "timm", "side": "source", "dtype": "float32"}
    mode, agreement = {"mode": "end-to-end", "input": "square"}, {"images": 3, "top1": 3, "top5": 2}
    epsilon = {"library": "transformers", "epsilon": 1e-8, "original": 1e-10, "tap": "logits", "relative_l2": 3.5e-4}
    checks = [
        {**run, **mode, "tap": "stem", "error": 3e-10, "tolerance": 1e-8},
        {**run, **mode, "tap": "logits", "error": 5e-10, "tolerance": 1e-9},
        {**other, **mode, "tap": "stem", "error": 1e-6, "tolerance": 4e-6},
    ]
    facts = {"tensors_exact": 7, "epsilon": epsilon, "not_run": {"flax": "jax is not installed"}}
    return {"checks": checks, "agreements": [agreement], **facts}
