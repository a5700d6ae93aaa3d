"""ONNX Runtime's own static quantizer on the same float file and the same calibration items: the baseline to beat."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from quantkit.export.onnx_file import has_data
from quantkit.runtimes.evaluation import Feeds

NAME = "onnxruntime quantize_static"


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out one feed after the other, as the quantizer asks."""

    def __init__(self, feeds: Iterator[Feeds]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feeds | None:
        return next(self._feeds, None)


def quantize_with_onnxruntime(float_file: Path, feeds: Iterator[Feeds], path: Path, *, reduce_range: bool) -> None:
    """Write its U8S8 per-channel min-max file. `reduce_range` is what its documentation recommends for CPUs without VNNI."""
    with quietly():
        quantize_static(
            float_file,
            path,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            use_external_data_format=has_data(float_file),
        )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the quantizers' advice, which is for people who call them by hand."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
