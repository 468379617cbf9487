"""Comparing a written checkpoint with its source and with references; what differs, as values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convert import definition
from convert.checkpoint import Checkpoint
from convert.conversion import Progress
from convert.parameters import parameters
from convert.references import recorded
from convert.references.recorded import Key, Records
from convert.taps import Check, Summary, relative_l2, summarize, summary_error, tap_names
from convert.transforms import Transform, Workspace

FLOAT64_BUDGET = 1e-9
"""Implementations of one function agree to about 1e-13 in float64; the least of the semantic
differences known, an epsilon of 1e-8 for 1e-10, shows as 4e-4."""
FLOAT32_FACTOR = 4
"""Times the larger error of the original code's own float32 runs at the same tap."""

INPUTS = {"square": (1, 2, 224, 224), "odd": (2, 1, 193, 257)}
"""Seed, count, height and width of the inputs where nothing was recorded, as in the records. Odd
sizes show mistakes of padding and stride."""

Images = Mapping[str, NDArray[np.generic]]
Taps = Iterable[tuple[str, Mapping[str, NDArray[np.generic]]]]
"""What implementations yield: a tap's name and its value for each input."""


def compare_bytes(source: Checkpoint, written: Checkpoint, progress: Progress) -> Iterator[str | None]:
    """Read every written tensor back and hold its inverse transform to the source, bit by bit.

    Yields for each what is wrong with it, or None.
    """
    workspace, done = Workspace(), 0
    for parameter in parameters(source.config):
        place = parameter.place
        was, now = source.tensor(place), written.tensor(place)
        if was.dtype != now.dtype:
            yield f"{now.key} is {now.dtype.name}, {was.key} was {was.dtype.name}"
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
        yield None if equal else f"{now.key} does not give back the bytes of {was.key}"
        done += now.nbytes
        progress("comparing bytes", done, written.nbytes)


@dataclass
class TapComparison:
    """Holds the taps of `written` to the records or, where there are none, to the definition on `source`."""

    written: Checkpoint
    source: Checkpoint | None
    records: Records | None
    progress: Progress
    checks: list[Check] = field(default_factory=list)
    logits: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    """The definition's, by input."""

    def __post_init__(self) -> None:
        inputs = self.records.truth.inputs if self.records else INPUTS
        channels = self.written.config.num_channels
        self.images: Images = {name: recorded.images(*numbers, channels=channels) for name, numbers in inputs.items()}
        self.keys = [(name, tap) for name in inputs for tap in tap_names(self.written.config)]
        self.expected: dict[Key, Summary] = dict(self.records.truth.taps) if self.records else {}

    @property
    def reference(self) -> str:
        if self.records is None:
            return "the definition on the source file"
        return f"recorded outputs of {self.records.truth.implementation}"

    @np.errstate(invalid="ignore", over="ignore")
    def run_definition(self) -> None:
        """Run the definition on the written file, and on the source where nothing is recorded."""
        errors = self._to_record(self._definition()) if self.records else self._to_source()
        self._judge("definition", "float64", errors, lambda key: FLOAT64_BUDGET)

    def run_torch(self) -> None:
        """Run `bit`'s PyTorch model on the written file; in float32 only where that has a budget.

        `run_definition` must have run before.
        """
        from convert.references import pytorch

        budgets: dict[str, Callable[[Key], float]] = {"float64": lambda key: FLOAT64_BUDGET}
        if (records := self.records) is not None:
            budgets["float32"] = lambda key: FLOAT32_FACTOR * records.float32_error(key)
        for dtype, budget in budgets.items():
            taps = pytorch.forward(pytorch.load(self.written, dtype), self.images)
            self._judge("bit (PyTorch)", dtype, self._to_record(taps), budget)

    @np.errstate(invalid="ignore", over="ignore")
    def measure_epsilon(self) -> tuple[str, float | None]:
        """How far the logits of the layout's own library will be, whose epsilon is fixed.

        The input used, the smallest, and the relative L2 difference there, None if there is none.
        """
        name, image = min(self.images.items(), key=lambda item: item[1].size)
        epsilon, total = self.written.layout.ws_eps, len(tap_names(self.written.config))
        value = self.logits[name]
        taps = definition.forward(self.written.weights, self.written.config, {name: image}, epsilon)
        for done, (_, values) in enumerate(taps, 1):
            self.progress(f"measuring epsilon {epsilon:g}", done, total)
            value = values[name]
        difference = relative_l2(value, self.logits[name])
        return name, difference if math.isfinite(difference) else None

    def _definition(self) -> Taps:
        for tap, values in definition.forward(self.written.weights, self.written.config, self.images):
            if tap == "logits":
                self.logits.update(values)
            yield tap, values

    def _to_record(self, taps: Taps) -> Iterator[tuple[Key, float]]:
        for tap, values in taps:
            for name, value in values.items():
                yield (name, tap), summary_error(summarize(tap, value), self.expected.get((name, tap), {}))

    def _to_source(self) -> Iterator[tuple[Key, float]]:
        assert self.source is not None
        truths = definition.forward(self.source.weights, self.source.config, self.images)
        for (tap, values), (_, truth) in zip(self._definition(), truths, strict=True):
            for name, value in values.items():
                self.expected[name, tap] = summarize(tap, truth[name])
                yield (name, tap), relative_l2(value, truth[name])

    def _judge(
        self, implementation: str, dtype: str, errors: Iterable[tuple[Key, float]], budget: Callable[[Key], float]
    ) -> None:
        """A check for every tap; one that is missing on either side fails."""
        found: dict[Key, float] = {}
        for key, error in errors:
            found[key] = error
            self.progress(f"comparing {implementation} {dtype}", len(found), len(self.keys))
        for key in dict.fromkeys((*self.keys, *self.expected, *found)):
            error = found.get(key, float("inf")) if key in self.keys else float("inf")
            limit = budget(key) if key in self.expected else 0.0
            self.checks.append(Check(self.reference, implementation, dtype, *key, error, limit))
