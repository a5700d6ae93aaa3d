"""Branches that shapes decide: exporters write an `If` where the author's code asks for the size of a side.

The steps are computed once for an example; where a condition is known without the numbers of a tensor, its branch takes the place of the
`If`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from quantkit.core.errors import ModelError
from quantkit.loading.from_onnx.bounded import bounded
from quantkit.loading.from_onnx.fusions import Arrays, Step
from quantkit.loading.from_onnx.operators import OPERATORS, Call, constant

Prepare = Callable[[onnx.GraphProto], list[Step]]


class UndecidedError(ModelError):
    """The condition of the `If` that gives `output` hangs on the numbers of a tensor."""

    def __init__(self, output: str) -> None:
        got = "the ONNX file has an If whose branch the numbers of a tensor decide"
        wanted = "one straight graph before the last layer with weights"
        super().__init__(got, wanted, "export it without control flow that depends on data")
        self.output = output


@torch.no_grad()
def with_chosen_branches(steps: Sequence[Step], arrays: Arrays, given: Mapping[str, Tensor], opset: int, prepare: Prepare) -> list[Step]:
    """The steps without `If`; `prepare` makes steps of a branch. Raises UndecidedError."""
    with bounded():
        return list(_straight(steps, arrays, {**given, "": None}, opset, prepare))


def _straight(steps: Sequence[Step], arrays: Arrays, values: dict[str, Any], opset: int, prepare: Prepare) -> Iterator[Step]:
    for step in steps:
        if step.kind != "If":
            inputs = [values[name] if name in values else constant(arrays[name]) for name in step.inputs]
            found = OPERATORS[step.kind](Call(step.kind, inputs, step.attributes, opset, len(step.outputs)))
            values.update(zip(step.outputs, found if isinstance(found, tuple) else (found,), strict=False))
            yield step
            continue
        (condition,) = (values[name] if name in values else arrays[name].item() for name in step.inputs)
        if isinstance(condition, Tensor):
            raise UndecidedError(step.outputs[0])
        branch = step.attributes["then_branch" if condition else "else_branch"]
        arrays.update({tensor.name: numpy_helper.to_array(tensor) for tensor in branch.initializer})
        yield from _straight(prepare(branch), arrays, values, opset, prepare)
        for own, output in zip(branch.output, step.outputs, strict=True):
            if own.name in arrays:
                arrays[output] = arrays[own.name]
            else:
                values[output] = values[own.name]
                yield Step("Identity", step.room, (own.name,), (output,))
