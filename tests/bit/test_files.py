"""JSON is read within limits, and each refusal is one line that names the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.odd import assert_one_line

from bit.files import MAX_BYTES, MAX_DEPTH, parse_json, read_json, short


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff{}", "can't decode byte 0xff"),
        (b"[]", "must hold a JSON object, not list"),
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number in JSON"),
        (b'{"a": 1, "a": 2}', "holds a name twice"),
        (b'{"a": {"b": 1, "b": 2}}', "holds a name twice"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": ' + b"[" * 33 + b"]" * 33 + b"}", f"deeper than {MAX_DEPTH} levels"),
        (b'{"a": ' * 100_000, f"deeper than {MAX_DEPTH} levels"),
        (b"[" * 100_000 + b"]" * 100_000, f"deeper than {MAX_DEPTH} levels"),
        (b'{"a": "' + b"x" * MAX_BYTES + b'"}', "larger than 8 MiB"),
    ],
    ids=range(14),
)
def test_what_is_not_a_json_object_within_the_limits_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert_one_line(caught.value)


def test_json_within_the_limits_is_read(tmp_path: Path) -> None:
    nested = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(nested)
    (tmp_path / "a.json").write_text('{"a": ["ü", 1e400, "\\u001b"]}')
    assert read_json(tmp_path / "a.json") == {"a": ["ü", float("inf"), "\x1b"]}


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")


def test_a_value_in_a_message_is_short_and_printable() -> None:
    assert short("relu") == "'relu'"
    assert short((3, 4)) == "(3, 4)"
    for value in ("x" * 10_000, "\x1b[31m\n", "\u202e", [1] * 10_000, {str(i): i for i in range(100)}, 10**400):
        assert len(short(value)) < 200
        assert short(value).isprintable()
