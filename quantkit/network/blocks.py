"""The network in pieces that are learned at once: consecutive nodes, between places where one value alone flows on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from quantkit.core.graph import Layer
from quantkit.network.captured import Captured

Piece = tuple[fx.Node, ...]


def pieces(captured: Captured, learned: Iterable[Layer], *, of_one_layer: bool = False) -> tuple[Piece, ...]:
    """The nodes in their order, each piece with at least one of the layers that are to be `learned`.

    Cut where all that is computed further on follows from one value, so that a residual unit is one piece (`of_one_layer`: behind every
    layer); what no weight has touched (masks, positions) may flow beside. No layer is cut from its activation functions.
    """
    nodes, wanted = list(captured.module.graph.nodes), {layer.output for layer in learned}
    place = {node: number for number, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users), default=number) for number, node in enumerate(nodes)}
    touched, inside, alive = _touched(captured), _inside(captured), set[fx.Node]()
    found, piece, has_layer = list[Piece](), list[fx.Node](), False
    for number, node in enumerate(nodes):
        piece.append(node)
        has_layer |= node.name in wanted
        alive = {other for other in (*alive, node) if last[other] > number}
        if has_layer and node not in inside and (of_one_layer or len(alive & touched) <= 1):
            found.append(tuple(piece))
            piece, has_layer = [], False
    if not has_layer and found:  # what is left has nothing to learn
        return (*found[:-1], (*found[-1], *piece))
    return (*found, tuple(piece))


def _touched(captured: Captured) -> set[fx.Node]:
    """The nodes whose values follow from a weight of some layer."""
    weighted, found = {layer.node for layer in captured.graph.layers if layer.weight}, set[fx.Node]()
    for node in captured.module.graph.nodes:
        if node.name in weighted or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _inside(captured: Captured) -> set[fx.Node]:
    """The nodes of layers before their last one."""
    nodes, found = {node.name: node for node in captured.module.graph.nodes}, set[fx.Node]()
    for layer in captured.graph.layers:
        node = nodes[layer.node]
        while node.name != layer.output:
            found.add(node)
            (node,) = node.users
    return found
