"""The page of an evaluation in a browser; `apt install chromium` brings one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.evaluations import differing, evaluation

from convert.evaluation.results import Evaluation
from convert.reporting.evaluation import render

pytestmark = pytest.mark.long

PAGES: dict[str, Callable[[], Evaluation]] = {"agreeing": evaluation, "differing": differing}
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
    "dark phone": {"color_scheme": "dark", "viewport": {"width": 400, "height": 800}},
}


@pytest.fixture(params=PAGES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "evaluation.html").write_text(render(PAGES[request.param]()), "utf-8")
    return tmp_path / "evaluation.html"


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_opens_quietly_fits_and_can_be_read_by_everyone(browser: Any, file: Path, view: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(offline=True, bypass_csp=True, **VIEWS[view])
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    assert heard == [file.as_uri()]
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == VIEWS[view]["viewport"]["width"]
    drawn = [svg for svg in page.locator("svg").all() if svg.is_visible()]
    assert len(drawn) == 1
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    context.close()


def test_the_policy_lets_the_style_sheet_through(browser: Any, file: Path) -> None:
    context = browser.new_context(offline=True, **VIEWS["dark phone"])
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
    context.close()
