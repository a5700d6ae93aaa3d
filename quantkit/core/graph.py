"""The captured network as frozen data: which layers it has, what flows between them, and under which names.

A layer is one operation that a target may quantize, together with the activation functions that follow it and
nothing else (`output` is the tensor behind them). Movers (max pooling, reshapes, slices) only carry codes about.
Tensors are named by the node of the canonical graph that makes them, which is also their name in the float ONNX
file; a weight is named by its parameter. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.core.spec import Scheme

Pair = tuple[str, Scheme]  # a group under a scheme
EMBEDDING = "embedding"  # the kind of a layer that reads rows of its weight


@dataclass(frozen=True, slots=True)
class Layer:
    """One operation. Shapes leave the batch axis out; `macs` are multiply-accumulates for one item.

    An embedding reads indices, which are no activation: it has no inputs. `weight_axis` is the axis of the output channels (of an
    embedding's table the rows). `item_first`: whether the first axis of what it reads is the items, and not, as of windows of a
    picture, several rows an item. `activation` names the functions absorbed behind the operation, in order.
    """

    name: str
    kind: str
    node: str
    output: str
    inputs: tuple[str, ...]
    activation: tuple[str, ...] = ()
    weight: str | None = None
    bias: str | None = None
    weight_shape: tuple[int, ...] = ()
    weight_axis: int = 0
    output_shape: tuple[int, ...] = ()
    groups: int = 1
    macs: int = 0
    item_first: bool = True

    @property
    def is_table(self) -> bool:
        """Whether its weight is read row by row and multiplied by nothing: its codes are made float, whatever the scheme."""
        return self.kind == EMBEDDING

    @property
    def weight_slot(self) -> int:
        """Where its operation reads the weight."""
        return 0 if self.is_table else 1

    @property
    def weight_count(self) -> int:
        """How many numbers the weight holds."""
        count = 1 if self.weight else 0
        for side in self.weight_shape:
            count *= side
        return count


@dataclass(frozen=True, slots=True)
class Mover:
    """An operation that selects or rearranges values of `input` and computes nothing."""

    node: str
    kind: str
    input: str


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An operation that stays float, and why."""

    node: str
    operation: str
    inputs: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value that flows: its producer's node, the consumers' nodes, its shape without the batch axis."""

    name: str
    shape: tuple[int, ...]
    consumers: tuple[str, ...]
    is_output: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """The smallest set of decisions that a target forces to be equal: the unit of every table.

    `layers` are layer names; `schemes` the names of those it can take, what the target keeps float (fp32, fp16) always among them.
    """

    name: str
    layers: tuple[str, ...]
    schemes: tuple[Scheme, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Graph:
    """The network. `inputs` and `outputs` are tensor names; `symbolic` says which input axes are symbols.

    `batch` is the fixed size of the batch axis, None where it is a symbol.
    """

    layers: tuple[Layer, ...]
    movers: tuple[Mover, ...]
    unsupported: tuple[Unsupported, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    symbolic: Mapping[str, Mapping[int, str]]
    batch: int | None = None

    def layer(self, name: str) -> Layer:
        """The layer of that name; KeyError if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name; KeyError if there is none."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        raise KeyError(name)

    def source(self, name: str) -> str:
        """The tensor whose values `name` carries: itself, or what the movers in front of it were given."""
        through = {mover.node: mover.input for mover in self.movers}
        while name in through:
            name = through[name]
        return name

    def weights(self, group: Group) -> dict[str, Layer]:
        """The group's weights by parameter name, each once, with the first layer that uses it."""
        found: dict[str, Layer] = {}
        for layer in map(self.layer, group.layers):
            if layer.weight:
                found.setdefault(layer.weight, layer)
        return found

    def share_behind(self, group: Group) -> float:
        """Of all multiply-accumulates, the share in the group and behind it: what a re-run costs, in passes; 1 where there are none."""
        consumers = {tensor.name: tensor.consumers for tensor in self.tensors}
        waiting = [self.layer(name).node for name in group.layers]
        seen = set(waiting)
        while waiting:
            fresh = set(consumers.get(waiting.pop(), ())) - seen
            seen |= fresh
            waiting += fresh
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if layer.node in seen) / total if total else 1.0

    def readers(self, name: str) -> frozenset[str]:
        """The nodes that compute with the tensor's values, behind movers; an output of the network is one that reads itself."""
        movers, tensors = {mover.node for mover in self.movers}, {tensor.name: tensor for tensor in self.tensors}
        found, waiting = set(), [name]
        while waiting:
            tensor = tensors[waiting.pop()]
            found |= {tensor.name} if tensor.is_output else set()
            for consumer in tensor.consumers:
                (waiting.append if consumer in movers else found.add)(consumer)
        return frozenset(found)

    def ends(self, name: str) -> bool:
        """Whether what happens to this tensor reaches the outputs through no further weight."""
        weighted = {layer.node for layer in self.layers if layer.weight}
        consumers = {tensor.name: tensor.consumers for tensor in self.tensors}
        waiting, seen = [name], {name}
        while waiting:
            for reader in consumers.get(waiting.pop(), ()):
                if reader in weighted:
                    return False
                if reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
        return True

    def to_json(self) -> dict[str, Any]:
        """A JSON form, whose keys are text."""
        symbolic = {name: {str(axis): symbol for axis, symbol in axes.items()} for name, axes in self.symbolic.items()}
        return {**asdict(self), "symbolic": symbolic}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        """The inverse of `to_json`."""
        tuples = {"inputs", "activation", "weight_shape", "output_shape", "shape", "consumers"}

        def build(kind: Any, row: Mapping[str, Any]) -> Any:
            return kind(**{key: tuple(value) if key in tuples else value for key, value in row.items()})

        return cls(
            tuple(build(Layer, row) for row in data["layers"]),
            tuple(Mover(**row) for row in data["movers"]),
            tuple(build(Unsupported, row) for row in data["unsupported"]),
            tuple(build(Tensor, row) for row in data["tensors"]),
            tuple(data["inputs"]),
            tuple(data["outputs"]),
            {name: {int(axis): symbol for axis, symbol in axes.items()} for name, axes in data["symbolic"].items()},
            data["batch"],
        )
