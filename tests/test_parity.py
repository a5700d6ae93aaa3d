"""The simulation held against the file: that they agree, and where they part if one of them is broken on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import toys
from networks import NETWORKS, Bench, bench, build, formed
from numpy.typing import NDArray
from onnx import numpy_helper
from test_evaluation import FixedBatch
from torch import nn

from quantkit.core.errors import ModelError
from quantkit.core.numerics.affine import QParams
from quantkit.data import Subset
from quantkit.export.executed_layers import owners
from quantkit.export.integer_weights import layers_at_risk
from quantkit.export.intermediate_outputs import expose
from quantkit.export.qdq import Emitted
from quantkit.network.capture import capture
from quantkit.quantization.weights import WeightBank
from quantkit.runtimes.evaluation import open_session
from quantkit.targets import ort_cpu
from quantkit.verification import parity as rooms
from quantkit.verification import probe
from quantkit.verification.parity import (
    FLOAT,
    RANDOM_ITEMS,
    SATURATES,
    UNKNOWN,
    LayerDifference,
    Parity,
    compare_enough,
    compare_outputs,
    compare_simulation,
    random_items,
)

ITEMS = 22


def compared(box: toys.Toybox, allocation: Mapping[str, str], folder: Path, bank: WeightBank | None = None) -> tuple[Parity, list[int]]:
    """The file of `box`'s own bank against a simulation with `bank`."""
    candidates = toys.candidates(box, folder)
    path = folder / "plan.onnx"
    emitted = candidates.emit(allocation, path)
    steps: list[int] = []
    items = toys.subset(ITEMS, seed=8)
    found = compare_simulation(
        box.captured, candidates.placement(allocation), bank or box.bank, path, emitted, items, 8, folder, steps.append
    )  # fmt: skip
    return found, steps


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_integers_are_simulated_bit_by_bit(tmp_path: Path, scheme: str) -> None:
    found, steps = compared(toys.toybox(), toys.everything(toys.toybox().groups, scheme, add="w8a8"), tmp_path)

    assert found == Parity(items=ITEMS, agreement=1.0, exact=1.0, layers_exact=1.0) and found.notes() == ()
    assert sum(steps) == ITEMS


def test_beside_float_layers_every_quantized_layer_is_still_exact(tmp_path: Path) -> None:
    found, _ = compared(toys.toybox(), toys.everything(toys.toybox().groups, "w8a8", depthwise="fp32"), tmp_path)

    assert found.layers_exact == 1.0 and found.parted == ()
    assert found.agreement >= 0.95


def test_a_plan_of_floats_has_no_layer_that_could_differ(tmp_path: Path) -> None:
    found, _ = compared(toys.toybox(), toys.everything(toys.toybox().groups, "fp32"), tmp_path)

    assert (found.agreement, found.layers_exact) == (1.0, 1.0)


def test_a_file_without_codes_is_compared_by_its_answers(tmp_path: Path) -> None:
    box = toys.toybox()
    candidates, plan = toys.candidates(box, tmp_path), toys.everything(box.groups, "w8a8")
    session, steps = candidates.open(toys.written(candidates, plan), threads=1), list[int]()
    items, floats = toys.subset(ITEMS, seed=8), candidates.placement(toys.everything(box.groups, "fp32"))
    equal = compare_outputs(box.captured, candidates.placement(plan), box.bank, session, items, 8, steps.append)
    other = compare_outputs(box.captured, floats, box.bank, session, items, 8, steps.append)

    assert equal == Parity(items=ITEMS, agreement=1.0, exact=1.0, layers_exact=None)
    assert other.exact == 0.0
    assert sum(steps) == 2 * ITEMS


def test_a_simulation_on_another_grid_is_found_out(tmp_path: Path) -> None:
    """Its input to `down` is read with another scale: that layer and the one that writes it differ, the others do not."""
    box = toys.toybox()
    graph = box.captured.graph
    name = graph.source(graph.layer("down").inputs[0])
    seen = box.bank.activations[name]
    wrong = {**box.bank.activations, name: QParams(seen.spec, seen.scale * 1.3, seen.zero_point)}
    state = {key: value.detach() for key, value in box.captured.module.named_parameters(remove_duplicate=False)}
    bank = WeightBank(graph, state, wrong, ort_cpu.product_rows)
    found, _ = compared(box, toys.everything(box.groups, "w8a8"), tmp_path, bank)
    layers = len(graph.layers)

    assert found.exact < 1.0
    assert found.layers_exact == pytest.approx((layers - 2) / layers)
    assert [parting.layer for parting in found.parted] == ["add", "down"]
    assert {parting.cause for parting in found.parted} == {UNKNOWN} and found.begins is not None and found.begins.layer == "add"


def test_the_items_that_fill_a_fixed_batch_are_not_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    box = toys.unpack(torch.export.export(FixedBatch().eval(), (torch.zeros(4, 3, 8, 8),)))
    found, _ = compared(box, toys.everything(box.groups, "w8a8"), tmp_path)

    assert found.layers_exact == 1.0
    assert found.exact * ITEMS == pytest.approx(round(found.exact * ITEMS))


@pytest.mark.parametrize(
    ("differ", "size", "asked"),
    [
        (0, 1000, [64]),  # nothing differs
        (1, 1000, [64, 512]),  # one answer of 64
        (0.5, 1000, [64]),  # half of one item's tokens
        (1, 200, [64, 200]),
        (1, 64, [64]),  # there are no more
    ],
)
def test_more_items_are_compared_where_an_answer_differs(differ: float, size: int, asked: list[int]) -> None:
    seen: list[int] = []

    def compare(some: Subset) -> Parity:
        seen.append(len(some))
        return Parity(len(some), 1 - differ / len(some), 1.0, 1.0)

    found = compare_enough(toys.subset(size, seed=8), compare)
    assert seen == asked
    assert found.items == asked[-1]


def test_the_top_class_of_tokens_is_compared_at_every_position() -> None:
    scores = np.zeros((2, 3, 4))
    moved = scores.copy()
    moved[1, 2, 3] = 1

    assert rooms._equal(rooms._best(scores), rooms._best(moved)).tolist() == [True, False]
    assert rooms._best(np.arange(3.0)).tolist() == [0, 0, 0]


# A file broken on purpose.


def alter(path: Path, name: str, change: Callable[[NDArray[np.generic]], None]) -> None:
    """Change an initializer of the file in place."""
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)


def written(path: Path, work: Bench, emitted: Emitted, layer: str) -> NDArray[np.float64]:
    """What a layer of the file writes for the bench's items, in codes where it does."""
    expose(path, [emitted.outputs[layer]], work.folder / "one.onnx")
    session = open_session(work.folder / "one.onnx", threads=1)
    values = session.run({name: value.numpy() for name, value in work.inputs.items()})
    names = [output.name for output in session.handle.get_outputs()]
    return dict(zip(names, values, strict=True))[emitted.outputs[layer]].astype(np.float64)


def large_code(array: NDArray[np.generic], rank: int = 0) -> None:
    """Make one code, that of the largest weight or the one of that rank, smaller by forty."""
    place = np.unravel_index(np.abs(array.astype(int)).argsort(axis=None)[-1 - rank], array.shape)
    array[place] -= 40 * np.sign(array[place])


@pytest.mark.parametrize("layer", ["stem", "one", "two", "shortcut", "head"])
def test_one_altered_weight_code_is_named_with_its_size(layer: str, tmp_path: Path) -> None:
    work = bench("residual", tmp_path)
    placement = work.place(work.uniform("w8a8"))
    path, emitted = work.emit(placement)
    whole, before = path.read_bytes(), written(path, work, emitted, layer)
    after, rank = before, 0
    while (after == before).all():  # the input that it multiplies may be 0 on every item
        path.write_bytes(whole)
        alter(path, f"{layer}.weight_w8_codes", partial(large_code, rank=rank))
        after, rank = written(path, work, emitted, layer), rank + 1
    found = work.parity(path, placement, emitted)

    (parting,) = found.parted
    assert parting.layer == layer and parting.cause == "1 of its weight codes in the file is not the plan's"
    assert parting.share == pytest.approx((before != after).mean()) and 0 < parting.share < 1
    assert parting.difference == pytest.approx(np.abs(before - after).max()) and parting.difference > 0
    assert parting.in_codes is (layer != "head") and found.layers_exact == pytest.approx(
        6 / 7
    )  # five weighted layers, an addition and a pool
    assert found.begins == (parting if found.exact < 1 else None)  # what `two` adds may fall below a ReLU's zero either way
    assert all(str(parting) in note for note in found.notes()) and found.notes()


def test_narrow_codes_are_compared_as_they_are_unpacked(tmp_path: Path) -> None:
    work = bench("chain", tmp_path)
    placement = work.place(work.uniform("w5a8"))
    path, emitted = work.emit(placement)
    packed = next(name for name in (tensor.name for tensor in onnx.load(path).graph.initializer) if name.startswith("b.weight_w5_codes"))

    def flip(array: NDArray[np.generic]) -> None:
        array.reshape(-1)[3] ^= 0b10010  # two bits of one code

    alter(path, packed, flip)
    (parting,) = work.parity(path, placement, emitted).parted
    assert parting.layer == "b" and parting.cause == "1 of its weight codes in the file is not the plan's"


def test_two_broken_layers_come_in_the_order_of_the_graph(tmp_path: Path) -> None:
    work = bench("chain", tmp_path)
    placement = work.place(work.uniform("w8a8"))
    path, emitted = work.emit(placement)
    alter(path, "c.weight_w8_codes", large_code)
    alter(path, "a.weight_w8_scale", lambda scale: np.multiply(scale, 1.5, out=scale))
    found = work.parity(path, placement, emitted)

    assert [parting.layer for parting in found.parted] == ["a", "c"]
    assert found.parted[0].cause == UNKNOWN and "and in 1 more" in found.notes()[0]


def float_in_front(folder: Path) -> tuple[Bench, Path, Callable[[], Parity]]:
    """A convolution `b` that stays float, between two that do not."""
    work = bench("chain", folder)
    placement = work.place({**work.uniform("w8a8"), "b": "fp32"})
    path, emitted = work.emit(placement)
    return work, path, lambda: work.parity(path, placement, emitted)


def test_a_difference_that_comes_from_a_float_layer_is_traced_to_it(tmp_path: Path) -> None:
    """A few parts in ten million, as another order of sums makes them, flip single codes behind it."""
    _, path, again = float_in_front(tmp_path)
    assert again().begins is None
    alter(path, "b.weight", lambda weight: np.multiply(weight, 1 + 1e-6, out=weight))
    found = again()

    assert found.layers_exact == 1.0 and found.parted == () and found.exact < 1
    assert found.begins is not None and (found.begins.layer, found.begins.difference, found.begins.cause) == ("b", 1.0, FLOAT)
    assert found.notes()[-1].endswith(f"the first difference is in {found.begins}.")


def test_what_is_too_large_for_another_order_of_sums_is_not_put_down_to_it(tmp_path: Path) -> None:
    _, path, again = float_in_front(tmp_path)
    alter(path, "b.weight", lambda weight: np.multiply(weight, 1.1, out=weight))
    found = again()

    assert found.layers_exact == 1.0 and found.begins is not None
    assert found.begins.layer == "b" and found.begins.difference > 1 and found.begins.cause == UNKNOWN


@pytest.mark.parametrize(("factor", "cause"), [(1 + 1e-6, FLOAT), (1.5, UNKNOWN)])
def test_a_difference_in_a_float_tail_is_traced_to_it(factor: float, cause: str, tmp_path: Path) -> None:
    work = bench("mlp", tmp_path)
    placement = work.place({**work.uniform("w8a8"), "last": "fp32"})
    path, emitted = work.emit(placement)
    alter(path, "last.weight", lambda weight: np.multiply(weight, np.float32(factor), out=weight))
    found = work.parity(path, placement, emitted)

    assert found.layers_exact == 1.0 and found.begins is not None
    assert (found.begins.layer, found.begins.in_codes, found.begins.cause) == ("last", False, cause)


def test_a_file_of_another_plan_is_refused_in_one_line(tmp_path: Path) -> None:
    work = bench("chain", tmp_path)
    mixed, uniform = work.place({**work.uniform("w8a8"), "c": "fp32"}), work.place(work.uniform("w8a8"))
    _, emitted = work.emit(uniform, "uniform.onnx")
    path, _ = work.emit(mixed, "mixed.onnx")
    with pytest.raises(ModelError, match="has no value"):
        work.parity(path, uniform, emitted)


# Saturation.


@pytest.mark.skipif(not probe.saturates(), reason="16-bit sums do not saturate on this processor")
@pytest.mark.parametrize("name", NETWORKS)
def test_sums_that_saturate_are_recognised_by_recomputing_them_so(name: str, tmp_path: Path) -> None:
    """Weights rounded with no heed to pairs, and inputs at the ends of their range: every kind of product with an 8-bit weight."""
    work = bench(name, tmp_path)
    state = dict(work.captured.module.named_parameters(remove_duplicate=False))
    work.bank = WeightBank(work.graph, state, work.bank.activations, lambda _, weight: (weight.flatten(1), False))
    work.inputs = {key: value * 3 for key, value in work.inputs.items()}
    placement = work.place(work.uniform("w8a8"))
    path, emitted = work.emit(placement)
    found = work.parity(path, placement, emitted)

    assert found.parted and {parting.cause for parting in found.parted} == {SATURATES}
    assert found.begins == found.parted[0] and found.layers_exact < 1
    layers = [work.graph.layer(parting.layer) for parting in found.parted]
    assert all(layer.weight is not None and layer.groups < max(layer.weight_shape[0], 2) for layer in layers)  # depthwise ones do not pair


def test_layers_at_risk_bear_the_names_of_the_plan(tmp_path: Path) -> None:
    """All that run in int8 with weights of 8 bits that were rounded with no heed to pairs, save depthwise convolutions."""
    work = bench("inception", tmp_path)
    state = {name: torch.ones_like(value) for name, value in work.captured.module.named_parameters(remove_duplicate=False)}
    work.bank = WeightBank(work.graph, state, work.bank.activations, lambda _, weight: (weight.flatten(1), False))
    path, _ = work.emit(work.place({**work.uniform("w8a8"), "stem": "fp32", "dilated": "w7a8"}))
    open_session(path, threads=1, optimized=tmp_path / "optimized.onnx")

    assert layers_at_risk(tmp_path / "optimized.onnx", owners(work.graph)) == ("grouped", "last")
    assert layers_at_risk(tmp_path / "optimized.onnx", {}) == ("node_conv2d_1", "node_conv2d_4")


# What it is compared on.


def test_random_items_lie_between_the_bounds_of_the_inputs(tmp_path: Path) -> None:
    work = bench("several", tmp_path)
    items = random_items(work.captured, {"words": (2.0, 3.0)}, seed=1)
    values = next(iter(items.batches(RANDOM_ITEMS))).inputs

    assert values["picture"].shape == (RANDOM_ITEMS, 3, 10, 10) and values["words"].shape == (RANDOM_ITEMS, 6)
    assert values["words"].min() >= 2 and values["words"].max() <= 3
    assert values["picture"].min() < -0.9 and values["picture"].max() > 0.9
    assert not torch.equal(next(iter(random_items(work.captured, {}, seed=2).batches(2))).inputs["words"], values["words"][:2])


def test_whole_numbers_are_the_example_s() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 8), nn.Linear(8, 3)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.head(F.relu(self.table(words)).mean(1))

    network = capture(build(Embedded), {"words": torch.tensor([[4, 1, 0]])})
    (values,) = next(iter(random_items(network, {}, seed=0).batches(RANDOM_ITEMS))).inputs.values()
    assert values.dtype == torch.int64 and values.unique(dim=0).tolist() == [[4, 1, 0]]


def test_small_networks_are_compared_in_large_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = formed(lambda m, x: m.a(x)).graph
    assert graph.tensors and rooms._fitting(graph) > 1000
    monkeypatch.setattr(rooms, "MOST_VALUES", 10 * sum(int(np.prod(tensor.shape)) for tensor in graph.tensors))
    assert rooms._fitting(graph) == 10


def test_session_options_reach_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    opened = rooms.open_session

    def spied(path: Path, *, threads: int, options: Mapping[str, str] | None = None, optimized: Path | None = None) -> object:
        asked.append(options)
        return opened(path, threads=threads, options=options, optimized=optimized)

    monkeypatch.setattr(rooms, "open_session", spied)
    box = toys.toybox()
    candidates, plan = toys.candidates(box, tmp_path), toys.everything(box.groups, "w8a8")
    emitted = candidates.emit(plan, tmp_path / "plan.onnx")
    told = compare_simulation(
        box.captured, candidates.placement(plan), box.bank, tmp_path / "plan.onnx", emitted, toys.subset(4, seed=8), 8, tmp_path,
        lambda _: None, {"session.disable_quant_qdq": "1"},
    )  # fmt: skip
    assert {"session.disable_quant_qdq": "1"} in asked and None not in asked
    assert told.layers_exact < 1  # Q/DQ computed as they stand are not the kernels' arithmetic


@pytest.mark.parametrize("items", [59, 64, 300])
def test_equal_bits_on_a_few_items_bound_the_share_of_others(items: int) -> None:
    """If a smaller share than is said had equal bits, so many equal ones in a row would be drawn less often than once in twenty."""
    text = Parity(items, 1.0, 1.0, 1.0).of(1000)
    least = float(re.search(r"at least ([\d.]+) %", text)[1]) / 100  # type: ignore[index]

    assert f"all {items} items" in text and (least - 5e-4) ** items < 0.05 < (least + 1e-3) ** items
    assert Parity(items, 1.0, 1.0, 1.0).of(items) == "" and Parity(items, 1.0, 0.9, 1.0).of(1000) == ""


def test_only_the_three_shares_are_what_other_tools_read() -> None:
    parting = LayerDifference("a", 0.25, 3.0, True, UNKNOWN)
    found = Parity(8, 0.5, 0.25, 0.75, (parting,), parting)

    assert found.shares() == {"items": 8, "agreement": 0.5, "exact": 0.25, "layers_exact": 0.75}
    assert str(parting) == "a (25 % of its values differ, by at most 3 codes; cause: unknown)"
    assert str(LayerDifference("b", 0.5, 0.125, False, FLOAT)).startswith("b (50 % of its values differ, by at most 0.125; cause: it is")
