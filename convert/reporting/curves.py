"""Loss and accuracy of a training: the geometry of the plot that the page draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from convert.checkpoints.training import TrainingCurve

MOST_POINTS = 500
"""Points of a line; of more steps, the mean of as many neighbours as needed is drawn."""
SCALE_WIDTH, TITLE_HEIGHT, MARGIN = 46, 26, 18
"""Pixels: the numbers beside a panel, the name above it, and the space around."""
LABELS_HEIGHT = 20
TICKS = 4


@dataclass(frozen=True)
class Panel:
    """One quantity by the number of steps."""

    name: str
    last: str
    """The last value, in words."""
    points: tuple[tuple[float, float], ...]
    """Step and value."""
    highest: float
    """Upper end of the scale; the lower is 0."""
    percent: bool = False

    def tick(self, value: float) -> str:
        return f"{value:.0%}" if self.percent else f"{value:.3g}"


@dataclass(frozen=True)
class CurveDrawing:
    """The panels at one width, beside each other if it is wide. Coordinates are relative to a panel."""

    name: str
    width: int
    columns: int
    panels: tuple[Panel, ...]
    steps: int
    panel_height: ClassVar = 160

    @property
    def panel_width(self) -> int:
        return self.width // self.columns - SCALE_WIDTH - MARGIN

    @property
    def height(self) -> int:
        rows = -(-len(self.panels) // self.columns)
        return rows * (TITLE_HEIGHT + self.panel_height + LABELS_HEIGHT + MARGIN)

    def corner(self, place: int) -> str:
        """Return the top left corner of a panel as x and y of the drawing."""
        row, column = divmod(place, self.columns)
        top = row * (TITLE_HEIGHT + self.panel_height + LABELS_HEIGHT + MARGIN) + TITLE_HEIGHT
        return f"{column * self.width // self.columns + SCALE_WIDTH} {top}"

    def x(self, step: float) -> float:
        return round(step * self.panel_width / self.steps, 1)

    def y(self, panel: Panel, value: float) -> float:
        return round((1 - min(max(value / panel.highest, 0), 1)) * self.panel_height, 1)

    def path(self, panel: Panel) -> str:
        """Return the line of a panel."""
        return "".join(
            f"{'L' if place else 'M'}{self.x(step)} {self.y(panel, value)}"
            for place, (step, value) in enumerate(panel.points)
        )

    def ticks(self, panel: Panel) -> Iterator[tuple[float, str]]:
        """Yield height and text of the numbers beside a panel."""
        for number in range(TICKS + 1):
            value = panel.highest * number / TICKS
            yield self.y(panel, value), panel.tick(value)

    @property
    def labels(self) -> Iterator[tuple[float, str]]:
        """Yield place and text of the numbers of steps below a panel."""
        for number in range(TICKS + 1):
            step = self.steps * number // TICKS
            yield self.x(step), f"{step:,}"


def curve_drawings(curve: TrainingCurve) -> list[CurveDrawing]:
    """Return a drawing for a wide page and one for a narrow page; none for a training without steps."""
    if not curve.loss:
        return []
    steps = len(curve.loss)
    lines = _thinned(curve.loss)
    panels = [Panel("loss", f"last {curve.loss[-1]:.3g}", lines, max(value for _, value in lines) or 1.0)]
    if curve.evaluations:
        found = tuple((float(item.step), item.accuracy) for item in curve.evaluations)
        panels.append(Panel("validation accuracy", f"last {found[-1][1]:.2%}", found, 1.0, percent=True))
    return [
        CurveDrawing("wide", 1000, len(panels), tuple(panels), steps),
        CurveDrawing("narrow", 360, 1, tuple(panels), steps),
    ]


def _thinned(values: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Return step and value, the mean of several steps if there are more than `MOST_POINTS`."""
    every = -(-len(values) // MOST_POINTS)
    groups = [values[start : start + every] for start in range(0, len(values), every)]
    return tuple((min((place + 1) * every, len(values)), sum(group) / len(group)) for place, group in enumerate(groups))
