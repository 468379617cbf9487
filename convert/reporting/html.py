"""A verification as one HTML page that loads nothing else: no script, no font, no network.

The content security policy of the page forbids all of them and allows one style sheet, by hash. Equal values
give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bit import __version__
from convert.checkpoints.manifest import Manifest
from convert.checkpoints.training import Training
from convert.network.inputs import INPUTS
from convert.reporting.curves import curve_drawings
from convert.reporting.plot import SCALE_WIDTH, plots
from convert.reporting.templates import template
from convert.reporting.text import grouped, input_label, number, worst
from convert.verification.results import END_TO_END, INCOMPLETE, Verification

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class SignedBy:
    """The signer of a folder, for people to read, and the commands that check the signature."""

    name: str
    commands: tuple[str, ...]


def render(
    verification: Verification,
    manifest: Manifest,
    signed: SignedBy | None = None,
    training: Training | None = None,
) -> str:
    """Return the content of `verification.html`; a folder that is signed says by whom.

    `training` is the record of a network that was fine-tuned.
    """
    filters: dict[str, Callable[..., Any]] = {
        "finite": math.isfinite,
        "greatest": lambda errors: max(errors, key=lambda error: (not math.isfinite(error), error)),
        "number": number,
        "input_label": input_label,
        "sha256": _sha256,
        "worst": worst,
    }
    return template("convert.reporting", TEMPLATE, filters, autoescape=True).render(
        verification=verification,
        manifest=manifest,
        signed=signed,
        training=training,
        curves=curve_drawings(training.curve) if training is not None else [],
        plots=plots(verification.checks),
        runs=grouped(verification.checks, "run"),
        END_TO_END=END_TO_END,
        incomplete=verification.verdict == INCOMPLETE,
        SCALE_WIDTH=SCALE_WIDTH,
        INPUTS=INPUTS,
        verifier=f"bit-convert {__version__}",
    )


def _sha256(text: str) -> str:
    """Return the hash of a style sheet in the form of a content security policy."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
