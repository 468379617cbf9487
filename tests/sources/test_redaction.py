"""Credentials in texts and addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.sources.redaction import LONGEST, credentials, redacted, without_credentials

TOKEN = "hf_AbCdEfGhIjKlMnOp"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"not with {TOKEN}", "not with hf_…"),
        (f"b'Bearer {TOKEN}'", "b'Bearer hf_…'"),
        ("Authorization: Basic c29tZW9uZTpwYXNz==", "Authorization: Basic …"),
        ("at https://me:pass@host/a/b?X-Amz-Signature=0123 now", "at https://host/a/b now"),
        ("a\x1b[2J\r\nb\x00\u202ec", r"a\x1b[2J b\x00\u202ec"),
        ("basic facts", "basic facts"),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("spelling", ["se cret/\n1", r"se cret/\n1", "se%20cret%2F%0A1"])
def test_a_secret_is_found_in_several_spellings(spelling: str) -> None:
    assert redacted(f"[{spelling}]", ["se cret/\n1"]) == "[…]"


def test_a_short_secret_does_not_blot_out_words() -> None:
    assert redacted("a cat", ["a", ""]) == "a cat"


@given(st.text())
def test_a_text_becomes_one_short_line(text: str) -> None:
    line = redacted(text)
    assert len(line) <= LONGEST
    assert line.isprintable()


@pytest.mark.parametrize(
    ("url", "shown", "found"),
    [
        ("https://host/a@b?c@d", "https://host/a@b?c@d", None),
        ("https://me:p%40ss@host:8080/a@b", "https://host:8080/a@b", ("me", "p@ss")),
        ("https://me:p@ss@host/a", "https://host/a", ("me", "p@ss")),
        ("https://token@host/a", "https://host/a", ("token", "")),
        ("http://me:pass@[::1]:80/a", "http://[::1]:80/a", ("me", "pass")),
        ("https://me:p/ss@host/a", "https://host/a", None),
        ("me:pass@host/a", "host/a", None),
        ("https:/me:pass@host/a", "host/a", None),
        ("", "", None),
    ],
)
def test_an_address_is_shown_without_credentials(url: str, shown: str, found: tuple[str, str] | None) -> None:
    assert without_credentials(url) == shown
    assert credentials(url) == found


@given(st.text(alphabet="a:/@?#[]%.", max_size=20), st.sampled_from(["", "http://", "https:/"]))
def test_no_address_is_an_error(text: str, scheme: str) -> None:
    url = f"{scheme}someone:password@{text}"
    assert "password" not in without_credentials(url)
    credentials(url)
