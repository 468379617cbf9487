"""The page in a browser, `chromium` of the system; axe-core looks for barriers to people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.reports import failing, made_up

from convert.reporting.html import render

pytestmark = pytest.mark.long

PAGES = {"passed": made_up, "failed": failing}
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 400, "height": 800}},
    "dark phone": {"color_scheme": "dark", "viewport": {"width": 400, "height": 800}},
}


@pytest.fixture(scope="module", params=PAGES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param) / "verification.html"
    path.write_text(render(*PAGES[request.param]("R50x1")), "utf-8")
    return path


@contextmanager
def shown(browser: Any, file: Path, view: str, **options: Any) -> Iterator[Any]:
    """Open the page; `page.heard` lists console messages, errors and requests."""
    context = browser.new_context(offline=True, **VIEWS[view], **options)
    page = context.new_page()
    page.heard = []
    page.on("console", lambda message: page.heard.append(message.text))
    page.on("pageerror", lambda error: page.heard.append(str(error)))
    page.on("request", lambda request: page.heard.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()


def open_details(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_opens_without_console_messages_or_requests(browser: Any, file: Path, view: str) -> None:
    with shown(browser, file, view) as page:
        page.wait_for_load_state("networkidle")
        assert page.heard == [file.as_uri()]
        box = page.get_by_role("heading", level=2).first
        assert box.inner_text() in ("✓ Verified", "✗ Verification failed")
        assert box.bounding_box()["y"] < 800, "the verdict is seen without scrolling"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(15, 19, 24)" if "dark" in view else "rgb(255, 255, 255)"
        ), "the policy lets its style sheet through"


def test_the_policy_stops_what_a_page_could_be_made_to_do(browser: Any, file: Path) -> None:
    """Without this test, a page without requests would prove nothing about the policy."""
    with shown(browser, file, "light") as page:
        page.evaluate(
            """() => {
                const image = document.createElement("img"), style = document.createElement("style");
                image.src = "data:image/gif;base64,R0lGODlhAQABAAAAACw=";
                style.textContent = "body { color: red }";
                document.body.append(image, style);
            }"""
        )
        page.wait_for_timeout(200)
        assert sum("Content Security Policy" in words for words in page.heard) == 2
        assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(browser: Any, file: Path, view: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with shown(browser, file, view, bypass_csp=True) as page:
        open_details(page)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_never_scrolls_sideways_and_one_drawing_of_each_plot_shows(
    browser: Any, file: Path, view: str
) -> None:
    with shown(browser, file, view) as page:
        open_details(page)
        width = VIEWS[view]["viewport"]["width"]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for figure in page.locator("figure").all():
            drawn = [svg for svg in figure.locator("svg").all() if svg.is_visible()]
            assert len(drawn) == 1
            sizes = (
                drawn[0]
                .locator("text")
                .evaluate_all(
                    "all => all.map(text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().d)"
                )
            )
            plain = [abs(size) for size in sizes if abs(size) > 1]
            assert min(plain) > 8.5, "the words of a plot can be read"


def test_colours_of_plots_stand_out_in_both_schemes(browser: Any, file: Path) -> None:
    """WCAG 2.2 asks for a contrast of 3:1 of graphics (1.4.11)."""
    for view in ("light", "dark"):
        with shown(browser, file, view) as page:
            page_colour, *colours = page.evaluate(
                """() => {
                    const probe = document.body.appendChild(document.createElement("i"));
                    return ["page", "ink", "soft", "bad", "run"].map(name => {
                        probe.setAttribute("fill", "none");
                        probe.style.color = `var(--${name})`;
                        return getComputedStyle(probe).color.match(/[0-9]+/g).map(Number);
                    });
                }"""
            )
            assert min(contrast(colour, page_colour) for colour in colours) > 3


def contrast(first: list[float], second: list[float]) -> float:
    """Return the ratio of relative luminances as WCAG 2.2 defines it."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_the_keyboard_reaches_the_skip_link_every_region_and_the_details(browser: Any, file: Path) -> None:
    with shown(browser, file, "phone") as page:
        page.keyboard.press("Tab")
        skip = page.locator(":focus")
        assert skip.inner_text() == "Skip to the verdict"
        assert skip.bounding_box()["y"] >= 0, "it shows when it has the focus"
        reached, count = [], page.locator("a, summary, [tabindex='0']").count()
        for _ in range(count - 1):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.tagName"))
            assert page.evaluate("document.activeElement.matches(':focus-visible')")
            if reached[-1] == "SUMMARY":
                if not page.evaluate("document.activeElement.parentElement.open"):
                    page.keyboard.press("Enter")
                assert page.evaluate("document.activeElement.parentElement.open")
        regions = {region.get_attribute("aria-label") for region in page.locator("[role=region]").all()}
        assert len(regions) > 6
        assert regions | {"A", "SUMMARY"} <= set(reached)


def test_plots_and_tables_are_named_for_a_screen_reader(browser: Any, file: Path) -> None:
    with shown(browser, file, "light") as page:
        for figure in page.locator("figure").all():
            drawing = figure.get_by_role("img")
            title, summary = figure.locator("h3").inner_text(), figure.locator("figcaption p").inner_text()
            assert drawing.count() == 1
            assert figure.get_by_role("img", name=f"{title} {' '.join(summary.split())}").count() == 1
            assert "over tolerance" in summary or "all within tolerance" in summary
