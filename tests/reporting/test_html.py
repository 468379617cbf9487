from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from support.reports import HASH, RUNS, failing, made_up, small, with_checks

from convert.checkpoints.options import UNCHANGED
from convert.reporting.html import SignedBy, render
from convert.reporting.plot import plots
from convert.verification.results import PixelCheck, Verification

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page in order: tag, attributes, and the text in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(self.elements[-1][2])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for text in self._open:
            text.append(data)

    def texts(self, tag: str) -> list[str]:
        """Return the text of every element with this tag."""
        return [" ".join("".join(text).split()) for name, _, text in self.elements if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes, _ in self.elements if (value := attributes.get(attribute)) is not None]


@pytest.fixture(scope="module", params=[made_up, failing])
def page(request: pytest.FixtureRequest) -> Page:
    return Page(render(*request.param()))


def test_the_policy_allows_its_own_style_sheet_and_nothing_else(page: Page) -> None:
    raw = ["".join(text) for tag, _, text in page.elements if tag == "style"]
    digest = base64.b64encode(hashlib.sha256(raw[0].encode()).digest()).decode()
    policy = next(a["content"] for _, a, _ in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert len(raw) == 1


def test_nothing_refers_beyond_the_page(page: Page) -> None:
    forbidden = {"script", "link", "iframe", "object", "embed", "img", "image", "base", "form", "metadata"}
    assert not forbidden & {tag for tag, _, _ in page.elements}
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not [name for name in names if name in ("style", "src", "srcset", "action") or name.startswith("on")]
    ids = set(page.values("id"))
    assert {link[:1] for link in page.values("href")} == {"#"}
    assert {link[1:] for link in page.values("href")} <= ids
    assert {clip[5:-1] for clip in page.values("clip-path")} <= ids
    assert {label for labels in page.values("aria-labelledby") for label in labels.split()} <= ids
    everything = [*(value for _, a, _ in page.elements for value in a.values()), *page.texts("html")]
    assert not [text for text in everything if re.search(r"://|@import", text or "")]
    assert {url for text in everything for url in re.findall(r"url\((.)", text or "")} <= {"#"}


def test_ids_are_unique_and_labels_of_regions_too(page: Page) -> None:
    for attribute in ("id", "aria-label"):
        values = page.values(attribute)
        assert len(values) == len(set(values))


def test_colours_are_those_of_the_style_sheet(page: Page) -> None:
    sheet = page.texts("style")[0]
    drawn = {value for _, a, _ in page.elements for key in ("fill", "stroke") if (value := a.get(key))}
    assert drawn - {"none"}
    for colour in drawn - {"none"}:
        assert sheet.count(f"{colour[4:-1]}: #") == 2, f"{colour} is not both light and dark"


def test_every_tap_and_every_run_is_in_a_table_and_in_a_plot(page: Page) -> None:
    verification, _ = made_up()
    found = plots(verification.checks)
    assert [f"{p.dtype}, {p.mode}" for p in found] == [text for text in page.texts("h3") if text.startswith("float")]
    headings, drawings = page.texts("th"), drawn_words(page)
    for order, (plot, figure) in enumerate(zip(found, page.texts("figure"), strict=True)):
        wide, narrow = drawings[2 * order : 2 * order + 2]
        assert {*plot.taps} <= set(wide)
        for name in plot.series:
            for words in (wide, narrow):
                assert sum(word in (name, f"✗ {name}") for word in words) == 1, "each run has a panel of its own"
        assert all(tap in figure for tap in plot.taps)
        assert {*plot.taps, *plot.series} <= set(headings)
    assert set(verification.network.environments) <= set(headings)


def drawn_words(page: Page) -> list[list[str]]:
    """Return the words in each drawing, in order."""
    return [[" ".join(word.split()) for word in text if word.strip()] for tag, _, text in page.elements if tag == "svg"]


def test_every_run_has_the_same_name_in_every_plot() -> None:
    verification, _ = made_up()
    assert len({name for plot in plots(verification.checks) for name in plot.series}) == len(RUNS)


def test_a_panel_names_the_greatest_error_and_marks_a_failure() -> None:
    words = drawn_words(Page(render(*failing())))[0]
    assert words[words.index("✗ timm on the source") + 1] == "greatest 3.0e-04"
    assert words[words.index("✗ bit (PyTorch)") + 1] == "not finite"
    assert words[words.index("oracle") + 1] == "greatest 2.0e-14"


def test_errors_and_tolerances_are_drawn_to_scale() -> None:
    verification, _ = small()
    first = verification.checks[0]
    checks = [replace(first, error=error, tolerance=1e-3, tap=tap) for tap, error in (("a", 1e-5), ("b", 1e-2))]
    (plot,) = plots(checks)
    assert plot.powers == (-5, 0)
    wide, narrow = plot.drawings
    assert [y for _, y, _ in wide.points("bit (PyTorch)")] == [wide.panel_height, wide.panel_height * 2 / 5]
    assert [marks for _, _, marks in wide.points("bit (PyTorch)")] == [[], ["over"]]
    assert narrow.tolerances("bit (PyTorch)") == "M0.0 60.0H{0}L{0} 60.0H{1}".format(
        narrow.panel_width / 2, float(narrow.panel_width)
    )


def test_a_passed_verification_is_reported_with_the_comparison_closest_to_the_tolerance() -> None:
    verification, manifest = made_up()
    nearest = replace(verification.checks[20], tap="pooled", error=9.5e-10)
    verification = with_checks(verification, [*verification.checks[:20], nearest, *verification.checks[21:]])
    page = Page(render(verification, manifest))
    assert page.texts("title") == ["Synthetic-R14x1, transformers: verified"]
    assert "✓ Verified" in page.texts("h2")
    assert page.texts("dd")[:3:2] == ["✓ passed", "✓ passed"]
    assert "✗" not in page.texts("html")[0]
    words = f"{nearest.run} at pooled (square input, 224×224): error 9.5e-10 (up to 1.0e-09 allowed)."
    assert f"Closest to the tolerance: {words}" in page.texts("li")


def test_a_failed_verification_is_reported_with_causes() -> None:
    page = Page(render(*failing()))
    assert page.texts("title") == ["Synthetic-R14x1, transformers: verification failed"]
    assert "✗ Verification failed" in page.texts("h2")
    assert page.texts("dd")[:3:2] == ["✗ failed", "✗ failed"]
    assert "config.json is missing" in page.texts("li")
    assert (
        "timm on the source float64: 4 of 18 taps differ, first at block3/unit01 (square input, 224×224): "
        "error 3.0e-04 (up to 1.0e-09 allowed)."
    ) in page.texts("li")
    assert "the kernel of conv2 is mirrored" in page.texts("html")[0]
    assert "✗ failed: mean and deviation are CLIP's" in page.texts("td")
    over = [text for text in page.texts("td") if text.startswith("over tolerance: ✗")]
    assert "over tolerance: ✗ not finite / 1.0e-09" in over
    assert {"○ over tolerance", "▲ not finite, at the edge", "▼ zero, at the edge"} <= set(page.texts("li"))


def test_what_is_wrong_comes_right_under_the_verdict() -> None:
    page = Page(render(*failing()))
    headings = [" ".join("".join(text).split()) for tag, _, text in page.elements if tag in ("h2", "h3")]
    assert headings[:2] == ["✗ Verification failed", "What is wrong"]
    (wrong,) = [text for text in page.texts("div") if text.startswith("What is wrong")]
    for words in (
        "config.json is missing",
        "Diagnosis of timm: block3/unit01: the kernel of conv2 is mirrored",
        "Diagnosis of bit (PyTorch): pooled: no known mistake explains the error",
        "timm on the source float64, isolated: ",
        "landscape image: greatest difference 31.2 of 255 levels (up to 0.01 allowed): mean and deviation are CLIP's",
        "small image: greatest difference 2 of 255 levels (up to 0.01 allowed); no known mistake explains it",
    ):
        assert words in wrong


def test_terms_are_defined_in_the_text() -> None:
    page = Page(render(*made_up()))
    terms = ["run", "oracle", "tap", "square input", "odd input", "error", "tolerance", "End-to-end", "recording"]
    assert page.texts("dfn") == [*terms, "Isolated"]
    assert "The odd input is 1 image of 193×257 pixels" in page.texts("html")[0]


def test_the_date_is_shown_if_there_is_one() -> None:
    verification, manifest = small()
    page = Page(render(verification, manifest))
    assert page.texts("time") == ["2026-03-14 at 15:09 UTC"]
    assert page.values("datetime") == ["2026-03-14T15:09:26+00:00"]
    assert not Page(render(replace(verification, environment={}), manifest)).texts("time")


def test_no_box_hides_rows_of_a_table(page: Page) -> None:
    assert not re.search(r"max-height|overflow-y", page.texts("style")[0])


def test_tables_of_a_plot_are_open_only_if_a_tap_failed() -> None:
    def opened(page: Page) -> list[bool]:
        return ["open" in attributes for tag, attributes, _ in page.elements if tag == "details"]

    assert opened(Page(render(*made_up()))) == [False, False, False, False]
    assert opened(Page(render(*failing()))) == [True, True, True, False], "the last is the table of tensors"


def test_the_model_and_the_preprocessing_are_judged_apart() -> None:
    verification, manifest = small()
    page = Page(render(replace(verification, pixels=(PixelCheck("small", math.inf, None),)), manifest))
    assert page.texts("dd")[:3:2] == ["✓ passed", "✗ failed"]
    page = Page(render(replace(verification, pixels=()), manifest))
    assert page.texts("dd")[:3:2] == ["✓ passed", "– not checked"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '" onload="x', "{{ 1 }} & <b>", "$x_1$\x07 ü"])
def test_names_are_shown_as_text(text: str) -> None:
    verification, manifest = small()
    found = [replace(check, tap=text) if check.tap == "logits" else check for check in verification.checks]
    files = {**verification.files, text: HASH}
    named = replace(verification, name=text, problems=(text,), warnings=(text,), files=files)
    tensors: list[Any] = [{**manifest.tensors[0], "source": text}]
    page = Page(render(with_checks(named, found), replace(manifest, tensors=tensors)))
    assert not {"script", "b"} & {tag for tag, _, _ in page.elements}
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    words = " ".join(text.split())
    assert page.texts("li").count(words) == 2
    assert words in page.texts("td")
    assert words in page.texts("th")


def test_requested_changes_are_shown() -> None:
    verification, manifest = small()
    rows: list[Any] = [
        {**manifest.tensors[0], "scale": 10.0},
        {**manifest.tensors[1], "standardized_with_epsilon": 1e-10},
        {**manifest.tensors[2], "source": None},
    ]
    options = replace(UNCHANGED, head="new:7", dtype="float16", ws_eps="compensate")
    text = Page(render(verification, replace(manifest, tensors=rows, options=options))).texts("html")[0]
    for words in ("new:7", "rounded to float16", "times 10.0", "standardized with epsilon 1e-10", "new, zeros"):
        assert words in text


def test_without_comparisons_a_verification_is_not_completed() -> None:
    _, manifest = small()
    page = Page(render(Verification("a", "timm", "R14x1", 0), manifest))
    assert "– Could not be completed" in page.texts("h2")
    assert "Nothing was compared." in page.texts("dd")
    assert not page.texts("figure")


def test_a_package_that_failed_is_named_with_the_reason_and_the_command_that_installs_it() -> None:
    verification, manifest = small()
    reason = "pytorch failed: it was killed by SIGKILL; to install it again: pip install -e '.[torch]'"
    page = Page(render(replace(verification, incomplete=(reason,)), manifest))
    assert "– Could not be completed" in page.texts("h2")
    assert reason in page.texts("li")
    assert "Nothing that was compared differs, but not everything was compared." in page.texts("dd")


@pytest.mark.parametrize("values", [(0.0, 0.0), (math.inf, math.inf), (math.nan, math.nan), (1e-320, 1e300)])
def test_values_that_no_log_scale_can_show_are_drawn_at_its_edge(values: tuple[float, float]) -> None:
    verification, manifest = small()
    found = [replace(check, error=values[0], tolerance=values[1]) for check in verification.checks]
    page = Page(render(with_checks(verification, found), manifest))
    assert all(len(words) > 10 for words in drawn_words(page))
    (plot,) = plots(found)
    for drawing in plot.drawings:
        points = [point for run in plot.series for point in drawing.points(run)]
        assert all(0 <= y <= drawing.panel_height and 0 < x < drawing.panel_width for x, y, _ in points)


def test_equal_values_give_equal_bytes() -> None:
    assert render(*made_up()) == render(*made_up())


def test_the_largest_network_fits_in_a_megabyte() -> None:
    assert len(render(*made_up("R152x4")).encode()) < 1_000_000


def test_a_signed_page_names_the_signer_and_how_to_check() -> None:
    commands = ("bit verify FOLDER --public-key PUB", "model_signing verify key FOLDER")
    page = Page(render(*small(), SignedBy("<b>the key</b> SHA256:01", commands)))
    assert "Signature" in page.texts("h2")
    assert any("signed by <b>the key</b> SHA256:01" in text for text in page.texts("p"))
    assert any(all(command in text for command in commands) for text in page.texts("pre"))
    assert "#signature" in page.values("href")
    unsigned = Page(render(*small()))
    assert "Signature" not in unsigned.texts("h2")
    assert "#signature" not in unsigned.values("href")
