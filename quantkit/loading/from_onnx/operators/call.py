"""How every operator is called, and what its inputs are: tensors, or whole numbers that stand for shapes and axes.

Vectors of whole numbers are lists of ints here, some of them symbols while torch.export traces; scalars are ints. Else nothing could be
known of sizes that depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantkit.core.errors import ModelError

# Of TensorProto: half, bfloat16 and double are computed in float32.
MOST_NUMBERS = 1 << 28  # of what an operator makes out of nothing
FLOATS = dict.fromkeys((1, 10, 11, 16), torch.float32)
TYPES = {**FLOATS, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One node: its `inputs` (None where one is left out), `attributes`, and how many `outputs` are read.

    `batch`: the fixed size of the network's batch in the file, None where it is a symbol there.
    """

    kind: str
    inputs: Sequence[Any]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int
    batch: int | None = None

    def at(self, place: int) -> Any:
        """The input at `place`, None where there is none."""
        return self.inputs[place] if len(self.inputs) > place else None

    def x(self, place: int = 0) -> Tensor:
        """The input at `place` as a tensor."""
        return as_tensor(self.inputs[place])

    def number(self, name: str, usual: Any = None) -> Any:
        """The attribute of that name."""
        return self.attributes.get(name, usual)

    def numbers(self, name: str, place: int | None = None) -> list[Any] | None:
        """A list: the attribute of that name or, in newer opsets, the input at `place`; None where there is neither."""
        found = self.attributes.get(name)
        given = self.at(place) if found is None and place is not None else found
        if given is None:
            return None
        given = given.tolist() if isinstance(given, Tensor) else given
        return list(given) if isinstance(given, list | tuple) else [given]

    def refuse(self, what: str) -> ModelError:
        """The error for a form of the operator that is not known here."""
        do = "pass the torch model that the file came from, or report this network"
        return ModelError(f"the ONNX file has {self.kind} with {what}", "a form that is translated", do)


    def check_size(self, numbers: Any) -> None:
        """Raises ModelError for a result of more than MOST_NUMBERS: a few bytes of a file could ask for any amount of memory."""
        if isinstance(numbers, int) and numbers > MOST_NUMBERS:
            raise self.refuse(f"a result of {numbers:,} numbers")


Operator = Callable[[Call], Any]


def as_tensor(value: Any) -> Tensor:
    """A list of whole numbers, or one, as the tensor that it is in the file."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value.tolist() if isinstance(value, np.ndarray) else value)


def is_shape(value: Any) -> bool:
    """Whether it is whole numbers that are carried as such."""
    return isinstance(value, (int, list, torch.SymInt))


def as_grid(value: Any) -> NDArray[Any] | None:
    """Whole numbers as an array of Python's, so that a matrix of them can be turned and cut without a tensor; None for what is none."""
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list):
        return None
    grid = np.empty(len(value), object)
    grid[:] = value
    return grid


def of_grid(grid: NDArray[Any]) -> Any:
    """A vector as the list that others take."""
    return grid.tolist() if grid.ndim == 1 else grid


def operand(value: Any) -> Any:
    """A constant of one number as that number, so that nothing is spread."""
    return value if isinstance(value, int | float | torch.SymInt) else as_tensor(value)


def constant(array: np.ndarray[Any, Any]) -> Any:
    """A constant as operators take it: one number as a number, a vector of whole numbers as a list, else a tensor, floats as float32."""
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.size == 1 and array.ndim == 0 and array.dtype.kind in "fiu":
        return cast("float | int", array.item())
    if array.ndim == 1 and array.dtype == np.int64:
        return [int(number) for number in array]
    return torch.from_numpy(np.array(array))
