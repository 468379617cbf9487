"""The results of verifying, comparing and inspecting checkpoints, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

import msgspec

from bit import __version__
from convert.checkpoints.records import Count, Name, Sentence, Sha256, parse_record
from convert.errors import VerificationError
from convert.files.base import shown
from convert.references.registry import CONVERTED as CONVERTED
from convert.references.registry import SOURCE as SOURCE

SCHEMA = 2
"""Version of `verification.json`."""

END_TO_END, ISOLATED = "end-to-end", "isolated"
"""The values of `Check.mode`."""
RECORDED_STEPS = "recorded steps"
"""A value of `GradientCheck.mode`, besides those of `Check.mode`."""
VERIFIED, DIFFERS, INCOMPLETE = "verified", "differs", "could not be completed"
"""The values of `Verification.verdict`."""
IDENTICAL, EQUAL, DIFFERENT, MISSING = "identical", "equal", "different", "missing"
"""The values of `TensorDifference.status`."""

FLOAT64_TOLERANCE = 1e-9
"""Two implementations of one function agree to about 1e-13 in float64; the smallest known difference in
meaning, an epsilon of 1e-8 instead of 1e-10, shows as 4e-4."""
TOLERANCES = {END_TO_END: FLOAT64_TOLERANCE, ISOLATED: 1e-12}
"""In one part two implementations agree to 4e-15; the unbiased variance of one kernel shows as 1e-11 behind a norm."""
GRADIENT_TOLERANCES = {END_TO_END: FLOAT64_TOLERANCE, RECORDED_STEPS: FLOAT64_TOLERANCE, ISOLATED: 1e-11}
"""Two automatic differentiations agree to 1e-12, in one part to 1e-14; an unbiased variance shows as 1e-10."""
NO_SOURCE = "bytes were not compared: the source is not available"
"""The warning of a verification without the source."""
PIXEL_TOLERANCE = 0.01
"""8-bit levels. One code prepares both images, so float32 leaves 1e-5; a mean off by 1e-4 is 0.03."""


def _within(error: float, tolerance: float) -> bool:
    return math.isfinite(tolerance) and 0 <= error <= tolerance


@dataclass(frozen=True)
class Check:
    """The error of one tap of one input against a reference.

    In the mode `end-to-end` each part runs on the output of the part before, so errors add up as they
    do for a user; in the mode `isolated` it runs on the oracle's input, so an error names the part.
    """

    reference: Sentence
    implementation: Name
    side: Name
    """The side that supplies the weights, `source` or `converted`."""
    dtype: Name
    mode: Name
    input: Name
    tap: Name
    error: float
    """Relative L2."""
    tolerance: float
    """The largest error that passes."""

    @property
    def passed(self) -> bool:
        return _within(self.error, self.tolerance)

    @property
    def run(self) -> str:
        """Name of the run that this check belongs to, such as `bit (PyTorch) float64, isolated`."""
        side = " on the source" if self.side == SOURCE else ""
        mode = ", isolated" if self.mode == ISOLATED else ""
        return f"{self.implementation}{side} {self.dtype}{mode}"


@dataclass(frozen=True)
class GradientCheck:
    """The error of a gradient, or of the loss, against another automatic differentiation in float64.

    The mode `end-to-end` propagates the loss through an implementation's own activations; in the mode `isolated` both
    are given the same input and the same gradient of the output of a part; `recorded steps` are training steps.
    """

    reference: Sentence
    implementation: Name
    mode: Name
    part: Name
    """Last tap of the part, such as `block1/unit01` or `logits`."""
    parameter: Name
    """Canonical name of the parameter, `…/input` for the part's input, `loss` or `logits_after`."""
    error: float
    """Relative L2."""
    tolerance: float

    @property
    def passed(self) -> bool:
        return _within(self.error, self.tolerance)

    @property
    def run(self) -> str:
        """Implementation and mode, such as `bit (PyTorch), isolated`."""
        return f"{self.implementation}, {self.mode}"


@dataclass(frozen=True)
class Agreement:
    """The number of images of an input that a run puts into the same classes as the reference."""

    implementation: Name
    side: Name
    dtype: Name
    input: Name
    images: Count
    top1: Count
    """Images with the same most probable class."""
    top5: Count
    """Images with the same five most probable classes, in any order."""
    margin: float
    """Smallest difference between the reference's two largest logits of an image."""
    largest_error: float
    """Largest absolute error of a logit; a margin over twice that cannot be overturned."""


@dataclass(frozen=True)
class Finding:
    """The diagnosis of one part of a network that is over the tolerance."""

    implementation: Name
    part: Name
    """Last tap of the part, such as `block1/unit01` or `logits`."""
    explanation: Sentence | None
    """The known mistake that explains the error; None if no known mistake does."""
    before: float
    """Relative L2 error of the part, given the oracle's input."""
    after: float | None
    """The error that is left when the oracle makes the same mistake."""

    @property
    def words(self) -> str:
        """The finding in one sentence."""
        before = f"{self.before:.1e}" if math.isfinite(self.before) else "not finite"
        if self.explanation is None:
            return f"{self.part}: no known mistake explains the error ({before})"
        left = "" if self.after is None else f"; with that mistake the error falls from {before} to {self.after:.1e}"
        return f"{self.part}: {self.explanation}{left}"


@dataclass(frozen=True)
class EpsilonEffect:
    """The difference that the fixed `epsilon` of a layout's own library makes at a tap, instead of the `original`."""

    library: Name
    epsilon: float
    original: float
    input: Name
    tap: Name
    relative_l2: Annotated[float, msgspec.Meta(ge=0)] | None
    """None if it is not finite."""


@dataclass(frozen=True)
class PixelCheck:
    """The pixels that the stated preprocessing makes of one image, compared with the expected ones."""

    input: Name
    error: float
    """Largest difference of a pixel in 8-bit levels; infinite for another size."""
    explanation: Sentence | None
    """The known mistake that makes these pixels, or None."""
    tolerance: float = PIXEL_TOLERANCE

    @property
    def passed(self) -> bool:
        return 0 <= self.error <= self.tolerance


@dataclass(frozen=True)
class NetworkResult:
    """The results of running the network, and the reasons for what could not be run."""

    checks: tuple[Check, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    environments: Mapping[Sentence, Mapping[Name, Sentence]] = field(default_factory=dict)
    """By run: versions, device, threads and whether TF32 was off."""
    not_run: Mapping[Name, Sentence] = field(default_factory=dict)
    """The reason for each reference implementation that did not run."""
    crashed: tuple[Name, ...] = ()
    """Those that started and failed; each leaves the verification incomplete."""
    findings: tuple[Finding, ...] = ()
    epsilon: EpsilonEffect | None = None
    reference: Sentence = ""
    """The reference of end-to-end checks."""
    inputs: Mapping[Name, Sha256] = field(default_factory=dict)
    """SHA-256 of the images of each input, see `input_sha256`."""
    recordings: Mapping[Name, Sha256] = field(default_factory=dict)
    """SHA-256 of each recording that outputs were compared with, by file name."""


@dataclass(frozen=True)
class Replay:
    """The files of a second conversion of the source, compared byte for byte with those in the folder."""

    identical: tuple[Name, ...]
    different: tuple[Name, ...]
    """Those that differ or are missing on one side; each is a problem of the verification."""

    @property
    def passed(self) -> bool:
        return bool(self.identical) and not self.different


@dataclass(frozen=True)
class Verification:
    """The verdict on a converted folder. It passes if every comparison that had to be made was, and passes."""

    name: Name
    layout: Name
    architecture: Name
    classes: Count
    files: Mapping[str, Sha256] = field(default_factory=dict)
    """SHA-256 of every verified file, by name."""
    tensors_exact: Count = 0
    """Tensors that convert back to the source exactly."""
    tensors_changed: Count = 0
    """Tensors that are bit for bit what the requested change makes of the source."""
    roundings: tuple[Name, ...] = ()
    """The dtypes to which the weights were rounded since the original checkpoint."""
    problems: tuple[Sentence, ...] = ()
    """Faults of files and tensors."""
    incomplete: tuple[Sentence, ...] = ()
    """The reason for each comparison that had to be made and could not be completed."""
    network: NetworkResult = field(default_factory=NetworkResult)
    pixels: tuple[PixelCheck, ...] = ()
    gradients: tuple[GradientCheck, ...] = ()
    """The comparison of gradients; empty unless it was asked for."""
    replay: Replay | None = None
    """The comparison with a second conversion; None unless it was asked for."""
    warnings: tuple[Sentence, ...] = ()
    environment: Mapping[Name, Sentence] = field(default_factory=dict)

    @property
    def checks(self) -> tuple[Check, ...]:
        return self.network.checks

    @property
    def _network_passed(self) -> bool:
        outputs = all(check.passed for check in self.checks)
        return outputs and all(check.passed for check in self.gradients)

    @property
    def model_passed(self) -> bool:
        """True if files and tensors have no problems and the network computes what it should."""
        return not (self.problems or self.incomplete) and bool(self.checks) and self._network_passed

    @property
    def pixels_passed(self) -> bool:
        return all(check.passed for check in self.pixels)

    @property
    def passed(self) -> bool:
        return self.model_passed and self.pixels_passed

    @property
    def verdict(self) -> str:
        """`verified`, `differs` or, if nothing differs so far, `could not be completed`."""
        differs = self.problems or not (self.pixels_passed and self._network_passed)
        return VERIFIED if self.passed else DIFFERS if differs else INCOMPLETE

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `verification.json`; a number that is not finite becomes null."""
        values = to_builtins(self)
        values |= values.pop("network")
        judged: dict[str, tuple[Check | GradientCheck | PixelCheck, ...]]
        judged = {"checks": self.checks, "gradients": self.gradients, "pixels": self.pixels}
        for name, checks in judged.items():
            values[name] = [{**row, "passed": check.passed} for check, row in zip(checks, values[name], strict=True)]
        verdicts = {name: getattr(self, name) for name in ("verdict", "passed", "model_passed", "pixels_passed")}
        return {"schema": SCHEMA, "verifier": f"bit-convert {__version__}", **verdicts, **values}


NOT_FINITE = {
    "checks": ("error", "tolerance"),
    "gradients": ("error", "tolerance"),
    "pixels": ("error",),
    "findings": ("before",),
}
"""Numbers that `Verification.to_dict` writes as null if they are not finite, by the list that holds them."""


@dataclass(frozen=True)
class StoredVerification:
    """The content of `verification.json`: the results, and what the file states about them."""

    verifier: Name
    """`bit-convert` and the version that verified."""
    passed: bool
    """The verdict that the file states; it is that of the results unless the file was edited."""
    verification: Verification
    report: Sha256 | None = None
    """SHA-256 of `verification.html`."""
    failed: int = 0
    """Comparisons that are over the tolerance, or are stated to be."""
    edited: tuple[str, ...] = ()
    """Fields that are not what this version writes for these results."""

    @classmethod
    def decode(cls, data: bytes) -> StoredVerification:
        """Decode the file strictly. Raises `VerificationError` for anything that `to_dict` cannot have written."""
        try:
            values = parse_record(data)
            if (schema := values.get("schema", 1)) != SCHEMA:
                message = f"has schema {shown(schema)}, but this version reads schema {SCHEMA}"
                raise VerificationError(f"verification.json {message}", [message])
            names = {item.name for item in (*fields(Verification), *fields(NetworkResult))} - {"network"}
            names |= {"schema", "verifier", "verdict", "passed", "model_passed", "pixels_passed", "report"}
            if missing := sorted(names - values.keys() - {"report"}):
                raise ValueError(f"Object missing required field `{missing[0]}`")
            if unknown := sorted(values.keys() - names):
                raise ValueError(f"unknown field {shown(unknown[0])}")
            restored = {**values, **{name: _restored(values[name], *numbers) for name, numbers in NOT_FINITE.items()}}
            stored = msgspec.convert({**restored, "verification": {**restored, "network": restored}}, cls)
        except VerificationError:
            raise
        except ValueError as error:
            raise VerificationError(f"verification.json is damaged ({error})", [f"is damaged ({error})"]) from None
        found = stored.verification
        judged: tuple[Check | GradientCheck | PixelCheck, ...] = (*found.checks, *found.gradients, *found.pixels)
        rows = (*values["checks"], *values["gradients"], *values["pixels"])
        failed = sum(not (item.passed and row.get("passed") is True) for item, row in zip(judged, rows, strict=True))
        edited = [name for name, value in found.to_dict().items() if value != values[name] and name != "verifier"]
        return replace(stored, failed=failed, edited=tuple(edited))


def _restored(rows: Any, *numbers: str) -> Any:
    """Return rows of JSON with infinity for the numbers that are null."""
    if not isinstance(rows, list):
        return rows
    return [
        {**row, **{name: math.inf for name in numbers if row.get(name, 0) is None}} if isinstance(row, dict) else row
        for row in rows
    ]


@dataclass(frozen=True)
class TensorDifference:
    """The difference of one parameter between two checkpoints.

    `identical`: the same bytes under the same name; `equal`: the same numbers, stored in another way;
    `different`; `missing` in one of them.
    """

    parameter: str
    status: str
    largest: float | None = None
    """Largest absolute difference; None if there are no comparable numbers."""
    relative_l2: float | None = None
    """Relative to the first checkpoint; None likewise."""


@dataclass(frozen=True)
class TapDifference:
    """The difference of one tap between two networks, each with the epsilon of the weights, in float64."""

    input: str
    tap: str
    relative_l2: float | None
    """Relative to the first network; None if it is not finite."""

    @property
    def alike(self) -> bool:
        """True if the difference is no more than rounding in float64."""
        return self.relative_l2 is not None and self.relative_l2 <= FLOAT64_TOLERANCE


@dataclass(frozen=True)
class Difference:
    """The result of `bit compare`."""

    tensors: tuple[TensorDifference, ...]
    taps: tuple[TapDifference, ...]

    @property
    def equal(self) -> bool:
        """True if every parameter holds the same numbers and every compared tap is alike."""
        same = all(tensor.status in (IDENTICAL, EQUAL) for tensor in self.tensors)
        return same and all(tap.alike for tap in self.taps)

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `bit compare --json`."""
        return {"equal": self.equal, **to_builtins(self)}


def to_builtins(value: Any) -> dict[str, Any]:
    """Return a dataclass as JSON has it, without NaN and infinity."""
    return dict(msgspec.json.decode(msgspec.json.encode(value)))
