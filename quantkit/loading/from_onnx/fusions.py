"""What several operators of a file are together: a linear layer, a GELU. Exporters spell them out; as one they have a form here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node. `room` is the path of the author's module in which it stands, as far as the file tells it; `inputs` are names of values,
    "" where one is left out.
    """

    kind: str
    room: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read(steps: Sequence[Step], outputs: Sequence[str]) -> list[Step]:
    """The steps that something is read of."""
    wanted, found = set(outputs), list[Step]()
    for step in reversed(steps):
        if wanted.intersection(step.outputs):
            wanted.update(step.inputs)
            found.append(step)
    return found[::-1]


def with_factors(steps: Sequence[Step], arrays: Arrays) -> list[Step]:
    """The factors of a Resize, and the part of the map, as attributes: as numbers in a tensor, torch.export would not know them."""
    found = []
    for step in steps:
        names = {"Resize": ("", "roi", "scales"), "Upsample": ("", "scales")}.get(step.kind, ())
        own = {place: arrays[name] for place, name in enumerate(step.inputs) if place and place < len(names) and name in arrays}
        numbers = {names[place]: [float(number) for number in array] for place, array in own.items() if array.size}
        inputs = tuple("" if place in own else name for place, name in enumerate(step.inputs))
        found.append(replace(step, inputs=inputs, attributes={**step.attributes, **numbers}) if own else step)
    return found


def with_linear(steps: list[Step], arrays: Arrays, outputs: Sequence[str]) -> list[Step]:
    """Products with a stored matrix as linear layers, with the vector that is added behind them as their bias."""
    readers = Counter(name for step in steps for name in step.inputs)
    adders = {name: step for step in steps if step.kind == "Add" for name in step.inputs}
    found, taken = [], set[str]()
    for step in steps:
        if step.outputs[0] in taken:
            continue
        if step.kind == "MatMul" and step.inputs[1] in arrays and arrays[step.inputs[1]].ndim == 2 and step.inputs[0] not in arrays:
            product, adder = step.outputs[0], adders.get(step.outputs[0])
            step = replace(step, attributes={**step.attributes, "linear": True})
            other = next((name for name in adder.inputs if name != product), "") if adder is not None else ""
            fits = other in arrays and arrays[other].shape == (arrays[step.inputs[1]].shape[1],)
            if adder is not None and fits and readers[product] == 1 and product not in outputs:
                step = replace(step, inputs=(*step.inputs, other), outputs=adder.outputs)
                taken.add(adder.outputs[0])
        found.append(step)
    return [step for step in found if not (step.kind == "Add" and step.outputs[0] in taken)]


def with_gelu(steps: Sequence[Step], arrays: Arrays, outputs: Sequence[str]) -> list[Step]:
    """x · (1 + erf(x / √2)) · ½, in this order, as torch's older exporter writes it, as one step."""
    made = {name: step for step in steps for name in step.outputs}
    readers = Counter(name for step in steps for name in step.inputs) + Counter(outputs)
    gone, whole = set[int](), dict[int, Step]()
    for erf in (step for step in steps if step.kind == "Erf"):
        divided = made.get(erf.inputs[0])
        chain = _chain(steps, erf, ("Add", "Mul", "Mul"), readers)
        if divided is None or len(chain) < 3 or divided.kind != "Div" or not _is_number(divided, arrays, math.sqrt(2)):
            continue
        added, product, halved = chain
        x = divided.inputs[0]
        inner = [divided.outputs[0], erf.outputs[0], added.outputs[0], product.outputs[0]]
        if x in product.inputs and _is_number(added, arrays, 1) and _is_number(halved, arrays, 0.5) and all(readers[n] == 1 for n in inner):
            gone |= {id(step) for step in (divided, erf, added, product)}
            whole[id(halved)] = Step("Gelu", erf.room, (x,), halved.outputs, {"approximate": "none"})
    return [whole.get(id(step), step) for step in steps if id(step) not in gone]


def _chain(steps: Sequence[Step], start: Step, kinds: Sequence[str], readers: Mapping[str, int]) -> list[Step]:
    """The steps of these kinds that follow, each the only reader of the one before."""
    found, last = [], start
    for kind in kinds:
        following = [step for step in steps if last.outputs[0] in step.inputs]
        if readers[last.outputs[0]] != 1 or [step.kind for step in following] != [kind]:
            break
        found.append(last := following[0])
    return found


def _is_number(step: Step, arrays: Arrays, number: float) -> bool:
    """Whether one of the step's inputs is that constant."""
    return any(name in arrays and arrays[name].size == 1 and abs(float(arrays[name].item()) - number) < 1e-3 for name in step.inputs)
