"""A verification as one HTML page that needs nothing beside it: no script, no font, no network.

Its policy forbids all of them and allows one style sheet, by its hash. Equal values give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from typing import Any

import convert
from convert.checkpoints.manifest import Manifest
from convert.reporting.plot import plots
from convert.reporting.templates import template
from convert.reporting.text import by_run, worst
from convert.verification.verify import Verification

TEMPLATE = "report.html.jinja"


def render(verification: Verification, record: Manifest) -> str:
    """The content of `verification.html`."""
    filters: dict[str, Callable[..., Any]] = {"number": number, "sha256": _sha256, "worst": worst}
    return template("convert.reporting", TEMPLATE, filters, autoescape=True).render(
        verification=verification,
        record=record,
        plots=plots(verification.checks),
        runs=by_run(verification.checks),
        verifier=f"bit-convert {convert.__version__}",
    )


def number(value: float | None, form: str = ".1e") -> str:
    """An error or a tolerance."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:{form}}" if value else "0"


def _sha256(text: str) -> str:
    """As a content security policy states it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
