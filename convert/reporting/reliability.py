"""Reliability diagrams: accuracy by confidence, the geometry of the panels that the page of an evaluation draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from convert.evaluation.results import Bin, Run

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Bar:
    """One bin with images, in the coordinates of a panel."""

    x: float
    width: float
    top: float
    """Height of the accuracy."""
    expected: float
    """Height of the mean confidence, where the bar would end if the confidence were right."""
    count_top: float
    """Height of the number of images, in the strip below."""


@dataclass(frozen=True)
class Diagrams:
    """A panel for each run at one width of the page. Coordinates are relative to a panel."""

    name: str
    width: int
    columns: int
    runs: Sequence[Run]
    titles: Sequence[str]
    panel: ClassVar[int] = 190
    """Pixels: width and height of a panel, when the drawing is shown at full width."""
    strip: ClassVar[int] = 34
    """Pixels: height of the strip with the number of images."""
    left: ClassVar[int] = 46
    top: ClassVar[int] = 40
    gap: ClassVar[int] = 8
    foot: ClassVar[int] = 40

    @property
    def row(self) -> int:
        return self.top + self.panel + self.gap + self.strip + self.foot

    @property
    def height(self) -> int:
        return self.row * math.ceil(len(self.runs) / self.columns)

    def corner(self, place: int) -> str:
        """Return the top left corner of a panel as x and y of the drawing."""
        row, column = divmod(place, self.columns)
        return f"{column * self.width // self.columns + self.left} {row * self.row + self.top}"

    def y(self, share: float) -> float:
        return round((1 - share) * self.panel, 1)

    @property
    def ticks(self) -> Iterator[tuple[float, str]]:
        """Place from the left or the bottom, and text of the numbers of both scales."""
        yield from ((round(value * self.panel, 1), f"{value:g}") for value in TICKS)

    def bars(self, bins: Sequence[Bin]) -> Iterator[Bar]:
        """Yield the bins that have images."""
        most = max(part.images for part in bins)
        width = self.panel / len(bins)
        for place, part in enumerate(bins):
            if part.images:
                count_top = round(self.panel + self.gap + self.strip * (1 - part.images / most), 1)
                yield Bar(
                    round(place * width + 0.5, 1),
                    round(width - 1, 1),
                    self.y(part.accuracy),
                    self.y(part.confidence),
                    count_top,
                )

    @property
    def floor(self) -> int:
        """Bottom of the strip."""
        return self.panel + self.gap + self.strip


def diagrams(runs: Sequence[Run], titles: Sequence[str]) -> list[Diagrams]:
    """Return the panels for a wide page and for a narrow one, which shows those that fit."""
    return [
        Diagrams("wide", 1000, 4, runs, titles),
        Diagrams("narrow", 260, 1, runs, titles),
    ]
