"""A run as it was recorded: what each layer read and gave, and gradients with respect to either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from quantkit.core.graph import Layer
from quantkit.sensitivity.passes.outputs import Outputs

# Of a layer, what it reads and what it gives: what is added to that, if anything.
Shift = Callable[[Layer, tuple[Tensor, ...], Tensor], Tensor | None]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One layer as a recorded run met it: what it read, one edge a slot that only this layer reads, and what it gave.

    `shift` is what was added to the operation's result; `output` has it in. `read` is what it read without gradients: the inputs, or a
    table's indices. `counted` tells padding, as a batch does.
    """

    layer: Layer
    node: fx.Node
    inputs: tuple[Tensor, ...]
    output: Tensor
    shift: Tensor | None
    read: tuple[Tensor, ...]
    counted: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A run that gradients can be taken of, as often as wanted; its activations are kept until it is dropped."""

    outputs: Outputs
    sites: tuple[Site, ...]

    def gradients(self, cotangents: Sequence[Tensor], of: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The gradient of Σ cotangents · outputs with respect to each of the tensors `of` the sites; items do not mix."""
        if not of:
            return ()
        constants = [cotangent.detach() for cotangent in cotangents]
        return torch.autograd.grad(self.outputs, of, grad_outputs=constants, retain_graph=True, materialize_grads=True)


def edge_names(layer: Layer) -> Iterator[str]:
    """A name for each edge into the layer, which is not a parameter's."""
    return (f"{layer.name} input {slot}" for slot in range(len(layer.inputs)))
