"""The errors of a verification through the depth of the network: the geometry of the plots that the page draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from convert.reporting.text import grouped, worst
from convert.verification.results import SOURCE, Check

SCALE_WIDTH, TITLE_HEIGHT, MARGIN = 46, 26, 18
"""Pixels, when the drawing is shown at full width: the numbers beside a panel, the name above it, and the gaps."""
LABEL_SPACING, LABEL_CHARACTER = 13, 6
"""Pixels: the least distance of two names of taps, and the width of one character."""
TICKS = 5
DECADES = 30
"""A logarithm beyond ±30 is drawn at the edge."""

MARKS: dict[str, Callable[[Check], bool]] = {
    "over": lambda check: not check.passed,
    "infinite": lambda check: not math.isfinite(check.error),
    "zero": lambda check: check.error == 0,
}
"""Marks on single points, by their names in the template."""


@dataclass(frozen=True)
class Plot:
    """The errors of one dtype in one mode through depth."""

    id: str
    dtype: str
    mode: str
    checks: list[Check]
    series: dict[str, dict[str, Check]]
    """By run and tap: the check, of those of all inputs, that is closest to the tolerance."""

    @cached_property
    def taps(self) -> dict[str, Check]:
        """The same for all runs together, in order of depth."""
        return _worst_by_tap(self.checks)

    @cached_property
    def powers(self) -> tuple[int, int]:
        """The ends of the log scale, as powers of ten: around all values that it can show."""
        values = [value for check in self.checks for value in (check.error, check.tolerance)]
        logs = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
        low, high = math.floor(min(logs)) - (0 in values), math.floor(max(logs)) + 2
        return min(max(low, -DECADES), DECADES - 2), min(max(high, 2 - DECADES), DECADES)

    @property
    def marks(self) -> list[str]:
        return [name for name, applies in MARKS.items() if any(map(applies, self.checks))]

    @property
    def drawings(self) -> list[Drawing]:
        """One for a wide page and one for a narrow page, which shows the one that fits."""
        return [Drawing(self, "wide", 1000, min(2, len(self.series))), Drawing(self, "narrow", 360, 1)]


@dataclass(frozen=True)
class Drawing:
    """A plot at one size: a panel for each run, all to the same scale. Coordinates are relative to a panel."""

    plot: Plot
    name: str
    width: int
    columns: int
    panel_height: ClassVar = 100

    @property
    def panel_width(self) -> int:
        return self.width // self.columns - SCALE_WIDTH - MARGIN

    @property
    def height(self) -> int:
        rows = math.ceil(len(self.plot.series) / self.columns)
        labels = LABEL_CHARACTER * max(map(len, self.plot.taps)) + MARGIN
        return rows * (TITLE_HEIGHT + self.panel_height + MARGIN) + labels

    def corner(self, place: int) -> str:
        """Return the top left corner of a panel as x and y of the drawing."""
        row, column = divmod(place, self.columns)
        x = column * self.width // self.columns + SCALE_WIDTH
        return f"{x} {row * (TITLE_HEIGHT + self.panel_height + MARGIN) + TITLE_HEIGHT}"

    def x(self, place: float) -> float:
        """Return the middle of the column of a tap."""
        return round((place + 0.5) * self.panel_width / len(self.plot.taps), 1)

    def y(self, value: float) -> float:
        """Return the height of a value; one that the scale cannot show is moved to the nearer end."""
        low, high = self.plot.powers
        power = high if not math.isfinite(value) else math.log10(value) if value > 0 else low
        return round((high - min(max(power, low), high)) * self.panel_height / (high - low), 1)

    @property
    def ticks(self) -> Iterator[tuple[float, str]]:
        """Height and text of the numbers of the scale."""
        powers = range(self.plot.powers[0], self.plot.powers[1] + 1)
        yield from ((self.y(10.0**power), f"1e{power}") for power in powers[:: math.ceil(len(powers) / TICKS)])

    @property
    def labels(self) -> Iterator[tuple[float, str]]:
        """Place and text of the names of the taps, as many as can be read."""
        every = math.ceil(len(self.plot.taps) * LABEL_SPACING / self.panel_width)
        yield from ((self.x(place), tap) for place, tap in list(enumerate(self.plot.taps))[::every])

    @property
    def borders(self) -> list[float]:
        """Places between two blocks of the network."""
        blocks = [tap.split("/")[0] for tap in self.plot.taps]
        return [self.x(place - 0.5) for place in range(1, len(blocks)) if blocks[place] != blocks[place - 1]]

    def tolerances(self, run: str) -> str:
        """Return a path from left to right, a step for each tap."""
        found = self.plot.series[run]
        steps = [self.y(found.get(tap, check).tolerance) for tap, check in self.plot.taps.items()]
        return "".join(
            f"{'L' if place else 'M'}{self.x(place - 0.5)} {y}H{self.x(place + 0.5)}" for place, y in enumerate(steps)
        )

    def points(self, run: str) -> list[tuple[float, float, list[str]]]:
        """Return place, height and marks of the error of each tap."""
        found = self.plot.series[run]
        return [
            (self.x(place), self.y(check.error), [name for name, applies in MARKS.items() if applies(check)])
            for place, tap in enumerate(self.plot.taps)
            if (check := found.get(tap))
        ]


def plots(checks: Sequence[Check]) -> list[Plot]:
    """Return a plot for each dtype and mode, in the order of the checks."""
    return [
        Plot(
            f"plot{count}", dtype, mode, same, {_name(run): _worst_by_tap(run) for run in grouped(same, "run").values()}
        )
        for count, ((dtype, mode), same) in enumerate(grouped(checks, "dtype", "mode").items(), 1)
    ]


def _name(checks: Sequence[Check]) -> str:
    """Return the name of a run without dtype and mode."""
    return checks[0].implementation + (" on the source" if checks[0].side == SOURCE else "")


def _worst_by_tap(checks: Sequence[Check]) -> dict[str, Check]:
    return {tap: worst(same) for tap, same in grouped(checks, "tap").items()}
