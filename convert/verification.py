"""Proving a written folder: its bytes against the source, its function against references."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import convert
from convert import definition
from convert.checkpoint import CONVERSION_NAME, Checkpoint
from convert.conversion import Progress, write_json
from convert.errors import CheckpointError
from convert.files.tensors import file_sha256
from convert.layouts import LAYOUTS
from convert.parameters import parameters
from convert.references import recorded
from convert.references.recorded import Key
from convert.taps import Check, Summary, relative_l2, summarize, summary_error, tap_names
from convert.transforms import Transform, Workspace

VERIFICATION_NAME = "verification.json"

FLOAT64_BUDGET = 1e-9
"""Implementations of one function agree to about 1e-13 in float64; the least of the semantic
differences known, an epsilon of 1e-8 for 1e-10, shows as 4e-4."""
FLOAT32_FACTOR = 4
"""Times the larger error of the original code's own float32 runs at the same tap."""

INPUTS = {"square": (1, 2, 224, 224), "odd": (2, 1, 193, 257)}
"""Seed, count, height and width of the recorded inputs, used where nothing was recorded too. Odd
sizes show mistakes of padding and stride."""


@dataclass
class Verification:
    """What was compared, with what result. `passed` needs every comparison, and at least one."""

    name: str
    layout: str
    architecture: str
    classes: int
    files: dict[str, str]
    """SHA-256 by name of every file that was verified."""
    tensors_proven: int = 0
    """Tensors whose inverse transform gives the source's bytes."""
    problems: list[str] = field(default_factory=list)
    """Files and tensors that are not what they should be."""
    checks: list[Check] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    epsilon: dict[str, Any] | None = None
    """How far the layout's own library will be from these results, by its epsilon."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.problems and bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The content of `verification.json`."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        # JSON knows no infinity; the text says why there is no number.
        for check in checks:
            if not np.isfinite(check["error"]):
                check["error"] = "not comparable"
        values = {**asdict(self), "checks": checks}
        return {"passed": self.passed, "verifier": f"bit-convert {convert.__version__}", **values}


def verify(
    folder: Path, source: Checkpoint | None, progress: Progress, torch: bool = False, source_sha256: str | None = None
) -> Verification:
    """Verify the conversion in `folder` and write `verification.json` there.

    `source` is what it was converted from, where that is at hand, and `source_sha256` its hash if
    it was just computed. `torch` runs `bit`'s PyTorch model too. Raises `CheckpointError` for a
    folder that cannot be judged.
    """
    try:
        record = json.loads((folder / CONVERSION_NAME).read_text("utf-8"))
        files, origin, converted_from = record["files"], record["origin"]["sha256"], record["source"]["sha256"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no {CONVERSION_NAME}; only folders that bit convert wrote are verified") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONVERSION_NAME} is damaged ({error})") from None
    records = recorded.find(origin)
    if source is not None and (source_sha256 or source.file.sha256()) != converted_from:
        raise CheckpointError(f"{source.file.path} is not the file that {folder} was converted from; give it with --source")
    if source is None and records is None:
        raise CheckpointError(f"no outputs are recorded for {record['name']} and its source is not at hand; give it with --source")
    with Checkpoint(folder, record["name"]) as written:
        result = Verification(
            written.name, written.layout.name, written.config.architecture, written.config.num_labels, {}, environment=_environment(torch)
        )
        _compare_files(folder, files, result)
        if source is not None:
            _compare_tensors(source, written, result, progress)
        else:
            result.not_run.append("bytes: the source is not at hand; its tensors were not compared one by one")
        _compare_taps(source, written, records, torch, result, progress)
    write_json(folder / VERIFICATION_NAME, result.to_dict())
    return result


def _compare_files(folder: Path, recorded_files: Mapping[str, Mapping[str, Any]], result: Verification) -> None:
    for path in sorted(folder.iterdir()):
        if path.name != VERIFICATION_NAME:
            result.files[path.name] = file_sha256(path)
    for name, entry in recorded_files.items():
        if name not in result.files:
            result.problems.append(f"{name} is missing")
        elif result.files[name] != entry["sha256"]:
            result.problems.append(f"{name} has changed since it was written: its SHA-256 is not the recorded one")
    for name in sorted(set(result.files) - set(recorded_files) - {CONVERSION_NAME}):
        result.problems.append(f"{name} was not written by the conversion")


def _compare_tensors(source: Checkpoint, written: Checkpoint, result: Verification, progress: Progress) -> None:
    """Read every written tensor back and hold its inverse transform to the source, bit by bit."""
    workspace, done = Workspace(), 0
    for parameter in parameters(written.config):
        place = parameter.place
        was, now = source.tensor(place), written.tensor(place)
        if was.dtype != now.dtype or source.config != written.config:
            result.problems.append(f"{now.key} is another kind of array than {was.key}")
            continue
        inverse = Transform(written.stored_axes(place), source.stored_axes(place))

        def read(start: int, out: NDArray[np.generic]) -> None:
            written.file.read(now, start, out)  # noqa: B023 (used before the next)

        position, equal = 0, True
        for block in inverse.blocks(written.stored_shape(place), now.dtype.bits, read, workspace):
            original = np.empty_like(block)
            source.file.read(was, position, original)
            equal = equal and np.array_equal(block.view(np.uint8), original.view(np.uint8))
            position += block.size
        if equal:
            result.tensors_proven += 1
        else:
            result.problems.append(f"{now.key} does not give back the bytes of {was.key}")
        done += now.nbytes
        progress("comparing bytes", done, written.nbytes)


def _compare_taps(
    source: Checkpoint | None, written: Checkpoint, records: recorded.Records | None, torch: bool,
    result: Verification, progress: Progress,
) -> None:
    inputs = dict(records.truth.inputs) if records else INPUTS
    images = {name: recorded.images(*numbers, channels=written.config.num_channels) for name, numbers in inputs.items()}
    taps = tap_names(written.config)
    keys = [(name, tap) for name in inputs for tap in taps]
    if records is not None:
        expected: dict[Key, Summary] = dict(records.truth.taps)
        reference = f"recorded: {records.truth.implementation}"

        def judged() -> Iterator[tuple[Key, float]]:
            for key, value in _definition(written, images):
                if key[1] == "logits":
                    logits[key[0]] = value
                yield key, summary_error(summarize(key[1], value), expected.get(key, {}))
    else:
        assert source is not None
        expected, origin = {}, source
        reference = "the definition on the source file"
        result.warnings.append(
            f"no recorded output of the original code is available for {written.name}: the definition of the "
            "network was run on the source and on the written file instead"
        )

        def judged() -> Iterator[tuple[Key, float]]:
            runs = (_definition(checkpoint, images) for checkpoint in (origin, written))
            for (key, truth), (_, value) in zip(*runs, strict=True):
                if key[1] == "logits":
                    logits[key[0]] = value
                expected[key] = summarize(key[1], truth)
                yield key, relative_l2(value, truth)

    logits: dict[str, NDArray[np.float64]] = {}
    judge = _Judge(reference, keys, result, progress)
    judge("definition", "float64", judged(), lambda key: FLOAT64_BUDGET)
    _measure_epsilon(written, images, logits, result, progress)
    if not torch:
        return
    from convert.references import pytorch

    runs = {"float64": lambda key: FLOAT64_BUDGET}
    if records is not None:
        runs["float32"] = lambda key: FLOAT32_FACTOR * records.float32_error(key)
    else:
        result.not_run.append("bit (PyTorch) float32: no float32 outputs are recorded to derive a budget from")
    for dtype, budget in runs.items():
        model = pytorch.load(written, dtype)
        names = list(images)
        errors = (
            ((names[index], tap), summary_error(summarize(tap, value), expected.get((names[index], tap), {})))
            for index, tap, value in pytorch.forward(model, list(images.values()))
        )
        judge("bit (PyTorch)", dtype, errors, budget)


def _definition(
    checkpoint: Checkpoint, images: Mapping[str, NDArray[np.generic]], ws_eps: float | None = None
) -> Iterator[tuple[Key, NDArray[np.float64]]]:
    by_name = {parameter.name: parameter for parameter in parameters(checkpoint.config)}
    steps = definition.forward(
        lambda name: checkpoint.values(by_name[name]), checkpoint.config, list(images.values()), ws_eps
    )
    for tap, values in steps:
        for name, value in zip(images, values, strict=True):
            yield (name, tap), value


@dataclass
class _Judge:
    """Turns one implementation's errors into checks; a tap that is missing on either side fails."""

    reference: str
    keys: Sequence[Key]
    result: Verification
    progress: Progress

    def __call__(
        self, implementation: str, dtype: str, errors: Iterable[tuple[Key, float]], budget: Callable[[Key], float]
    ) -> None:
        found: dict[Key, float] = {}
        for key, error in errors:
            found[key] = error
            self.progress(f"comparing {implementation} {dtype}", len(found), len(self.keys))
        for key in dict.fromkeys((*self.keys, *found)):
            error = found.get(key, float("inf")) if key in self.keys else float("inf")
            self.result.checks.append(Check(self.reference, implementation, dtype, *key, error, budget(key)))


def _measure_epsilon(
    written: Checkpoint, images: Mapping[str, NDArray[np.generic]], logits: Mapping[str, NDArray[np.float64]],
    result: Verification, progress: Progress,
) -> None:
    """State how far the logits of the layout's own library will be, whose epsilon is fixed."""
    if written.layout.ws_eps == written.config.ws_eps:
        return
    name = min(images, key=lambda name: images[name].size)
    total, difference = len(tap_names(written.config)), 0.0
    for done, ((_, tap), value) in enumerate(_definition(written, {name: images[name]}, written.layout.ws_eps), 1):
        progress(f"measuring epsilon {written.layout.ws_eps:g}", done, total)
        if tap == "logits":
            difference = relative_l2(value, logits[name])
    result.epsilon = {
        "library": written.layout.name,
        "epsilon": written.layout.ws_eps,
        "original": written.config.ws_eps,
        "input": name,
        "logits_relative_l2": difference,
    }


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
