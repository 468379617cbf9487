"""The model card: the `README.md` of a published repository."""

from __future__ import annotations

from typing import Any

from convert.record import ConversionRecord

LIBRARIES = {"transformers": "transformers", "timm": "timm", "keras": "keras", "flax": "flax", "onnx": "onnx"}
"""What the Hub calls the library that reads a layout (huggingface.co/docs/hub/models-libraries)."""


def card(record: ConversionRecord, verification: dict[str, Any]) -> str:
    """The card of a converted folder: metadata as YAML, then what it is and what was compared.

    `verification` is the content of `verification.json`. The same folder gives the same card.
    """
    checks = verification["checks"]
    worst = max(checks, key=lambda check: check["error"] / check["budget"] if check["budget"] else 0.0)
    classes = f"{record.classes} classes" if record.classes else "no head"
    return f"""\
---
{_metadata(record)}
---

# {record.name}

BiT ([Big Transfer](https://arxiv.org/abs/1912.11370)) {record.architecture}, {classes}, in the layout
`{record.layout}`. Converted from `{record.origin.name}` (SHA-256 `{record.origin.sha256}`) by {record.converter}.

{len(checks)} comparisons were made before publishing, all within their budgets; nearest to its own is \
`{worst.get("tap")}` with an error of {worst["error"]:.1e} (relative L2) of {worst["budget"]:.1e}. \
`verification.json` holds every one, \
and the SHA-256 of every file; `conversion.json` tells where each tensor came from.
"""


def _metadata(record: ConversionRecord) -> str:
    task = "image-classification" if record.classes else "image-feature-extraction"
    lines = ["license: apache-2.0", f"pipeline_tag: {task}"]
    if record.layout in LIBRARIES:
        lines.append(f"library_name: {LIBRARIES[record.layout]}")
    return "\n".join([*lines, "tags:", "- bit", "- big-transfer", "- bit-convert"])
