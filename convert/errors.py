"""Every error that the project raises on purpose, as one tree.

    ConvertError                 base; also a ValueError
    ├── CheckpointError          a checkpoint, name or folder that cannot be used
    ├── UsageError               an option or argument that is invalid or does not fit the others
    ├── DownloadError            a published file that could not be fetched
    ├── HubError                 a request to the Hugging Face Hub that failed
    ├── TrainingError            a training that cannot go on: the loss is not finite
    ├── VerificationError        a conversion that does not pass, or is not what was verified
    └── IncompleteError          a verification that could not be completed; nothing differs so far

A message says what is wrong, where, and what to do. The command `bit` exits with 1 for a
`VerificationError`, with 3 for an `IncompleteError` or a `TrainingError` and with 2 for the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any


class ConvertError(ValueError):
    """Base of all errors; `problems` lists every fault where several were found at once."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class CheckpointError(ConvertError):
    """A checkpoint, name or folder that cannot be used."""


class UsageError(ConvertError):
    """An option or argument that is invalid or does not fit the others."""


class DownloadError(ConvertError):
    """A published file that could not be fetched."""


class HubError(ConvertError):
    """A request to the Hugging Face Hub that failed or was refused."""


class TrainingError(ConvertError):
    """A training that cannot go on: the loss or a weight is not a finite number."""


class VerificationError(ConvertError):
    """A conversion that does not pass, or whose bytes are not those that were verified."""

    result: Any = None
    """The `convert.ConversionResult` that failed, if `convert.convert` raised the error."""


class IncompleteError(ConvertError):
    """A verification in which a framework is missing, a process failed, or memory ran out, and nothing differs."""

    result: Any = None
    """The `convert.ConversionResult` with everything that ran, if `convert.convert` raised the error."""


def check_choice(kind: str, value: str, known: Collection[str]) -> None:
    """Raise `UsageError` with suggestions unless `value` is one of the known values."""
    if value not in known:
        raise UsageError(f"unknown {kind} {value!r}; choose from {', '.join(known)}{did_you_mean(value, known)}")


def check_names(options: Iterable[str], kind: Any) -> None:
    """Raise `UsageError` for an option that `kind`, a `TypedDict` of options, does not have."""
    for name in options:
        check_choice("option", name, sorted(kind.__optional_keys__))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` with the names nearest to `word`, or an empty string."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=3)
    return f"; did you mean {' or '.join(names[name] for name in near)}?" if near else ""
