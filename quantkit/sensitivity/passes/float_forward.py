"""The inside of the float network: what each layer reads and gives, changed on the way or not, with gradients where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.core.graph import Layer
from quantkit.data.batch import Batch
from quantkit.network.captured import Captured
from quantkit.sensitivity.passes.outputs import Outputs, unpadded
from quantkit.sensitivity.passes.recorded import Recorded, Shift, Site


class Operation:
    """A layer's own operation in float, on inputs (one a slot) and, if it is given, on another weight. Without activation functions."""

    def __init__(self, node: fx.Node, layer: Layer, environment: Mapping[fx.Node, Any]) -> None:
        self.node, self._layer, self._environment = node, layer, environment

    @property
    def indices(self) -> Tensor:
        """The rows that a table is asked for."""
        return cast("Tensor", self._environment[cast("fx.Node", self.node.args[1])])

    def __call__(self, inputs: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
        """The operation's result."""
        slots = iter(inputs)

        def value(source: fx.Node) -> Any:
            if source.name in self._layer.inputs:
                return next(slots)
            return weight if weight is not None and str(source.target) == self._layer.weight else self._environment[source]

        arguments, keywords = pytree.tree_map_only(fx.Node, value, (self.node.args, self.node.kwargs))
        return cast("Callable[..., Tensor]", self.node.target)(*arguments, **keywords)


Meet = Callable[[Layer, tuple[Tensor, ...], Operation], Tensor]


class Interior(fx.Interpreter):
    """Runs the float network; `meet(layer, inputs, operation)` says what each layer gives."""

    def __init__(self, captured: Captured, meet: Meet) -> None:
        super().__init__(captured.module)
        self._names, self._meet = captured.graph.inputs, meet
        self._layers = {layer.node: layer for layer in captured.graph.layers}

    def run_node(self, n: fx.Node) -> Any:
        """As any interpreter, save that layers are met."""
        layer = self._layers.get(n.name)
        if layer is None:
            return super().run_node(n)
        given = {node.name: self.env[node] for node in n.all_input_nodes}
        return self._meet(layer, tuple(given[name] for name in layer.inputs), Operation(n, layer, self.env))

    def outputs(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """The network's outputs for `inputs` by name."""
        return tuple(pytree.tree_leaves(self.run(*[inputs[name] for name in self._names])))

    def rerun(self, base: Mapping[str, Any], changed: Iterable[str]) -> Outputs:
        """The outputs where only what lies behind the nodes `changed` is run again, and all else is as in `base`, by node name."""
        dirty = set(changed)
        known: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.name in dirty or any(source.name in dirty for source in node.all_input_nodes):
                dirty.add(node.name)
            elif node.op != "output":
                known[node] = base[node.name]
        return tuple(pytree.tree_leaves(self.run(initial_env=known)))


def record(captured: Captured, batch: Batch, shift: Shift | None = None) -> Recorded:
    """Run the float network on a batch, each layer's result moved by `shift(layer, inputs, result)`, which is a constant to gradients."""
    sites: list[Site] = []

    def meet(layer: Layer, given: tuple[Tensor, ...], operation: Operation) -> Tensor:
        edges = tuple(x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in given)
        output = operation(edges)
        output = output if output.requires_grad else output.detach().requires_grad_()  # a table's
        read = (operation.indices,) if layer.is_table else tuple(edge.detach() for edge in edges)
        added = None
        if shift is not None:
            with torch.no_grad():
                added = shift(layer, read, output.detach())
        output = output if added is None else output + added
        sites.append(Site(layer, operation.node, edges, output, added, read, batch.counted))
        return output

    with torch.enable_grad():
        outputs = unpadded(Interior(captured, meet).outputs(batch.inputs), batch.counted)
    return Recorded(outputs, tuple(sites))
