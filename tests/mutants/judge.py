"""Judge one mutant: by the numbers alone, by everything, and by what the field uses."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mutants import field, functions, settings, tables, weights
from mutants.mutant import Mutant, Operator, Outcome
from mutants.networks import Base, convert, forged, write_weights

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import MANIFEST_NAME
from convert.errors import ConvertError
from convert.network.inputs import INPUTS, images
from convert.network.runner import Implementation, run_network
from convert.network.taps import Part
from convert.progress import silent
from convert.references import pytorch
from convert.verification.network import judge as judge_run
from convert.verification.pixels import stated_processor
from convert.verification.results import END_TO_END, Check, Verification
from convert.verification.verify import Settings, verify

OPERATORS: dict[tuple[str, str], Operator] = {
    (item.family, item.name): item
    for item in (*tables.OPERATORS, *weights.OPERATORS, *functions.OPERATORS, *settings.OPERATORS)
}
SIZES = ((3, 1, 64, 64), (4, 2, 57, 81), (5, 1, 96, 40), *INPUTS.values())
"""Seed, count, height and width of the images on which mutants that may be equivalent are compared."""


def judge(mutant: Mutant, base: Base) -> Outcome:
    """Plant a mutant and judge it on small images; what survives, on those of a user's verification.

    Some mistakes show on large images only: ReLU6 differs where an activation exceeds 6.
    """
    start = time.monotonic()
    outcome = _judge(mutant, base)
    if not (outcome.numbers and outcome.everything) and not outcome.equivalent:
        outcome = _judge(mutant, base.full)
    return replace(outcome, seconds=round(time.monotonic() - start, 2))


def _judge(mutant: Mutant, base: Base) -> Outcome:
    operator = OPERATORS[mutant.family, mutant.operator]
    planted = operator.apply(base, mutant.place, Random(mutant.seed))
    return (_judge_network if mutant.family == "network" else _judge_folder)(mutant, operator, base, planted)


def _judge_folder(mutant: Mutant, operator: Operator, base: Base, planted: Any) -> Outcome:
    folder = base.place / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    file = _plant(mutant, base, planted, folder)
    expected, same = file, ""
    if file:
        contents = [json.loads((path / file).read_text()) for path in (folder, base.right)]
        same = "the file states the same" if contents[0] == contents[1] else ""
    else:
        differing = _differing(base, folder)
        if differing == []:
            same = "every tensor has the same bytes"
        expected = base.part_of(differing) if differing is not None else "load"
    alone, whole = _verified(base, folder, with_source=False), _verified(base, folder, with_source=True)
    words = _words(whole)
    located = not whole.passed if file or expected == "load" else _location(base, whole) == expected
    return Outcome(
        mutant,
        base.about,
        numbers=not alone.passed,
        taps=not all(check.passed for check in (*alone.checks, *alone.pixels)) or not alone.checks,
        everything=not whole.passed,
        expected=expected,
        located=located,
        named=bool(re.search(operator.words, words)),
        diagnosis=words[:600],
        equivalent=same,
        field=_field_of_folder(base, folder, file),
    )


def _plant(mutant: Mutant, base: Base, planted: Any, folder: Path) -> str:
    """Write the mutant into a copy of the right conversion; return the file that it is in, empty for the weights."""
    if mutant.family in ("preprocessing", "metadata"):
        name, edit = planted
        shutil.copytree(base.right, folder)
        values = json.loads((folder / name).read_text())
        edit(values)
        (folder / name).write_text(json.dumps(values))
        if name != MANIFEST_NAME:
            forged(base, folder)
        return str(name)
    if mutant.family == "weights":
        changed = base.place / "changed" / base.source.name
        shutil.rmtree(changed.parent, ignore_errors=True)
        write_weights(base, planted, changed)
        convert(changed, base.layout, folder)
    else:
        convert(base.source, planted, folder)
    for path in base.right.iterdir():
        if path.suffix == ".json" and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    forged(base, folder)
    return ""


def _differing(base: Base, folder: Path) -> list[str] | None:
    """Return the parameters whose bytes differ from the source; None if the folder cannot be read."""
    try:
        with Checkpoint(folder) as checkpoint:
            return [
                name
                for name, array in base.weights.items()
                if checkpoint.weights(name, dtype="float32").tobytes() != np.ascontiguousarray(array).tobytes()
            ]
    except ConvertError:
        return None


def _verified(base: Base, folder: Path, with_source: bool) -> Verification:
    from convert.checkpoints.manifest import Manifest

    chosen = Settings(recordings=(base.place / "recordings",))
    try:
        manifest = Manifest.read(folder)
        assert manifest is not None
        if not with_source:
            return verify(folder, manifest, None, chosen, silent)
        return verify(folder, manifest, base.opened_source, chosen, silent)
    except ConvertError as error:
        return Verification("", "", "", 0, problems=(str(error), *error.problems))


def _words(result: Verification) -> str:
    pixels = [f"pixels: {check.explanation or 'differ'}" for check in result.pixels if not check.passed]
    return " | ".join([*(finding.words for finding in result.network.findings), *pixels, *result.problems])


def _location(base: Base, result: Verification) -> str:
    """Return the part that the verification blames: that of the first finding, or of a tensor that it names."""
    for finding in result.network.findings:
        return finding.part
    text = " ".join(result.problems)
    return base.part_of([name for name in base.weights if name in text])


def _failing(checks: Sequence[Check]) -> bool:
    return not checks or not all(check.passed for check in checks if check.mode == END_TO_END)


class _Faulty:
    """An implementation that says in which part it stopped."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.stopped = inner, ""
        self.name, self.dtype, self.about = inner.name, inner.dtype, inner.about

    def run(self, part: Part, x: Any) -> Any:
        try:
            return self.inner.run(part, x)
        except RuntimeError:
            self.stopped = self.stopped or part.name
            raise


def _changed(base: Base, dtype: str, checkpoint: Checkpoint, change: Callable[[Any], None]) -> Any:
    implementation = pytorch.load(checkpoint, dtype)
    change(implementation if getattr(change, "whole", False) else implementation.network)
    return implementation


def _judge_network(mutant: Mutant, operator: Operator, base: Base, planted: Any) -> Outcome:
    places, change = planted
    named = {"pooling": "stem/kernel", "head": "head/bias", "mean": "norm/scale"}
    expected = base.part_of([named.get(place, f"{place}/kernel") for place in places])
    killed, end_to_end, same, words, located = True, True, "", "", False
    wanted = base.expected
    checkpoint = wanted.candidate.checkpoint
    faulty = _Faulty(_changed(base, "float64", checkpoint, change))
    try:
        result = judge_run(faulty, wanted, isolated=True)
        killed = not all(check.passed for check in result.checks)
        end_to_end = _failing(result.checks)
        words = " | ".join(finding.words for finding in result.findings)
        located = bool(result.findings) and result.findings[0].part == expected
    except RuntimeError as error:
        words, located = f"{faulty.stopped}: it does not run ({error})", faulty.stopped == expected
    right = pytorch.load(checkpoint, "float64")
    if not killed and operator.same and _same_outputs(base, right, faulty):
        same = operator.same
    hundred, one = _right_logits(base, checkpoint)
    found = _changed(base, "float32", checkpoint, change)
    usual = field.killed((_logits(base, found, field.IMAGE), one), (_logits(base, found, field.HUNDRED), hundred))
    return Outcome(
        mutant,
        base.about,
        numbers=killed,
        taps=end_to_end,
        everything=killed,
        expected=expected,
        located=located,
        named=bool(words) and bool(operator.words) and bool(re.search(operator.words, words)),
        diagnosis=words[:600],
        equivalent=same,
        field=usual,
    )


def _same_outputs(base: Base, right: Implementation, other: Any) -> bool:
    """Return whether every tap has the same bits on images of several sizes."""
    for numbers in SIZES:
        given = {"": images(*numbers)}
        pairs = zip(run_network(right, base.config, given), run_network(other, base.config, given), strict=True)
        if not all(np.array_equal(x[""], y[""]) for (_, x), (_, y) in pairs):
            return False
    return True


def _logits(base: Base, implementation: Any, given: Any) -> Any:
    """Return logits `[N, classes]`; without values if it does not run."""
    try:
        *_, (_, values) = run_network(implementation, base.config, {"": given})
    except (RuntimeError, ValueError):
        return np.full((len(given), base.config.num_labels), math.nan)
    return values[""]


def _right_logits(base: Base, checkpoint: Checkpoint) -> tuple[Any, Any]:
    if "logits" not in base.caches:
        right = pytorch.load(checkpoint, "float32")
        base.caches["logits"] = _logits(base, right, field.HUNDRED), _logits(base, right, field.IMAGE)
    return base.caches["logits"]  # type: ignore[no-any-return]


def _field_of_folder(base: Base, folder: Path, file: str) -> dict[str, bool]:
    right = base.expected.candidate.checkpoint
    hundred, one = _right_logits(base, right)
    if file in ("preprocessor_config.json", "config.json"):
        prepared = _prepared_logits(base, folder, right)
        if prepared is not None:
            return field.killed(*prepared)
    try:
        with Checkpoint(folder) as checkpoint:
            found = pytorch.load(checkpoint, "float32")
            return field.killed(
                (_logits(base, found, field.IMAGE), one), (_logits(base, found, field.HUNDRED), hundred)
            )
    except ConvertError:
        return dict.fromkeys(field.CHECKS, True)


def _prepared_logits(base: Base, folder: Path, right: Checkpoint) -> Any:
    """Return logits of images that the stated preprocessing makes, (found, expected); None if it is the right one."""
    try:
        made = [_prepared(path) for path in (folder, base.right)]
    except (ValueError, TypeError, LookupError, AttributeError):
        nothing = np.full((1, 1), math.nan)
        return (nothing, nothing), (nothing, nothing)
    if made[0].shape == made[1].shape and np.array_equal(*made):
        return None
    network = pytorch.load(right, "float32")
    logits = [_logits(base, network, pixels) for pixels in made]
    return (logits[0][:1], logits[1][:1]), (logits[0], logits[1])


def _prepared(folder: Path) -> Any:
    """Prepare images `[N, H, W, C]`, of which every eighth pixel is taken."""
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    processor = stated_processor(files)
    assert processor is not None
    prepared = np.stack([processor(image)["pixel_values"][0] for image in field.photographs()])
    return np.moveaxis(prepared, 1, -1)[:, ::8, ::8]
