"""Weights learned block by block, each block to the outputs that it has in the float network (BRECQ, Li et al., arXiv 2102.05426).

A block is a piece of the network (`network.blocks`): a residual unit, an attention, or one layer. In it, for every layer of less than 8
bits, are learned together, by Adam, against the mean squared difference of the block's outputs:

    codes    lower + h(V) · (upper − lower) as in AdaRound (rounding/adaround.py), the codes on both sides of the float weight;
    scale    s · exp(t), a step size for each channel (LSQ, Esser et al., arXiv 1902.08153);
    bias     b + d, in units of the layer's own output, where the layer's bias can be moved.

The loss is over that of the codes that are there, a weight's share of it, plus λ Σ (1 − |2h − 1|^β). What a block reads is, number by
number, what it reads in the float network or in the quantized one, by a coin; activations inside likewise (QDrop, Wei et al., arXiv
2203.05740). A quarter of the items is kept apart: a block whose error on them does not fall keeps what it had. The network's own outputs
differ by their KL divergence, where they are class scores. Not as in BRECQ: differences are not weighed by the Fisher information.

Tried (one thread, AVX2): a Llama of 260 thousand parameters at 4 bits: KL on other windows 0.077 → 0.039 by 64 windows in 60 s, 0.032 by
256; without coins 0.043; the whole network as one block learned its items and nothing else (0.082). ResNet20 at 3 bits, 256 images: the
errors of later blocks fall, but not the network's on others (0.071 → 0.075 to 0.09): there GPTQ's codes ship.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from quantkit.core.graph import Layer
from quantkit.core.numerics.affine import QParams
from quantkit.core.spec import PerGroup, QuantSpec, Scheme
from quantkit.data.batch import Batch, of_tokens
from quantkit.network.blocks import Piece, pieces
from quantkit.network.captured import Captured
from quantkit.quantization.rounding import Grid
from quantkit.quantization.rounding.adaround import PENALTY, RATE, WARM, begin, neighbours, soften, undecided
from quantkit.quantization.sequential import NOTHING, overflows
from quantkit.quantization.simulation.program import Environment, Simulation
from quantkit.quantization.simulation.straight_through import StraightThrough
from quantkit.quantization.weights import WeightBank, packed
from quantkit.targets.placement import Placement

STEPS = 400  # of Adam, for each block
STEP_RATE = 1e-3  # of t and d
DROP = 0.5
KEPT_APART = 4  # one batch of so many
Arrays = dict[str, NDArray[Any]]


def learned_layers(captured: Captured, placement: Placement) -> tuple[Layer, ...]:
    """The layers whose codes are learned: of less than 8 bits, with scales, and a weight of their own; none where halves are computed."""
    users, schemes = Counter(layer.weight for layer in captured.graph.layers), placement.all_schemes
    if placement.float32 is not None or placement.floating:
        return ()
    return tuple(
        layer
        for layer in captured.graph.layers
        if layer.name in schemes and layer.weight and not layer.is_table and users[layer.weight] == 1 and _has_grid(schemes[layer.name])
    )


def reconstruct(
    captured: Captured,
    placement: Placement,
    bank: WeightBank,
    batches: Iterable[Batch],
    advance: Callable[[int], None],
    *,
    curvature: Literal["softmax", "identity"],
    seed: int = 0,
    of_one_layer: bool = False,
) -> Arrays:
    """The codes, scales and biases of the layers of all blocks that came out better than in `bank`, as `WeightBank.changed` takes them.

    Blocks `of_one_layer` if so wanted. `curvature` says whether outputs are class scores. `advance(1)` after each layer.
    """
    layers, found, given = learned_layers(captured, placement), Arrays(), list(batches)
    plain = Simulation(captured, NOTHING, bank)
    floats: list[Environment] = [dict(batch.inputs) for batch in given]
    values: list[Environment] = [dict(batch.inputs) for batch in given]
    last = {source.name: node for node in captured.module.graph.nodes for source in node.all_input_nodes}
    for number, piece in enumerate(pieces(captured, layers, of_one_layer=of_one_layer)):
        before = [dict(environment) for environment in floats]
        for node in piece:
            for environment in floats:
                plain.advance(environment, node)
        names = {node.name for node in piece}
        mine = [layer for layer in layers if layer.node in names]
        if mine and given:
            block = _Block(captured, placement, bank.changed(dict(found)), piece, given, curvature, seed + number)
            found |= block.learned(mine, before, values, floats)
            advance(len(mine))
        quantized = Simulation(captured, placement, bank.changed(dict(found)))
        for node in piece:
            for environment in values:
                quantized.advance(environment, node)
        for name in [name for name, reader in last.items() if reader.name in names]:
            for environment in (*floats, *values):
                environment.pop(name, None)
    return found


class _Block:
    """One piece of the network, and what is learned in it."""

    def __init__(
        self,
        captured: Captured,
        placement: Placement,
        bank: WeightBank,
        piece: Piece,
        batches: Sequence[Batch],
        curvature: str,
        seed: int,
    ) -> None:
        self._captured, self._placement, self._bank, self._piece, self._curvature = captured, placement, bank, piece, curvature
        self._counted = [batch.counted for batch in batches]
        device = next(iter(batches[0].inputs.values())).device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._order = torch.Generator().manual_seed(seed)
        inside = set(piece)
        self._ends = [node.name for node in piece if any(user not in inside for user in node.users)]
        self._is_last = piece[-1].op == "output"

    def learned(
        self, layers: Sequence[Layer], floats: Sequence[Environment], values: Sequence[Environment], wanted: Sequence[Environment]
    ) -> Arrays:
        """What becomes of `layers`, nothing where the items that are kept apart gain nothing.

        By batch: what the block reads in the float network, what in the quantized one, and what it is to give.
        """
        users = Counter(layer.bias for layer in self._captured.graph.layers)
        movable = {layer.name for layer in layers if users[layer.bias] == 1 and layer.name not in self._placement.stored}
        variables = [_Variables(layer, self._placement, self._bank, wanted[0][layer.node], layer.name in movable) for layer in layers]
        plain = StraightThrough(self._captured, self._placement, self._bank, 0.0, self._generator)
        apart = range(0, len(values), KEPT_APART)
        seen = [place for place in range(len(values)) if place not in apart] or [0]

        def error(places: Iterable[int], learned: Sequence[_Variables]) -> float:
            ready = {one.layer.name: (one.weight(one.codes(hard=True)).detach(), one.bias()) for one in learned}
            with torch.no_grad():
                found = [float(self._difference(plain, dict(values[place]), wanted[place], place, ready)) for place in places]
            return sum(found) / len(found)

        share = max(error(seen, []), 1e-30) / sum(layer.weight_count for layer in layers)
        with torch.enable_grad():
            self._descend(variables, seen, share, floats, values, wanted)
        if error(apart, variables) >= error(apart, []):
            return {}
        return {key: array for one in variables for key, array in one.settled().items()}

    def _descend(
        self,
        variables: Sequence[_Variables],
        seen: Sequence[int],
        share: float,
        floats: Sequence[Environment],
        values: Sequence[Environment],
        wanted: Sequence[Environment],
    ) -> None:
        simulation = StraightThrough(self._captured, self._placement, self._bank, DROP, self._generator)
        optimizer = torch.optim.Adam(
            [
                {"params": [one.choice for one in variables], "lr": RATE},
                {"params": [part for one in variables for part in (one.step, one.move) if part is not None], "lr": STEP_RATE},
            ]
        )
        order: list[int] = []
        for step in range(STEPS):
            order = order or torch.randperm(len(seen), generator=self._order).tolist()
            place = seen[order.pop()]
            optimizer.param_groups[1]["lr"] = STEP_RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            read = {name: self._mixed(value, floats[place].get(name)) for name, value in values[place].items()}
            ready = {one.layer.name: (one.weight(one.codes()), one.bias()) for one in variables}
            loss = self._difference(simulation, read, wanted[place], place, ready) / share
            if step >= WARM * STEPS:
                done = (step / STEPS - WARM) / (1 - WARM)
                loss = loss + PENALTY * torch.stack([undecided(soften(one.choice), done) for one in variables]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def _mixed(self, quantized: Any, real: Any) -> Any:
        """Number by number the one or the other; what is no real number as it is."""
        if not isinstance(quantized, Tensor) or not quantized.is_floating_point() or real is None or real is quantized:
            return quantized
        coins = torch.rand(quantized.shape, generator=self._generator, device=quantized.device)
        return torch.where(coins < DROP, real, quantized)

    def _difference(
        self,
        simulation: StraightThrough,
        values: Environment,
        wanted: Environment,
        place: int,
        learned: Mapping[str, tuple[Tensor, Tensor | None]],
    ) -> Tensor:
        """Of what the block gives, without padding, from what it is to give."""
        simulation.learn(values, self._piece, learned)
        if self._is_last:
            pairs = list(zip(values["output"], wanted["output"], strict=True))
        else:
            pairs = [(values[name], wanted[name]) for name in self._ends if name in values and isinstance(values[name], Tensor)]
        found = []
        for got, real in pairs:
            if not got.is_floating_point():
                continue
            one, other = (of_tokens(tensor, self._counted[place]) for tensor in (got, real))
            if self._is_last and self._curvature == "softmax":
                ours, theirs = (tensor.flatten(0, -2).log_softmax(dim=-1) for tensor in (one, other))
                found.append(F.kl_div(ours, theirs, reduction="batchmean", log_target=True))
            else:
                found.append((one - other).square().mean())
        return torch.stack(found).sum()


class _Variables:
    """What is learned of one layer: which code each weight takes, the channels' scales, and the bias if it can move."""

    def __init__(self, layer: Layer, placement: Placement, bank: WeightBank, outputs: Tensor, movable: bool) -> None:
        self.layer, self._scheme, self._bank = layer, placement.all_schemes[layer.name], bank
        self._was = bank.under(layer, self._scheme)
        weight, qparams, spec = bank.parameter(str(layer.weight)).detach(), self._was.qparams, self._scheme.weights
        levels = torch.unique(self._was.codes) if isinstance(spec, QuantSpec) and spec.codebook else None
        steps = weight / qparams.shaped(qparams.scale, weight.dim())
        self._lower, self._upper = neighbours(steps, Grid(qparams, levels=levels))
        self.choice = begin(((steps - self._lower) / (self._upper - self._lower).clamp(min=1e-6)).clamp(0, 1))
        self.step = torch.zeros_like(qparams.scale).requires_grad_()
        self._start, self._unit = bank.bias(layer), outputs.square().mean().sqrt()
        self.move = None if self._start is None or not movable else torch.zeros_like(self._start).requires_grad_()

    def codes(self, *, hard: bool = False) -> Tensor:
        """Those that are chosen, or what lies between the two while they are being chosen."""
        soft = soften(self.choice)
        return self._lower + ((soft >= 0.5).float() if hard else soft) * (self._upper - self._lower)

    def weight(self, codes: Tensor) -> Tensor:
        """What the codes are worth."""
        qparams = self._grid()
        return (codes - qparams.shaped(qparams.zero_point, codes.dim())) * qparams.shaped(qparams.scale, codes.dim())

    def bias(self) -> Tensor | None:
        """The bias, moved."""
        return self._start if self._start is None or self.move is None else self._start + self.move * self._unit

    def settled(self) -> Arrays:
        """As `WeightBank.changed` takes it."""
        qparams = self._grid()
        rounded = replace(self._was, codes=self.codes(hard=True).detach(), qparams=replace(qparams, scale=qparams.scale.detach()))
        found, bias = packed(self.layer, self._scheme, rounded), self.bias()
        if self.move is not None and bias is not None and not overflows(self.layer, self._scheme, self._bank, bias, rounded):
            found[f"{self.layer.name} bias"] = bias.detach().cpu().numpy()
        return found

    def _grid(self) -> QParams:
        return replace(self._was.qparams, scale=self._was.qparams.scale * self.step.exp())


def _has_grid(scheme: Scheme) -> bool:
    spec = scheme.weights
    return isinstance(spec, QuantSpec) and spec.granularity is not None and spec.bits < 8 and not isinstance(spec.granularity, PerGroup)
