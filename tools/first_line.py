"""Whether the first line of results contradicts the table below it: over the demo, the recipes and fifty random small networks.

    python tools/first_line.py            # hours of a stopped call are not lost: results lie in build/first-line
    python tools/first_line.py --only demo random-7

Writes first_line_runs and first_line_contradictions into docs/results/first-hour.json. A recipe whose data is not here is left out and
named.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import stale_figures

from quantkit.report.format import comparison_rows, verdict_line

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "first-line"
NETWORKS = 50
PROMISES, GOALS = (1.5, 3.0, 5.0, 10.0), ("latency", "bytes")


def contradictions(result: Mapping[str, Any]) -> Iterator[str]:
    """What the first line and the notes of a result say that its table does not, or leave unsaid that the table shows."""
    line, text = verdict_line(result), " ".join([verdict_line(result), *result["notes"]])
    rows = {row["name"]: row for row in comparison_rows(result)}
    mine, ships_float = rows.pop("this plan"), all(row["scheme"] == "fp32" for row in result["allocation"])
    if line.startswith("Kept") != result["kept"]:
        yield f"kept is {result['kept']}"
    if f"{mine['drop']:.2f} {result['budget']['unit']}" not in line:
        yield f"the drop is {mine['drop']:.2f}"
    if ("float network ships" in line or "the float network, which ships" in line) != (ships_float and result["kept"]):
        yield f"the float network ships: {ships_float}"
    gained = re.search(r"at ([\d.]+) of float's (time|bytes)", line)
    share = None if gained is None else mine[{"time": "latency_ratio", "bytes": "bytes_ratio"}[gained[2]]]
    if gained and (share is None or share >= 1 or gained[1] != f"{share:.2f}"):
        yield f"the {gained[2]} is {share} of float's"
    if result["kept"] and not gained and "nothing is gained" not in line:
        yield "neither a gain nor that there is none"
    yield from _unnamed(result, rows, mine, text, ships_float) if result["kept"] else ()


def _unnamed(
    result: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], mine: Mapping[str, Any], text: str, ships_float: bool
) -> Iterator[str]:
    """Rows of the table that keep the budget and are better than the answer, of which nothing is said."""
    key = {"latency": "latency_ratio", "bytes": "bytes_ratio"}.get(result["minimize"])
    if key is None or mine[key] is None:
        return
    own = 1.0 if ships_float else result["latency"]["low"] if key == "latency_ratio" else mine[key]
    for name, row in rows.items():
        better = name != "float" and row["drop"] <= result["budget"]["max_drop"] and row[key] < own
        if better and f"{name} takes {row[key]:.2f}" not in text and f"{name} ({row[key]:.2f}," not in text:
            yield f"{name} takes {row[key]:.2f} of float's, loses {row['drop']:.2f}, and is not named"


def runs() -> dict[str, list[str]]:
    """The command of each run, by its name; what it prints is the JSON of a result."""
    quantkit = [sys.executable, "-m", "quantkit"]
    found = {"demo": [*quantkit, "demo", "--json"]}
    for path in sorted((ROOT / "recipes").glob("*.py")):
        found[path.stem] = [*quantkit, "allocate", str(path), "--json"]
    for seed in range(NETWORKS):
        found[f"random-{seed}"] = [sys.executable, __file__, "--network", str(seed)]
    return found


def allocate_random(seed: int, folder: str) -> Mapping[str, Any]:
    """A result for the network that `tests/fuzz.py` draws, labelled by its own answers, some of which are made wrong."""
    import numpy as np
    import torch
    from fuzz import draw

    import quantkit

    net, inputs = draw(seed)
    random = np.random.default_rng(seed)
    with torch.no_grad():
        labels = net(**inputs).argmax(1).numpy()
    wrong = random.random(len(labels)) < 0.1
    labels[wrong] = random.integers(0, labels.max() + 1, wrong.sum())
    batch = quantkit.Batch(inputs, torch.from_numpy(labels))
    return quantkit.allocate(
        net, data=[batch], metric="top1", max_drop=PROMISES[seed % len(PROMISES)], minimize=GOALS[seed // len(PROMISES) % len(GOALS)],
        certificate=0, run=folder, confidence=0.85 if seed % 3 == 0 else None,
    ).to_json()  # fmt: skip


def result_of(name: str, command: list[str]) -> Mapping[str, Any] | None:
    """The result of a run, kept from before or made now; None, with a line, where it is refused, as without a recipe's data."""
    path = KEPT / f"{name}.json"
    if not path.exists():
        folder = KEPT / "runs" / name
        done = subprocess.run([*command, "--run", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False)
        if not done.stdout.startswith("{"):  # exit 1 is a promise that is not kept, and has a result
            print(f"{name}: left out: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}", flush=True)
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(done.stdout)
        shutil.rmtree(folder, ignore_errors=True)
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", metavar="RUN", help="these runs, and nothing is written")
    parser.add_argument("--network", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.network is not None:
        sys.path.insert(0, str(ROOT / "tests"))
        print(json.dumps(allocate_random(arguments.network, arguments.run)))
        return 0
    counts = {"first_line_runs": 0, "first_line_contradictions": 0}
    for name, command in runs().items():
        if arguments.only and name not in arguments.only:
            continue
        result = result_of(name, command)
        if result is not None:
            wrong = list(contradictions(result))
            counts["first_line_runs"] += 1
            counts["first_line_contradictions"] += bool(wrong)
            print(f"{name}: {'; '.join(wrong) or 'no contradiction'} | {verdict_line(result)}", flush=True)
    if not arguments.only:
        stale_figures.write_figures(counts)
    return int(counts["first_line_contradictions"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
