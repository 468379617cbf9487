from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support.reports import HASH, RUNS, failing, made_up, small

from convert.checkpoints.options import UNCHANGED
from convert.files.base import File
from convert.reporting.html import number, plots, render
from convert.verification.pixels import PixelCheck
from convert.verification.verify import Verification

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page in order: tag, attributes, and the text within."""

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
        """Of every element called so, its words."""
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
    assert {url for text in everything for url in re.findall(r"url\((.)", text or "")} == {"#"}


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
        assert {*plot.taps, *(series.name for series in plot.series)} <= set(wide)
        assert {series.name for series in plot.series} <= set(narrow)
        assert all(tap in figure for tap in plot.taps)
        assert {*plot.taps, *(series.name for series in plot.series)} <= set(headings)
    assert set(verification.trials.ran) <= set(headings)


def drawn_words(page: Page) -> list[list[str]]:
    return [text for tag, _, text in page.elements if tag == "svg"]


def test_styles_of_runs_differ_in_shape_and_are_the_same_in_every_plot() -> None:
    verification, _ = made_up()
    styles = {(series.name, series.style) for plot in plots(verification.checks) for series in plot.series}
    assert len(styles) == len(RUNS) == len({style for _, style in styles})


def test_a_passed_verification_says_so_and_where_it_is_nearest_to_its_budget() -> None:
    verification, record = made_up()
    verification.checks[20] = replace(verification.checks[20], tap="pooled", error=9.5e-10)
    page = Page(render(verification, record))
    assert page.texts("title") == ["Synthetic-R14x1, transformers: verified"]
    assert "✓ Verified" in page.texts("h2")
    assert page.texts("dd")[:3:2] == ["✓ passed", "✓ passed"]
    assert "✗" not in page.texts("html")[0]
    nearest = verification.checks[20]
    words = f"{nearest.run} at pooled ({nearest.input} input): error 9.5e-10, tolerance 1.0e-09."
    assert f"Nearest to its tolerance is {words}" in page.texts("li")


def test_a_failed_verification_says_so_with_its_causes() -> None:
    page = Page(render(*failing()))
    assert page.texts("title") == ["Synthetic-R14x1, transformers: verification failed"]
    assert "✗ Verification failed" in page.texts("h2")
    assert page.texts("dd")[:3:2] == ["✗ failed", "✗ failed"]
    assert "config.json is missing" in page.texts("li")
    diverging = [text for text in page.texts("li") if text.startswith("timm on the source float64: ")]
    assert "first tap that diverges is block3/unit01 (square input)" in diverging[0]
    assert "the kernel of conv2 is mirrored" in page.texts("html")[0]
    assert "✗ failed: mean and deviation are CLIP's" in page.texts("td")
    over = [text for text in page.texts("td") if text.startswith("over tolerance: ✗")]
    assert "over tolerance: ✗ not finite / 1.0e-09" in over
    assert {"over its tolerance", "not finite, at the edge", "zero, at the edge"} <= set(page.texts("text"))


def test_the_model_and_the_preprocessing_are_judged_apart() -> None:
    verification, record = small()
    verification.pixels = [PixelCheck("small", math.inf, None)]
    page = Page(render(verification, record))
    assert page.texts("dd")[:3:2] == ["✓ passed", "✗ failed"]
    verification.pixels = []
    assert Page(render(verification, record)).texts("dd")[:3:2] == ["✓ passed", "– not judged"]


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '" onload="x', "{{ 1 }} & <b>", "$x_1$\x07 ü"])
def test_whatever_a_name_holds_is_shown_as_text(text: str) -> None:
    verification, record = small()
    verification.name = text
    verification.problems, verification.warnings = [text], [text]
    verification.files[text] = HASH
    verification.checks[:] = [
        replace(check, tap=text) if check.tap == "logits" else check for check in verification.checks
    ]
    page = Page(render(verification, replace(record, tensors=[{**record.tensors[0], "source": text}])))
    assert not {"script", "b"} & {tag for tag, _, _ in page.elements}
    assert not [name for _, attributes, _ in page.elements for name in attributes if name.startswith("on")]
    words = " ".join(text.split())
    assert page.texts("li").count(words) == 2
    assert words in page.texts("td")
    assert words in page.texts("th")


def test_a_record_with_rows_that_are_none_is_shown() -> None:
    verification, record = small()
    rows = [{"target": ["x"], "shape": 3.0, "scale": "?"}, {}]
    files = {"model.safetensors": File(None, HASH)}  # type: ignore[arg-type]
    assert "model.safetensors" in render(verification, replace(record, tensors=rows, files=files))


def test_what_was_changed_is_said() -> None:
    verification, record = small()
    rows = [
        {**record.tensors[0], "scale": 10.0},
        {**record.tensors[1], "standardized_with_epsilon": 1e-10},
        {**record.tensors[2], "source": None},
    ]
    changes = replace(UNCHANGED, head="new:7", dtype="float16", ws_eps="compensate")
    text = Page(render(verification, replace(record, tensors=rows, changes=changes))).texts("html")[0]
    for words in ("new:7", "rounded to float16", "times 10.0", "standardized with epsilon 1e-10", "new, zeros"):
        assert words in text


def test_nothing_compared_is_shown_as_no_pass() -> None:
    _, record = small()
    page = Page(render(Verification("a", "timm", "R14x1", 0), record))
    assert "✗ Verification failed" in page.texts("h2")
    assert "Nothing was compared, and that is no pass." in page.texts("dd")
    assert not page.texts("figure")


@pytest.mark.parametrize("values", [(0.0, 0.0), (math.inf, math.inf), (math.nan, math.nan), (1e-320, 1e300)])
def test_values_that_no_log_scale_can_show_are_drawn_at_its_edge(values: tuple[float, float]) -> None:
    verification, record = small()
    verification.checks[:] = [replace(check, error=values[0], tolerance=values[1]) for check in verification.checks]
    assert all(len(words) > 10 for words in drawn_words(Page(render(verification, record))))


def test_equal_values_give_equal_bytes_whatever_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    first = render(*small())
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 7.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert render(*small()) == first
    assert matplotlib.rcParams["lines.linewidth"] == 7.0, "settings of others are left as they were"


def test_the_largest_network_fits_in_a_megabyte() -> None:
    assert len(render(*made_up("R152x4")).encode()) < 1_000_000


def test_numbers_in_words() -> None:
    assert [number(value) for value in (1.23e-5, 0.0, math.inf, None)] == ["1.2e-05", "0", "not finite", "not finite"]
