"""The step of a decoder: new tokens behind those whose keys and values are kept, under the names that ONNX Runtime's generators use."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.loading.model import Variant

EXAMPLE_TOKENS = 32  # in the cache of an example


class Step(nn.Module):
    """A causal language model of `transformers`, called with the cache as tensors.

    input_ids [items, new], attention_mask [items, past + new], and `past`, of each layer keys and values
    [items, heads, past, width] → scores [items, new, vocabulary], then keys and values of all tokens, in the same order.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Scores, and the cache for the next call."""
        caches = importlib.import_module("transformers.cache_utils")
        cache = caches.DynamicCache()
        for keys, values in zip(past[::2], past[1::2], strict=True):
            layer = caches.DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        places = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        found = self.network(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=places, past_key_values=cache, use_cache=True
        )  # fmt: skip
        return (found.logits, *(tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values)))


def step_variant(network: Any) -> Variant | None:
    """The variant of a causal language model, which must be the module that the network itself calls `network`.

    None where its cache is not one of keys and values that only grow, as of sliding windows or state spaces. Typical inputs: one new token
    behind EXAMPLE_TOKENS (or as many as fit), the keys and values of which are the network's own.
    """
    step, generator = Step(network).eval(), torch.Generator().manual_seed(0)
    past = min(EXAMPLE_TOKENS, getattr(network.config, "max_position_embeddings", EXAMPLE_TOKENS + 2) - 2)
    ids = torch.randint(0, network.config.vocab_size, (2, past + 1), generator=generator)
    with torch.no_grad():
        kept = getattr(network(input_ids=ids[:, :-1], use_cache=True), "past_key_values", None)
    layers = getattr(kept, "layers", ())
    if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
        return None
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    cache = {f"past_{place}": tensor for place, tensor in enumerate(tensors)}
    typical = {"input_ids": ids[:, -1:], "attention_mask": torch.ones_like(ids), **cache}
    example = {**typical, "input_ids": ids[:, -2:], "attention_mask": torch.ones(2, past + 2, dtype=torch.int64)}
    kinds = [f"{number}.{kind}" for number in range(len(layers)) for kind in ("key", "value")]
    names = {mine: f"past_key_values.{kind}" for mine, kind in zip(cache, kinds, strict=True)}
    outputs = ("logits", *(f"present.{kind}" for kind in kinds))
    axes = {"input_ids": (1,), "attention_mask": (1,), **dict.fromkeys(cache, (2,))}
    return Variant(step, example, axes, typical, names, outputs)
