"""How weight codes lie in the file: at their own width, made INT8 by nodes that the runtime folds while the session loads.

ONNX Runtime folds constant sub-graphs before it looks for int8 patterns, so nothing of the unpacking is left when the network runs, and
the int8 kernel computes with the same codes as if they had been stored as INT8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantkit.export.editor import Editor
from quantkit.targets.placement import Storage


class Store(Protocol):
    """How every way of storing is called."""

    def __call__(self, editor: Editor, stem: str, codes: NDArray[np.int8], bits: int, before: ir.Node) -> ir.Value:
        """The codes as an INT8 value in front of `before`; `stem` begins the names. Each code fits `bits` bits, two's complement."""


def as_int8(editor: Editor, stem: str, codes: NDArray[np.int8], bits: int, before: ir.Node) -> ir.Value:  # noqa: ARG001 - the protocol's
    """One byte a code."""
    return editor.constant(f"{stem}_codes", codes)


def as_int4(editor: Editor, stem: str, codes: NDArray[np.int8], bits: int, before: ir.Node) -> ir.Value:  # noqa: ARG001 - the protocol's
    """An INT4 initializer behind a Cast (opset 21)."""
    packed = editor.constant(f"{stem}_codes", codes.astype(ml_dtypes.int4))
    return editor.insert("Cast", [packed], f"{before.name}_unpacked", before, attributes={"to": int(ir.DataType.INT8)})


def as_bit_stream(editor: Editor, stem: str, codes: NDArray[np.int8], bits: int, before: ir.Node) -> ir.Value:
    """Codes of any width end to end in bytes, lowest bit first; spread by shifts, then weighed by powers of two (opset 18).

    While it loads, a layer takes 8 bytes for each of its bits, five times over. MatMul adds at most 7 powers of two: exact in float32.
    """
    low = -(1 << (bits - 1))
    spread = ((codes.astype(np.int16).ravel() - low)[:, None] >> np.arange(bits)) & 1
    packed = np.packbits(spread.astype(np.uint8).ravel(), bitorder="little")[:, None]

    def step(kind: str, name: str, *inputs: ir.Value, attributes: Mapping[str, int | str] | None = None) -> ir.Value:
        return editor.insert(kind, inputs, f"{before.name}_{name}", before, attributes=attributes)

    stream = editor.constant(f"{stem}_codes", packed)
    shifts = editor.constant("bit_shifts", np.arange(8, dtype=np.uint8)[None])
    shifted = step("BitShift", "shifted", stream, shifts, attributes={"direction": "RIGHT"})
    flags = step("BitwiseAnd", "bits", shifted, editor.constant("bit_one", np.ones((1, 1), np.uint8)))
    if packed.size * 8 > codes.size * bits:  # the last byte is not full
        flat = step("Reshape", "flat", flags, editor.constant("flat", np.array([-1], np.int64)))
        end = editor.constant(f"bits_{codes.size * bits}", np.array([codes.size * bits], np.int64))
        flags = step("Slice", "cut", flat, editor.constant("start", np.zeros(1, np.int64)), end)
    rows = step("Reshape", "rows", flags, editor.constant(f"rows_of_{bits}", np.array([-1, bits], np.int64)))
    numbers = step("Cast", "numbers", rows, attributes={"to": int(ir.DataType.FLOAT)})
    powers = editor.constant(f"powers_{bits}", (2.0 ** np.arange(bits)).astype(np.float32)[:, None])
    signed = step(
        "Add", "signed", step("MatMul", "positive", numbers, powers), editor.constant(f"lowest_{bits}", np.array(low, np.float32))
    )
    narrow = step("Cast", "narrow", signed, attributes={"to": int(ir.DataType.INT8)})
    return step("Reshape", "unpacked", narrow, editor.constant(f"shape_{'x'.join(map(str, codes.shape))}", np.array(codes.shape, np.int64)))


def as_is(editor: Editor, stem: str, codes: NDArray[np.int8], bits: int, before: ir.Node) -> ir.Value:  # noqa: ARG001 - the protocol's
    """INT4, and nothing behind it: for a runtime that computes with it."""
    return editor.constant(f"{stem}_codes", codes.astype(ml_dtypes.int4))


STORAGES: Mapping[Storage, Store] = {"int8": as_int8, "int4": as_int4, "bit_stream": as_bit_stream, "plain": as_is}
