"""One pass through the blocks: each is read, run on all items, rounded under every scheme, scored, written and let go of.

**What a score is.** A group's loss under a scheme is the error that it alone brings to what its block gives: the mean over tokens of
‖block with the group quantized − block‖² / ‖block‖², on at most SCORED_TOKENS tokens of the calibration split, activations on the grid of
the call where the scheme quantizes them. What the blocks behind make of it is not asked, and errors of several groups are added up. So
scores rank plans and promise nothing: every promise rests on files that were run (`search`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantkit.core.errors import DataError
from quantkit.core.progress import Advance, expect
from quantkit.core.spec import FLOAT, Scheme
from quantkit.core.store import write_atomically
from quantkit.export.outline import Blocks, Part, Plain, Rows
from quantkit.quantization.moments import shrunk
from quantkit.quantization.rounding import BLIND, LayerMoments
from quantkit.streaming.items import Tokens, likelihoods
from quantkit.streaming.rounding import Quantized, accuracy_level, can_use, has_blocks, is_float, round_matrix
from quantkit.streaming.shelf import Hidden, Record, Shelf, Tray, from_json, to_json
from quantkit.streaming.skeleton import Frame, Skeleton, call

SCORED_TOKENS = 256
TABLE_FILE = "table.bin"


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What all blocks have in common. `menu` gives the schemes of a group by its name; `memory_bytes` bounds activations."""

    skeleton: Skeleton
    tokens: Tokens
    shelf: Shelf
    menu: Callable[[str], Sequence[Scheme]]
    rounding: str
    memory_bytes: int

    @property
    def scored(self) -> int:
        """How many items of the calibration split are scored on."""
        return max(1, min(self.tokens.calibration, SCORED_TOKENS // self.tokens.length))

    def hidden(self, number: int) -> Hidden:
        """What goes into a block."""
        return Hidden(self.shelf.hidden(number), self.tokens.length, self.skeleton.width)


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """The records of all blocks and of what stands behind them; the float network's loss of each item, in nats, and the table's part."""

    records: tuple[Record, ...]
    losses: NDArray[np.float64]
    table: Rows


@torch.no_grad()
def run_blocks(work: Work, advance: Advance) -> Passed:
    """All records, made now or found; `advance(1)` after each that is made. No block is done twice."""
    blocks = work.skeleton.blocks
    found = [work.shelf.record(number) for number in range(blocks + 1)]
    first = next((number for number, record in enumerate(found) if record is None), blocks + 1)
    if first <= blocks and not work.shelf.hidden(first).exists():
        found, first = [None] * (blocks + 1), 0  # somebody removed it
    expect(advance, blocks + 1 - first)
    if first == 0:
        _enter(work)
    for number in range(first, blocks + 1):
        made = _tail(work) if number == blocks else _block(work, number)
        work.shelf.keep(number, made)
        found[number] = made
        work.shelf.hidden(number).unlink()
        advance(1)
    records = cast("list[dict[str, Any]]", found)
    table = records[-1]["table"]
    return Passed(tuple(map(Record.from_json, records)), np.array(records[-1]["losses"]), cast("Rows", from_json(table)))


def _enter(work: Work) -> None:
    """Hidden states in front of the first block."""
    skeleton, tokens = work.skeleton, work.tokens
    table = skeleton.checkpoint.read([f"{skeleton.table}.weight"]).popitem()[1]
    if int(tokens.ids.max()) >= len(table):
        raise DataError(f"token {int(tokens.ids.max())} for a table of {len(table)}", "the network's own tokens", "pass its tokenizer's")
    with write_atomically(work.shelf.hidden(0)) as temporary, temporary.open("wb") as file:
        for first, last in tokens.chunks(items_at_once(work)):
            file.write(skeleton.enter(tokens.ids[first:last], tokens.mask[first:last], table).numpy().data)


def _block(work: Work, number: int) -> dict[str, Any]:
    """The record of a block, in JSON; what it speaks of is written."""
    block, hidden = work.skeleton.block(number), work.hidden(number)
    groups = groups_of(block, hidden.read(0, 1), work.skeleton.frame(work.tokens.mask[:1]))
    with ExitStack() as files:
        temporary = files.enter_context(write_atomically(work.shelf.hidden(number + 1)))
        moments = _forward(work, block, hidden, [layers[0] for layers in groups], temporary)
        mask, x = work.tokens.mask[: work.scored], hidden.read(0, work.scored)
        frame = work.skeleton.frame(mask)
        y = call(block, x, frame)
        named = {work.skeleton.name(number, layers[0]): layers for layers in groups}
        shelf = _Writer(work, files, number)

        def score(layers: Mapping[str, nn.Module]) -> float:
            with swapped(block, layers):
                return relative_error(call(block, x, frame), y, mask)

        found = {name: _group(work, shelf, name, number, block, layers, moments.get(layers[0]), score) for name, layers in named.items()}
    return _record(work, number, named, found, shelf)


def _tail(work: Work) -> dict[str, Any]:
    """The record of the head, with the float network's losses."""
    skeleton, tokens, hidden, number = work.skeleton, work.tokens, work.hidden(work.skeleton.blocks), work.skeleton.blocks
    losses, seen = np.zeros(len(tokens)), list[Tensor]()
    with skeleton.tail() as head, ExitStack() as files:

        def watch(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.append(given[0])

        reading = head.register_forward_pre_hook(watch)
        for first, last in tokens.chunks(items_at_once(work, head=True)):
            scores = skeleton.leave(hidden.read(first, last), tokens.mask[first:last])
            losses[first:last] = likelihoods(scores.numpy(), tokens.labels[first:last].numpy())
            if first >= work.scored:
                seen.pop()
        reading.remove()
        x, mask = torch.cat(seen)[: work.scored], tokens.mask[: work.scored]
        y, shelf = _centred(head(x)), _Writer(work, files, number)

        def score(layers: Mapping[str, nn.Module]) -> float:
            return relative_error(_centred(layers[""](x)), y, mask)

        menu = {skeleton.head: ("",)}
        moments = None  # of the last hidden states there are fewer than it has inputs: to nearest
        found = {name: _group(work, shelf, name, number, head, layers, moments, score) for name, layers in menu.items()}
        with write_atomically(work.shelf.folder / TABLE_FILE) as temporary, temporary.open("wb") as file:
            table = Rows(Tray(file, TABLE_FILE).put(skeleton.checkpoint.stored(f"{skeleton.table}.weight")))
    if not np.isfinite(losses).all():
        raise DataError("the float network gives NaN or infinite scores", "finite ones", "check the folder's weights")
    return {**_record(work, number, menu, found, shelf), "losses": losses.tolist(), "table": to_json(table)}


class _Writer:
    """The files of a block under each scheme, and where each of its layers lies in them."""

    def __init__(self, work: Work, files: ExitStack, number: int) -> None:
        self._work, self._files, self._number = work, files, number
        self._trays: dict[str, Tray] = {}
        self.parts: dict[str, dict[str, Part]] = {}

    def tray(self, scheme: Scheme) -> Tray:
        """Takes the codes under the scheme."""
        if scheme not in self._trays:
            path = self._work.shelf.codes(self._number, scheme)
            temporary = self._files.enter_context(write_atomically(path))
            self._trays[scheme] = Tray(self._files.enter_context(temporary.open("wb")), path.name)
        return self._trays[scheme]

    def note(self, scheme: Scheme, layer: str, part: Part) -> None:
        """Where a layer's matrix lies."""
        self.parts.setdefault(scheme.name, {})[layer] = part


def _group(
    work: Work, writer: _Writer, name: str, number: int, root: nn.Module, layers: Sequence[str], moments: LayerMoments | None,
    score: Callable[[Mapping[str, nn.Module]], float],
) -> dict[str, float]:  # fmt: skip
    """What each scheme loses; its codes are written. Where blocks do not divide the inputs, the group stays float."""
    found = {}
    fits = all(has_blocks(cast("nn.Linear", root.get_submodule(inner)).in_features) for inner in layers)
    for scheme in work.menu(name) if fits else (FLOAT,):
        made: dict[str, nn.Module] = {}
        for inner in layers:
            linear = cast("nn.Linear", root.get_submodule(inner))
            layer = work.skeleton.name(number, inner) if inner else name
            tray = writer.tray(scheme)
            if is_float(scheme):
                writer.note(scheme, layer, Plain(tray.put(linear.weight.detach().T)))
                continue
            rounded = round_matrix(linear.weight.detach(), scheme, work.rounding, moments)
            lying = tray.put(rounded.codes), tray.put(rounded.scale)
            writer.note(scheme, layer, Blocks(*lying, rounded.bits, rounded.size, accuracy_level(scheme)))
            made[inner] = Quantized(linear, rounded, scheme)
        found[scheme.name] = score(made) if made else 0.0
    return found


def _record(
    work: Work, number: int, groups: Mapping[str, Sequence[str]], loss: Mapping[str, Mapping[str, float]], writer: _Writer
) -> dict[str, Any]:
    named = {name: tuple(work.skeleton.name(number, inner) if inner else name for inner in layers) for name, layers in groups.items()}
    layers = [layer for members in named.values() for layer in members]
    weights = {layer: math.prod(work.skeleton.network.get_submodule(layer).weight.shape) for layer in layers}
    return Record(named, loss, writer.parts, weights).to_json()


def _forward(work: Work, block: nn.Module, hidden: Hidden, leaders: Sequence[str], path: Path) -> dict[str, LayerMoments]:
    """Run the block on all items, into the file at `path`; second moments of what `leaders` read, where the rounding reads any."""
    inputs = {name: cast("nn.Linear", block.get_submodule(name)).in_features for name in leaders}
    wanted = [name for name in leaders if work.rounding not in BLIND and can_use(inputs[name])]
    total = {name: torch.zeros(1, inputs[name], inputs[name], dtype=torch.float64) for name in wanted}
    counted = int(work.tokens.mask[: work.tokens.calibration].sum())
    with path.open("wb") as file:
        for first, last in work.tokens.chunks(items_at_once(work)):
            mask = work.tokens.mask[first:last]

            def add(name: str, x: Tensor, mask: Tensor = mask) -> None:
                rows = x[mask > 0]
                total[name] += (rows.mT @ rows).double()

            with watched(block, wanted if first < work.tokens.calibration else (), add):
                file.write(call(block, hidden.read(first, last), work.skeleton.frame(mask)).numpy().data)
    return {name: LayerMoments(shrunk(total.pop(name) / counted, counted).float()) for name in wanted}


def groups_of(block: nn.Module, hidden: Tensor, frame: Frame) -> tuple[tuple[str, ...], ...]:
    """The linear layers of a block, those together that read one tensor: queries, keys and values; a gate and what it lets through."""
    names, read = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)], dict[str, Tensor]()

    def note(name: str, x: Tensor) -> None:
        read[name] = x

    with watched(block, names, note):
        call(block, hidden, frame)
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(id(read[name]), []).append(name)
    return tuple(map(tuple, found.values()))


@contextmanager
def watched(block: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within it `see` is told what the layers of these names read."""
    with ExitStack() as hooks:
        for name in names:

            def hook(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                see(name, given[0])

            hooks.callback(block.get_submodule(name).register_forward_pre_hook(hook).remove)
        yield


@contextmanager
def swapped(root: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within it these layers stand in the place of those of their names."""
    kept = {name: root.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            root.set_submodule(name, layer)
        yield
    finally:
        for name, layer in kept.items():
            root.set_submodule(name, layer)


def relative_error(found: Tensor, wanted: Tensor, mask: Tensor) -> float:
    """The mean over the tokens that count of ‖found − wanted‖² / ‖wanted‖²."""
    energy = wanted.double().square().sum(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    error = (found.double() - wanted.double()).square().sum(dim=-1) / energy
    return float(error[mask > 0].mean())


def _centred(scores: Tensor) -> Tensor:
    """What is the same for all tokens of the vocabulary changes no probability."""
    return scores - scores.mean(dim=-1, keepdim=True)


def items_at_once(work: Work, *, head: bool = False) -> int:
    """How many items go through a block, or through the head, so that activations take no more than `memory_bytes`; at least one."""
    tokens, config = work.tokens.length, work.skeleton.config
    sides = [module.out_features for module in work.skeleton.decoder.layers[0].modules() if isinstance(module, nn.Linear)]
    each = 4 * tokens * (8 * work.skeleton.width + 3 * max(sides) + 3 * int(config.num_attention_heads) * tokens)
    each = 4 * tokens * (2 * work.skeleton.width + 8 * work.skeleton.vocabulary) if head else each  # scores, and float64 of them
    return max(1, work.memory_bytes // each)
