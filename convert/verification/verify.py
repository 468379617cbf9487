"""The verdict on a converted folder: its files, its bytes and its function."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import convert
from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import MANIFEST_NAME, REPORT_NAMES, Manifest
from convert.conversion.plan import plan
from convert.conversion.write import origin_of
from convert.errors import CheckpointError
from convert.files.base import File, combined_sha256, file_sha256
from convert.files.detect import kind
from convert.network.parameters import parameters
from convert.progress import Progress
from convert.references import recordings
from convert.references.registry import CONVERTED
from convert.verification.bytes import compare_bytes
from convert.verification.candidate import Candidate
from convert.verification.network import NetworkResult, compare_network
from convert.verification.pixels import PixelCheck, compare_pixels, stated_processor, without_preprocessing
from convert.verification.results import Check


@dataclass
class Verification:
    """What was compared, with what result. It passes when every comparison did, and at least one was made."""

    name: str
    layout: str
    architecture: str
    classes: int
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name of every file that was verified."""
    tensors_proven: int = 0
    """Tensors whose inverse transform gives the source's bytes."""
    tensors_changed: int = 0
    """Tensors that are bit for bit what the source's give when they are changed as asked."""
    roundings: tuple[str, ...] = ()
    """The dtypes to which the weights were rounded since their origin, as the record says."""
    problems: list[str] = field(default_factory=list)
    """Files and tensors that are not what they should be."""
    trials: NetworkResult = field(default_factory=NetworkResult)
    """What running the network showed."""
    pixels: list[PixelCheck] = field(default_factory=list)
    """What the preprocessing that is stated beside the weights makes of images."""
    warnings: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def checks(self) -> list[Check]:
        return self.trials.checks

    @property
    def model_passed(self) -> bool:
        """Whether the files are as they should be, and the network computes what it should."""
        return not self.problems and bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def pixels_passed(self) -> bool:
        return all(check.passed for check in self.pixels)

    @property
    def passed(self) -> bool:
        return self.model_passed and self.pixels_passed

    def to_dict(self) -> dict[str, Any]:
        """The content of `verification.json`; a number that is not finite is null."""
        values = asdict(self)
        trials = values.pop("trials")
        for check, row in zip(self.checks, trials["checks"], strict=True):
            row["passed"] = check.passed
        for pixel, row in zip(self.pixels, values["pixels"], strict=True):
            row["passed"] = pixel.passed
        said = {"passed": self.passed, "model_passed": self.model_passed, "pixels_passed": self.pixels_passed}
        verifier = {"verifier": f"bit-convert {convert.__version__}"}
        return dict(_finite({**said, **verifier, **values, **trials}))


def _finite(value: Any) -> Any:
    """As strict JSON has it, which knows no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verify(
    folder: Path,
    source: Checkpoint | None,
    progress: Progress,
    references: Sequence[str] = (),
    source_sha256: str | None = None,
    records: Sequence[Path] = (recordings.SHIPPED,),
    image: Path | None = None,
    required: Sequence[str] = (),
) -> Verification:
    """Verify the conversion in `folder`.

    `source` is what it was converted from, where that is at hand; `source_sha256` its hash, if it
    was just computed. `references`, of `catalogue.REFERENCES`, are run beside the definition, and
    then every part of the network is judged on its own as well; the `required` must run. `records` are
    folders of recorded outputs, `image` that of `published_outputs`. Raises `CheckpointError` for a
    folder that cannot be judged.
    """
    record = Manifest.read(folder)
    if record is None:
        raise CheckpointError(f"{folder} holds no {MANIFEST_NAME}; only folders that bit convert wrote are verified")
    original = source is not None and source.record is None
    known = recordings.find(record.origin.sha256, records, source.config.ws_eps if source and original else None)
    if source is not None and (source_sha256 or combined_sha256(source.file.digests())) != record.source.sha256:
        raise CheckpointError(f"{source.path} is not what {folder} was converted from: its SHA-256 is another")
    if source is None and known is None:
        raise CheckpointError(
            f"no outputs are recorded for {record.name}, and what it was converted from, {record.source.path} "
            f"as seen from {folder}, is not at hand; name that with --source"
        )
    result = Verification(record.name, record.layout, record.architecture, record.classes)
    result.environment, result.roundings = _environment(), record.origin.roundings
    _compare_files(folder, record.files, result)
    if source is None:
        result.warnings.append("the bytes were not compared: what it was converted from is not at hand")
    try:
        with Checkpoint(folder, record.name) as written:
            _compare_record(record, written, result)
            differing = _compare_weights(record, source, written, result, progress)
            if differing is not None:
                subject = Candidate(CONVERTED, written, record.origin)
                truth = None if source is None else Candidate.source(source)
                result.trials = compare_network(subject, truth, known, references, progress, differing, image=image)
            if caveat := written.layout.caveat(written.config):
                result.warnings.append(caveat)
    except CheckpointError as error:
        result.problems.append(str(error))
    result.problems += [
        f"{name} was asked for, and not run: {reason}"
        for name, reason in result.trials.not_run.items()
        if name in required
    ]
    if known is None or known.own:
        result.warnings.append(
            f"no recorded output of the original code is available for {result.name}: it is held to what the "
            "definition of the network computes on the source"
        )
    return result


def _compare_record(record: Manifest, written: Checkpoint, result: Verification) -> None:
    """What the record claims, and what lies beside the weights, must be what these weights imply."""
    layout, config = written.layout, written.config
    claims = {
        "layout": (record.layout, layout.name),
        "architecture": (record.architecture, config.architecture),
        "classes": (record.classes, config.num_labels),
        "tensors": (
            {tuple(str(row.get(field)) for field in ("parameter", "target", "shape")) for row in record.tensors},
            {(item.name, layout.key(item.place), str(list(layout.shape(item)))) for item in parameters(config)},
        ),
    }
    result.problems += [
        f"{MANIFEST_NAME} has other {claim} than the weights" for claim, (said, is_) in claims.items() if said != is_
    ]
    profile = record.changes.profile_of(layout)
    if layout.folded and not _has_its_graph(written, record.name, profile):
        result.problems.append(f"{written.file.path.name} has another graph or other properties than this network")
    expected = layout.companions(config, written.dtype, record.name, profile)
    for name in (written.file.path.name, *expected):
        if name not in record.files:
            result.problems.append(f"{name} is not among the files that {MANIFEST_NAME} lists")
    stated = {name: _json(written.file.path.with_name(name)) for name in expected}
    result.pixels = list(_compare_preprocessing(stated, expected)) if config.num_channels == 3 else []
    for name, content in expected.items():
        said, meant = stated[name], content
        if not result.pixels_passed:
            said, meant = without_preprocessing(name, said), without_preprocessing(name, meant)
        if said != meant:
            result.problems.append(f"{name} does not say what these weights imply")


def _json(path: Path) -> dict[str, Any]:
    """What a file says, nothing if it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError, TypeError):
        return dict(json.loads(path.read_text("utf-8")))
    return {}


def _compare_preprocessing(
    stated: Mapping[str, Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]
) -> Iterator[PixelCheck]:
    meant = stated_processor(expected)
    if meant is None or not all(stated.values()):
        return
    try:
        found = stated_processor(stated)
        if found is not None:
            yield from compare_pixels(found, meant)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError) as error:
        yield PixelCheck("settings", math.inf, f"they cannot be ({error})")


def _compare_weights(
    record: Manifest,
    source: Checkpoint | None,
    written: Checkpoint,
    result: Verification,
    progress: Progress,
) -> dict[str, NDArray[np.float64]] | None:
    """Hold every tensor to the source's. Those that differ, by canonical name; None if there is nothing to run."""
    if source is None:
        return {}
    expected = record.changes.config(source.config, written.layout)
    if parameters(expected) != parameters(written.config) or expected.ws_eps != written.config.ws_eps:
        result.problems.append(f"it is {_in_words(written.config)}, where its source gives {_in_words(expected)}")
    if parameters(expected) != parameters(written.config):
        return None
    steps = plan(source, written.layout, record.changes)
    if origin_of(source, record.source.files, record.changes, steps) != record.origin:
        result.problems.append(f"{MANIFEST_NAME} names another origin than its source")
    if [step.row for step in steps] != record.tensors:
        result.problems.append(f"{MANIFEST_NAME} tells another way of the tensors than theirs")
    differing = {}
    for compared in compare_bytes(source, written, record.changes, progress):
        if compared.problem is not None:
            result.problems.append(compared.problem)
            differing[compared.name] = written.weights(compared.name)
        elif compared.exact:
            result.tensors_proven += 1
        else:
            result.tensors_changed += 1
    if written.config.id2label != expected.id2label:
        if written.layout.labelled:
            result.problems.append("the names of the classes are not those of the source")
        else:
            result.warnings.append(
                f"the names of the classes are left behind, {written.layout.name} has no place for them"
            )
    return differing


def _has_its_graph(written: Checkpoint, name: str, profile: str) -> bool:
    """Whether an ONNX file is, but for its weights, what the converter makes of its configuration."""
    from convert.conversion.onnx_graph import network
    from convert.files.onnx import OnnxFile

    assert isinstance(written.file, OnnxFile)
    return written.file.without_weights() == network(written.config, name, profile)


def _in_words(config: BitConfig) -> str:
    classes = f"{config.num_labels} classes" if config.num_labels else "no head"
    return f"a {config.architecture} with {classes} and epsilon {config.ws_eps:g}"


def _compare_files(folder: Path, files: dict[str, File], result: Verification) -> None:
    for path in sorted(folder.iterdir()):
        if path.name not in REPORT_NAMES and path.is_file():
            result.files[path.name] = file_sha256(path)
    for name, file in files.items():
        if name not in result.files:
            result.problems.append(f"{name} is missing")
        elif result.files[name] != file.sha256:
            result.problems.append(f"{name} has changed since it was written: its SHA-256 is not the recorded one")
    for name in sorted(set(result.files) - set(files) - {MANIFEST_NAME}):
        text = f"{name} was not written by the conversion"
        if kind(folder / name) is None:
            result.warnings.append(text)
        else:  # a library might load it instead of what was verified
            result.problems.append(f"{text}, and holds weights")


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
