"""A causal decoder without its weights: `transformers` builds it on the meta device, and one block at a time is given its tensors.

Everything in front of the blocks and behind them is the network's own code: `forward` runs with the blocks taken out, and stops where the
first would begin (`enter`), or goes on from what the last would have given (`leave`). So masks, positions and heads are as they always are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantkit.core.errors import ModelError
from quantkit.loading import continues_text
from quantkit.loading.boundary import foreign
from quantkit.loading.folder import read_config, transformers
from quantkit.streaming.checkpoint import AGAIN, Checkpoint

WANTED = "a decoder like Llama: equal blocks of linear layers and norms in `layers`, a table of tokens, a linear head"
USUAL = "leave --streamed out"


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """How a block is called beside the hidden states: masks and positions, for some items."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class Skeleton:
    """The network of a folder, all of its weights on the meta device. ModelError for an architecture of another form."""

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        config = read_config(folder)
        if config.get("auto_map") or not continues_text(folder):
            raise ModelError(f"{folder} is no causal language model of transformers' own", WANTED, USUAL)
        library = transformers()
        with foreign(f"transformers cannot build {folder}", "a complete folder, as save_pretrained writes it", AGAIN):
            said = library.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                network = library.AutoModelForCausalLM.from_config(said, attn_implementation="eager", dtype=torch.float32)
        self.network, self.checkpoint, self.config = network.eval(), checkpoint, said
        said.use_cache = False
        self.decoder: Any = network.get_decoder()
        names = {id(module): name for name, module in network.named_modules()}
        layers, table, head = getattr(self.decoder, "layers", None), network.get_input_embeddings(), network.get_output_embeddings()
        if not (isinstance(layers, nn.ModuleList) and type(table) is nn.Embedding and type(head) is nn.Linear):  # not one that scales, say
            raise ModelError(f"{type(network).__name__} is of another form", WANTED, USUAL)
        self.table, self.head, self.prefix = names[id(table)], names[id(head)], names[id(layers)]
        self._blocks, self.width = list(layers), int(table.embedding_dim)
        self._check()
        _make_buffers(self.decoder, said)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self._blocks)

    @property
    def vocabulary(self) -> int:
        """How many tokens the head scores."""
        return int(self.network.get_submodule(self.head).out_features)

    @property
    def linears(self) -> tuple[str, ...]:
        """The linear layers of a block, by their names in it."""
        return tuple(name for name, module in self._blocks[0].named_modules() if isinstance(module, nn.Linear))

    def inputs(self, inner: str) -> int:
        """How many a linear layer of a block has."""
        return int(cast("nn.Linear", self._blocks[0].get_submodule(inner)).in_features)

    def name(self, block: int, inner: str) -> str:
        """What a part of a block is called in the network."""
        return f"{self.prefix}.{block}.{inner}"

    def source(self, name: str) -> str:
        """The checkpoint's name of a parameter: the head's weight may be the table's."""
        tied = name == f"{self.head}.weight" and name not in self.checkpoint.names
        return f"{self.table}.weight" if tied else name

    def block(self, number: int) -> nn.Module:
        """A block with its weights, the caller's own."""
        made = copy.deepcopy(self._blocks[number])
        names = {key: self.source(self.name(number, key)) for key in made.state_dict()}
        found = self.checkpoint.read(names.values())
        made.load_state_dict({key: found[name] for key, name in names.items()}, assign=True)
        return made

    def enter(self, ids: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        """The hidden states [items, tokens, width] in front of the first block; `table` is that of the tokens."""
        return self._caught(nn.functional.embedding(ids, table), mask)[0]

    def frame(self, mask: Tensor) -> Frame:
        """How the blocks are called for items of that mask."""
        return self._caught(torch.zeros(*mask.shape, self.width), mask)[1]

    @contextmanager
    def tail(self) -> Iterator[nn.Linear]:
        """Within it what stands behind the blocks has its weights; gives the head."""
        inner = (f"{self.prefix}.", f"{self.table}.")
        keys = [key for key in self.network.state_dict() if not key.startswith(inner)]
        empty = {key: self.network.state_dict()[key] for key in keys}
        names = {key: self.source(key) for key in keys}
        found = self.checkpoint.read(names.values())
        head = self.network.get_submodule(self.head)
        if head.weight is self.network.get_submodule(self.table).weight:  # tied: the table itself is not needed here
            head.weight = nn.Parameter(head.weight.detach(), requires_grad=False)
        self.network.load_state_dict({key: found[name] for key, name in names.items()}, assign=True, strict=False)
        del found
        try:
            yield cast("nn.Linear", head)
        finally:
            self.network.load_state_dict(empty, assign=True, strict=False)

    def leave(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Scores [items, tokens, vocabulary] behind the last block; within `tail`."""
        with self._replaced(_Player(hidden, self._blocks[0])):
            found = self.network(inputs_embeds=torch.zeros(*mask.shape, self.width), attention_mask=mask, use_cache=False)
        scores: Tensor = found.logits
        return scores

    def _caught(self, embedded: Tensor, mask: Tensor) -> tuple[Tensor, Frame]:
        with self._replaced(_Catcher(self._blocks[0])):
            try:
                self.decoder(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
            except _CaughtError as caught:
                return caught.hidden, caught.frame
        raise ModelError(f"{type(self.network).__name__} does not call its blocks", WANTED, USUAL)

    @contextmanager
    def _replaced(self, module: nn.Module) -> Iterator[None]:
        kept = self.decoder.layers
        self.decoder.layers = nn.ModuleList([module])
        try:
            yield
        finally:
            self.decoder.layers = kept

    def _check(self) -> None:
        kinds = set(getattr(self.config, "layer_types", None) or ["full_attention"])
        shapes = [{key: tuple(value.shape) for key, value in block.state_dict().items()} for block in self._blocks]
        matrices = {f"{name}.weight" for name in self.linears}
        others = [key for key, shape in shapes[0].items() if len(shape) > 1 and key not in matrices]
        if kinds != {"full_attention"} or any(shape != shapes[0] for shape in shapes) or others:
            got = "blocks that differ" if not others else f"{others[0]} in its blocks"
            raise ModelError(f"{type(self.network).__name__} has {got}", WANTED, USUAL)
        wanted = {self.source(key): tuple(value.shape) for key, value in self.network.state_dict().items()}
        missing = sorted(wanted.keys() - self.checkpoint.names)
        if missing:
            raise ModelError(f"{len(missing)} weights are not in {self.checkpoint.folder}, {missing[0]} among them", "every weight", AGAIN)
        for name, shape in wanted.items():
            if self.checkpoint.shape(name) != shape:
                raise ModelError(f"{name} has the shape {self.checkpoint.shape(name)}", f"{shape}, as config.json says", AGAIN)


class _CaughtError(Exception):
    """What the first block was called with."""

    def __init__(self, hidden: Tensor, frame: Frame) -> None:
        super().__init__()
        self.hidden, self.frame = hidden, frame


class _Stand(nn.Module):
    """In the place of the blocks."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        if hasattr(like, "attention_type"):
            self.attention_type = like.attention_type


class _Catcher(_Stand):
    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        raise _CaughtError(hidden, Frame(arguments, keywords))


class _Player(_Stand):
    def __init__(self, hidden: Tensor, like: nn.Module) -> None:
        super().__init__(like)
        self._hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self._hidden


def call(block: nn.Module, hidden: Tensor, frame: Frame) -> Tensor:
    """What the block makes of the hidden states."""
    found = block(hidden, *frame.arguments, **frame.keywords)
    made: Tensor = found[0] if isinstance(found, tuple) else found
    return made


def _make_buffers(decoder: nn.Module, config: Any) -> None:
    """Buffers that no checkpoint holds, such as frequencies of rotary positions, are computed by making their module once more."""
    for name, module in list(decoder.named_children()):
        if not isinstance(module, nn.ModuleList) and any(buffer.is_meta for buffer in module.buffers()):
            with foreign(f"{type(module).__name__} cannot be made by itself", WANTED, USUAL):
                setattr(decoder, name, type(module)(config=config).eval())
    left = [name for name, buffer in decoder.named_buffers() if buffer.is_meta]
    if left:
        raise ModelError(f"{left[0]} is in no checkpoint", WANTED, USUAL)
