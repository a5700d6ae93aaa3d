"""Parameters of recurrent layers as torch has them: a matrix over inputs, one over states and two biases for each direction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from quantkit.loading.from_onnx.fusions import Arrays, Step
from quantkit.loading.from_onnx.operators.call import Call
from quantkit.loading.from_onnx.operators.recurrent import STATES

GATES: Mapping[str, Sequence[int]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's order, by places in the file's
USUAL: Mapping[str, Sequence[str]] = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
LENGTHS, STATE, PEEPHOLES = 4, 5, 7  # slots behind the input, both matrices and the biases


def with_torch_parameters(steps: Iterable[Step], arrays: Arrays) -> list[Step]:
    """The steps; a recurrent one reads its input, its first states and then its parameters, which are added to `arrays`.

    States of zeros are left out: exporters write them for a fixed batch. Raises ModelError for a form that torch does not have.
    """
    zeros, found = {name for name, array in arrays.items() if not array.any()}, []
    for number, step in enumerate(steps):
        if step.kind in ("Expand", "Slice") and step.inputs[0] in zeros:
            zeros.add(step.outputs[0])
        found.append(_changed(step, number, arrays, zeros) if step.kind in STATES else step)
    return found


def _changed(step: Step, number: int, arrays: Arrays, zeros: Collection[str]) -> Step:
    x, *stored = (*step.inputs, *[""] * (PEEPHOLES + 1 - len(step.inputs)))
    _check(step, arrays)
    weights, states, biases = (arrays[name] if name else None for name in stored[:3])
    assert weights is not None and states is not None
    room, names = step.room or f"{step.kind.lower()}_{number}", list[str]()
    level = next(level for level in count() if f"{room}.weight_ih_l{level}" not in arrays)  # of a stack that has one name
    for direction in range(len(weights)):
        halves = np.zeros((2, states.shape[1])) if biases is None else np.split(biases[direction], 2)
        rows = {"weight_ih": weights[direction], "weight_hh": states[direction], "bias_ih": halves[0], "bias_hh": halves[1]}
        for own, array in rows.items():
            names.append(f"{room}.{own}_l{level}{'_reverse' * direction}")
            arrays[names[-1]] = _reordered(array, GATES[step.kind])
    firsts = stored[STATE - 1 : STATE - 1 + STATES[step.kind]]
    lengths = {"lengths": arrays[stored[LENGTHS - 1]].tolist()} if stored[LENGTHS - 1] else {}
    return replace(step, attributes={**step.attributes, **lengths}, inputs=(x, *("" if name in zeros else name for name in firsts), *names))


def _reordered(array: NDArray[np.generic], order: Sequence[int]) -> NDArray[np.float32]:
    parts = np.split(array, len(order))
    return np.concatenate([parts[place] for place in order]).astype(np.float32)


def _check(step: Step, arrays: Arrays) -> None:
    call = Call(step.kind, (), step.attributes, 0, 0)
    given = (*step.inputs, *[""] * PEEPHOLES)
    computed = [name for name in given[1:LENGTHS] if name and name not in arrays]
    usual = tuple(USUAL[step.kind]) * (2 if call.number("direction") == "bidirectional" else 1)
    functions = tuple(call.number("activations") or usual)
    rectified = step.kind == "RNN" and set(functions) == {"Relu"}
    refused = {
        f"parameters that are computed ({', '.join(computed)})": bool(computed),
        "lengths of items that are computed (sequence_lens)": given[LENGTHS] != "" and given[LENGTHS] not in arrays,
        "peepholes": bool(given[PEEPHOLES]),
        f"activations {', '.join(functions)}": not rectified and functions != usual,
        "a clip of its sums": call.number("clip") is not None,
        "coupled gates (input_forget)": bool(call.number("input_forget", 0)),
    }  # fmt: skip
    for what, is_so in refused.items():
        if is_so:
            raise call.refuse(what)
