"""docs/results/sensitivity.md and its plots, from the rows and figures of tools/bench_sensitivity.py.

python tools/sensitivity_page.py           # needs matplotlib
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl
from known import run_folder
from sensitivity_figures import COSTS, Row, volumes

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "quantkit"  # the same file from the same rows
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("augmented", "hessian", "displacement", "gauss_newton", "kl", "random")  # of the fronts; all are in the bars
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#999999")  # Okabe and Ito's, told apart by the colour-blind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=run_folder("sensitivity", "sensitivity.json"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    rows = [Row(**json.loads(line)) for path in sorted(arguments.runs.glob("*/rows.jsonl")) for line in path.read_text().splitlines()]
    figures = json.loads((arguments.output / "sensitivity.json").read_text())["figures"]
    networks = sorted({row.network for row in rows})
    for name in networks:
        draw(rows, name, arguments.output / f"sensitivity-{name}.svg")
    table = (arguments.output / "sensitivity.md").read_text() if (arguments.output / "sensitivity.md").exists() else ""
    head, _, rest = table.partition("<!-- tables -->")
    tail = rest.partition("<!-- end of tables -->")[2]
    written = "\n\n".join(section(name, figures, rows) for name in networks)
    (arguments.output / "sensitivity.md").write_text(f"{head}<!-- tables -->\n\n{written}\n\n<!-- end of tables -->{tail}")


def section(name: str, figures: Mapping[str, float], rows: Sequence[Row]) -> str:
    """One network: its hypervolumes, greatest first."""
    gate = volumes(rows, name, "gate")
    lines = [f"## {name}, {figures[f'{name}.seeds']:.0f} seeds", "", f"![{name}](sensitivity-{name}.svg)", "",
             "| sensitivity | optimum of its table (pareto) | way down of its ordering (bisection) |", "|---|---|---|"]  # fmt: skip
    labels = sorted({label for label, _ in gate}, key=lambda label: -max(mean(gate[key].values()) for key in gate if key[0] == label))
    for label in labels:
        cells = [figure(figures, f"{name}.volume.{label}.{way}") for way in ("pareto", "bisection")]
        lines.append(f"| `{label}` | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def figure(figures: Mapping[str, float], key: str) -> str:
    if key not in figures:
        return ""
    spread = f" ({figures[f'{key}.low']:.3f} to {figures[f'{key}.high']:.3f})" if f"{key}.low" in figures else ""
    return f"{figures[key]:.3f}{spread}"


def draw(rows: Sequence[Row], name: str, path: Path) -> None:
    """Seed 0's measured fronts under either cost."""
    figure_, axes = plt.subplots(1, len(COSTS), figsize=(9, 3.4), layout="constrained")
    seed = min(row.seed for row in rows if row.network == name)
    for axis, cost in zip(axes, COSTS, strict=True):
        here = [row for row in rows if (row.network, row.seed, row.cost) == (name, seed, cost)]
        for method, colour in zip(SHOWN, COLOURS, strict=True):
            way = "bisection" if method == "random" else "pareto"
            points = sorted((row.spent, row.gate_kl) for row in here if row.method in (method, f"{method}_0") and row.way == way)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, color=colour, label=method)
        uniform = sorted((row.spent, row.gate_kl) for row in here if row.way == "uniform")
        axis.plot(*zip(*uniform, strict=True), "kx", label="uniform")
        axis.set_yscale("log"), axis.set_xlabel({"bytes": "bytes of weights", "latency": "modelled time, of float"}[cost])
        axis.set_ylabel("KL on the gate split, nats")
    axes[-1].legend(fontsize=7)
    figure_.suptitle(f"{name}, seed {seed}", fontsize=9)
    figure_.savefig(path, metadata={"Date": None})
    plt.close(figure_)


if __name__ == "__main__":
    main()
