"""Columns of a table on a terminal: one that does not fit is left out whole, and nothing is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
"""Space between two columns."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column, with the headings as the first cells."""

    cells: Sequence[str]
    rank: int = 0
    """0 is always shown; the greatest is left out first."""
    left: bool = False
    """Align left instead of right."""

    @property
    def width(self) -> int:
        return max(map(len, self.cells))

    def aligned(self) -> list[str]:
        return [cell.ljust(self.width) if self.left else cell.rjust(self.width) for cell in self.cells]


def fitting(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Return the columns that fit into lines of `width` characters; all if there is no width."""
    shown = [column for column in columns if column.rank == 0]
    for column in sorted(columns, key=lambda column: column.rank)[len(shown) :]:
        if width is not None and sum(len(GAP) + item.width for item in (*shown, column)) - len(GAP) > width:
            break
        shown.append(column)
    return [column for column in columns if column in shown]


def table_lines(columns: Sequence[Column], width: int | None = None) -> list[str]:
    """Return the rows of a table of all columns that fit."""
    return [GAP.join(row).rstrip() for row in zip(*(c.aligned() for c in fitting(columns, width)), strict=True)]
