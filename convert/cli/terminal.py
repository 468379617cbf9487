"""What `convert.cli.main` prints with: text, tables, JSON, warnings and progress."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from convert.progress import Progress


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on a terminal, elsewhere a line for each kind of work; on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        seen: set[str] = set()

        def line(what: str, done: int, total: int) -> None:
            if what not in seen:
                seen.add(what)
                write(f"{what} …\n", sys.stderr)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield bar


def print_rich(*items: RenderableType) -> None:
    """Text with rich's markup, and tables, as wide and as colourful as standard output allows."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        for item in items:
            console.print(item, highlight=False, soft_wrap=isinstance(item, str))
    write(captured.get(), sys.stdout)


def print_json(value: Any) -> None:
    write(json.dumps(value, indent=2) + "\n", sys.stdout)


def print_warning(text: str) -> None:
    write(f"warning: {text}\n", sys.stderr)


def write(text: str, stream: TextIO | None) -> None:
    """Print; a stream that is closed or full, or whose reader went away, changes neither work nor verdict."""
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
