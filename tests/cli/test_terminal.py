"""Output on terminals and in pipes."""

from __future__ import annotations

import io
import sys

import pytest

from convert.cli.terminal import print_rich, table, width, write


def test_a_table_is_as_wide_as_its_cells_whatever_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_rich(*table(("name", "error"), [("block1/unit01/conv1/kernel", "1.234e-05"), ("[a]", "1")]))
    assert capsys.readouterr().out.splitlines() == [
        "name                            error",
        "block1/unit01/conv1/kernel  1.234e-05",
        "[a]                                 1",
    ]
    print_rich(*table(("name", "error"), []))
    assert capsys.readouterr().out == ""


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_rich("[bold green]✓[/] " + "word " * 20)
    assert capsys.readouterr().out == "✓ " + "word " * 20 + "\n"


def test_a_pipe_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert width() is None


def test_a_missing_stream_is_ignored() -> None:
    write("text", None)
