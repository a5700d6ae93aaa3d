"""What each ONNX operator is in torch, one row each: `OPERATORS[name](call)`. Opsets 7 to the newest.

call.py         how they are called
elementwise.py  each number by itself, sums along axes
layers.py       convolutions, products with matrices, norms
pools.py        of windows and of whole maps
recurrent.py    LSTM, GRU, RNN
resizing.py     maps of another size
shapes.py       what moves numbers about, arithmetic of shapes
windows.py      strides and padding, which convolutions and pools share

Semantics are the standard's (onnx.ai/onnx/operators); tests/test_from_onnx.py holds every row against ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping

from quantkit.loading.from_onnx.operators.call import TYPES, Call, Operator, constant
from quantkit.loading.from_onnx.operators.elementwise import ELEMENTWISE
from quantkit.loading.from_onnx.operators.layers import LAYERS
from quantkit.loading.from_onnx.operators.pools import POOLS
from quantkit.loading.from_onnx.operators.recurrent import RECURRENT
from quantkit.loading.from_onnx.operators.resizing import RESIZING
from quantkit.loading.from_onnx.operators.shapes import SHAPES

OPERATORS: Mapping[str, Operator] = {**ELEMENTWISE, **LAYERS, **POOLS, **RECURRENT, **RESIZING, **SHAPES}

__all__ = ["OPERATORS", "TYPES", "Call", "constant"]
