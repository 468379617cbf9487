"""Verify weights that another program converted: there is no manifest, so the plan is inferred from the source."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bit.config import CONFIG_NAME, BitConfig
from bit.files import one_line, read_json
from bit.image_processing import PREPROCESSOR_NAME, PROFILES, BitImageProcessorPil
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.epsilon import Training
from convert.checkpoints.manifest import InferredManifest
from convert.conversion.inferred import inferred_manifest, inferred_plan
from convert.conversion.plan import Plan
from convert.errors import CheckpointError, ConvertError, UsageError, VerificationError
from convert.files.base import File, file_sha256, shown
from convert.files.containers import find_weights, kind, open_weights
from convert.network.parameters import parameters
from convert.progress import Progress
from convert.published import labels
from convert.published.catalogue import published
from convert.published.preprocessing import preprocessor
from convert.references.recordings import find_recordings
from convert.verification.pixels import INVALID_SETTINGS, compare_stated, stated_processor
from convert.verification.results import PixelCheck, Verification
from convert.verification.verify import Settings, begun, compare_weights, describe, remarks

Stated = Mapping[str, Mapping[str, Any]]
"""The content of the JSON files beside weights, by name."""


def verify_foreign(
    path: Path, source: Checkpoint, settings: Settings, progress: Progress
) -> tuple[Verification, InferredManifest]:
    """Verify the weights at `path`, which another program converted from `source`, and write nothing.

    A change of dtype, and kernels scaled for the epsilon of the library, are accepted and stated. A head that is
    missing or replaced is a difference; the rest of the network is compared nevertheless. Returns the result and
    the manifest that a conversion by `bit convert` would have. Raises `CheckpointError` for files without weights
    of BiT, `VerificationError` for damaged ones, and `UsageError` if both are the same file.
    """
    with _opened(path, source) as converted:
        if os.path.samefile(converted.file.path, source.file.path):
            raise UsageError(f"{path} and the source are the same file; name what it was converted from with --source")
        source_files = source.file.digests()
        plan = inferred_plan(source, converted)
        files, damaged = _files(converted)
        converted.manifest = manifest = inferred_manifest(plan, converted, files, source_files)
        converted.name = source.name
        if not converted.states_ws_eps:
            converted.config = converted.config.replace(ws_eps=plan.config.ws_eps)
        recordings = find_recordings(manifest.origin.sha256, settings.recordings, manifest.origin.ws_eps)
        problems = [*damaged, *converted.faults, *_differences(converted.config, source.config, plan.config)]
        label_problems, label_warnings = _compare_labels(converted, source)
        pixels, pixel_warnings = _compare_preprocessing(converted, source)
        warnings = (*converted.notes, *_others(path, files), *label_warnings, *pixel_warnings)
        hashes = {name: file.sha256 for name, file in files.items()}
        warnings = (*warnings, *_accepted(plan), *remarks(manifest, recordings))
        result = begun(manifest, hashes, [*problems, *label_problems], warnings)
        found = converted.config
        result = replace(result, architecture=found.architecture, classes=found.num_labels, pixels=pixels)
        if manifest.options.head == "drop":
            converted.config = found.replace(num_labels=0, id2label=None, problem_type=None)
        steps = tuple(step for step in plan.steps if step.place in converted.keys)
        plan = replace(plan, steps=steps)
        try:
            return compare_weights(converted, plan, recordings, settings, result, progress), manifest
        except ConvertError as error:
            return replace(result, problems=(*result.problems, str(error))), manifest


def _opened(path: Path, source: Checkpoint) -> Checkpoint:
    """Open weights that need not be complete. Raises `VerificationError` if the file is damaged."""
    file = find_weights(path)
    if kind(file) not in (None, "pickle"):
        try:
            open_weights(path, incomplete=True).close()
        except CheckpointError as error:
            raise VerificationError(f"the verification of {path} failed: {error}", [str(error)]) from None
    return Checkpoint(path, expected=source.config, training=Training(believed=True))


def _files(converted: Checkpoint) -> tuple[dict[str, File], list[str]]:
    """Return size and hash of the files that are compared, and damage that the checksums in them show."""
    file, problems = converted.file, list[str]()
    try:
        files = file.digests()
    except CheckpointError as error:
        problems, files = [str(error)], {file.path.name: File(file.nbytes, file_sha256(file.path))}
    for name in (CONFIG_NAME, PREPROCESSOR_NAME):
        beside = file.path.with_name(name)
        if beside.is_file():
            files[name] = File(beside.stat().st_size, file_sha256(beside))
    return files, problems


def _differences(found: BitConfig, source: BitConfig, expected: BitConfig) -> Iterator[str]:
    """Yield how a network differs from that of the source: sizes, head, epsilon."""
    bodies = [parameters(config.replace(num_labels=0)) for config in (found, source)]
    if bodies[0] != bodies[1]:
        yield f"the network is {describe(found)}; the source is {describe(source)}"
        return
    if found.num_labels != source.num_labels:
        one, other = (f"a head of {n} classes" if n else "no head" for n in (found.num_labels, source.num_labels))
        yield f"the network has {one}; the source has {other}"
    if found.ws_eps != expected.ws_eps:
        yield f"{CONFIG_NAME} states epsilon {found.ws_eps:g} of weight standardization, expected {expected.ws_eps:g}"


def _accepted(plan: Plan) -> Iterator[str]:
    """Yield the changes of the weights that are accepted."""
    if plan.options.ws_eps == "compensate":
        yield f"kernels are scaled for the epsilon {plan.config.ws_eps:g} of {plan.layout.name}: for inference only"
    dtypes = (step.target.dtype for step in plan.steps if step.source and step.source.dtype != step.target.dtype)
    for dtype, count in Counter(dtypes).items():
        yield f"{count} of {len(plan.steps)} tensors are stored in {dtype.name}, unlike in the source"


def _compare_labels(converted: Checkpoint, source: Checkpoint) -> tuple[list[str], list[str]]:
    """Compare the class names that are stated with those of the source; return problems and warnings."""
    found, right = converted.config.id2label, source.config.id2label
    if converted.config.num_labels != source.config.num_labels or found == right:
        return [], []
    if found is None:
        return [], [f"class names were not compared: {converted.file.path.parent} states none"]
    if right is None:
        return [], ["class names were not compared: the source states none"]
    accepted = _spellings(right)
    wrong = [index for index, label in found.items() if label not in accepted[index]]
    if not wrong:
        return [], []
    moved = sorted(found.values()) == sorted(right.values())
    first = f"class {wrong[0]} is {shown(found[wrong[0]])!r}, expected {shown(right[wrong[0]])!r}"
    how = "are in another order" if moved else "are not those of the source"
    return [f"{len(wrong)} of {len(right)} class names {how}: {first}"], []


def _spellings(right: Mapping[int, str]) -> list[set[str]]:
    """Return the names by which each class is known: for published classes the synset and the words, too."""
    for label_set in labels.LABEL_SETS:
        synsets = labels.synsets(label_set)
        if len(synsets) == len(right) and labels.id2label(label_set) == right:
            return [{*names, right[index]} for index, names in enumerate(synsets)]
    return [{right[index]} for index in range(len(right))]


def _compare_preprocessing(converted: Checkpoint, source: Checkpoint) -> tuple[tuple[PixelCheck, ...], list[str]]:
    """Compare the stated preprocessing with that of the source and with the usual ones; return checks and warnings."""
    beside = _beside(converted)
    if converted.config.num_channels != 3 or not beside:
        return (), []
    try:
        stated = stated_processor(beside)
        if stated is None:
            return (), ["preprocessing was not compared: none is stated"]
        checks, remark = compare_stated(stated, _usual_processors(source))
    except INVALID_SETTINGS as error:
        return (PixelCheck("settings", float("inf"), f"invalid settings ({one_line(error)})"),), []
    return checks, [remark] if remark is not None else []


def _usual_processors(source: Checkpoint) -> list[BitImageProcessorPil]:
    """Return the preprocessing that the source states, if it does and can, and the usual ones of BiT."""
    named = {item.evaluation: ("timm", item.name) for item in published().values()}
    profiles = dict.fromkeys([*((profile, source.name) for profile in PROFILES), *named.values()])
    usual = [BitImageProcessorPil.from_dict(preprocessor(*profile)) for profile in profiles]
    with contextlib.suppress(*INVALID_SETTINGS):
        if (of_source := stated_processor(_beside(source))) is not None:
            usual.insert(0, of_source)
    return usual


def _beside(checkpoint: Checkpoint) -> Stated:
    """Return the JSON files beside weights that can be read."""
    found = {}
    for name in (CONFIG_NAME, PREPROCESSOR_NAME):
        path = checkpoint.file.path.with_name(name)
        if path.is_file():
            try:
                found[name] = read_json(path)
            except (OSError, ValueError):
                continue
    return found


def _others(path: Path, files: Mapping[str, File]) -> Iterator[str]:
    """Yield a warning for each further file of weights in a folder."""
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file.name not in files and file.is_file() and kind(file) is not None:
            yield f"{file.name} holds weights too and was not compared; name the file to verify it"
