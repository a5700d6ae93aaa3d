"""Numbers in README and docs that no file of figures bears: each is written by tools/page_figures.py, or stands in TYPED with what it is.

    python tools/claims.py            # the check: exit 1 for a number that is neither, and for a row of TYPED that no page holds any more
    python tools/claims.py --count    # how many there are, into docs/results/claims.json
    python tools/claims.py --write    # and beside it whether three checks can fail, and the branches that the last run of tests tried

A number is what looks measured: with a decimal point or thousands, or with a unit. Code, links and pages that a tool writes are left out;
what stands between the marks of figures is compared with the files by `tools/page_figures.py --check`, and counted here.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

from known import write_figures
from page_figures import ROOT

from quantkit.calibration.ranges import NEAR
from quantkit.core.ratios import DRIFT
from quantkit.core.statistics import ERROR_RATE, EVEN, SURE, decide
from quantkit.quantization.moments import MOST_PRODUCTS
from quantkit.stages.certify import WIDTH

CLAIMS = ROOT / "docs" / "results" / "claims.json"
UNITS = r"%|×|points?|ms|µs|seconds?|minutes?|hours?|nats|[kMG]B|times|of float|of the time|of 5\b"
NUMBER = re.compile(rf"(?<![\w.§/:-])[−-]?(?:\d+\.\d+|\d{{1,3}}(?:,\d{{3}})+|\d+(?=\s?(?:{UNITS})))(?![\w]|\.\d)")
NAMES = "arXiv|opset|Python|ONNX Runtime|torch|section|ShuffleNetV2"  # what has a number behind it in its name
LEFT_OUT = re.compile(
    rf"^```.*?^```|^ {{4,}}\S[^\n]*|`[^`\n]*`|\]\([^)]*\)|https?://\S+|(?:{NAMES})[\s:]*\d[\d.]*", re.DOTALL | re.MULTILINE
)
WRITTEN_PART = re.compile(r"<!-- (tables|figures: [\w-]+) -->.*?<!-- end of \1 -->", re.DOTALL)
WRITTEN = "Written by `python tools/"

# What may stand typed: numbers that are decided and not measured. Those of code are compared with it, those of a test are held by it.
DECIDED = {
    "0.85": f"{SURE}", "or 0.5": f"or {EVEN}", "asks for 0.5": f"asks for {EVEN}", "85 %": f"{100 * SURE:.0f} %",
    "95 %": f"{100 * (1 - ERROR_RATE):.0f} %", "4,608": f"{MOST_PRODUCTS:,}", "within 5 %": f"within {100 * NEAR:.0f} %",
    "deviation of 2 %": f"deviation of {100 * DRIFT:g} %", "than ± 4 %": f"than ± {196 * DRIFT:.0f} %",
    "within ±5 %": f"within ±{100 * WIDTH:.0f} %", "2,000 resamples": f"{signature(decide).parameters['resamples'].default:,} resamples",
}  # fmt: skip
TYPED: dict[str, dict[str, str]] = {
    "README.md": {"lose at most 0.5 points": "an example of a promise", "files of more than 2 GB": "the limit of protobuf"},
    "docs/index.md": {"lose at most 0.5 points": "an example of a promise"},
    "docs/scale.md": {"Files beyond 2 GB.": "the limit of protobuf"},
    "docs/latency.md": {"shares of the float network's score, 99.99 % the highest": "the paper, arXiv 2306.04879"},
    "docs/explanation/promise.md": {
        "loses at most 0.5,": "an example of a promise",
        "with 2 % changed among 400 items the count has a standard error of 0.7 points": "arithmetic: 100 · √(0.02 / 400)",
        "often 0.1": "an example of a drop",
        "n^0.8": "the formula",
        "wrong in up to 9 % of cases where 5 % are promised": "tests/test_statistics.py",
        "stays below 5.2 % for 400 items and budgets of 0.25 to 5 points": "tests/test_statistics.py",
        "variance is about 0.02": "an example",
        "2.7 · 0.02 / 0.005² ≈ 2,200": "arithmetic",
        "With 359 items and half a point it is 17 %": "arithmetic: (1 − 0.005)³⁵⁹",
    },
    "docs/how-to/your-own-data.md": {
        "100 times the rank correlation": "a definition", "100 times the cosine": "a definition", "windows of 7 × 7": "a definition",
    },
    "docs/targets/openvino.md": {"2026.4 tried": "a version"},
    "docs/targets/ort-cpu.md": {
        "1.22 and later": "a version", "tried on 1.32": "a version", "all 65,536 pairs": "256 · 256",
        "128 for 1×1": "a shape",
    },
    "docs/targets/tensorrt.md": {"float32 at 0.5": "quantkit/core/machine.py", "planned ( 1.0": "the name of a figure"},
}  # fmt: skip
LOGS = ("docs/first-day.md",)  # what happened on one day, on a machine that the page names; no claim about today


def prose(page: Path) -> str:
    """What somebody typed, with code, links and figures taken out; empty for a page that a tool writes."""
    text = page.read_text(encoding="utf-8")
    if page.relative_to(ROOT).as_posix() in LOGS:
        return ""
    return "" if WRITTEN in text[:600] else LEFT_OUT.sub(" ", WRITTEN_PART.sub(" ", text))


def pages() -> list[Path]:
    """README and docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def spans(row: str, text: str) -> Iterator[tuple[int, int]]:
    """Where the row stands."""
    place = text.find(row)
    while place >= 0:
        yield place, place + len(row)
        place = text.find(row, place + 1)


def borne(page: Path) -> int:
    """How many numbers stand between marks of figures."""
    return sum(len(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", found[0])) for found in WRITTEN_PART.finditer(page.read_text(encoding="utf-8")))


def unborne() -> Iterator[str]:
    """A line for each number without a source, and for each row of TYPED without a number."""
    yield from (f"DECIDED: {says!r} is {in_code!r} in the code" for says, in_code in DECIDED.items() if says != in_code)
    for page in pages():
        name, text = page.relative_to(ROOT).as_posix(), " ".join(prose(page).split())
        rows = TYPED.get(name, {})
        known = [span for row in (*rows, *DECIDED) for span in spans(row, text)]
        for found in NUMBER.finditer(text):
            if not any(start <= found.start() and found.end() <= end for start, end in known):
                yield f"{name}: {found[0]} has no source: …{text[max(0, found.start() - 60) : found.end() + 40]}…"
        yield from (f"{name}: nothing says {row!r} any more: remove it from TYPED of tools/claims.py" for row in rows if row not in text)


def planted() -> dict[str, float]:
    """Whether the certificate reports interactions that a network has, and none where it has none: as tests/test_certify.py builds them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_certify import share_beyond_sums

    return {
        "planted_interactions.seen": float(share_beyond_sums(True) > 0.1),
        "planted_interactions.false_alarms": float(share_beyond_sums(False) > 0.01),
    }


def skipped_silently() -> int:
    """Layers of the tests' networks, and of one that is too wide, that GPTQ has no moments for and that the result does not name."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch
    from networks import NETWORKS, captured

    from quantkit.data import Batch
    from quantkit.network.capture import capture
    from quantkit.quantization.moments import second_moments, without_moments

    wide = {"input": torch.zeros(2, MOST_PRODUCTS + 1)}
    tried = [(captured(name), make_inputs()) for name, (_, make_inputs) in NETWORKS.items()]
    tried.append((capture(torch.nn.Sequential(torch.nn.Linear(MOST_PRODUCTS + 1, 2)).eval(), wide), wide))
    missing = 0
    for network, inputs in tried:
        moments = second_moments(network, [Batch(inputs)], lambda _: None)
        weighted = {layer.name for layer in network.graph.layers if layer.weight and not layer.is_table}
        missing += len(weighted - moments.keys() - set(without_moments(network.graph)))
    return missing


def coverage_percent() -> dict[str, float]:
    """Branches tried, in percent, of the run of tests whose data lie here; nothing without one."""
    if not (ROOT / ".coverage").exists():
        return {}
    command = [sys.executable, "-m", "coverage", "report", "--format=total"]
    return {"coverage.branch_percent": float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", action="store_true", help="how many there are, into docs/results/claims.json")
    parser.add_argument("--write", action="store_true", help="all figures of docs/results/claims.json")
    parser.add_argument("--output", type=Path, default=CLAIMS, help=argparse.SUPPRESS)
    asked, found = parser.parse_args(), list(unborne())
    for line in found:
        print(line)
    if asked.count or asked.write:
        known = json.loads(asked.output.read_text())["figures"] if asked.output.exists() else {}
        counted = sum(map(borne, pages())) + sum(len(rows) for rows in TYPED.values()) + len(DECIDED)
        counts = {"readme.claims_checked": counted, "readme.claims_without_source": len(found)}
        checks = {"skipped_silently": skipped_silently(), **planted(), **coverage_percent()} if asked.write else {}
        write_figures(asked.output, "claims.json", known | counts | checks, whole=asked.write)
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
