"""Print text, tables, JSON, warnings and progress."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from convert.reporting.columns import Column, table_lines

if TYPE_CHECKING:
    from convert.progress import Progress

MAX_LINE = 2000
"""Most characters of a printed line: an error lists up to 12 tensors."""
MAX_CELL = 200
"""Most characters of a table's cell, and of the name of a task."""


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a callback that shows a bar on a terminal, or one line for each task elsewhere, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                shown = visible(task, MAX_CELL)
                tasks[task] = bars.add_task(shown, total=None)
                if bars.disable:
                    write(f"{shown} …\n", sys.stderr)
            bars.update(tasks[task], completed=done, total=total or None)

        yield show


def width() -> int | None:
    """Return the characters in a line of the terminal; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if _is_terminal() else None


def print_rich(*lines: str) -> None:
    """Print lines with rich's markup: colours on a terminal, plain text elsewhere. Long lines are not broken."""
    from rich.console import Console
    from rich.errors import MarkupError

    text = io.StringIO()
    console = Console(file=text, force_terminal=_is_terminal(), emoji=False)
    for line in map(visible, lines):
        try:
            console.print(line, highlight=False, soft_wrap=True)
        except MarkupError:  # what was cut out of a long line opened a tag
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    write(text.getvalue(), sys.stdout)


def visible(text: object, most: int = MAX_LINE) -> str:
    """Return text as one line of at most `most` characters in which a terminal finds nothing to obey.

    Names and messages come from files and servers. Control characters, line breaks and the characters that
    change the direction of text are shown as escapes; the middle of a longer text is left out.
    """
    shown = _shortened(str(text), most)
    if not shown.isprintable():
        shown = "".join(char if _is_shown(char) else char.encode("unicode_escape").decode() for char in shown)
    return _shortened(shown, most)


def escape(text: object) -> str:
    """Return `visible` text in which brackets are not taken for rich's markup."""
    from rich.markup import escape

    return escape(visible(text))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table, those columns in `left` aligned left; none without rows.

    On a terminal the last columns are left out if they do not fit; the first always stays.
    """
    cells = [headings, *([visible(cell, MAX_CELL) for cell in row] for row in rows)]
    columns = [Column(column, rank, rank in left) for rank, column in enumerate(zip(*cells, strict=True))]
    first, *others = map(escape, table_lines(columns, width()))
    return [f"[bold]{first}[/]", *others] if others else []


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    write(json.dumps(value, indent=2) + "\n", sys.stdout)


def print_result(as_json: bool, value: Any, lines: Iterable[str]) -> None:
    """Print the value of a command as JSON, or the lines that describe it to people."""
    if as_json:
        print_json(value)
    else:
        print_rich(*lines)


def print_warning(text: str) -> None:
    """Print a line `warning: …` on standard error."""
    print_remark("warning", text)


def print_remark(kind: str, text: str) -> None:
    """Print one line `error: …` or `warning: …` on standard error."""
    write(f"{kind}: {visible(' '.join(text.split()))}\n", sys.stderr)


def write(text: str, stream: TextIO | None) -> None:
    """Print to a stream; one that is closed or full, or has no reader, changes neither work nor verdict."""
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _shortened(text: str, most: int) -> str:
    """Leave out the middle of a text that is too long; at the end an error says what to do."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[3 - most // 3 :]}"


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
