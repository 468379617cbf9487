"""Output on terminals and in pipes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.text import Text
from support.command import assert_refused, run_here

from convert.cli.terminal import (
    MAX_LINE,
    escape,
    print_remark,
    print_result,
    print_rich,
    print_warning,
    progress_bar,
    table,
    visible,
    width,
    write,
)

ROWS = [("block1/unit01/conv1/kernel", "1.234e-05", "square"), ("[a]", "1", "")]


def test_a_table_in_a_pipe_is_as_wide_as_its_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_rich(*table(("name", "error", "input"), ROWS, left=(0, 2)))
    assert capsys.readouterr().out.splitlines() == [
        "name                            error  input",
        "block1/unit01/conv1/kernel  1.234e-05  square",
        "[a]                                 1",
    ]
    print_rich(*table(("name", "error"), []))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("columns", "shown"), [(45, 3), (44, 2), (37, 2), (36, 1), (5, 1)])
def test_a_table_on_a_terminal_leaves_out_whole_columns(
    columns: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convert.cli.terminal.width", lambda: columns)
    for row, line in zip([("name", "error", "input"), *ROWS], table(("name", "error", "input"), ROWS), strict=True):
        assert Text.from_markup(line).plain.split() == [cell for cell in row[:shown] if cell]


def test_the_list_of_the_zoo_fits_60_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("convert.cli.terminal.width", lambda: 60)
    lines = run_here("list", cwd=tmp_path).stdout.splitlines()
    assert lines[0].split() == ["name", "classes", "top-1", "%", "input"]
    rows = [line for line in lines if line.startswith("BiT-")]
    assert len(rows) > 20
    assert all(len(line) <= 60 for line in rows)


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_rich("[bold green]✓[/] " + "word " * 20)
    assert capsys.readouterr().out == "✓ " + "word " * 20 + "\n"


def test_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert width() is None


def test_a_missing_stream_is_ignored() -> None:
    write("text", None)


HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\r\n\u202egpj.exe\u2028\ud800[red]"
SHOWN = r"\x1b[2J\x1b]0;title\x07\x9b31m\x7f\r\n\u202egpj.exe\u2028\ud800[red]"


def test_control_characters_are_shown_escaped_and_others_as_they_are() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("Grüße 猫 ´ \xa0\u3000✓ ÷") == "Grüße 猫 ´ \xa0\u3000✓ ÷"
    assert visible(Path("a\tb")) == r"a\tb"


def test_a_long_line_is_shortened_in_the_middle() -> None:
    shown = visible("start" + "x" * 5_000_000 + "end")
    assert shown.startswith("start")
    assert " … " in shown
    assert shown.endswith("end")
    assert len(shown) <= MAX_LINE
    assert len(visible("\U0010ffff" * MAX_LINE)) <= MAX_LINE


def test_lines_tables_warnings_and_errors_show_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_rich(f"[bold]{escape(HOSTILE)}[/]", f"[green]✓[/] {HOSTILE}", "[/wrong] markup", "[red]" + "x" * 5000 + "[/]")
    print_rich(*table(("name", "error"), [(HOSTILE, "1"), ("y" * 5_000_000, "2")]))
    print_warning(HOSTILE)
    print_remark("error", "z" * 5_000_000)
    out, err = capsys.readouterr()
    assert out.count(SHOWN.removesuffix("[red]")) == 3
    assert r"\x1b[2J" in err
    assert len(out.splitlines()) == 4 + 3
    for line in (*out.splitlines(), *err.splitlines()):
        assert line.isprintable()
        assert len(line) < MAX_LINE + 10


def test_the_name_of_a_task_is_not_markup_and_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress(f"downloading [/b]{HOSTILE}", 1, 2)
    assert capsys.readouterr().err == f"downloading [/b]{SHOWN} …\n"


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(True, {"name": HOSTILE * 1000}, [])
    assert json.loads(capsys.readouterr().out) == {"name": HOSTILE * 1000}


def test_names_of_tensors_and_files_in_errors_are_escaped(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"\x1b[31m{number}\u202e{'x' * 9000}": np.zeros(3) for number in range(20)})
    for arguments in (["inspect", "a.npz"], ["convert", "a.npz"], ["inspect", "\x1b[31mb.npz"], ["\x1b[31m"]):
        result = run_here(*arguments, cwd=tmp_path)
        assert_refused(result, r"\x1b[31m", tmp_path)
        assert result.stderr.rstrip("\n").isprintable()
        assert len(result.stderr) < MAX_LINE + 10
