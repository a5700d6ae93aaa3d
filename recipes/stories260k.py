"""stories260K, a Llama of 260 thousand parameters that writes children's stories: weights at mixed widths under a budget of perplexity.

    pip install transformers
    quantkit allocate recipes/stories260k.py --max-drop 2%

Weights and tokenizer come from weights/stories260k of the folder in QUANTKIT_DATA (llama2.c's `stories260K.bin`, version 0, and
`tok512.bin`), the stories of the gate from its text/tinystories. There are few real stories, so all are kept for the verdict: calibration
and search use stories that the network writes itself, drawn from its own probabilities. An item is a window of TOKENS tokens. Beside
model.onnx, which scores whole windows, the run directory gets decoder.onnx: the same plan, token by token, with its key/value cache.
Result (docs/results/transformers-avx2.json): at most 5 bits a weight, weights alone, with `--effort best`, cost 1.8 % of perplexity; the
2 % are kept at 0.23 of the bytes, about 5.6 bits, by the schemes that quantize activations in each call.
Network: Karpathy's llama2.c, after Touvron et al., arXiv 2307.09288; stories: Eldan and Li, arXiv 2305.07759.
"""

from __future__ import annotations

import os
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import quantkit
from quantkit.core.errors import DataError
from quantkit.data import Batch, collect
from quantkit.loading.decoder import step_variant

TOKENS = 64
WRITTEN, CALIBRATION = 448, 256  # windows that the network writes; of them for calibration
BOS, BYTES = 1, 3  # the token that begins a story; where the tokens of single bytes begin
END_OF_STORY = "<|endoftext|>"


class NextToken(nn.Module):
    """Token ids [items, tokens] → scores of each position's next token, [items, tokens, vocabulary]."""

    def __init__(self, network: LlamaForCausalLM) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.network(input_ids=input_ids).logits


def read_network(path: Path) -> LlamaForCausalLM:
    """The network of a llama2.c file, version 0: seven int32, then float32 weights by kind, all layers of a kind together."""
    content = path.read_bytes()
    width, hidden, layers, heads, key_heads, vocabulary, length = struct.unpack_from("7i", content)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, max_position_embeddings=length, rms_norm_eps=1e-5, tie_word_embeddings=True, use_cache=False,
        attn_implementation="eager",
    )  # fmt: skip
    values, place = torch.from_numpy(np.frombuffer(content, np.float32, offset=28).copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal place
        size = int(np.prod(shape))
        place += size
        return values[place - size : place].reshape(shape)

    def halves(weight: Tensor, count: int) -> Tensor:
        """Rotation turns neighbours there, and here a row with the one half a head further."""
        return weight.reshape(layers, count, -1, 2, width).transpose(2, 3).reshape(weight.shape)

    keys = width * key_heads // heads
    state = {"model.embed_tokens.weight": take(vocabulary, width)}
    kinds = {"input_layernorm": take(layers, width)}
    kinds["self_attn.q_proj"] = halves(take(layers, width, width), heads)
    kinds["self_attn.k_proj"] = halves(take(layers, keys, width), key_heads)
    kinds |= {"self_attn.v_proj": take(layers, keys, width), "self_attn.o_proj": take(layers, width, width)}
    kinds["post_attention_layernorm"] = take(layers, width)
    kinds |= {"mlp.gate_proj": take(layers, hidden, width), "mlp.down_proj": take(layers, width, hidden)}
    kinds["mlp.up_proj"] = take(layers, hidden, width)
    state |= {f"model.layers.{layer}.{kind}.weight": rows[layer] for kind, rows in kinds.items() for layer in range(layers)}
    state |= {"model.norm.weight": take(width), "lm_head.weight": state["model.embed_tokens.weight"]}
    network = LlamaForCausalLM(config).eval()
    network.load_state_dict(state)
    return network


def read_vocabulary(path: Path) -> tuple[dict[bytes, int], list[float]]:
    """Tokens by their bytes, and their scores, of a llama2.c tokenizer."""
    content, place, tokens, scores = path.read_bytes(), 4, {}, []
    while place < len(content):
        score, size = struct.unpack_from("fi", content, place)
        tokens.setdefault(content[place + 8 : place + 8 + size], len(scores))
        scores.append(score)
        place += 8 + size
    return tokens, scores


def encode(text: str, tokens: dict[bytes, int], scores: list[float]) -> list[int]:
    """Byte pairs: of neighbours that are a token together, those with the highest score are joined first."""
    parts = [character.encode() for character in f" {text}"]
    while True:
        joined = [one + two for one, two in pairwise(parts)]
        found = [(scores[tokens[text]], -place) for place, text in enumerate(joined) if text in tokens]
        if not found:
            break
        place = -max(found)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    ids = [BOS]
    for part in parts:
        ids += [tokens[part]] if part in tokens else [BYTES + byte for byte in part]
    return ids


def stories(path: Path, tokens: dict[bytes, int], scores: list[float]) -> Batch:
    """The stories of a file as windows; the last of each ends with it, and what it shares with the one before has no label."""
    inputs, labels = [], []
    for text in path.read_text(encoding="utf-8").split(END_OF_STORY):
        ids = encode(text.strip(), tokens, scores) if text.strip() else []
        for first in range(0, len(ids) - 1, TOKENS):
            begin = max(0, min(first, len(ids) - 1 - TOKENS))
            window = ids[begin : begin + TOKENS + 1]
            if len(window) == TOKENS + 1:
                inputs.append(window[:-1])
                labels.append([-100] * (first - begin) + window[1 + first - begin :])
    return Batch({"input_ids": torch.tensor(inputs)}, torch.tensor(labels))


def written(network: nn.Module, count: int) -> Batch:
    """So many windows that the network writes from its own probabilities."""
    generator, ids = torch.Generator().manual_seed(0), torch.full((count, 1), BOS)
    with torch.no_grad():
        for _ in range(TOKENS):
            chances = network(ids)[:, -1].softmax(dim=-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return Batch({"input_ids": ids[:, :-1]}, ids[:, 1:])


def part(batch: Batch, first: int, last: int) -> Batch:
    assert batch.labels is not None
    return Batch({"input_ids": batch.inputs["input_ids"][first:last]}, batch.labels[first:last])


def data_folder() -> Path:
    folder = Path(os.environ.get("QUANTKIT_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not (folder / "weights" / "stories260k").is_dir() or not (folder / "text" / "tinystories").is_dir():
        wanted = "the folder that holds stories260K.bin and tok512.bin in weights/stories260k, and stories in text/tinystories"
        raise DataError(f"no weights/stories260k and text/tinystories in {folder}", wanted, "set QUANTKIT_DATA to it")
    return folder


def recipe() -> quantkit.Recipe:
    folder = data_folder()
    weights, texts = folder / "weights" / "stories260k", sorted((folder / "text" / "tinystories").glob("*.txt"))
    network = NextToken(read_network(weights / "stories260K.bin")).eval()
    tokens, scores = read_vocabulary(weights / "tok512.bin")
    own = written(network, WRITTEN)
    real = [stories(path, tokens, scores) for path in texts]
    return quantkit.Recipe(
        name="stories260k",
        model=network,
        data={
            "calibration": collect([part(own, 0, CALIBRATION)]),
            "search": collect([part(own, CALIBRATION, WRITTEN)]),
            "gate": collect(real),
        },
        metric="perplexity",
        max_drop="2%",
        minimize="bytes",
        variants={} if (step := step_variant(network.network)) is None else {"decoder": step},
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
