"""The page in a real browser, headless: no error, no request, drawn, and the front answers a click, a key and a change of scheme."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import allocated, text  # noqa: F401 - fixtures

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[test]")
pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LIMIT_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium to try the page in (apt-get install chromium): {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def opened(browser: Any, text: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Any, list[str], list[str]]]:  # noqa: F811
    """The page once all is drawn, what its console said, and what it asked the network for."""
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    page = browser.new_page(color_scheme=request.param, viewport={"width": 1200, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready=yes]", timeout=LIMIT_MS)
    yield page, said, asked
    page.close()


def test_it_loads_with_no_error_and_no_request_and_draws_every_chart(opened: tuple[Any, list[str], list[str]]) -> None:
    page, said, asked = opened

    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and len([u for u in asked if u.startswith("file:")]) == 1
    for name in ("front", "sensitivity", "network", "prediction", "time", "interactions", "baselines"):
        assert page.locator(f"#chart-{name} svg .mark-symbol path, #chart-{name} svg .mark-rect path").count() > 1, name


def test_the_front_answers_a_click_with_the_plans_layers_and_schemes(opened: tuple[Any, list[str], list[str]]) -> None:
    page, said, _ = opened
    marks = page.locator("#chart-front path[aria-roledescription=point]")
    before = page.locator("#plan caption").inner_text()
    heard = set()
    for place in range(min(marks.count(), 8)):
        marks.nth(place).click(force=True)
        heard.add(page.locator("#plan caption").inner_text())

    assert len(heard | {before}) > 1
    pressed = page.locator("button[data-plan][aria-pressed=true]")
    assert pressed.count() == 1
    assert page.locator("#plan caption").inner_text().startswith(f"Plan {pressed.get_attribute('data-plan')}:")
    assert page.locator("#plan tbody tr").count() == page.evaluate("JSON.parse(document.getElementById('data').textContent).groups.length")
    assert said == []


def test_plans_are_chosen_by_keyboard_and_the_chart_follows(opened: tuple[Any, list[str], list[str]]) -> None:
    page, _, _ = opened
    drawn = page.locator("#chart-front svg.marks")
    before, other = drawn.inner_html(), page.locator("button[data-plan][aria-pressed=false]").first.get_attribute("data-plan")
    page.locator(f"button[data-plan='{other}']").focus()
    page.keyboard.press("Enter")

    assert page.locator("button[data-plan][aria-pressed=true]").get_attribute("data-plan") == other
    assert page.locator("#plan caption").inner_text().startswith(f"Plan {other}:")
    page.wait_for_function(f"document.querySelector('#chart-front svg.marks').innerHTML.length !== {len(before)}", timeout=LIMIT_MS)


def test_a_change_between_light_and_dark_redraws_in_the_pages_colours(opened: tuple[Any, list[str], list[str]]) -> None:
    page, said, _ = opened
    colour = "getComputedStyle(document.querySelector('#chart-front svg .role-axis-label text')).fill"
    before = page.evaluate(colour)
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    page.emulate_media(color_scheme="light" if is_dark else "dark")
    page.wait_for_function(f"{colour} !== {before!r}", timeout=LIMIT_MS)

    assert said == []


def test_a_click_on_an_operation_leads_to_its_row(opened: tuple[Any, list[str], list[str]]) -> None:
    page, _, _ = opened
    page.locator("#chart-network path[aria-label*='operation: down']").first.click(force=True)

    assert page.locator("tr.here").get_attribute("data-layers") == "down"
