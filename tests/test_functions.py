"""The runtime's own functions, against the runtime: every float of a fine grid, every code of every table."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor

from quantkit.core.numerics.affine import QParams, average_codes, dequantize, quantize
from quantkit.core.numerics.functions import average, logistic
from quantkit.core.spec import PerTensor, QuantSpec
from quantkit.quantization.simulation.kernels import KERNELS

U8 = QuantSpec(8, signed=False, symmetric=False, granularity=PerTensor())
CODES = torch.arange(256.0)
STEPS, ZEROS = st.integers(1, 2000), st.integers(0, 255)


def grid(step: int, zero_point: int) -> QParams:
    """A scale of k/(255·16), as a histogram's are."""
    return QParams(U8, torch.tensor(step, dtype=torch.float32) / (255 * 16), torch.tensor(float(zero_point)))


def run(kind: str, x: Tensor, one: QParams | None = None, other: QParams | None = None, **attributes: Any) -> Tensor:
    """One operation in the runtime: on real numbers, or the int8 kernel of that name on codes of grid `one`, to codes of grid `other`."""
    feeds = {"x": x.numpy().astype(np.float32 if one is None else np.uint8)}
    for name, qparams in (("x", one), ("y", other)):
        if qparams is not None:
            feeds |= {f"{name}_scale": qparams.scale.numpy(), f"{name}_zero": qparams.zero_point.numpy().astype(np.uint8)}
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    inputs = [helper.make_tensor_value_info(name, kinds[value.dtype], value.shape) for name, value in feeds.items()]
    node = helper.make_node(kind, list(feeds), ["y"], domain="" if one is None else "com.microsoft", **attributes)
    output = helper.make_tensor_value_info("y", kinds[feeds["x"].dtype], None)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", inputs, [output]), opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, feeds)[0]).float()


def test_sigmoids_are_the_runtimes_in_every_bit() -> None:
    x = torch.cat([torch.linspace(-25, 25, 400_001), torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 3])
    assert torch.equal(logistic(x), run("Sigmoid", x))
    torch.testing.assert_close(logistic(x), x.double().sigmoid().float(), rtol=0, atol=2e-7)
    assert not torch.equal(logistic(x), torch.sigmoid(x))


@settings(max_examples=60, deadline=None)
@given(STEPS, ZEROS, STEPS, ZEROS, st.booleans())
def test_the_table_of_a_sigmoid_is_the_runtimes(step: int, zero: int, out_step: int, out_zero: int, usual: bool) -> None:
    one, other = grid(step, zero), grid(16, 0) if usual else grid(out_step, out_zero)
    assert torch.equal(quantize(logistic(dequantize(CODES, one)), other), run("QLinearSigmoid", CODES, one, other))


@settings(max_examples=60, deadline=None)
@given(STEPS, ZEROS, STEPS, ZEROS, st.sampled_from([0.01, 0.1, 0.2, 0.5, 1 / 3, 2.0]))
def test_the_table_of_a_leaky_relu_is_the_runtimes(step: int, zero: int, out_step: int, out_zero: int, slope: float) -> None:
    one, other = grid(step, zero), grid(out_step, out_zero)
    theirs = run("QLinearLeakyRelu", CODES, one, other, alpha=slope)
    assert torch.equal(quantize(F.leaky_relu(dequantize(CODES, one), slope), other), theirs)


POOLS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], bool, bool]] = {
    "plain": (2, (2, 2), (2, 2), (0, 0), False, True),
    "padding counts": (2, (3, 3), (1, 1), (1, 1), False, True),
    "padding does not count": (2, (3, 3), (2, 2), (1, 1), False, False),
    "rounded up": (2, (3, 2), (2, 3), (1, 0), True, False),
    "one axis": (1, (3,), (2,), (1,), False, True),
    "longer than its input": (2, (7, 1), (1, 1), (3, 0), False, False),
}


@pytest.mark.parametrize(("axes", "kernel", "stride", "padding", "ceil", "counts"), POOLS.values(), ids=POOLS)
def test_averages_are_the_runtimes(
    axes: int, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], ceil: bool, counts: bool
) -> None:
    """On grids whose means often lie half-way between two codes; and near torch's, which adds in another order."""
    codes = torch.randint(0, 256, (2, 5, 6, 7)[: 2 + axes], generator=torch.Generator().manual_seed(0)).float()
    pool = F.avg_pool1d if axes == 1 else F.avg_pool2d
    settings = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "ceil_mode": int(ceil), "count_include_pad": int(counts)}
    for step, zero, out_step, out_zero in ((16, 3, 8, 7), (100, 0, 50, 0), (37, 128, 41, 121), (16, 255, 16, 1)):
        one, other = grid(step, zero), grid(out_step, out_zero)
        x = dequantize(codes, one)
        wanted = pool(x, kernel, stride, padding, ceil, counts)
        mean = average(x, kernel, stride, padding, wanted.shape[2:], counts)
        torch.testing.assert_close(mean, wanted)
        assert torch.equal(average_codes(mean, other), run("QLinearAveragePool", codes, one, other, **settings))


@settings(max_examples=60, deadline=None)
@given(STEPS, ZEROS, STEPS, ZEROS, st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_global_averages_are_the_runtimes_and_an_exact_sum_written_out(
    step: int, zero: int, out_step: int, out_zero: int, height: int, width: int, seed: int
) -> None:
    assume(step / (out_step * height * width) < 256)  # beyond it the runtime refuses to compute
    one, other = grid(step, zero), grid(out_step, out_zero)
    codes = torch.randint(0, 256, (2, 5, height, width), generator=torch.Generator().manual_seed(seed)).float()
    theirs = run("QLinearGlobalAveragePool", codes, one, other, channels_last=0)
    traced = torch.fx.symbolic_trace(lambda x: torch.ops.aten.mean.dim(x, [2, 3], True))
    (node,) = (node for node in traced.graph.nodes if node.op == "call_function")

    assert torch.equal(KERNELS["global_pool"](node, [codes], [one], other), theirs)
    exact = (codes.double() - zero).mean((2, 3), keepdim=True) * one.scale.double() / other.scale.double() + out_zero
    assert float((theirs.double() - exact.clamp(0, 255)).abs().max()) <= 0.5 + 1e-4
