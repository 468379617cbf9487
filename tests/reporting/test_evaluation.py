from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.evaluations import BINS, DATA, PAIR, RUN, differing, evaluation

from convert.reporting.evaluation import command, difference_words, percent, rate, render, short_names, write_evaluation
from convert.reporting.reliability import diagrams


def test_the_page_shows_scores_comparisons_and_what_was_not_run() -> None:
    page = render(evaluation())
    for words in ("97.21 %", "99.89 %", "2.13 %", "0.1034", "839 of 840", "row 17", "keras is not installed", "agree"):
        assert words in page
    assert '<strong><span aria-hidden="true">✗' not in page
    assert page.count("<svg") == 2
    assert render(evaluation()) == page


def test_a_page_of_outputs_that_differ_says_so() -> None:
    page = render(differing())
    assert "✗" in page
    assert "the outputs differ: relative L2 3.0e-01" in page
    assert page.count("<td>8</td>") == 30
    assert "1 image could not be read and was left out" in page
    assert "onnx states other preprocessing" in page


def test_the_page_of_many_differences_stays_short() -> None:
    pair = replace(PAIR, relative_l2=0.3, disagreements=PAIR.disagreements * 1000)
    page = render(evaluation(pairs=(pair,)))
    assert page.count("<td>8</td>") == 200
    assert "800 more images of onnx are in <code>evaluation.json</code>" in page


def test_names_from_files_are_text_on_the_page() -> None:
    evil = "<script>alert(1)</script>"
    data = replace(DATA, name=evil, classes=(evil, "b"), skipped=(evil,))
    run = replace(RUN, checkpoint=evil, preprocessing=evil, notes=(evil,), version=evil)
    pair = replace(PAIR, first=evil, disagreements=(replace(PAIR.disagreements[0], image=evil, label=evil),))
    page = render(replace(evaluation(), data=data, runs=(run, run), pairs=(pair,), warnings=(evil,)))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 10


def test_bars_have_the_height_of_the_accuracy_and_marks_that_of_the_confidence() -> None:
    wide, narrow = diagrams([RUN, RUN], ["a", "b"])
    bars = list(wide.bars(BINS))
    assert len(bars) == 7
    assert bars[-1].top == pytest.approx(wide.panel * (1 - 0.9), abs=0.1)
    assert bars[-1].expected == pytest.approx(wide.panel * 0.03, abs=0.1)
    assert bars[-1].count_top == wide.panel + wide.gap
    assert bars[0].x == pytest.approx(8 / 15 * wide.panel + 0.5, abs=0.1)
    assert (wide.height, wide.columns, narrow.columns) == (wide.row, 4, 1)
    assert narrow.height == 2 * narrow.row


def test_words_for_every_kind_of_difference() -> None:
    assert difference_words(PAIR) == (
        "1 of 840 images have another first class, each explained by its margin (at most 3.3e-05): relative L2 3.1e-05 "
        "(up to 1.0e-02 expected from rounding of float32 and epsilon 1e-08 in the first and 1e-10 here)"
    )
    assert difference_words(replace(PAIR, disagreements=())).startswith("all 840 images have the same first class")
    assert difference_words(replace(PAIR, relative_l2=1.0)).startswith("the outputs differ")
    assert difference_words(replace(PAIR, tolerance=None)).endswith("the images were prepared differently")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["out/digits/timm", "/tmp/digits/onnx"], ["timm", "onnx"]),
        (["a/digits/timm", "b/digits/timm", "c/onnx"], ["a/digits/timm", "b/digits/timm", "c/onnx"]),
        (["a/timm", "b/timm", "b/timm"], ["a/timm", "b/timm", "b/timm"]),
        (["a/timm"], ["a/timm"]),
        (["a/timm", "a/timm"], ["a/timm", "a/timm"]),
        (["timm", "a/timm"], ["timm", "a/timm"]),
        (["a/timm", "./a/timm"], ["a/timm", "./a/timm"]),
    ],
)
def test_short_names_tell_the_checkpoints_apart(names: list[str], shown: list[str]) -> None:
    assert short_names(evaluation(runs=tuple(replace(RUN, checkpoint=name) for name in names))) == shown


def test_the_command_repeats_the_evaluation() -> None:
    assert command(replace(differing(), preprocessing="each")) == (
        "bit evaluate converted/digits/transformers converted/digits/onnx --data digits --split val "
        "--preprocessing each --skip-bad-images"
    )


def test_numbers_are_short() -> None:
    assert [percent(None), percent(1), percent(0.12345)] == ["–", "100.00 %", "12.35 %"]
    assert [rate(1234.5), rate(43.31), rate(0.123456)] == ["1234", "43.3", "0.123"]


def test_a_report_is_a_page_or_strict_json(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "new" / "a.json", evaluation())
    write_evaluation(tmp_path / "new" / "a.html", evaluation())
    values = json.loads((tmp_path / "new" / "a.json").read_text("utf-8"))
    assert (values["complete"], values["pairs"][0]["explained"], values["schema"]) == (False, True, 1)
    assert values["runs"][0]["scores"]["top1"] == 0.9721
    page = (tmp_path / "new" / "a.html").read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
