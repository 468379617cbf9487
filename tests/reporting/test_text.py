from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.text import Text
from support.reports import failing, made_up, small, with_checks

from convert.checkpoints.manifest import Manifest
from convert.reporting.text import number, summary, tap_table, verdicts
from convert.verification.results import Verification

WIDTHS = (40, 60, 80, 100, 120, 200)


def plain(lines: list[str]) -> list[str]:
    """Return what a terminal shows of lines in rich's markup."""
    return [Text.from_markup(line).plain for line in lines]


def headings(verification: Verification, width: int | None) -> list[str]:
    return plain(tap_table(verification, width))[1].split()


@pytest.mark.parametrize("made", [made_up, failing])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_fits_the_terminal_and_cuts_nothing_off(
    made: Callable[[str], tuple[Verification, Manifest]], width: int
) -> None:
    verification, _ = made("R50x1")
    head, names, *rows = plain(tap_table(verification, width))
    assert max(len(line) for line in (head, names, *rows)) <= width
    assert head.split() == ["float64", "float32"]
    taps = list(dict.fromkeys(check.tap for check in verification.checks))
    assert [row.split()[0] for row in rows] == taps
    complete = r"\d\.\de[-+]\d\d|inf"
    for row in rows:
        found = re.findall(rf"(?<=\s)(?:✗ )?({complete})(?=\s|$)", row)
        assert len(found) >= names.split().count("error") + names.split().count("tolerance")
        assert "…" not in row


def test_columns_are_left_out_as_the_terminal_narrows() -> None:
    verification, _ = made_up("R50x1")
    shown = [headings(verification, width) for width in (30, 40, 60, 80, 120, 200, None)]
    assert shown[0] == shown[1] == ["tap", "error", "error"]
    assert shown[2] == ["tap", "error", "tolerance", "error", "tolerance"]
    assert shown[3] == ["tap", "error", "tolerance", "run", "error", "tolerance"]
    assert shown[4] == ["tap", "error", "tolerance", "run", "error", "tolerance", "run"]
    assert shown[5] == shown[6] == ["tap", "error", "tolerance", "run", "error", "tolerance", "run"]


def test_the_table_shows_the_error_closest_to_the_tolerance_and_marks_failures() -> None:
    verification, _ = failing()
    rows = {line.split()[0]: line for line in plain(tap_table(verification))[2:]}
    assert "✗ inf" in rows["pooled"]
    assert rows["pooled"].count("bit (PyTorch)") == 2
    assert "✗ 3.0e-04" in rows["block4/unit01"]
    assert "✗" not in rows["block1/unit01"]


def test_a_table_without_comparisons_is_empty() -> None:
    verification, _ = small()
    assert tap_table(with_checks(verification, [])) == []


def test_a_run_that_agrees_is_one_line_with_the_greatest_error() -> None:
    verification, _ = made_up()
    lines = plain(summary(verification))
    assert (
        "✓ oracle float64: 9 taps of 2 inputs agree, greatest error 2.0e-14 at logits (up to 1.0e-09 allowed)" in lines
    )
    one = with_checks(verification, [check for check in verification.checks if check.input == "odd"])
    assert any("9 taps of 1 input agree" in line for line in plain(summary(one)))


def test_a_run_that_differs_is_one_line_with_the_first_tap() -> None:
    verification, _ = failing()
    lines = plain(summary(verification))
    words = "4 of 18 taps differ, first at block3/unit01 (square input, 224×224): error 3.0e-04 (up to 1.0e-09 allowed)"
    assert f"✗ timm on the source float64: {words}" in lines
    odd = with_checks(verification, [check for check in verification.checks if check.input == "odd"])
    assert any("first at block3/unit01 (odd input, 193×257)" in line for line in plain(summary(odd)))


def test_the_bytes_are_one_line() -> None:
    verification, _ = made_up()
    count = verification.tensors_exact
    assert f"✓ bytes: all {count} tensors convert back to the source exactly" in plain(summary(verification))
    failed = replace(verification, problems=("a tensor differs",), tensors_exact=count - 1)
    assert f"✓ bytes: {count - 1} tensors convert back to the source exactly" in plain(summary(failed))
    changed = plain(summary(replace(verification, tensors_exact=2, tensors_changed=3)))
    assert "✓ bytes: 2 tensors convert back to the source exactly" in changed
    assert "✓ bytes: 3 tensors are exactly the source's after the stated change" in changed


def test_everything_else_has_a_line_too() -> None:
    lines = "\n".join(plain(summary(failing()[0])))
    for words in (
        "✗ config.json is missing",
        "✗ timm: block3/unit01: the kernel of conv2 is mirrored",
        "✗ bit (PyTorch): pooled: no known mistake explains the error",
        "✓ classes: top 1 and top 5 of 3 images are the same in every run",
        "✗ preprocessing: landscape image, greatest difference 31.2 of 255 levels (up to 0.01 allowed): mean and",
        "✗ preprocessing: small image, greatest difference 2 of 255 levels (up to 0.01 allowed); no known mistake",
        "  tolerances include the rounding of the weights to float16",
        "  reference: recordings of the original code",
        "  not run: onnxruntime, it cannot read",
        "epsilon 1e-08, this checkpoint expects 1e-10: logits computed there differ by 3.5e-04 (odd input, 193×257)",
    ):
        assert words in lines


def test_classes_that_differ_are_noted() -> None:
    verification, _ = small()
    first, *others = verification.network.agreements
    network = replace(verification.network, agreements=(replace(first, top1=0), *others))
    assert any(
        line.startswith("! classes: ") and "not the same in every run" in line
        for line in plain(summary(replace(verification, network=network)))
    )


def test_names_are_not_taken_for_markup() -> None:
    verification, _ = small()
    assert "✗ [red]x[/] is missing" in plain(summary(replace(verification, problems=("[red]x[/] is missing",))))


def test_the_verdict_names_the_part_that_failed() -> None:
    passed, failed = made_up()[0], failing()[0]
    assert plain(verdicts(passed)) == ["verified"]
    assert plain(verdicts(failed)) == ["the model differs", "the preprocessing differs", "verification failed"]
    pixels = replace(passed, pixels=failed.pixels)
    assert plain(verdicts(pixels)) == ["the model is verified", "the preprocessing differs", "verification failed"]


def test_numbers_in_words() -> None:
    assert [number(value) for value in (1.23e-5, 0.0, math.inf, None)] == ["1.2e-05", "0", "not finite", "not finite"]
