"""The simulation held against the file that ships: in which layers they differ, by how much, and why, as far as that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from quantkit.core.graph import Graph, Layer
from quantkit.core.numerics.affine import QParams, dequantize, quantize
from quantkit.core.numerics.blocked import find_block
from quantkit.core.numerics.saturation import lost_in_convolution, lost_in_products
from quantkit.data import Batch, Subset, collect, whole
from quantkit.export.executed_layers import owners, plain
from quantkit.export.integer_weights import read_integer_weights
from quantkit.export.intermediate_outputs import expose
from quantkit.export.qdq import Emitted
from quantkit.network.captured import Captured
from quantkit.quantization.simulation.program import CONVOLUTION_DEFAULTS, Environment, Simulation
from quantkit.quantization.weights import WeightBank
from quantkit.runtimes.evaluation import Session, convolve_in_runtime, feeds, open_session
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.targets.ort_cpu import product_rows
from quantkit.targets.placement import Placement

MOST_VALUES = 1 << 27  # of one batch, in all tensors together; each is there in float64, and once more as the file gives it
RANDOM_ITEMS = 16
ITEMS = 64  # equal bits on all of them are equal bits on 95 % of others at 95 %
ITEMS_IN_DOUBT = 512
SATURATES = "its u8×s8 sums saturate in 16 bits on this processor"
ROUNDING = 1e-4  # of the largest value: no order of float sums differs by more; behind a quantizer that is one code
FLOAT = "it is computed in float, and how the runtime adds it up is not known here"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """A layer where the two differ: the `share` of the values of `layer` that differ, and the largest `difference`, in codes or real."""

    layer: str
    share: float
    difference: float
    in_codes: bool
    cause: str

    def __str__(self) -> str:
        size = f"{self.difference:.0f} code{'s'[: self.difference != 1]}" if self.in_codes else f"{self.difference:.3g}"
        return f"{self.layer} ({100 * self.share:.3g} % of its values differ, by at most {size}; cause: {self.cause})"


@dataclass(frozen=True, slots=True)
class Parity:
    """Simulation against the file over so many `items`: shares of items with equal top-1 and with equal bits, and of quantized layers
    whose output is the file's, given the file's own input codes (None where the runtime shows no codes); blocks of weights are added in
    float, and equal where they differ by no more than an order of sums does.

    `parted` are the layers of which that is not so, in the order of the graph. `begins` is where whole runs from the network's own input
    first differ: a quantized layer, or the float operation whose values are the first to give other codes.
    """

    items: int
    agreement: float
    exact: float
    layers_exact: float | None
    parted: tuple[LayerDifference, ...] = ()
    begins: LayerDifference | None = None

    def shares(self) -> dict[str, float | None]:
        """The three shares alone, and of how many items: what `result.json` holds."""
        return {"items": self.items, "agreement": self.agreement, "exact": self.exact, "layers_exact": self.layers_exact}

    def to_json(self) -> dict[str, Any]:
        """A JSON form of all of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parity:
        """The inverse of `to_json`."""
        begins = None if data["begins"] is None else LayerDifference(**data["begins"])
        parted = tuple(LayerDifference(**row) for row in data["parted"])
        return cls(data["items"], data["agreement"], data["exact"], data["layers_exact"], parted, begins)

    def of(self, total: int) -> str:
        """What equal bits on these items say of all, where they are fewer than `total`; empty where nothing is left to say."""
        if self.exact < 1 or self.items >= total:
            return ""
        share = 0.05 ** (1 / self.items)  # of equal ones: then so many that are drawn are all equal with a chance of 5 %
        return (
            f"Simulation and file: equal bits on all {self.items} items that were compared, so on at least {100 * share:.1f} % of others "
            "at 95 %; `quantkit verify RUN --data DATA --parity` compares all."
        )

    def notes(self) -> tuple[str, ...]:
        """What differs, in sentences; none where nothing does."""
        found = []
        if self.parted:
            others = f" and in {len(self.parted) - 1} more" if len(self.parted) > 1 else ""
            found.append(f"Given the file's own input codes, the simulation differs from the file in {self.parted[0]}{others}.")
        if self.exact < 1:
            begins = "; the runtime rounds elsewhere" if self.layers_exact is None else ""
            begins = begins if self.begins is None else f"; the first difference is in {self.begins}"
            found.append(f"Simulation and file: equal bits on {100 * self.exact:.1f} % of {self.items} items{begins}.")
        return tuple(found)


def compare_enough(subset: Subset, compare: Callable[[Subset], Parity]) -> Parity:
    """Simulation against the file over the first ITEMS of `subset`; where as much as one item's answer differs, over up to ITEMS_IN_DOUBT.

    One answer of 64 may be one of 50 or of 5,000: more items tell which. Of tokens there are enough in 64 items.
    """
    found = compare(subset.first(ITEMS))
    return found if found.agreement > 1 - 1 / ITEMS or len(subset) <= ITEMS else compare(subset.first(ITEMS_IN_DOUBT))


def compare_simulation(
    captured: Captured,
    placement: Placement,
    bank: WeightBank,
    path: Path,
    emitted: Emitted,
    subset: Subset,
    batch_size: int,
    folder: Path,
    advance: Callable[[int], None],
    options: Mapping[str, str] | None = None,
) -> Parity:
    """Run the simulation and the file, with its codes exposed, over `subset`, both on the CPU; `options` are the session's.

    Raises ModelError where the file lacks a name of `emitted`.
    """
    watched = folder / "watched.onnx"
    written = (name for name in (*emitted.inputs.values(), *emitted.outputs.values()) if name not in captured.graph.inputs)
    expose(path, written, watched)
    session = open_session(watched, threads=0, options=options)
    names = [output.name for output in session.handle.get_outputs()]
    bench = _Bench(captured, placement, bank, emitted)
    same_top, same_bits, left = [], [], len(subset)
    at_once = 1 if placement.dynamic else min(batch_size, _fitting(captured.graph))
    for batch in network_batches(captured.graph, subset, at_once):
        given = feeds(batch, session.input_names)
        values = {**given, **dict(zip(names, session.run(given), strict=True))}
        if left < batch.size:  # without what fills a fixed batch
            values = {name: value[:left] for name, value in values.items()}
        simulated = bench.simulation.run(batch.inputs)
        pairs = [(one[:left].numpy(), values[name]) for one, name in zip(simulated["output"], captured.graph.outputs, strict=True)]
        same_bits.append(np.all([_equal(one, other) for one, other in pairs], axis=0))
        same_top.append(_equal(_best(pairs[0][0]), _best(pairs[0][1])))
        bench.compare_layers(values)
        if not same_bits[-1].all():
            bench.compare_runs(simulated, values)
        left -= batch.size
        advance(batch.size)
    parted = bench.parted(lambda: _optimized(watched, options))
    layers = len(placement.schemes) + len(placement.dynamic)
    exact = 1.0 - len(parted) / layers if layers else 1.0
    agreement, bits = (float(np.concatenate(rows).mean()) for rows in (same_top, same_bits))
    return Parity(len(subset), agreement, bits, exact, parted, bench.begins(parted))


def compare_outputs(
    captured: Captured,
    placement: Placement,
    bank: WeightBank,
    session: Session,
    subset: Subset,
    batch_size: int,
    advance: Callable[[int], None],
) -> Parity:
    """Run the simulation and the file as it is over `subset`, both on the CPU, and compare what they answer."""
    simulation, same_top, same_bits, left = Simulation(captured, placement, bank, precise=True), [], [], len(subset)
    for batch in network_batches(captured.graph, subset, min(batch_size, _fitting(captured.graph))):
        theirs = [value[:left] for value in session.run(feeds(batch, session.input_names))]
        ours = [one[:left].numpy() for one in simulation.run(batch.inputs)["output"]]
        same_bits.append(np.all([_equal(one, other) for one, other in zip(ours, theirs, strict=True)], axis=0))
        same_top.append(_equal(_best(ours[0]), _best(theirs[0])))
        left -= batch.size
        advance(batch.size)
    agreement, bits = (float(np.concatenate(rows).mean()) for rows in (same_top, same_bits))
    return Parity(len(subset), agreement, bits, None)


def random_items(captured: Captured, bounds: Mapping[str, tuple[float, float]], seed: int) -> Subset:
    """A few items of the network's shapes, even between the bounds of its inputs (−1 and 1 where there are none); whole numbers as in the
    example that it was captured with.
    """
    generator = torch.Generator().manual_seed(seed)
    examples = [leaf for leaf in pytree.tree_leaves(captured.program.example_inputs) if isinstance(leaf, Tensor)]
    found = {}
    for name, example in zip(captured.graph.inputs, examples, strict=True):
        low, high = bounds.get(name, (-1.0, 1.0))
        shape = (RANDOM_ITEMS, *example.shape[1:])
        drawn = low + (high - low) * torch.rand(shape, generator=generator)
        found[name] = drawn if example.is_floating_point() else example[:1].expand(shape).clone()
    return whole(collect([Batch(found)]))


class _Bench:
    """The simulation beside what the file gave, and what differed so far."""

    def __init__(self, captured: Captured, placement: Placement, bank: WeightBank, emitted: Emitted) -> None:
        self.simulation = Simulation(captured, placement, bank, precise=True, block=_block())
        self._saturating = Simulation(captured, placement, bank, precise=True, lost=_lost)
        self._graph, self._placement, self._bank, self._emitted = captured.graph, placement, bank, emitted
        self._layers = [layer for layer in captured.graph.layers if layer.name in {**placement.schemes, **placement.dynamic}]
        self._unequal: dict[str, _Tally] = {}  # given the file's own input codes
        # In runs from the network's input: by what a layer reads at a slot, what it writes (None), and the outputs (of no layer) by place.
        self._drifted: dict[tuple[str, int | None], _Tally] = {}

    def compare_layers(self, values: Mapping[str, NDArray[Any]]) -> None:
        """What each layer makes of the file's own input codes, against what the file made of them."""
        for layer in self._layers:
            if layer.name in self._placement.dynamic:
                self._compare_layer(layer, [torch.from_numpy(values[self._emitted.inputs[layer.name, 0]])], values)
                continue
            slots = [slot for slot in range(len(layer.inputs)) if (layer.name, slot) in self._placement.inputs]
            if len(slots) < len(layer.inputs):
                continue  # an addition with one float branch: its sum has no codes to compare
            qparams = [self._bank.input_qparams(layer, slot) for slot in slots]
            codes = [torch.from_numpy(values[self._emitted.inputs[layer.name, slot]]).float() for slot in slots]
            inputs = [dequantize(one, grid) for one, grid in zip(codes, qparams, strict=True)]
            self._compare_layer(layer, inputs, values)

    def _compare_layer(self, layer: Layer, inputs: list[Tensor], values: Mapping[str, NDArray[Any]]) -> None:
        theirs = torch.from_numpy(values[self._emitted.outputs[layer.name]]).float()
        ours = self._on_grid(self.simulation.layer_output(layer, inputs), layer)
        if self._adds_blocks(layer.name):
            ours = torch.where((ours - theirs).abs() <= ROUNDING * theirs.abs().max(), theirs, ours)
        tally = self._unequal.setdefault(layer.name, _Tally())
        if tally.add(ours, theirs):
            tally.saturates &= torch.equal(self._on_grid(self._saturating.layer_output(layer, inputs), layer), theirs)

    def compare_runs(self, simulated: Environment, values: Mapping[str, NDArray[Any]]) -> None:
        """What each layer reads and writes in a run from the network's input, against the file."""
        for layer in self._layers:
            for slot in (slot for slot in range(len(layer.inputs)) if (layer.name, slot) in self._placement.inputs):
                ours = quantize(simulated[layer.inputs[slot]], self._bank.input_qparams(layer, slot))
                theirs = torch.from_numpy(values[self._emitted.inputs[layer.name, slot]]).float()
                self._drifted.setdefault((layer.name, slot), _Tally()).add(ours, theirs)
            if layer.name in self._placement.dynamic:
                theirs = torch.from_numpy(values[self._emitted.inputs[layer.name, 0]])
                self._drifted.setdefault((layer.name, 0), _Tally()).add(simulated[layer.inputs[0]], theirs)
            written = simulated[layer.output if layer.name in self._placement.outputs else layer.node]
            theirs = torch.from_numpy(values[self._emitted.outputs[layer.name]]).float()
            self._drifted.setdefault((layer.name, None), _Tally()).add(self._on_grid(written, layer), theirs)
        for place, name in enumerate(self._graph.outputs):
            self._drifted.setdefault(("", place), _Tally()).add(simulated["output"][place], torch.from_numpy(values[name]))

    def parted(self, optimized: Callable[[], Path]) -> tuple[LayerDifference, ...]:
        """The layers that differ given the same input codes, in the order of the graph; `optimized` gives what the runtime runs."""
        found = {name: tally for name, tally in self._unequal.items() if tally.differing}
        if not found:
            return ()
        changed = self._changed_weights(optimized())
        return tuple(
            tally.difference(name, name in self._placement.outputs, changed.get(name) or (SATURATES if tally.saturates else UNKNOWN))
            for name, tally in found.items()
        )

    def begins(self, parted: tuple[LayerDifference, ...]) -> LayerDifference | None:
        """Where whole runs first differ; None where they do not."""
        causes = {parting.layer: parting.cause for parting in parted}
        for (name, slot), tally in self._drifted.items():
            if tally.differing and slot is None:
                cause = FLOAT if self._adds_blocks(name) and name not in causes else causes.get(name, UNKNOWN)
                return tally.difference(name, name in self._placement.outputs, cause)
            if tally.differing and slot is not None:  # and nothing in front of it, save what is computed in float
                source = self._graph.source(self._graph.layer(name).inputs[slot] if name else self._graph.outputs[slot])
                maker = next((layer.name for layer in self._graph.layers if source in (layer.node, layer.output)), source)
                in_codes = name != "" and name not in self._placement.dynamic
                rounding = tally.largest <= (1 if in_codes else ROUNDING * tally.scale)
                rounding &= maker not in self._placement.int8 or self._adds_blocks(maker)
                return tally.difference(maker, in_codes, FLOAT if rounding else UNKNOWN)
        return None

    def _adds_blocks(self, name: str) -> bool:
        """Whether sums of blocks are added in float there, in an order that is not known."""
        return name in self._placement.dynamic and self._placement.dynamic[name].has_blocks

    def _changed_weights(self, optimized: Path) -> dict[str, str]:
        """What to say of layers whose weight codes, as the runtime has unpacked them, are not the plan's."""
        names, found = owners(self._graph), {}
        layers = {layer.name: layer for layer in self._layers if layer.weight}
        for weight in read_integer_weights(optimized):
            layer = layers.get(names.get(plain(weight.name), ""))
            spec = None if layer is None else {**self._placement.schemes, **self._placement.dynamic}[layer.name].weights
            if layer is not None and spec is not None:
                planned = self._bank.weight(layer, spec).codes.numpy()
                if planned.shape == weight.codes.shape and (count := int((planned != weight.codes).sum())):
                    found[layer.name] = f"{count} of its weight codes in the file {'is' if count == 1 else 'are'} not the plan's"
        return found

    def _on_grid(self, real: Tensor, layer: Layer) -> Tensor:
        """The codes of what `layer` writes; the value itself where it leaves as float."""
        return quantize(real, self._bank.output_qparams(layer)) if layer.name in self._placement.outputs else real


@dataclass(slots=True)
class _Tally:
    """Counts over batches."""

    values: int = 0
    differing: int = 0
    largest: float = 0.0
    scale: float = 0.0  # the largest value of the file
    saturates: bool = True

    def add(self, ours: Tensor, theirs: Tensor) -> bool:
        """Whether the two differ. Tensors of different shapes are not compared: the exporter has folded a padding into the reader."""
        ours = ours[: len(theirs)]
        if ours.shape != theirs.shape:
            return False
        unequal = ours != theirs
        self.values += unequal.numel()
        self.scale = max(self.scale, float(theirs.abs().max()))
        if not unequal.any():
            return False
        self.differing += int(unequal.sum())
        self.largest = max(self.largest, float((ours.double() - theirs.double()).abs().max()))
        return True

    def difference(self, layer: str, in_codes: bool, cause: str) -> LayerDifference:
        return LayerDifference(layer, self.differing / self.values, self.largest, in_codes, cause)


def _optimized(path: Path, options: Mapping[str, str] | None) -> Path:
    """What the runtime makes of `path`, beside it."""
    optimized = path.with_suffix(".optimized.onnx")
    open_session(path, threads=1, options=options, optimized=optimized)
    return optimized


@cache
def _block() -> int | None:
    """The block in which the installed runtime adds on this processor: asked once."""
    return find_block(convolve_in_runtime)


def _fitting(graph: Graph) -> int:
    """How many items fit a batch; of a network with symbolic sides, few."""
    shapes = [tensor.shape for tensor in graph.tensors]
    return 8 if any(0 in shape for shape in shapes) else max(1, MOST_VALUES // max(1, sum(map(prod, shapes))))


def _lost(layer: Layer, node: fx.Node, codes: Tensor, qparams: QParams, weight: Tensor) -> Tensor | None:
    """What saturation takes from the layer's integer sums on a processor without VNNI; None where products are not added in pairs."""
    rows, paired = product_rows(layer, weight)
    if not paired:
        return None
    if layer.kind != "conv":
        return lost_in_products(codes, rows)
    kernel = weight.shape[2:]
    given: list[Any] = [*node.args[3:], *CONVOLUTION_DEFAULTS[len(node.args) - 2 :]]
    stride, padding, dilation = (list(sides) * (len(kernel) if len(sides) == 1 else 1) for sides in given[:3])
    return lost_in_convolution(codes, rows, kernel, float(qparams.zero_point), stride, padding, dilation, layer.groups)


def _equal(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which items are equal in all their values."""
    return np.asarray((one == other).reshape(len(one), -1).all(axis=1))


def _best(outputs: NDArray[np.generic]) -> NDArray[np.intp]:
    """The top class of each item, or of each of its positions."""
    return outputs.argmax(axis=-1) if outputs.ndim > 1 else np.zeros(len(outputs), np.intp)
