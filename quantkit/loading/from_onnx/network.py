"""The network of an ONNX file as a torch module, which torch.export captures as it does the author's own.

Parameters keep their names in the file where these are paths (`layer1.0.conv1.weight`); others are named after the node that reads them
(`/layer1/layer1.0/conv1/Conv`), so that groups have the names that they would have from PyTorch. What follows from constants alone is
computed once. A product with a stored matrix, and the bias added to it, is a linear layer. Before anything else is done with the module,
its answers are held against those of ONNX Runtime on the file itself.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram

from quantkit.core.errors import ModelError
from quantkit.loading.boundary import foreign
from quantkit.loading.from_onnx.bounded import bounded
from quantkit.loading.from_onnx.branches import UndecidedError, with_chosen_branches
from quantkit.loading.from_onnx.comparison import all_known, compare, example_of, export_fixed, sides_of, takes_more
from quantkit.loading.from_onnx.fusions import Arrays, Step, read, with_factors, with_gelu, with_linear
from quantkit.loading.from_onnx.opening import open_model
from quantkit.loading.from_onnx.operators import OPERATORS, Call, constant
from quantkit.loading.from_onnx.recurrent import with_torch_parameters
from quantkit.loading.from_onnx.rest import OnnxFile, Rest, cut, is_translated

# Slots of parameters: what a batch norm or a table reads is one, too.
PARAMETERS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1, 2), "BatchNormalization": (1, 2), "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "PRelu": (1,), "Gather": (0,),
    "LSTM": tuple(range(3, 11)), "GRU": tuple(range(2, 10)), "RNN": tuple(range(2, 10)),
}  # fmt: skip
QUANTIZED = re.compile(r"(Dynamic)?QuantizeLinear|DequantizeLinear|QLinear\w+|QGemm|\w+Integer\w*|MatMulNBits|QAttention")
SUBGRAPHS = ("If", "Loop", "Scan")
PATH, ROOM = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)+"), re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
SCOPES = "pkg.torch.onnx.name_scopes"


class Room(nn.Module):
    """A module of the author's: torch.export notes in which an operation stands, and so layers without weights get their names."""

    def forward(self, call: Call) -> Any:
        """What the operator makes of the call."""
        return OPERATORS[call.kind](call)


class OnnxNetwork(nn.Module):
    """The steps of a file in their order; `values` are constants by name, `places` where parameters and buffers lie."""

    def __init__(self, steps: Sequence[Step], outputs: Sequence[str], opset: int, batch: int | None) -> None:
        super().__init__()
        self.steps, self.outputs, self.opset, self.batch = tuple(steps), tuple(outputs), opset, batch
        self.values: dict[str, Any] = {}
        self.places: dict[tuple[int, int] | str, str] = {}  # of what a step reads at a slot, or of a constant by name

    def compute(self, given: Mapping[str, Tensor]) -> tuple[Any, ...]:
        """The outputs for these inputs, by their names in the file."""
        values: dict[str, Any] = {**self.values, **given, "": None}
        for number, step in enumerate(self.steps):
            inputs = [self._read(values, number, slot, name) for slot, name in enumerate(step.inputs)]
            call = Call(step.kind, inputs, step.attributes, self.opset, len(step.outputs), self.batch)
            found = self.get_submodule(step.room)(call) if step.room else OPERATORS[step.kind](call)
            values.update(zip(step.outputs, found if isinstance(found, tuple) else (found,), strict=False))
        return tuple(values[name] if name in values else self._stored(self.places[name]) for name in self.outputs)

    def _read(self, values: Mapping[str, Any], number: int, slot: int, name: str) -> Any:
        place = self.places.get((number, slot)) or (None if name in values else self.places[name])
        return values[name] if place is None else self._stored(place)

    def _stored(self, place: str) -> Tensor:
        room, _, own = place.rpartition(".")
        found: Tensor = getattr(self.get_submodule(room), own)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Translated:
    """The network of a file, and an example of its inputs where the file tells all their sides.

    `program`: the network of the file's own batch, where it is of no other, as one that looks at each item by itself.
    """

    module: nn.Module
    example: Mapping[str, Tensor] | None
    file: OnnxFile
    program: ExportedProgram | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that Python can have, too."""
        return tuple(map(_identifier, self.file.outputs))


def read_onnx(path: Path) -> Translated:
    """The network of the file.

    Raises ModelError for a file that is not whole, is quantized already, or has operators or forms that are not translated, save behind all
    its weights; and where its answers are not ONNX Runtime's.
    """
    model, undecided = open_model(path, inlined=True), list[str]()
    while True:
        with foreign(f"{path.name} cannot be translated", "a network of known operators", "pass the torch model, or report this network"):
            head, rest = cut(model, undecided)
        _check_operators(path, head)
        try:
            return _translated(path, head, rest)
        except UndecidedError as error:
            if error.output in undecided or not any(error.output in node.output for node in model.graph.node):
                raise
            undecided.append(error.output)


def _translated(path: Path, model: onnx.ModelProto, rest: Rest | None) -> Translated:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    with foreign(f"{path.name} holds a constant that is not whole", "constants of their shapes and types", "export it again"):
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in arrays]
    sides = {value.name: sides_of(value) for value in inputs}
    known = all_known(sides)

    def prepare(graph: onnx.GraphProto) -> list[Step]:
        return with_torch_parameters(_folded(_steps(graph), arrays, opset), arrays)

    strange = f"{path.name} cannot be translated", "a network of known operators", "pass the torch model, or report this network"
    with foreign(*strange):
        outputs = [value.name for value in model.graph.output]
        steps = prepare(model.graph)
        if any(step.kind == "If" for step in steps):
            if not known:
                raise _nested(path, ["If"])
            given = {value.name: example_of(value, sides[value.name], sides[value.name][0] or 2) for value in inputs}
            steps = with_chosen_branches(steps, arrays, given, opset, prepare)
        steps = with_factors(read(steps, outputs), arrays)
        steps = with_gelu(with_linear(steps, arrays, outputs), arrays, outputs)
        network = OnnxNetwork(steps, outputs, opset, _fixed_batch(inputs))
        _store(network, arrays)
        module = _with_signature(network, [value.name for value in inputs])
    example = {_identifier(value.name): example_of(value, sides[value.name], 2) for value in inputs} if known else None
    program = None
    if example is not None:
        compare(path, model, module, inputs, sides, whole=rest is None)
        if network.batch is not None and not takes_more(module, example, network.batch):
            own = {_identifier(value.name): example_of(value, sides[value.name], network.batch) for value in inputs}
            program = export_fixed(path, module, own)
    file = OnnxFile(path, {_identifier(value.name): value.name for value in inputs}, tuple(outputs), rest)
    return Translated(module, example, file, program)


def _nested(path: Path, kinds: Sequence[str]) -> ModelError:
    got = f"{path.name} has graphs within its graph ({', '.join(kinds)})"
    return ModelError(got, "one straight graph before the last layer with weights", "export it without control flow that depends on data")


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    kinds = Counter(node.op_type for node in model.graph.node if node.op_type != "If" or not is_translated(node))
    quantized = sorted(kind for kind in kinds if QUANTIZED.fullmatch(kind))
    if quantized:
        got = f"{path.name} is quantized already ({', '.join(quantized[:3])})"
        raise ModelError(got, "a float ONNX file", f"judge it with `quantkit gate {path}`, or check it with `quantkit lint {path}`")
    nested = sorted(kind for kind in kinds if kind in SUBGRAPHS)
    if nested:
        raise _nested(path, nested)
    unknown = sorted(f"{kind} ({count})" for kind, count in kinds.items() if kind not in OPERATORS and kind != "Constant")
    if unknown:
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        got = f"{path.name} has operators that are not translated: {', '.join(unknown[:6])}{more}"
        known = f"some of the {len(OPERATORS)} operators that are known (docs/how-to/onnx-file.md)"
        raise ModelError(got, known, "pass the torch model that the file came from")


def _steps(graph: onnx.GraphProto) -> list[Step]:
    found = []
    for node in graph.node:
        attributes = {one.name: _attribute(one) for one in node.attribute}
        found.append(Step(node.op_type, _room(node), tuple(node.input), tuple(node.output), attributes))
    return found


def _room(node: onnx.NodeProto) -> str:
    """From the scopes that torch's newer exporter notes, or from the path that its older one makes a name of."""
    scopes = next((one.value for one in node.metadata_props if one.key == SCOPES), None)
    if scopes is not None:
        parts = re.findall(r"'([^']*)'", scopes)[:-1]
        base = parts[-1] if parts else ""
    else:
        base, last = "", ""
        for part in [part for part in node.name.split("/") if part and not re.fullmatch(rf"{node.op_type}(_\d+)?", part)]:
            own = part.removeprefix(f"{last}.") if last else part  # `downsample/downsample.0`: a list of modules, and one of it
            base, last = f"{base}.{own}" if base else own, part
    return base if ROOM.fullmatch(base) else ""


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    return [each.decode() if isinstance(each, bytes) else each for each in value] if isinstance(value, Iterable) else value


@torch.no_grad()
def _folded(steps: Iterable[Step], arrays: Arrays, opset: int) -> list[Step]:
    """The steps that depend on the inputs; what the others give is added to `arrays`."""
    left = []
    for step in steps:
        if step.kind == "Constant":
            ((_, value),) = step.attributes.items()
            arrays[step.outputs[0]] = _array(value)
        elif step.kind != "If" and all(name in arrays or not name for name in step.inputs):
            values = [constant(arrays[name]) if name else None for name in step.inputs]
            with bounded():
                found = OPERATORS[step.kind](Call(step.kind, values, step.attributes, opset, len(step.outputs)))
            arrays.update(zip(step.outputs, map(_array, found if isinstance(found, tuple) else (found,)), strict=False))
        else:
            left.append(step)
    return left


def _array(value: Any) -> NDArray[Any]:
    found = np.asarray(value)
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype != object):
        return found
    return found.astype(np.float32 if found.dtype.kind == "f" else np.int64)


def _store(network: OnnxNetwork, arrays: Arrays) -> None:
    """Parameters at their paths, other constants as numbers, lists or buffers."""
    stored: dict[tuple[str, bool], str] = {}  # where a constant lies, as it is or transposed
    for number, step in enumerate(network.steps):
        for slot in PARAMETERS.get(step.kind, ()):
            name = step.inputs[slot] if len(step.inputs) > slot else ""
            if name not in arrays or arrays[name].dtype.kind not in "fV" or not _is_parameter(step, slot, arrays[name]):
                continue
            transposed = slot == 1 and (step.kind == "MatMul" or (step.kind == "Gemm" and not step.attributes.get("transB", 0)))
            if (name, transposed) not in stored:
                stored[name, transposed] = path = _free_path(_path(step, slot, name, number), set(stored.values()))
                array = arrays[name].astype(np.float32)
                value = torch.from_numpy(np.array(array.T if transposed else array, order="C"))
                _put(network, path, nn.Parameter(value, requires_grad=False))
            network.places[number, slot] = stored[name, transposed]
    network.steps = tuple(_with_own_layout(step) for step in network.steps)
    for step in network.steps:
        _make_room(network, step.room)
    for name, array in arrays.items():
        value = constant(array)
        if isinstance(value, Tensor):
            network.places[name] = f"constants.{re.sub(r'[^0-9A-Za-z_]', '_', name)}"
    slots = [((number, slot), name) for number, step in enumerate(network.steps) for slot, name in enumerate(step.inputs)]
    for name in sorted({name for place, name in slots if place not in network.places} | set(network.outputs)):
        if name in arrays:
            value = constant(arrays[name])
            if isinstance(value, Tensor):
                _put(network, network.places[name], value)
            else:
                network.values[name] = value


def _is_parameter(step: Step, slot: int, array: NDArray[Any]) -> bool:
    if step.kind == "Gather":
        return array.ndim == 2 and step.attributes.get("axis", 0) == 0
    if step.kind == "Gemm":
        plain = step.attributes.get("alpha", 1.0) == step.attributes.get("beta", 1.0) == 1.0
        return plain and not step.attributes.get("transA", 0) and array.ndim == (2 if slot == 1 else 1)
    return step.kind != "MatMul" or "linear" in step.attributes


def _with_own_layout(step: Step) -> Step:
    """A stored matrix lies as torch has it, [outputs, inputs]."""
    plain = step.kind == "Gemm" and step.attributes.get("alpha", 1.0) == step.attributes.get("beta", 1.0) == 1.0
    return replace(step, attributes={**step.attributes, "transB": 1}) if plain and not step.attributes.get("transA", 0) else step


def _path(step: Step, slot: int, name: str, number: int) -> str:
    """Where a parameter goes: by its own name if that is a path, else by the node's."""
    if PATH.fullmatch(name):
        return name
    own = "weight" if slot == PARAMETERS[step.kind][0] else "bias"
    return f"{step.room or f'{step.kind.lower()}_{number}'}.{own}"


def _free_path(path: str, taken: set[str]) -> str:
    room, _, own = path.rpartition(".")
    count, free = 1, path
    while free in taken:
        count += 1
        free = f"{room}_{count}.{own}"
    return free


def _put(network: nn.Module, path: str, value: Tensor) -> None:
    room, _, own = path.rpartition(".")
    owner = _make_room(network, room)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(own, value)
    else:
        owner.register_buffer(own, value)


def _make_room(network: nn.Module, path: str) -> nn.Module:
    owner = network
    for part in path.split(".") if path else ():
        if part not in owner._modules:
            owner.add_module(part, Room())
        owner = owner.get_submodule(part)
    return owner


def _with_signature(network: OnnxNetwork, names: Sequence[str]) -> nn.Module:
    """The network with a `forward` that takes the file's inputs under their names, as far as these are identifiers."""
    mine = [_identifier(name) for name in names]
    places = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *mine)]
    signature = inspect.Signature(places)

    def forward(self: OnnxNetwork, *arguments: Tensor, **named: Tensor) -> Any:
        bound = signature.bind(self, *arguments, **named).arguments
        found = self.compute({name: bound[own] for name, own in zip(names, mine, strict=True)})
        return found[0] if len(found) == 1 else found

    forward.__signature__ = signature  # type: ignore[attr-defined]
    network.__class__ = type("OnnxNetwork", (OnnxNetwork,), {"forward": forward})
    return network.eval()


def _identifier(name: str) -> str:
    plain = re.sub(r"\W", "_", name)
    return plain if plain[:1].isalpha() or plain[:1] == "_" else f"input_{plain}"


def _fixed_batch(inputs: Sequence[onnx.ValueInfoProto]) -> int | None:
    sides = [sides_of(value) for value in inputs]
    return sides[0][0] if sides and sides[0] else None
