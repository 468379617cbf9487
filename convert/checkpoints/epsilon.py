"""The epsilon of weight standardization that weights were trained with, as far as it is known.

No tensor shows it. The manifest or `config.json` states it, the user does, or it follows from the library that
saved the weights: transformers and timm compute with 1e-8, whatever `config.json` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bit.config import CONFIG_NAME, BitConfig
from bit.files import short
from convert.checkpoints.manifest import MANIFEST_NAME, Manifest
from convert.errors import CheckpointError, UsageError
from convert.layouts.layout import Layout

GOOGLE = BitConfig().ws_eps
"""The epsilon of Google's code, with which all published weights were trained (big_transfer, `StdConv2d`)."""
OPTION = "--source-ws-eps"


@dataclass(frozen=True)
class Training:
    """Knowledge about the training of weights, besides the statements of their files."""

    ws_eps: float | None = None
    """The epsilon that somebody states."""
    copy_of: str | None = None
    """The repository on the Hub from which the weights were fetched, if it is known to hold Google's weights."""
    fallback: bool = False
    """True if the files' own statement is used where it differs from `ws_eps`; else that is an error."""
    believed: bool = False
    """True if the statement of a `config.json` counts whoever saved it: the weights are compared with others."""


UNKNOWN = Training()


@dataclass(frozen=True)
class Epsilon:
    """The epsilon that weights are taken to have been trained with."""

    value: float
    stated: bool
    """True if the manifest, `config.json` or the user states it."""
    assumption: str | None = None
    """A message for people about what was assumed."""


def check_ws_eps(value: object) -> float | None:
    """Return the value of the option `source_ws_eps`. Raises `UsageError` unless it is a number between 0 and 1."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UsageError(f"invalid {OPTION} {short(value)}: expected a number between 0 and 1, such as 1e-10 or 1e-8")
    return float(value)


def training_of(manifest: Manifest, given: object = None) -> Training:
    """Return what the manifest of a conversion states about the training of the source.

    Of a source that is itself a conversion nothing is stated here: its own manifest does that. Raises `UsageError`
    if the epsilon that is `given` is another one.
    """
    ws_eps, origin = check_ws_eps(given), manifest.origin
    stated = origin.ws_eps if origin.sha256 == manifest.source.sha256 else None
    if ws_eps is not None and stated is not None and ws_eps != stated:
        raise UsageError(
            f"{MANIFEST_NAME} states that the source was trained with epsilon {stated:g}, not {ws_eps:g}: leave out "
            f"{OPTION}, or convert again with it"
        )
    return Training(stated if stated is not None else ws_eps)


def epsilon_of(
    layout: Layout, stated: BitConfig, values: Mapping[str, Any], manifest: Manifest | None, training: Training
) -> Epsilon:
    """Return the epsilon of weights in a layout.

    `values` is the content of `config.json`, and `stated` the configuration that follows from it. Raises
    `CheckpointError` if `training` contradicts the manifest, or a `config.json` that the layout's library did not
    save.
    """
    saved, given = layout.export.saved_by_library(values) and not training.believed, training.ws_eps
    file = MANIFEST_NAME if manifest is not None else CONFIG_NAME if "ws_eps" in values and not saved else None
    if file is not None:
        value = manifest.ws_eps if manifest is not None else stated.ws_eps
        if given not in (None, value) and not training.fallback:
            raise CheckpointError(f"{file} states epsilon {value:g}, not {given:g}: leave out {OPTION}, or correct it")
        return Epsilon(value, stated=True)
    if given is not None:
        return Epsilon(given, stated=True)
    library, theirs = layout.export.library, layout.ws_eps
    if theirs == GOOGLE:
        return Epsilon(stated.ws_eps, stated=False)
    if training.copy_of is not None:
        message = f"{training.copy_of} holds Google's weights, trained with epsilon {GOOGLE:g}, not {theirs:g} as in"
        return Epsilon(GOOGLE, stated=False, assumption=f"{message} {library}")
    if saved:
        ignored = f", although {CONFIG_NAME} states {stated.ws_eps:g}" if "ws_eps" in values else ""
        message = (
            f"{library} saved these weights, and computes with a weight-standardization epsilon of {theirs:g}: "
            f"assuming that they were trained with it{ignored}; if they are Google's, unchanged: {OPTION} {GOOGLE:g}"
        )
        return Epsilon(theirs, stated=False, assumption=message)
    message = (
        f"the file does not state the weight-standardization epsilon: assuming Google's {GOOGLE:g}, not {theirs:g} as "
        f"in {library}; if they were trained there: {OPTION} {theirs:g}"
    )
    return Epsilon(GOOGLE, stated=False, assumption=message)
