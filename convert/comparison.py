"""Comparing a written checkpoint with its source and with references; what differs, as values."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convert import definition
from convert.changes import Changes
from convert.checkpoint import Checkpoint
from convert.conversion import Progress
from convert.files.tensors import StoredTensor
from convert.parameters import Place
from convert.plan import plan
from convert.record import Origin
from convert.references import recorded
from convert.references.recorded import Key, Records
from convert.taps import Check, Summary, relative_l2, summarize, summary_error, tap_names
from convert.transforms import Transform, Workspace

FLOAT64_BUDGET = 1e-9
"""Implementations of one function agree to about 1e-13 in float64; the least of the semantic
differences known, an epsilon of 1e-8 for 1e-10, shows as 4e-4."""
FLOAT32_FACTOR = 4
"""Times the larger error of the original code's own float32 runs at the same tap."""

ROUNDING_FACTOR = 4
"""Times what other errors of the size of the rounding do at the same tap."""

INPUTS = {"square": (1, 2, 224, 224), "odd": (2, 1, 193, 257)}
"""Seed, count, height and width of the inputs where nothing was recorded, as in the records. Odd
sizes show mistakes of padding and stride."""

Images = Mapping[str, NDArray[np.generic]]
Taps = Iterable[tuple[str, Mapping[str, NDArray[np.generic]]]]
"""What implementations yield: a tap's name and its value for each input."""


def compare_bytes(
    source: Checkpoint, written: Checkpoint, changes: Changes, progress: Progress
) -> Iterator[tuple[bool, str | None]]:
    """Read every written tensor back and hold it to the source, bit by bit.

    What was only moved is moved back, by the inverse transform; what was changed as well must be
    what the source gives once more. Yields for each tensor whether it was only moved, and what is
    wrong with it, or None.
    """
    workspace, done = Workspace(), 0
    for step in plan(source, written.layout, changes):
        now = written.tensor(step.place)
        if now.dtype != step.target.dtype:
            yield step.exact, f"{now.key} is {now.dtype.name} instead of {step.target.dtype.name}"
        elif step.exact:
            assert step.source is not None
            equal = _gives_back(source, step.source, written, step.place, workspace)
            yield True, None if equal else f"{now.key} does not give back the bytes of {step.source.key}"
        else:
            blocks = step.blocks(source, workspace, allow_nonfinite=True)
            equal = _holds(written, now, blocks)
            yield False, None if equal else f"{now.key} is not what its source gives when it is changed as recorded"
        done += now.nbytes
        progress("comparing bytes", done, written.nbytes)


def _gives_back(source: Checkpoint, was: StoredTensor, written: Checkpoint, place: Place, workspace: Workspace) -> bool:
    now = written.tensor(place)
    inverse = Transform(written.stored_axes(place), source.stored_axes(place))

    def read(start: int, out: NDArray[np.generic]) -> None:
        written.file.read(now, start, out)

    return _holds(source, was, inverse.blocks(now.stored_shape, now.dtype.bits, read, workspace))


def _holds(checkpoint: Checkpoint, tensor: StoredTensor, blocks: Iterable[NDArray[np.generic]]) -> bool:
    """Whether the tensor has these bits, in its stored order."""
    position = 0
    for block in blocks:
        stored = np.empty_like(block)
        checkpoint.file.read(tensor, position, stored)
        if not np.array_equal(block.view(np.uint8), stored.view(np.uint8)):
            return False
        position += block.size
    return position == tensor.size


@dataclass
class TapComparison:
    """Holds the taps of `written` to the records or, where there are none, to the definition on `source`."""

    written: Checkpoint
    source: Checkpoint | None
    records: Records | None
    origin: Origin
    """Says what became of the head, and how far the weights were rounded."""
    progress: Progress
    checks: list[Check] = field(default_factory=list)

    def __post_init__(self) -> None:
        inputs = self.records.truth.inputs if self.records else INPUTS
        channels = self.written.config.num_channels
        self.images: Images = {name: recorded.images(*numbers, channels=channels) for name, numbers in inputs.items()}
        self.keys = [(name, tap) for name in inputs for tap in tap_names(self.written.config)]
        self.expected: dict[Key, Summary] = {}
        self._own: dict[Key, Summary] = {}  # what the definition gave on the written file
        self._float32_errors: dict[Key, float] = {}
        self._rounding_errors: dict[Key, float] = {}
        if self.records is not None:
            self.expected |= {key: summary for key, summary in self.records.truth.taps.items() if self._comparable(key)}
            for name, image in self.images.items():
                if self._has_new_head:
                    self.expected[name, "logits"] = summarize("logits", self._zeros(image))

    @property
    def reference(self) -> str:
        if self.records is None:
            return "the definition on the source file"
        return f"recorded outputs of {self.records.truth.implementation}"

    @np.errstate(invalid="ignore", over="ignore")
    def run_definition(self) -> None:
        """Run the definition on the written file, and on the source where nothing is recorded."""
        errors = self._to_record(self._definition()) if self.records else self._to_source()
        self._judge("definition", "float64", errors, self._float64_budget)

    def run_torch(self) -> None:
        """Run `bit`'s PyTorch model on the written file. `run_definition` must have run before."""
        from convert.references import pytorch

        for dtype, budget in (("float64", self._float64_budget), ("float32", self._float32_budget)):
            taps = pytorch.forward(pytorch.load(self.written, dtype), self.images)
            self._judge("bit (PyTorch)", dtype, self._to_record(taps), budget)

    def run_onnxruntime(self) -> None:
        """Run the written ONNX graph. `run_definition` must have run before."""
        from convert.references import onnxruntime

        taps = onnxruntime.forward(self.written.file.path, self.images, tap_names(self.written.config))
        self._judge("ONNX Runtime", "float32", self._to_record(taps), self._float32_budget)

    @np.errstate(invalid="ignore", over="ignore")
    def measure_epsilon(self) -> tuple[str, str, float | None]:
        """How far the results of the layout's own library will be, whose epsilon is fixed.

        The input used, the smallest; the tap compared, the logits unless the head was changed; and
        the relative L2 difference there, None if there is none.
        """
        name, image = min(self.images.items(), key=lambda item: item[1].size)
        tap = "logits" if self.origin.head == "keep" and self.written.config.num_labels else "pooled"
        epsilon, difference = self.written.layout.ws_eps, math.inf
        taps = definition.forward(self.written.weights, self.written.config, {name: image}, epsilon)
        for found, values in self._watched(f"measuring epsilon {epsilon:g}", taps):
            if found == tap:
                difference = summary_error(summarize(tap, values[name]), self._own[name, tap])
        return name, tap, difference if math.isfinite(difference) else None

    @property
    def _has_new_head(self) -> bool:
        return self.origin.head.startswith("new:")

    def _comparable(self, key: Key) -> bool:
        """Whether what was computed before the changes is what should be computed after them."""
        return key[1] != "logits" or self.origin.head == "keep"

    def _zeros(self, image: NDArray[np.generic]) -> NDArray[np.float64]:
        """The logits of a new head."""
        return np.zeros((len(image), self.written.config.num_labels))

    def _float64_budget(self, key: Key) -> float:
        return FLOAT64_BUDGET + self._rounding_budget(key)

    def _float32_budget(self, key: Key) -> float:
        """From the float32 runs that were recorded or, without any, from one of the definition on the source."""
        if not self._comparable(key):
            error = 0.0
        elif self.records is not None:
            error = self.records.float32_error(key)
        else:
            self._float32_errors = self._float32_errors or self._measure_float32()
            error = self._float32_errors[key]
        return FLOAT32_FACTOR * error + self._rounding_budget(key)

    def _rounding_budget(self, key: Key) -> float:
        """What rounding the weights may do to a tap: nothing where none was rounded."""
        if not self.origin.roundoff:
            return 0.0
        self._rounding_errors = self._rounding_errors or self._measure_rounding()
        return ROUNDING_FACTOR * self._rounding_errors.get(key, 0.0)

    def _measure_rounding(self) -> dict[Key, float]:
        """What it does to each tap when every weight gets another error within the roundoff, drawn by its name."""
        written, roundoff = self.written, self.origin.roundoff

        def weights(name: str) -> NDArray[np.float64]:
            values = written.weights(name)
            draw = np.random.default_rng(zlib.crc32(name.encode())).uniform(-roundoff, roundoff, values.shape)
            return values * (1 + draw)

        taps = definition.forward(weights, written.config, self.images, folded=written.layout.folded)
        return {
            (name, tap): summary_error(summarize(tap, value), self._own[name, tap])
            for tap, values in self._watched("measuring what rounding does", taps)
            for name, value in values.items()
        }

    def _measure_float32(self) -> dict[Key, float]:
        checkpoint = self.source or self.written
        taps = definition.forward(
            checkpoint.weights, checkpoint.config, self.images, folded=checkpoint.layout.folded, dtype=np.float32
        )
        return dict(self._to_record(self._watched("measuring what float32 does", taps)))

    def _watched(self, what: str, taps: Taps) -> Taps:
        """The taps, each announced as progress."""
        total = len(tap_names(self.written.config))
        for done, tap in enumerate(taps, 1):
            self.progress(what, done, total)
            yield tap

    def _definition(self) -> Taps:
        written = self.written
        taps = definition.forward(written.weights, written.config, self.images, folded=written.layout.folded)
        for tap, values in taps:
            self._own |= {(name, tap): summarize(tap, value) for name, value in values.items()}
            yield tap, values

    def _to_record(self, taps: Taps) -> Iterator[tuple[Key, float]]:
        for tap, values in taps:
            for name, value in values.items():
                yield (name, tap), summary_error(summarize(tap, value), self.expected.get((name, tap), {}))

    def _to_source(self) -> Iterator[tuple[Key, float]]:
        assert self.source is not None
        truths = definition.forward(self.source.weights, self.source.config, self.images)
        for tap, values in self._definition():
            _, truth = next(truths, ("", {}))
            for name, value in values.items():
                true = truth[name] if self._comparable((name, tap)) else self._zeros(self.images[name])
                self.expected[name, tap] = summarize(tap, true)
                yield (name, tap), relative_l2(value, true)

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
