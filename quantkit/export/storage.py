"""How weights lie in the file: at their own width, made what the kernel reads by nodes that the runtime folds while the session loads.

ONNX Runtime folds constant sub-graphs before it looks for int8 patterns, so nothing of the unpacking is left when the network runs, and
the int8 kernel computes with the same codes as if they had been stored as INT8. So it does for weights of float layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantkit.core.errors import ContractError
from quantkit.core.spec import PerGroup, QuantSpec
from quantkit.export.editor import Editor
from quantkit.quantization.rounding.two_level import multiplier_limit
from quantkit.targets.placement import Placement, Storage

INT8, INT32, FLOAT = ir.DataType.INT8, ir.DataType.INT32, ir.DataType.FLOAT


class Store(Protocol):
    """How every way of storing is called."""

    def __call__(self, editor: Editor, stem: str, codes: NDArray[Any], bits: int, before: ir.Node, to: ir.DataType = INT8) -> ir.Value:
        """The codes as a value of type `to` in front of `before`; `stem` begins the names. Each code fits `bits` bits, two's complement."""


def as_int8(
    editor: Editor,
    stem: str,
    codes: NDArray[Any],
    bits: int,  # noqa: ARG001 - the protocol's
    before: ir.Node,
    to: ir.DataType = INT8,
) -> ir.Value:
    """One byte a code."""
    stored = editor.constant(f"{stem}_codes", codes)
    return stored if to == INT8 else _cast(editor, stored, to, before)


def as_int4(
    editor: Editor,
    stem: str,
    codes: NDArray[Any],
    bits: int,  # noqa: ARG001 - the protocol's
    before: ir.Node,
    to: ir.DataType = INT8,
) -> ir.Value:
    """An INT4 initializer behind a Cast (opset 21)."""
    return _cast(editor, editor.constant(f"{stem}_codes", codes.astype(ml_dtypes.int4)), to, before)


def as_bit_stream(editor: Editor, stem: str, codes: NDArray[Any], bits: int, before: ir.Node, to: ir.DataType = INT8) -> ir.Value:
    """Codes of any width end to end in bytes, lowest bit first; spread by shifts, then weighed by powers of two (opset 18).

    The highest bit weighs less than nothing, as two's complement has it. While it loads, a layer takes a byte for each of its bits, three
    times over, and four bytes for each of its codes.
    """
    spread = (codes.astype(np.int16).ravel()[:, None] >> np.arange(bits)) & 1
    packed = np.packbits(spread.astype(np.uint8).ravel(), bitorder="little")[:, None]

    def step(kind: str, *inputs: ir.Value, attributes: Mapping[str, int | str] | None = None) -> ir.Value:
        return editor.fold(kind, inputs, before, attributes)

    stream = editor.constant(f"{stem}_codes", packed)
    shifted = step("BitShift", stream, editor.constant("shifts", np.arange(8, dtype=np.uint8)[None]), attributes={"direction": "RIGHT"})
    flags = step("BitwiseAnd", shifted, editor.constant("one_bit", np.ones((1, 1), np.uint8)))
    if packed.size * 8 > codes.size * bits:  # the last byte is not full
        flat = step("Reshape", flags, editor.constant("flat", np.array([-1], np.int64)))
        end = editor.constant(f"end_{codes.size * bits}", np.array([codes.size * bits], np.int64))
        flags = step("Slice", flat, editor.constant("start", np.zeros(1, np.int64)), end)
    rows = step("Reshape", flags, editor.constant(f"rows_{bits}", np.array([-1, bits], np.int64)))
    powers = np.array([1 << place for place in range(bits - 1)] + [-(1 << (bits - 1))], np.int8)
    numbers = step("MatMulInteger", rows, editor.constant(f"powers_{bits}", powers[:, None]))
    shaped = step("Reshape", numbers, _shape(editor, codes))
    return shaped if to == INT32 else _cast(editor, shaped, to, before)


def as_is(
    editor: Editor,
    stem: str,
    codes: NDArray[Any],
    bits: int,
    before: ir.Node,  # noqa: ARG001 - the protocol's
    to: ir.DataType = INT8,  # noqa: ARG001
) -> ir.Value:
    """INT4, INT8 or INT16, and nothing behind it: for a machine that computes with it."""
    return editor.constant(f"{stem}_codes", codes.astype(ml_dtypes.int4) if bits == 4 else codes)


STORAGES: Mapping[Storage, Store] = {"int8": as_int8, "int4": as_int4, "bit_stream": as_bit_stream, "plain": as_is}


def make_codes(
    editor: Editor, stem: str, codes: NDArray[Any], axis: int, spec: QuantSpec, placement: Placement, before: ir.Node
) -> ir.Value:
    """The INT8 codes that the kernel reads, made of what lies in the file: `codes` have their output channels along `axis`, 0 or 1."""
    narrow = STORAGES[placement.storage[spec.bits]]
    if not isinstance(spec.granularity, PerGroup) and not spec.codebook:
        return narrow(editor, stem, codes, spec.bits, before)
    if not placement.made:
        return as_int8(editor, stem, codes, 8, before)
    if spec.codebook:
        return _from_levels(editor, stem, codes, spec.bits, narrow, before)
    assert isinstance(spec.granularity, PerGroup)
    inputs = 1 - axis
    width = spec.granularity.width(codes.shape[inputs])
    grouped = codes.reshape(*codes.shape[:inputs], codes.shape[inputs] // width, width, *codes.shape[inputs + 1 :])
    multipliers = _least_multipliers(grouped, (inputs, 2 * axis), spec.bits)
    small = grouped // multipliers
    if width == codes.shape[inputs]:
        return narrow(editor, stem, small.reshape(codes.shape), spec.bits, before)
    factors = _cast(editor, editor.constant(f"{stem}_multipliers", multipliers.astype(ml_dtypes.uint4)), INT32, before)
    # INT32, as not every runtime multiplies INT8
    products = editor.fold("Mul", [narrow(editor, stem, small, spec.bits, before, INT32), factors], before)
    return _cast(editor, editor.fold("Reshape", [products, _shape(editor, codes)], before), INT8, before)


def make_float(
    editor: Editor, stem: str, codes: NDArray[Any], scale: NDArray[np.float32], spec: QuantSpec, placement: Placement, before: ir.Node
) -> ir.Value:
    """Codes times `scale`, which broadcasts against them, in float32."""
    narrow = STORAGES[placement.storage[spec.bits]]
    if spec.codebook:
        real = _cast(editor, _from_levels(editor, stem, codes, spec.bits, narrow, before), FLOAT, before)
    else:
        real = narrow(editor, stem, codes, spec.bits, before, FLOAT)
    return editor.fold("Mul", [real, editor.constant(f"{stem}_scale", scale)], before)


def in_blocks(codes: NDArray[np.int8], bits: int, size: int) -> NDArray[np.uint8]:
    """Codes [rows, products] as MatMulNBits reads them: [rows, blocks, bytes], unsigned, the first code in the low bits."""
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8).reshape(len(codes), -1, size)
    return unsigned if bits == 8 else np.bitwise_or(unsigned[..., 0::2], np.left_shift(unsigned[..., 1::2], np.uint8(4)), dtype=np.uint8)


def from_half(editor: Editor, stem: str, weight: NDArray[np.float32], before: ir.Node) -> ir.Value:
    """The weight, which half holds exactly, as FLOAT16 behind a Cast."""
    return _cast(editor, editor.constant(f"{stem}_codes", weight.astype(np.float16)), FLOAT, before)


def _from_levels(editor: Editor, stem: str, codes: NDArray[Any], bits: int, narrow: Store, before: ir.Node) -> ir.Value:
    """Gather from the levels that occur. Places are signed, as all narrow codes: a negative one counts from the end of the table."""
    found, places = np.unique(codes, return_inverse=True)
    levels = np.zeros(1 << bits, np.int8)
    levels[: len(found)] = found
    signed = np.where(places < len(levels) // 2, places, places - len(levels)).astype(np.int8).reshape(codes.shape)
    return editor.fold("Gather", [editor.constant(f"{stem}_levels", levels), narrow(editor, stem, signed, bits, before, INT32)], before)


def _least_multipliers(grouped: NDArray[np.int8], kept: tuple[int, int], bits: int) -> NDArray[np.int8]:
    """For each place along the `kept` axes the least integer that divides all codes there and leaves such as fit `bits` bits."""
    others = tuple(axis for axis in range(grouped.ndim) if axis not in kept)
    found = np.zeros([1 if axis in others else side for axis, side in enumerate(grouped.shape)], np.int8)
    for multiplier in range(multiplier_limit(bits), 0, -1):
        whole = (grouped % multiplier == 0) & (np.abs(grouped.astype(np.int16)) <= multiplier * ((1 << (bits - 1)) - 1))
        found = np.where(whole.all(axis=others, keepdims=True), np.int8(multiplier), found)
    if not found.all():
        wanted = f"{bits}-bit codes times at most {multiplier_limit(bits)}"
        raise ContractError("int8 codes of another grid", wanted, "report this network")
    return found


def _cast(editor: Editor, value: ir.Value, to: ir.DataType, before: ir.Node) -> ir.Value:
    return editor.fold("Cast", [value], before, {"to": int(to)})


def _shape(editor: Editor, codes: NDArray[Any]) -> ir.Value:
    return editor.constant(f"shape_{'x'.join(map(str, codes.shape))}", np.array(codes.shape, np.int64))
