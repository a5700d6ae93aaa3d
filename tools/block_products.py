"""One product of a matrix under each way to quantize it, side by side: what the decoder of a large network is made of.

    python tools/block_products.py        # a minute; bench_transformers.py --parts blocks writes it down

A float linear layer of 2,048 × 2,048 over 1, 8 and 64 rows, random weights and activations, one thread. Times are medians of interleaved
runs, over the float file's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from quantkit.calibration.ranges import calibrate
from quantkit.core.spec import parse_scheme
from quantkit.data import Batch
from quantkit.export.float_onnx import export_float
from quantkit.export.qdq import emit
from quantkit.network.capture import capture
from quantkit.quantization.weights import WeightBank
from quantkit.targets import ort_cpu
from quantkit.verification.side_by_side import time_side_by_side

SCHEMES = ("w8d8", "w4d8", "w8b32d8", "w4b32d8", "w4b128d8", "w4b32a32")
ROWS, WIDTH = (1, 8, 64), 2048


def files(rows: int, folder: Path) -> Iterator[Path]:
    """The float file, and one of each scheme."""
    torch.manual_seed(0)
    network = torch.nn.Linear(WIDTH, WIDTH, bias=False).eval()
    inputs = {"input": torch.randn(2, rows, WIDTH)}
    captured = capture(network, inputs)
    float_file = folder / "float.onnx"
    export_float(captured, float_file, ort_cpu.OPSET)
    ranges = calibrate(captured, [Batch(inputs)]).qparams("minmax", captured.graph)
    bank = WeightBank(captured.graph, dict(captured.module.named_parameters(remove_duplicate=False)), ranges, ort_cpu.product_rows)
    (layer,) = captured.graph.layers
    yield float_file
    for scheme in SCHEMES:
        path = folder / f"{scheme}.onnx"
        emit(float_file, captured.graph, ort_cpu.place(captured.graph, {layer.name: parse_scheme(scheme)}), bank, path)
        yield path


def figures() -> dict[str, float]:
    """By scheme and rows the time over float's, and the bytes of the file."""
    found: dict[str, float] = {}
    for rows in ROWS:
        with tempfile.TemporaryDirectory() as name:
            paths = list(files(rows, Path(name)))
            timed = time_side_by_side(paths, threads=1, batch=1, runs=None, sides={}, folder=Path(name), advance=lambda _: None)
            for scheme, one in zip(SCHEMES, timed[1:], strict=True):
                found[f"blocks.{scheme}.latency_over_float_{rows}"] = one.ratio
                found[f"blocks.{scheme}.bytes_over_float"] = one.bytes / timed[0].bytes
    return found


if __name__ == "__main__":
    print(json.dumps(figures(), indent=1))
