"""Print text, tables, JSON, warnings and progress."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from convert.progress import Progress


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a callback that shows a bar on a terminal, or one line for each task elsewhere, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=None)
                if bars.disable:
                    write(f"{task} …\n", sys.stderr)
            bars.update(tasks[task], completed=done, total=total or None)

        yield show


def width() -> int | None:
    """Return the characters in a line of the terminal; None if standard output is not a terminal."""
    return shutil.get_terminal_size().columns if _is_terminal() else None


def print_rich(*lines: str) -> None:
    """Print lines with rich's markup: colours on a terminal, plain text elsewhere. Long lines are not broken."""
    from rich.console import Console

    text = io.StringIO()
    console = Console(file=text, force_terminal=_is_terminal(), emoji=False)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    write(text.getvalue(), sys.stdout)


def escape(text: object) -> str:
    """Return text in which brackets are not taken for rich's markup."""
    from rich.markup import escape

    return escape(str(text))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table, each column as wide as needed, those in `left` aligned left; none without rows."""
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        escape("  ".join(cell.ljust(size) if number in left else cell.rjust(size) for number, (cell, size) in row))
        for row in (enumerate(zip(line, widths, strict=True)) for line in cells)
    ]
    return [f"[bold]{lines[0].rstrip()}[/]", *(line.rstrip() for line in lines[1:])] if len(lines) > 1 else []


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
    write(f"warning: {text}\n", sys.stderr)


def write(text: str, stream: TextIO | None) -> None:
    """Print to a stream; one that is closed or full, or has no reader, changes neither work nor verdict."""
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
