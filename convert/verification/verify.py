"""Verify a converted folder: the files, the bytes, the companion files and the network."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bit.config import BitConfig
from bit.files import one_line, read_json
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import (
    CARD_NAME,
    MANIFEST_NAME,
    REPORT_NAMES,
    SIGNING_NAMES,
    Manifest,
)
from convert.conversion.folded import is_written_here
from convert.conversion.plan import Plan
from convert.conversion.plan import plan as make_plan
from convert.conversion.write import origin_of
from convert.errors import CheckpointError, ConvertError
from convert.files.base import combined_sha256, file_sha256
from convert.files.containers import kind
from convert.network.parameters import parameters
from convert.progress import Progress
from convert.references.recordings import SHIPPED, Recordings, find_recordings
from convert.references.registry import FOREIGN_GRAPH, own_reference
from convert.verification.bytes import StoredValues, compare_bytes, compare_fingerprints, explained
from convert.verification.gradients import verify_gradients
from convert.verification.mistakes import in_words
from convert.verification.network import compare_network
from convert.verification.pixels import INVALID_SETTINGS, compare_pixels, stated_processor, without_preprocessing
from convert.verification.results import (
    CONVERTED,
    NO_SOURCE,
    SOURCE,
    GradientCheck,
    NetworkResult,
    PixelCheck,
    Verification,
)
from convert.verification.tap_errors import Candidate

MOST_EXPLAINED = 3
"""Largest number of tensors whose difference from the source is described."""


@dataclass(frozen=True)
class Settings:
    """The references that a conversion is compared with."""

    references: tuple[str, ...] = ()
    """Reference implementations to run, of `registry.REFERENCES`; with any of them, parts are compared in
    isolation too."""
    required: tuple[str, ...] = ()
    """Those without which the verification is incomplete."""
    recordings: tuple[Path, ...] = (SHIPPED,)
    """Folders of recordings."""
    replay: bool = False
    """Convert again, and compare the bytes of every file; see `convert.verification.bytes.replayed`."""
    gradients: bool = False
    """Compare gradients; see `convert.verification.gradients`."""


def verify(
    folder: Path,
    manifest: Manifest,
    source: Checkpoint | None,
    settings: Settings,
    progress: Progress,
    plan: Plan | None = None,
) -> Verification:
    """Verify the conversion in `folder`, described by `manifest`, and write nothing.

    `source` is the checkpoint that was converted, if it is available, and `plan` the plan of a
    conversion that was carried out just now. Raises `CheckpointError` if the source is another
    checkpoint, or if there is neither a source nor a recording.
    """
    ws_eps = source.config.ws_eps if source is not None and source.manifest is None else None
    recordings = find_recordings(manifest.origin.sha256, settings.recordings, ws_eps)
    if source is not None and plan is None and combined_sha256(source.file.digests()) != manifest.source.sha256:
        raise CheckpointError(
            f"{source.path} is not what {folder} was converted from: the SHA-256 differs from {MANIFEST_NAME}; "
            "name the right checkpoint with --source"
        )
    if source is None and recordings is None:
        raise CheckpointError(
            f"{folder} cannot be verified: there is no recording for {manifest.name}, and the source "
            f"{manifest.source.path} (relative to {folder}) is missing; name it with --source"
        )
    files, problems, warnings = compare_folder_files(folder, manifest)
    if source is None:
        warnings.append(NO_SOURCE)
    result = begun(manifest, files, problems, [*warnings, *remarks(manifest, recordings)])
    try:
        with Checkpoint(folder, manifest.name, manifest) as converted:
            if source is not None and plan is None:
                plan = make_plan(source, converted.layout, manifest.options)
            result = _compare_beside(converted, plan, result)
            return compare_weights(converted, plan, recordings, settings, result, progress)
    except ConvertError as error:
        return replace(result, problems=(*result.problems, str(error)))


def compare_folder_files(folder: Path, manifest: Manifest) -> tuple[dict[str, str], list[str], list[str]]:
    """Hash the files of a conversion, without reports, signature and card; return SHA-256s, problems and warnings."""
    later = {*REPORT_NAMES, *SIGNING_NAMES, CARD_NAME}
    paths = (path for path in sorted(folder.iterdir()) if path.name not in later and path.is_file())
    files = {path.name: file_sha256(path) for path in paths}
    return files, *compare_files(folder, manifest, files)


def begun(
    manifest: Manifest, files: Mapping[str, str], problems: Iterable[str], warnings: Iterable[str]
) -> Verification:
    """Return a verification in which nothing but files was compared."""
    return Verification(
        manifest.name,
        manifest.layout,
        manifest.architecture,
        manifest.classes,
        files=files,
        roundings=manifest.origin.roundings,
        problems=tuple(problems),
        warnings=tuple(warnings),
        environment={
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        },
    )


def remarks(manifest: Manifest, recordings: Recordings | None) -> Iterator[str]:
    """Yield what a comparison without recordings of the original code does not show."""
    if recordings is None or recordings.own:
        yield (
            f"there is no recording of the original code for {manifest.name}: the conversion is compared with "
            "the oracle on the source"
        )


def _compare_beside(converted: Checkpoint, plan: Plan | None, result: Verification) -> Verification:
    """Compare the files beside the weights with what the manifest and the plan demand; add it to a result."""
    manifest = converted.manifest
    assert manifest is not None, "it was opened with one"
    companions = converted.companions()
    pixels, problems = _compare_companions(companions, converted)
    problems += compare_manifest(manifest, companions, converted)
    warnings = [caveat] if (caveat := converted.layout.export.caveat(converted.config)) else []
    if plan is not None:
        problems += _compare_plan(plan, manifest, converted.config)
        if converted.config.id2label != plan.config.id2label and not converted.layout.export.labelled:
            warnings.append(f"class names are not kept: {converted.layout.name} does not store them")
    return replace(
        result, problems=(*result.problems, *problems), warnings=(*result.warnings, *warnings), pixels=pixels
    )


def compare_weights(
    converted: Checkpoint,
    plan: Plan | None,
    recordings: Recordings | None,
    settings: Settings,
    result: Verification,
    progress: Progress,
) -> Verification:
    """Complete a result with the comparisons of an opened conversion; `plan` is None without the source.

    Tensors that are not among the steps of the plan are not compared, and a network that is not complete is not run.
    """
    incomplete: list[str] = []
    same_network = plan is None or parameters(plan.config) == parameters(converted.config)
    tensors = list(compare_bytes(plan, converted, progress)) if plan is not None and same_network else []
    same_network = same_network and converted.complete
    wrong = {step.place.name: problem for step, problem in tensors if problem is not None}
    differing = StoredValues(converted, wrong)
    network = NetworkResult()
    if same_network:
        candidate = Candidate(CONVERTED, converted, differing)
        source = None if plan is None else Candidate(SOURCE, plan.checkpoint)
        try:
            network = compare_network(candidate, source, recordings, settings.references, progress)
        except MemoryError as error:
            incomplete.append(f"the network was not run to the end: {one_line(error)}; close other programs")
    gradients = tuple[GradientCheck, ...]()
    if settings.gradients and same_network:
        try:
            gradients = verify_gradients(converted, progress)
        except (CheckpointError, MemoryError) as error:
            incomplete.append(f"gradients were not compared: {one_line(error)}")
    own = own_reference(converted.layout)
    required = {*settings.required, *network.crashed, *([own] if own else [])}
    inferred = plan is not None and converted.manifest is not None and not converted.manifest.own
    problems = list(explained(plan, differing, wrong)) if plan is not None and inferred else list(wrong.values())
    if plan is None and recordings is not None and same_network:
        problems += compare_fingerprints(recordings, converted)
    if plan is not None and not inferred and not any(finding.explanation for finding in network.findings):
        # The difference is too small to show in the outputs, or leaves nothing finite in them.
        problems += in_words(plan.checkpoint.oracle(), islice(differing, MOST_EXPLAINED), differing)
    for name, why in network.not_run.items():
        if name in required:
            words = f"{name} {'failed' if name in network.crashed else 'did not run'}: {why}"
            (problems if why == FOREIGN_GRAPH else incomplete).append(words)
    return replace(
        result,
        tensors_exact=sum(step.exact for step, problem in tensors if problem is None),
        tensors_changed=sum(not step.exact for step, problem in tensors if problem is None),
        problems=(*result.problems, *problems),
        incomplete=tuple(incomplete),
        network=network,
        gradients=gradients,
    )


def compare_files(folder: Path, manifest: Manifest, hashes: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Compare the files with the manifest; return problems and warnings."""
    problems, warnings = [], []
    for name, file in manifest.files.items():
        if name not in hashes:
            problems.append(f"{name} is missing")
        elif hashes[name] != file.sha256:
            problems.append(f"{name} has changed since it was written: the SHA-256 differs from {MANIFEST_NAME}")
    for name in sorted(set(hashes) - set(manifest.files) - {MANIFEST_NAME}):
        text = f"{name} was not written by the conversion"
        if kind(folder / name) is None:
            warnings.append(text)
        else:  # a library might load it instead of the verified weights
            problems.append(f"{text} and holds weights: remove it")
    return problems, warnings


def compare_manifest(manifest: Manifest, companions: Collection[str], converted: Checkpoint) -> Iterator[str]:
    """Yield the statements of the manifest that the weights contradict."""
    layout, config = converted.layout, converted.config
    stated = {(row["parameter"], row["target"], tuple(row["shape"]), row["dtype"]) for row in manifest.tensors}
    found = {
        (item.name, layout.key(item.place), layout.shape(item), converted.tensor(item.place).dtype.name)
        for item in parameters(config)
    }
    statements = {
        "layout": (manifest.layout, layout.name),
        "architecture": (manifest.architecture, config.architecture),
        "classes": (manifest.classes, config.num_labels),
        "tensors": (stated, found),
    }
    for name, (expected, actual) in statements.items():
        if expected != actual:
            yield f"{MANIFEST_NAME}: {name} does not match the weights"
    if layout.folded and not is_written_here(converted):
        yield f"{converted.file.path.name}: graph or properties do not match the network"
    for name in (converted.file.path.name, *companions):
        if name not in manifest.files:
            yield f"{name} is not listed in {MANIFEST_NAME}"


def _compare_companions(
    expected: Mapping[str, Mapping[str, Any]], converted: Checkpoint
) -> tuple[tuple[PixelCheck, ...], list[str]]:
    """Compare the JSON files beside the weights with the expected ones; return pixel checks and problems.

    If the pixels differ, preprocessing is reported by them alone.
    """
    stated = {name: _read_json(converted.file.path.with_name(name)) for name in expected}
    pixels = tuple(_compare_preprocessing(stated, expected)) if converted.config.num_channels == 3 else ()
    if not all(check.passed for check in pixels):
        stated = {name: without_preprocessing(name, content) for name, content in stated.items()}
        expected = {name: without_preprocessing(name, content) for name, content in expected.items()}
    return pixels, [f"{name} does not match the weights" for name in expected if stated[name] != expected[name]]


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, empty if it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(path)
    return {}


def _compare_preprocessing(
    stated: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]
) -> Iterator[PixelCheck]:
    right = stated_processor(expected)
    if right is None or not all(stated.values()):
        return
    try:
        found = stated_processor(stated)
        if found is not None:
            yield from compare_pixels(found, right)
    except INVALID_SETTINGS as error:
        yield PixelCheck("settings", math.inf, f"invalid settings ({one_line(error)})")


def _compare_plan(plan: Plan, manifest: Manifest, config: BitConfig) -> Iterator[str]:
    """Yield where the manifest and the converted network differ from what the plan makes of the source."""
    if parameters(plan.config) != parameters(config) or plan.config.ws_eps != config.ws_eps:
        yield f"converted network is {describe(config)}, expected {describe(plan.config)}"
    expected, stated = origin_of(plan, manifest.source.files), manifest.origin
    if replace(expected, address=None) != replace(stated, address=None):  # the source may be a copy by now
        yield f"{MANIFEST_NAME}: origin does not match the source"
    if [step.row for step in plan.steps] != manifest.tensors:
        yield f"{MANIFEST_NAME}: tensor rows do not match the conversion plan"
    if plan.config.id2label != config.id2label and plan.layout.export.labelled:
        yield "class names do not match the source"
    if plan.config.problem_type != config.problem_type and plan.layout.export.labelled:
        yield "problem type does not match the source"


def describe(config: BitConfig) -> str:
    classes = f"{config.num_labels} classes" if config.num_labels else "no head"
    return f"{config.architecture} with {classes} and epsilon {config.ws_eps:g}"
