"""Hold the results in `verification.json` to the manifest, the network and tolerances that are derived again.

A file can state anything. These checks leave it only the errors: what was compared, and how large an error may be,
follow from the network, the recordings and the source.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import VERIFICATION_NAME, Manifest
from convert.files.base import shown
from convert.network.inputs import INPUTS, batches, input_sha256
from convert.network.taps import tap_names
from convert.progress import Progress
from convert.references.recordings import RECORDER, Recordings
from convert.references.registry import IMPLEMENTATIONS, REFERENCES, own_reference
from convert.verification.oracle_taps import OracleTaps
from convert.verification.pixels import inputs as pixel_inputs
from convert.verification.pixels import stated_processor
from convert.verification.results import (
    CONVERTED,
    END_TO_END,
    GRADIENT_TOLERANCES,
    ISOLATED,
    NO_SOURCE,
    PIXEL_TOLERANCE,
    SOURCE,
    TOLERANCES,
    Check,
    Verification,
)
from convert.verification.tap_errors import ORACLE_ON_SOURCE, Candidate, Expected, recorded_by

ORACLE = "oracle"
OWN_RECORDING = f"recorded outputs of {ORACLE} of {RECORDER}"
"""The reference of a conversion whose source was recorded first, as `bit convert` does. Without the recording, the
same tolerances are derived from the source."""
SAME = 1e-6
"""Relative difference of two tolerances that are equal but for the order in which sums were computed."""
NOISE = 2.0
"""Ratio of two tolerances that were measured with rounding errors, which differ from machine to machine."""

Run = tuple[str, str, str, str]
"""Implementation, side, dtype and mode."""


@dataclass(frozen=True)
class Inputs:
    """The things from which comparisons and tolerances follow."""

    manifest: Manifest
    converted: Checkpoint
    source: Checkpoint | None
    """The checkpoint that was converted, if it is available."""
    recordings: Recordings | None
    """The recordings of the original checkpoint, if there are any."""
    repeated: Verification | None = None
    """The result of a verification that was made just now."""


def contradictions(stored: Verification, given: Inputs, progress: Progress) -> list[str]:
    """Return what the stored results say otherwise than the manifest, the network and the derived tolerances.

    `stored` must have passed by the numbers that it states. Only tolerances that neither a constant nor a recording
    nor `given.repeated` gives are computed, by running the oracle on the source.
    """
    found = [*_statements(stored, given), *_runs(stored, given), *_effects(stored, given)]
    return [f"{VERIFICATION_NAME} {problem}" for problem in found or _tolerances(stored, given, progress)]


def needs_source(stored: Verification, given: Inputs) -> bool:
    """Return whether tolerances follow from the source alone: without a recording, or for rounded weights."""
    rounded, recorded = bool(given.manifest.origin.roundings), _compared_recordings(stored, given) is not None
    return rounded or (not recorded and any(check.dtype != "float64" for check in stored.checks))


def _compared_recordings(stored: Verification, given: Inputs) -> Recordings | None:
    """Return the recordings with which the report says that taps were compared; None if they are not these."""
    found = given.recordings
    return found if found is not None and stored.network.reference == recorded_by(found) else None


def _statements(stored: Verification, given: Inputs) -> Iterator[str]:
    """Yield the statements about the conversion that differ from the manifest."""
    manifest, count = given.manifest, len(given.manifest.tensors)
    for name in ("name", "layout", "architecture", "classes"):
        if getattr(stored, name) != getattr(manifest, name):
            yield f"states another {name} than conversion.json"
    if stored.roundings != manifest.origin.roundings:
        yield "states other roundings than conversion.json"
    exact, changed = _tensor_counts(given)
    compared = stored.tensors_exact + stored.tensors_changed
    if compared != (0 if without_source(stored) else count):
        yield f"has compared {compared} of {count} tensors with the source"
    elif compared and not (exact <= stored.tensors_exact <= count - changed):
        yield f"states that {stored.tensors_exact} tensors were only moved, which conversion.json contradicts"
    if any(check.tolerance != PIXEL_TOLERANCE for check in stored.pixels):
        yield f"allows other differences of pixels than {PIXEL_TOLERANCE:g}"
    if any(check.tolerance != GRADIENT_TOLERANCES.get(check.mode) for check in stored.gradients):
        yield "allows other differences of gradients than this version"
    if [check.input for check in stored.pixels] != ([*pixel_inputs()] if _compares_pixels(given.converted) else []):
        yield "does not compare the pixels of the stated preprocessing"


def _compares_pixels(converted: Checkpoint) -> bool:
    """Return whether the layout states preprocessing, which is compared for images with three channels."""
    return converted.config.num_channels == 3 and stated_processor(converted.companions()) is not None


def without_source(stored: Verification) -> bool:
    """Return whether a verification states that it had no source, and so compared no bytes."""
    return not stored.tensors_exact and not stored.tensors_changed and NO_SOURCE in stored.warnings


def _tensor_counts(given: Inputs) -> tuple[int, int]:
    """Return the least numbers of tensors that were only moved, and that were changed."""
    manifest, folded = given.manifest, given.converted.layout.folded
    computed = [bool({"scale", "standardized_with_epsilon"} & row.keys()) for row in manifest.tensors]
    new = [row["source"] is None for row in manifest.tensors]
    changed = sum(a or b for a, b in zip(computed, new, strict=True))
    exact = 0 if folded or manifest.options.dtype is not None else len(manifest.tensors) - changed
    return exact, changed


def _runs(stored: Verification, given: Inputs) -> Iterator[str]:
    """Yield what is missing in the runs, or is there although no verification makes it."""
    config, images = given.converted.config, _images(stored, given)
    runs: dict[Run, list[tuple[str, str]]] = {}
    for check in stored.checks:
        runs.setdefault((check.implementation, check.side, check.dtype, check.mode), []).append(
            (check.input, check.tap)
        )
    for run in dict.fromkeys(_needed(stored, given)):
        if run not in runs:
            yield f"has no run of {' '.join(run)}"
    for run, found in runs.items():
        words, (implementation, side, dtype, mode) = " ".join(run), run
        if (dtype, side, mode) not in _possible(implementation):
            yield f"has a run that this version does not make: {words}"
        elif mode == ISOLATED and (*run[:3], END_TO_END) not in runs:
            yield f"has no end-to-end run beside {words}"
        elif sorted(found) not in [sorted(taps) for taps in _expected_taps(side, config, images, given)]:
            yield f"does not compare every tap of every input once in {words}"
    reference = stored.network.reference
    recorded = _compared_recordings(stored, given)
    gone = given.recordings is None and reference == OWN_RECORDING  # of a cache that was emptied; see `_tolerances`
    if recorded is None and not gone and (reference != ORACLE_ON_SOURCE or without_source(stored)):
        missing = shown(reference) or "nothing"
        yield f"compares with {missing}, which is not available here (--recordings names the folder)"
    expected_files = recorded.files if recorded is not None else {}
    if not gone and stored.network.recordings != expected_files:
        yield "was compared with other recordings than those that are here"
    for check in stored.checks:
        if check.reference != (ORACLE_ON_SOURCE if check.mode == ISOLATED else reference):
            yield f"compares {check.run} with different references"
            break
    expected = {name: input_sha256(batch) for name, batch in batches(images, config.num_channels).items()}
    if stored.network.inputs != expected:
        yield "was computed on other images"
    if stored.network.crashed or stored.network.findings:
        yield "reports a reference that failed, or a diagnosis"


def _images(stored: Verification, given: Inputs) -> Mapping[str, tuple[int, int, int, int]]:
    """Return the inputs of the runs."""
    recorded = _compared_recordings(stored, given)
    return recorded.float64.inputs if recorded is not None else INPUTS


def _needed(stored: Verification, given: Inputs) -> Iterator[Run]:
    """Yield the runs that every verification with these references makes."""
    yield ORACLE, CONVERTED, "float64", END_TO_END
    reference = own_reference(given.converted.layout)
    own = {IMPLEMENTATIONS[reference]} if reference else set[str]()
    for implementation in own:
        yield implementation, CONVERTED, "float32", END_TO_END
    if without_source(stored):
        return
    asked = {check.implementation for check in stored.checks} - {ORACLE, *own}
    if asked or set(stored.network.not_run) - {reference}:
        yield ORACLE, CONVERTED, "float64", ISOLATED
    for check in stored.checks:
        if check.implementation in asked and check.dtype == "float64":
            yield check.implementation, check.side, check.dtype, END_TO_END
            yield check.implementation, check.side, check.dtype, ISOLATED


def _possible(implementation: str) -> set[tuple[str, str, str]]:
    """Return the dtypes, sides and modes in which an implementation is run."""
    both = (END_TO_END, ISOLATED)
    if implementation == ORACLE:
        return {("float64", CONVERTED, mode) for mode in both} | {("float64", SOURCE, END_TO_END)}
    return {
        (dtype, side, mode)
        for name, reference in REFERENCES.items()
        if IMPLEMENTATIONS[name] == implementation
        for dtype in reference.dtypes
        for side in reference.sides
        for mode in (both if dtype == "float64" else both[:1])
    }


def _expected_taps(
    side: str, config: BitConfig, images: Mapping[str, object], given: Inputs
) -> Iterator[list[tuple[str, str]]]:
    """Yield the inputs and taps that a run on one side may have; the source's head is another if it was changed."""
    taps = tap_names(config)
    yield [(name, tap) for tap in taps for name in images]
    if side == SOURCE and given.manifest.options.head != "keep":
        body = [tap for tap in taps if tap != "logits"]
        for other in (body, [*body, "logits"]):
            yield [(name, tap) for tap in other for name in images]


def _effects(stored: Verification, given: Inputs) -> Iterator[str]:
    """Yield what is wrong with the agreement of classes and the effect of the library's epsilon."""
    converted, kept = given.converted, given.manifest.origin.head == "keep" and given.manifest.classes > 0
    counts = {name: numbers[1] for name, numbers in _images(stored, given).items()}
    runs = {(check.implementation, check.side, check.dtype) for check in stored.checks if check.mode == END_TO_END}
    found = [(item.implementation, item.side, item.dtype, item.input) for item in stored.network.agreements]
    needed = {(*run, name) for run in runs if kept for name in counts}
    possible = {(*run, name) for run in runs if kept or run[1] == SOURCE for name in counts}
    images = all(
        item.images == counts.get(item.input) and item.top1 <= item.images and item.top5 <= item.images
        for item in stored.network.agreements
    )
    if len(set(found)) != len(found) or not needed <= set(found) <= possible or not images:
        yield "does not compare the classes of every image once in each run"
    effect, config = stored.network.epsilon, converted.config
    differs = converted.layout.ws_eps != config.ws_eps and not converted.layout.folded
    stated = None if effect is None else (effect.library, effect.epsilon, effect.original)
    if stated != ((converted.layout.name, converted.layout.ws_eps, config.ws_eps) if differs else None):
        yield "states another epsilon than the layout and conversion.json"
    elif effect is not None and (effect.input not in counts or effect.tap not in tap_names(config)):
        yield "states an effect of the epsilon elsewhere than at a tap"
    repeated = given.repeated.network if given.repeated is not None else None
    if repeated is not None and (repeated.epsilon is None) == (effect is None):
        again, before = (item and item.relative_l2 for item in (repeated.epsilon, effect))
        if (again is None) != (before is None) or not math.isclose(again or 0, before or 0, rel_tol=SAME):
            yield "states another effect of the epsilon than was measured again"


def _tolerances(stored: Verification, given: Inputs, progress: Progress) -> Iterator[str]:
    """Yield, for each run, the first tolerance that is not the derived one."""
    recorded = given.recordings if stored.network.reference != ORACLE_ON_SOURCE else None
    known = {_key(check): check.tolerance for check in given.repeated.checks} if given.repeated is not None else {}
    if given.repeated is not None and given.repeated.network.reference != stored.network.reference:
        known = {}
    images = batches(_images(stored, given), given.converted.config.num_channels)
    rounded = bool(given.manifest.origin.roundings)
    faulty: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="bit-taps-") as folder:
        oracle = None if given.source is None else OracleTaps(given.source, images, Path(folder), progress)
        sides = {CONVERTED: Expected(Candidate(CONVERTED, given.converted), recorded, oracle, images, progress)}
        sides[SOURCE] = replace(sides[CONVERTED], candidate=Candidate(SOURCE, given.source or given.converted))
        for check in stored.checks:
            measured = rounded or (check.dtype != "float64" and recorded is None)
            if check.run in faulty:
                continue
            if (tolerance := known.get(_key(check))) is None:
                if check.dtype == "float64" and not rounded:
                    tolerance = TOLERANCES[check.mode]
                elif oracle is None and (recorded is None or (rounded and check.mode == ISOLATED)):
                    faulty.add(check.run)
                    yield f"has tolerances of {check.run} that follow from the source; name it with --source"
                    continue
                else:
                    key = (check.input, check.tap)
                    tolerance = sides[check.side].tolerance(check.dtype, check.mode, key)
            if not _agree(check.tolerance, tolerance, measured):
                faulty.add(check.run)
                yield (
                    f"allows {check.run} an error of {check.tolerance:.1e} at {check.tap} ({check.input} input), "
                    f"where {tolerance:.1e} is derived"
                )


def _key(check: Check) -> tuple[str, str, str, str, str, str]:
    return check.implementation, check.side, check.dtype, check.mode, check.input, check.tap


def _agree(stated: float, derived: float, measured: bool) -> bool:
    """Return whether a stated tolerance is the derived one; one that was `measured` differs between machines."""
    if not measured:
        return math.isclose(stated, derived, rel_tol=SAME)
    return stated <= NOISE * derived and derived <= NOISE * stated
