"""The verdict on a converted folder: its files, its bytes and its function."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import convert
from bit.config import BitConfig
from convert.checkpoint import Checkpoint
from convert.comparison import TapComparison, compare_bytes
from convert.conversion import Progress
from convert.errors import CheckpointError
from convert.files.opening import kind
from convert.files.tensors import File, combined_sha256, file_sha256
from convert.parameters import parameters
from convert.plan import plan
from convert.record import CONVERSION_NAME, VERIFICATION_NAME, ConversionRecord, write_json
from convert.references import recorded
from convert.taps import Check


@dataclass(frozen=True)
class Epsilon:
    """How far the results of a layout's own library are from the original's, by its epsilon alone."""

    library: str
    epsilon: float
    original: float
    input: str
    tap: str
    relative_l2: float | None


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
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    epsilon: Epsilon | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.problems and bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The content of `verification.json`; an error or a budget that is not finite is null."""
        checks = [
            {
                **asdict(check),
                "error": check.error if math.isfinite(check.error) else None,
                "budget": check.budget if math.isfinite(check.budget) else None,
                "passed": check.passed,
            }
            for check in self.checks
        ]
        verifier = f"bit-convert {convert.__version__}"
        return {"passed": self.passed, "verifier": verifier, **asdict(self), "checks": checks}


def verify(
    folder: Path, source: Checkpoint | None, progress: Progress, torch: bool = False, source_sha256: str | None = None
) -> Verification:
    """Verify the conversion in `folder` and write `verification.json` there.

    `source` is what it was converted from, where that is at hand; `source_sha256` its hash, if it
    was just computed. `torch` runs `bit`'s PyTorch model too. Raises `CheckpointError` for a
    folder that cannot be judged.
    """
    record = ConversionRecord.read(folder)
    if record is None:
        raise CheckpointError(f"{folder} holds no {CONVERSION_NAME}; only folders that bit convert wrote are verified")
    records = recorded.find(record.origin.sha256)
    if source is not None and (source_sha256 or combined_sha256(source.file.digests())) != record.source.sha256:
        raise CheckpointError(f"{source.path} is not what {folder} was converted from: its SHA-256 is another")
    if source is None and records is None:
        raise CheckpointError(
            f"no outputs are recorded for {record.name}, and what it was converted from, {record.source.path} "
            f"as seen from {folder}, is not at hand; name that with --source"
        )
    result = Verification(record.name, record.layout, record.architecture, record.classes)
    result.environment, result.roundings = _environment(torch), record.origin.roundings
    _compare_files(folder, record.files, result)
    if source is None:
        result.warnings.append("the bytes were not compared: what it was converted from is not at hand")
    try:
        with Checkpoint(folder, record.name) as written:
            _compare_record(record, written, result)
            _compare_weights(record, source, written, records, torch, result, progress)
    except CheckpointError as error:
        result.problems.append(str(error))
    try:
        write_json(folder / VERIFICATION_NAME, result.to_dict())
    except OSError as error:
        result.warnings.append(f"{VERIFICATION_NAME} could not be written: {error.strerror}")
    return result


def _compare_record(record: ConversionRecord, written: Checkpoint, result: Verification) -> None:
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
        f"{CONVERSION_NAME} has other {claim} than the weights" for claim, (said, is_) in claims.items() if said != is_
    ]
    if layout.folded and not _has_its_graph(written, record.name):
        result.problems.append(f"{written.file.path.name} has another graph or other properties than this network")
    companions = layout.companions(config, written.dtype, record.name)
    for name in (written.file.path.name, *companions):
        if name not in record.files:
            result.problems.append(f"{name} is not among the files that {CONVERSION_NAME} lists")
    for name, expected in companions.items():
        path = written.file.path.with_name(name)
        said = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            said = json.loads(path.read_text("utf-8"))
        if said != expected:
            result.problems.append(f"{name} does not say what these weights imply")


def _compare_weights(
    record: ConversionRecord,
    source: Checkpoint | None,
    written: Checkpoint,
    records: recorded.Records | None,
    torch: bool,
    result: Verification,
    progress: Progress,
) -> None:
    if source is not None:
        expected = record.changes.config(source.config, written.layout)
        if parameters(expected) != parameters(written.config) or expected.ws_eps != written.config.ws_eps:
            result.problems.append(f"it is {_in_words(written.config)}, where its source gives {_in_words(expected)}")
            return
        if source.record is None and record.origin.sha256 != record.source.sha256:
            result.problems.append(f"{CONVERSION_NAME} names another origin than its source")
        if [step.row for step in plan(source, written.layout, record.changes)] != record.tensors:
            result.problems.append(f"{CONVERSION_NAME} tells another way of the tensors than theirs")
        compared = list(compare_bytes(source, written, record.changes, progress))
        result.tensors_proven, result.tensors_changed = compared.count((True, None)), compared.count((False, None))
        result.problems += [problem for _, problem in compared if problem is not None]
        layout, labels = written.layout, written.config.id2label
        if labels != expected.id2label:
            if labels is None and not (layout.folded or layout.companions(written.config, written.dtype, record.name)):
                result.warnings.append(f"the names of the classes are left behind, {layout.name} has no place for them")
            else:
                result.problems.append("the names of the classes are not those of the source")
    if caveat := written.layout.caveat(written.config):
        result.warnings.append(caveat)
    _compare_function(TapComparison(written, source, records, record.origin, progress, result.checks), torch, result)


def _compare_function(taps: TapComparison, torch: bool, result: Verification) -> None:
    config, layout = taps.written.config, taps.written.layout
    if taps.records is None:
        result.warnings.append(
            f"no recorded output of the original code is available for {result.name}: the definition of the "
            "network was run on the source and on the written file instead, and both were compared"
        )
    taps.run_definition()
    if layout.folded:
        if find_spec("onnxruntime") is None:
            raise CheckpointError("onnxruntime is not installed, so the graph was not run: pip install -e '.[onnx]'")
        taps.run_onnxruntime()
    elif torch:
        taps.run_torch()
    if layout.ws_eps != config.ws_eps and not layout.folded:
        result.epsilon = Epsilon(layout.name, layout.ws_eps, config.ws_eps, *taps.measure_epsilon())


def _has_its_graph(written: Checkpoint, name: str) -> bool:
    """Whether an ONNX file is, but for its weights, what the converter makes of its configuration."""
    from convert.files.onnx import OnnxFile
    from convert.onnx_graph import network

    assert isinstance(written.file, OnnxFile)
    return written.file.without_weights() == network(written.config, name)


def _in_words(config: BitConfig) -> str:
    classes = f"{config.num_labels} classes" if config.num_labels else "no head"
    return f"a {config.architecture} with {classes} and epsilon {config.ws_eps:g}"


def _compare_files(folder: Path, files: dict[str, File], result: Verification) -> None:
    for path in sorted(folder.iterdir()):
        if path.name != VERIFICATION_NAME and path.is_file():
            result.files[path.name] = file_sha256(path)
    for name, file in files.items():
        if name not in result.files:
            result.problems.append(f"{name} is missing")
        elif result.files[name] != file.sha256:
            result.problems.append(f"{name} has changed since it was written: its SHA-256 is not the recorded one")
    for name in sorted(set(result.files) - set(files) - {CONVERSION_NAME}):
        text = f"{name} was not written by the conversion"
        if kind(folder / name) is None:
            result.warnings.append(text)
        else:  # a library might load it instead of what was verified
            result.problems.append(f"{text}, and holds weights")


def _environment(torch: bool) -> dict[str, str]:
    environment = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    if torch:
        import torch as framework

        environment["torch"] = f"{framework.__version__}, {framework.get_num_threads()} threads, CPU"
    return environment
