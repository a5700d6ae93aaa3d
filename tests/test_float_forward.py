"""The inside of the float network: runs that change nothing give the network's outputs, and gradients are the layer's own."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from quantkit.core.graph import Layer
from quantkit.data import Batch
from quantkit.network.captured import Captured
from quantkit.quantization.simulation.program import Simulation
from quantkit.sensitivity.passes.curvature import differentiable
from quantkit.sensitivity.passes.float_forward import Interior, Operation, record
from quantkit.sensitivity.passes.perturbed import FLOAT_PLACEMENT
from quantkit.sensitivity.passes.recorded import edge_names
from reference import pass_error


@pytest.fixture(scope="module")
def box() -> toys.Toybox:
    return toys.toybox()


def plain(layer: Layer, inputs: tuple[Tensor, ...], operation: Operation) -> Tensor:
    return operation(inputs)


def inputs_of(box: toys.Toybox) -> dict[str, Tensor]:
    return dict(next(box.items.batches(8)).inputs)


@torch.no_grad()
def test_every_layer_is_met_once_with_what_it_reads(box: toys.Toybox) -> None:
    seen: dict[str, tuple[Tensor, ...]] = {}

    def meet(layer: Layer, inputs: tuple[Tensor, ...], operation: Operation) -> Tensor:
        assert layer.name not in seen
        seen[layer.name] = inputs
        return operation(inputs)

    found = Interior(box.captured, meet).outputs(inputs_of(box))
    values = Simulation(box.captured, FLOAT_PLACEMENT, box.bank).run(inputs_of(box))

    assert torch.equal(found[0], values["output"][0])
    assert list(seen) == [layer.name for layer in box.captured.graph.layers]
    for layer in box.captured.graph.layers:
        for got, name in zip(seen[layer.name], layer.inputs, strict=True):
            assert torch.equal(got, values[name])


@pytest.mark.parametrize("name", ["stem", "add", "down"])
@torch.no_grad()
def test_a_rerun_gives_the_bits_of_a_whole_run(box: toys.Toybox, name: str) -> None:
    (layer,) = [layer for layer in box.captured.graph.layers if layer.name == name]
    ran: list[str] = []

    def doubled(met: Layer, inputs: tuple[Tensor, ...], operation: Operation) -> Tensor:
        ran.append(met.name)
        return operation(inputs) * (2 if met is layer else 1)

    (whole,) = Interior(box.captured, doubled).outputs(inputs_of(box))
    everything, base = len(ran), Simulation(box.captured, FLOAT_PLACEMENT, box.bank).run(inputs_of(box))
    before = dict(base)
    (again,) = Interior(box.captured, doubled).rerun(base, [layer.node])

    assert torch.equal(whole, again)
    assert base.keys() == before.keys() and all(base[key] is before[key] for key in base)
    assert len(ran) - everything < everything or name == "stem"
    assert not torch.equal(whole, base["output"][0])


@torch.no_grad()
def test_an_operation_takes_another_weight(box: toys.Toybox) -> None:
    weight = torch.randn(toys.CLASSES, 16)

    def meet(layer: Layer, inputs: tuple[Tensor, ...], operation: Operation) -> Tensor:
        if layer.name != "classifier":
            return operation(inputs)
        wanted = inputs[0] @ weight.T + box.bank.parameter("classifier.bias")
        torch.testing.assert_close(operation(inputs, weight), wanted)
        return wanted

    Interior(box.captured, meet).outputs(inputs_of(box))


def moved_by(captured: Captured, inputs: dict[str, Tensor], where: tuple[str, int] | str, move: Tensor) -> Tensor:
    """The outputs with `move` added to one edge, or to one layer's result."""

    def meet(layer: Layer, given: tuple[Tensor, ...], operation: Operation) -> Tensor:
        shifted = tuple(x + move if (layer.name, slot) == where else x for slot, x in enumerate(given))
        return operation(shifted) + (move if layer.name == where else 0)

    return Interior(captured, meet).outputs(inputs)[0]


@pytest.mark.parametrize("where", [("stem", 0), ("add", 0), ("add", 1), ("down", 0), "depthwise", "classifier"], ids=str)
def test_gradients_are_of_that_edge_alone(box: toys.Toybox, where: tuple[str, int] | str) -> None:
    inputs, cotangent = inputs_of(box), torch.randn(8, toys.CLASSES)
    with differentiable(box.captured.module, []):
        recorded = record(box.captured, Batch(inputs))
        site = next(site for site in recorded.sites if site.layer.name == (where if isinstance(where, str) else where[0]))
        tensor = site.output if isinstance(where, str) else site.inputs[where[1]]
        (found,) = recorded.gradients([cotangent], [tensor])
        move = torch.zeros_like(tensor, requires_grad=True)
        (wanted,) = torch.autograd.grad((moved_by(box.captured, inputs, where, move) * cotangent).sum(), move)

    assert float((found - wanted).norm()) <= pass_error(box.captured.graph) * float(wanted.norm())
    assert not found.requires_grad


def test_a_shift_moves_the_outputs_and_is_a_constant_to_gradients(box: toys.Toybox) -> None:
    inputs, move = inputs_of(box), torch.ones(1)

    def shift(layer: Layer, given: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        assert not any(x.requires_grad for x in (*given, output))
        return move.expand_as(output) if layer.name == "down" else None

    with differentiable(box.captured.module, []):
        recorded = record(box.captured, Batch(inputs), shift)
        wanted = moved_by(box.captured, inputs, "down", move)

    torch.testing.assert_close(recorded.outputs[0], wanted)
    assert [site.layer.name for site in recorded.sites if site.shift is not None] == ["down"]


def test_edges_have_names_of_their_own(box: toys.Toybox) -> None:
    names = [name for layer in box.captured.graph.layers for name in edge_names(layer)]

    assert len(set(names)) == len(names) == sum(len(layer.inputs) for layer in box.captured.graph.layers)
    assert not set(names) & set(dict(box.captured.module.named_parameters()))
