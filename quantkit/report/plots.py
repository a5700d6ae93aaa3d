"""The charts as files, for a paper or a slide: drawn on white, without a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from quantkit.core.store import write_atomically
from quantkit.report.page import load_library
from quantkit.report.vega import Chart

CONFIG = {"background": "white", "axis": {"labelColor": "#444444"}}
SCALE = 2.0  # pixels of a PNG for one of the chart


def write_plots(charts: Mapping[str, Chart], folder: Path) -> tuple[Path, ...]:
    """NAME.svg and NAME.png of every chart that there is, in `folder`, which is made. Raises RequestError without the library."""
    library, written = load_library(), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        if chart.spec is None:
            continue
        drawn = library.vegalite_to_svg(json.dumps(chart.spec), config=CONFIG)
        png = library.svg_to_png(drawn, scale=SCALE)
        for path, content in ((folder / f"{name}.svg", drawn.encode()), (folder / f"{name}.png", png)):
            with write_atomically(path) as temporary:
                temporary.write_bytes(content)
            written.append(path)
    return tuple(written)
