"""A network that reads text, at any length: the same module, exported with the number of tokens left open."""

from __future__ import annotations

import torch
from torch import nn

from quantkit.loading.model import Variant

ANY_LENGTH = "any_length"  # the name of the variant, and of its file


def length_variant(network: nn.Module, vocabulary: int, tokens: int, longest: int | None = None) -> Variant:
    """The variant of a module that takes `input_ids` and `attention_mask`, each [items, tokens], of at most `longest` tokens.

    Typical inputs are random tokens, `tokens` of them and at least 2, none masked. Share the module with the network: the variant's
    parameters must have the same names and values.
    """
    ids = torch.randint(0, vocabulary, (2, max(2, tokens)), generator=torch.Generator().manual_seed(0))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Variant(network, example, dict.fromkeys(example, (1,)), longest=longest)
