"""How heavy the page of `quantkit report` is, and how soon it answers, in a real headless Chromium; writes docs/results/report.json.

    python tools/bench_report.py --run runs/mobilenet_v2     # a run of recipes/mobilenet_v2.py, made there if there is none

Seconds are by the clock, from the start of the navigation, in a fresh page each: until all charts are drawn and answer, and from a click on
a point of the front to the table of its plan. Needs Chromium (apt-get install chromium, or playwright install chromium).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from known import run_folder, write_figures
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
NETWORK, ROUNDS = "mobilenet_v2", 9
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=run_folder(NETWORK, "report.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "report.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        if not (arguments.run / "result.json").exists():
            quantkit("allocate", str(ROOT / "recipes" / f"{NETWORK}.py"), "--run", str(arguments.run))
        quantkit("report", str(arguments.run), "--output", str(page))
        figures: dict[str, Any] = {"bytes": page.stat().st_size, **opened(page)}
    named = {f"{NETWORK}.report.{key}": value for key, value in figures.items()}
    write_figures(arguments.output, "report.json", named)
    for key, value in named.items():
        print(f"{key:50s} {value}")


def quantkit(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "quantkit", *words], stdout=subprocess.DEVNULL, check=False)
    if done.returncode > 1:
        raise SystemExit(f"quantkit {' '.join(words)} ended with {done.returncode}")


def opened(page: Path) -> dict[str, float]:
    """Medians and the worst over fresh pages; how often the console complained, and requests for anything but the file."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        rounds = [once(browser, page.as_uri()) for _ in range(ROUNDS)]
        version = browser.version
        browser.close()
    print(f"Chromium {version}, {ROUNDS} pages")
    ready, answered, complaints, requests = zip(*rounds, strict=True)
    return {
        "interactive_seconds": statistics.median(ready),
        "interactive_seconds_worst": max(ready),
        "click_seconds": statistics.median(answered),
        "complaints": sum(complaints),
        "requests": sum(requests),
    }


def once(browser: Browser, address: str) -> tuple[float, float, int, int]:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]")
    ready = time.perf_counter() - start
    before = page.locator("#plan caption").inner_text()
    answered = 0.0
    marks = page.locator("#chart-front path[aria-roledescription=point]")
    for place in range(marks.count()):  # the plan that is shown already, and points without one, change nothing
        start = time.perf_counter()
        marks.nth(place).click(force=True)
        answered = time.perf_counter() - start
        if page.locator("#plan caption").inner_text() != before:
            break
    else:
        raise SystemExit("no point of the front answers a click")
    page.close()
    return ready, answered, len(said), sum(not url.startswith(("file:", "data:")) for url in asked)


if __name__ == "__main__":
    main()
