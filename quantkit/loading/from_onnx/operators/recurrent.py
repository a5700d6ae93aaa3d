"""Recurrent layers, with their parameters as `recurrent.with_torch_parameters` has put them: in torch's order, behind the states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quantkit.loading.from_onnx.operators.call import Call, Operator

STATES: Mapping[str, int] = {"LSTM": 2, "GRU": 1, "RNN": 1}


def _recurrent(call: Call) -> tuple[Tensor, ...]:
    """[steps, items, inputs] → [steps, directions, items, states], and the last states; `layout` 1 has the items first everywhere."""
    items_first, both = bool(call.number("layout", 0)), call.number("direction") == "bidirectional"
    x = call.x().transpose(0, 1) if items_first else call.x()
    x = x.flip(0) if call.number("direction") == "reverse" else x
    count = STATES[call.kind]
    given, parameters = call.inputs[1 : 1 + count], [call.x(place) for place in range(1 + count, len(call.inputs))]
    shape = 1 + both, x.shape[1], parameters[1].shape[1]
    states = [torch.zeros(shape) if state is None else state.transpose(0, 1) if items_first else state for state in given]
    settings: tuple[Any, ...] = (parameters, True, 1, 0.0, False, both, False)  # with biases, one layer, no dropout, as in inference
    lengths = call.number("lengths")
    if lengths is not None and set(lengths) != {x.shape[0]}:
        raise call.refuse("items of several lengths (sequence_lens)")
    if call.kind == "GRU" and not call.number("linear_before_reset", 0):
        y, *last = _gru_by_steps(x, states[0], parameters)
    elif call.kind == "LSTM":
        y, *last = torch.lstm(x, states, *settings)
    elif call.kind == "GRU":
        y, *last = torch.gru(x, states[0], *settings)
    else:
        y, *last = (torch.rnn_relu if "Relu" in call.number("activations", ()) else torch.rnn_tanh)(x, states[0], *settings)
    y = y.flip(0) if call.number("direction") == "reverse" else y
    y = y.reshape(*y.shape[:2], 1 + both, shape[2])
    if items_first:
        return y.transpose(0, 1), *(state.transpose(0, 1) for state in last)
    return y.transpose(1, 2), *last


def _gru_by_steps(x: Tensor, first: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """With the reset gate before the product, which torch's GRU does not have. Outputs of the directions side by side, last states."""
    rows, last = [], []
    for direction, state in enumerate(first):
        over_inputs, over_states, *biases = parameters[4 * direction : 4 * direction + 4]
        hidden, steps = state.shape[-1], []
        for step in x.flip(0) if direction else x:
            given = F.linear(step, over_inputs, biases[0])
            reset, update = torch.sigmoid(
                given[:, : 2 * hidden] + F.linear(state, over_states[: 2 * hidden], biases[1][: 2 * hidden])
            ).chunk(2, 1)
            new = torch.tanh(given[:, 2 * hidden :] + F.linear(reset * state, over_states[2 * hidden :], biases[1][2 * hidden :]))
            state = (1 - update) * new + update * state
            steps.append(state)
        rows.append(torch.stack(steps[::-1] if direction else steps))
        last.append(state)
    return torch.cat(rows, 2), torch.stack(last)


RECURRENT: Mapping[str, Operator] = dict.fromkeys(STATES, _recurrent)
