from __future__ import annotations

import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bit.config import BitConfig
from convert.changes import UNCHANGED
from convert.diagnosis import Finding
from convert.files.tensors import File
from convert.html_report import number, plots, render
from convert.parameters import parameters
from convert.pixels import PixelCheck
from convert.record import ConversionRecord, Origin, Source
from convert.taps import FORCED, FREE, Agreement, Check, tap_names
from convert.trials import Epsilon, Trials
from convert.verification import Verification

RUNS = {
    ("definition", "source"): ("float64",),
    ("definition", "written"): ("float64",),
    ("bit (PyTorch)", "written"): ("float64", "float32"),
    ("bit.flax (JAX)", "source"): ("float64", "float32"),
    ("bit.keras (TensorFlow)", "source"): ("float32",),
    ("timm", "source"): ("float64", "float32"),
    ("transformers", "written"): ("float64", "float32"),
}
HASH = "0123456789abcdef" * 4
VOID = {"meta", "link", "img", "br", "hr", "input"}


def made_up(architecture: str = "R14x1") -> tuple[Verification, ConversionRecord]:
    """A verification that passed, and its record, as large as the real ones; nothing was run for it."""
    config = BitConfig.from_architecture(architecture)
    trials = Trials(reference="recorded outputs of the original code")
    for order, ((name, side), dtypes) in enumerate(RUNS.items()):
        for dtype in dtypes:
            trials.checks += checks(config, name, side, dtype, FREE, 1 + order / 10)
            about = {"version": "1.2.3", "device": "CPU"} | ({"threads": "2", "TF32": "off"} if order > 1 else {})
            trials.ran[trials.checks[-1].run] = about
            for image, count in (("square", 2), ("odd", 1)):
                trials.agreements.append(Agreement(name, side, dtype, image, count, count, count, 0.102, 6e-14))
        if "float64" in dtypes and order:
            trials.checks += checks(config, name, side, "float64", FORCED, 1 + order / 10)
    trials.not_run = {"onnxruntime": "it reads neither the written layout nor the source's"}
    trials.epsilon = Epsilon("transformers", 1e-8, 1e-10, "odd", "logits", 3.5e-4)
    rows = [
        {
            "parameter": item.name,
            "source": f"resnet/{item.name}",
            "target": f"bit.encoder.{item.name.replace('/', '.')}",
            "transform": "hwio -> oihw",
            "dtype": "float32",
            "shape": [64, 3, 7, 7],
        }
        for item in parameters(config)
    ]
    source = Source("../a.npz", "google", "npz", {"a.npz": File(102245728, HASH)})
    files = {"config.json": File(602, HASH), "model.safetensors": File(102214320, HASH)}
    labels = (f"Synthetic-{architecture}", architecture, 1000)
    record = ConversionRecord(*labels, 1e-10, "transformers", UNCHANGED, Origin("a", HASH), source, files, rows)
    verification = Verification(labels[0], "transformers", *labels[1:], dict.fromkeys(files, HASH), len(rows))
    verification.trials = trials
    verification.pixels = [PixelCheck("landscape", 0.0, None), PixelCheck("small", 0.4, None)]
    verification.warnings = ["the names of the classes are left behind"]
    verification.environment = {"python": "3.11.7", "numpy": "2.4.6", "machine": "Linux x86_64, 2 cores"}
    return verification, record


def small() -> tuple[Verification, ConversionRecord]:
    """With one plot, for what has little to do with plots."""
    verification, record = made_up()
    verification.checks[:] = [check for check in verification.checks if check.dtype == "float32"]
    return verification, record


def checks(config: BitConfig, name: str, side: str, dtype: str, mode: str, factor: float) -> list[Check]:
    taps, inputs = tap_names(config), {"square": 1.0, "odd": 0.7}
    noise, budget = (2e-15, 1e-9) if dtype == "float64" else (3e-7, 0.0)
    return [
        Check(
            "recorded outputs of the original code" if mode == FREE else "the definition on the source file",
            *(name, side, dtype, mode, image, tap),
            error=noise * factor * scale * (depth + 1 if mode == FREE else 1 + depth % 3),
            budget=budget or 4 * noise * scale * (depth + 1),
        )
        for depth, tap in enumerate(taps)
        for image, scale in inputs.items()
    ]


def failing(architecture: str = "R14x1") -> tuple[Verification, ConversionRecord]:
    """Everything that can be wrong: files, taps that are off, not finite or exact, pixels, with and without a cause."""
    verification, record = made_up(architecture)
    for place, check in enumerate(verification.checks):
        if check.tap.startswith(("block3", "block4")) and check.implementation == "timm":
            verification.checks[place] = replace(check, error=check.error + 3e-4)
        elif check.tap in ("pooled", "logits") and check.implementation == "bit (PyTorch)":
            verification.checks[place] = replace(check, error=math.inf)
        elif check.tap == "pooled" and check.mode == FORCED:
            verification.checks[place] = replace(check, error=0.0)
    finding = Finding("timm", "block3/unit01", "the kernel of conv2 is mirrored", 3.1e-4, 2.2e-14)
    verification.trials.findings = [finding, Finding("bit (PyTorch)", "pooled", None, math.inf, None)]
    verification.pixels = [PixelCheck("landscape", 31.2, "mean and deviation are CLIP's"), PixelCheck("small", 2, None)]
    verification.problems = ["config.json is missing", "stem/kernel does not give back the bytes"]
    verification.roundings = ("float16",)
    return verification, record


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
    words = f"{nearest.run} at pooled ({nearest.input} input): error 9.5e-10, budget 1.0e-09."
    assert f"Nearest to its budget is {words}" in page.texts("li")


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
    over = [text for text in page.texts("td") if text.startswith("over budget: ✗")]
    assert "over budget: ✗ not finite / 1.0e-09" in over
    assert {"over its budget", "not finite, at the edge", "zero, at the edge"} <= set(page.texts("text"))


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
    verification.checks[:] = [replace(check, error=values[0], budget=values[1]) for check in verification.checks]
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
