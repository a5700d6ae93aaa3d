"""NNCF's `quantize` (extra `quantkit[nncf]`) on the same float file and calibration items: what an OpenVINO user would reach for."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from quantkit.runtimes.evaluation import Feeds

NAME = "nncf quantize"


def quantize_with_nncf(float_file: Path, feeds: Iterator[Feeds], path: Path) -> None:
    """Write its 8-bit file, default options, every feed used, to `path` (an .xml, with its .bin beside it)."""
    import nncf
    import openvino

    items = [dict(feed) for feed in feeds]
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        quantized = nncf.quantize(openvino.Core().read_model(str(float_file)), nncf.Dataset(items), subset_size=len(items))
    openvino.save_model(quantized, str(path), compress_to_fp16=False)
