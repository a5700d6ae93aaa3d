"""The files of a plan: a candidate that refers to the codes where they lie, and the file that ships, with its weights beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quantkit.core.errors import CaptureError
from quantkit.core.store import write_atomically
from quantkit.export.onnx_file import data_of, saved
from quantkit.export.outline import Blocks, Part, fill, gather, hollow, laid, read_products, write_outline
from quantkit.loading.decoder import Step
from quantkit.loading.folder import Text
from quantkit.streaming.passes import Work
from quantkit.streaming.skeleton import Skeleton
from quantkit.targets.ort_cpu import OPSET

OUTLINE, STEP = "outline.onnx", "outline-decoder.onnx"
CANDIDATE = "candidate.onnx"
EXAMPLE_TOKENS = 5


def write_outlines(work: Work) -> str:
    """The graphs without weights, unless they are there; why there is none with a cache of keys and values, empty where there is one."""
    folder, skeleton = work.shelf.outlines, work.skeleton
    if (folder / OUTLINE).exists() and (folder / STEP).exists():
        return ""
    network = hollowed(skeleton)
    ids = torch.ones(2, EXAMPLE_TOKENS, dtype=torch.int64)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not (folder / OUTLINE).exists():
        dynamic = dict.fromkeys(example, (1,))
        with write_atomically(folder / OUTLINE) as temporary:
            write_outline(Text(network).eval(), example, dynamic, ["logits"], temporary, OPSET)
    if not (folder / STEP).exists():
        names = [f"{number}.{kind}" for number in range(skeleton.blocks) for kind in ("key", "value")]
        past = {f"past_key_values.{name}": _empty(skeleton, EXAMPLE_TOKENS) for name in names}
        shapes = {"input_ids": (2, 2), "attention_mask": (2, EXAMPLE_TOKENS + 2)}
        example = {**{name: torch.ones(shape, dtype=torch.int64) for name, shape in shapes.items()}, **past}
        dynamic = {"input_ids": (1,), "attention_mask": (1,), **dict.fromkeys(past, (2,))}
        outputs = ["logits", *(f"present.{name}" for name in names)]
        try:
            with write_atomically(folder / STEP) as temporary:
                write_outline(Step(network).eval(), example, dynamic, outputs, temporary, OPSET)
        except CaptureError as error:  # the file that was asked for stands without it
            return str(error)
    return ""


def hollowed(skeleton: Skeleton) -> Any:
    """The network with placeholders for its matrices, and all else that it needs."""
    network = copy.deepcopy(skeleton.network)
    hollow(network, lambda name: skeleton.checkpoint.read([skeleton.source(name)]).popitem()[1])
    return network


def write_candidate(work: Work, parts: Mapping[str, Part]) -> Path:
    """A file of these parts, whose weights stay where they are."""
    path = work.shelf.folder / CANDIDATE
    with write_atomically(path) as temporary:
        fill(work.shelf.outlines / OUTLINE, parts, temporary)
    return path


def write_model(work: Work, parts: Mapping[str, Part], path: Path) -> None:
    """The file and its weights beside it, copied a few MB at a time."""
    with saved(path) as temporary:
        placed = gather(parts, work.shelf.folder, data_of(temporary))
        fill(work.shelf.outlines / OUTLINE, placed, temporary)


def write_decoder(work: Work, parts: Mapping[str, Part], path: Path, data: Path) -> None:
    """The same with a cache, of the weights in `data`, which `write_model` wrote beside it of the same parts."""
    with write_atomically(path) as temporary:
        fill(work.shelf.outlines / STEP, laid(parts, data.name), temporary)


def empty_cache(skeleton: Skeleton, items: int) -> dict[str, np.ndarray[Any, Any]]:
    """What decoder.onnx is given in front of the first token."""
    names = [f"past_key_values.{number}.{kind}" for number in range(skeleton.blocks) for kind in ("key", "value")]
    return {name: _empty(skeleton, 0, items).numpy() for name in names}


def planned_products(parts: Mapping[str, Part]) -> dict[str, tuple[int, int]]:
    """Bits and accuracy level of each layer that is to run in MatMulNBits."""
    return {name: (part.bits, part.accuracy_level) for name, part in parts.items() if isinstance(part, Blocks)}


def not_as_planned(path: Path, parts: Mapping[str, Part], ran: Mapping[str, str]) -> list[str]:
    """Layers whose node did not run as MatMulNBits of the planned bits; `ran` are the operators that the runtime ran, by node."""
    products, found = read_products(path), []
    for layer, wanted in planned_products(parts).items():
        did = ran.get(f"node_{layer}", "nothing")
        if did != "MatMulNBits" or products.get(f"node_{layer}") != wanted:
            found.append(f"{layer}: planned {wanted[0]} bits in MatMulNBits, ran {did} of {products.get(f'node_{layer}', ('no',))[0]} bits")
    return found


def _empty(skeleton: Skeleton, tokens: int, items: int = 2) -> Tensor:
    """Keys or values of so many tokens."""
    config = skeleton.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return torch.zeros(items, heads, tokens, width)
