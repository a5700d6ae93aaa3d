"""Text → one shard of token ids (`input_ids`, `attention_mask`) that `--data` takes.

    python calibration/build_tokens.py stories.txt tokens.npz --length 128
    python calibration/build_tokens.py reviews.tsv tokens.npz --length 64 --lines --tokenizer path/to/model

Without `--lines` the text is cut into blocks of `--length` tokens and a short rest is left out. With it each line is an item, cut or
padded to that length; a number behind a line's last tab becomes its label. `--tokenizer` is a folder that the transformers library
reads (an extra: quantkit[transformers]); without one a token is a byte of UTF-8.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from quantkit.core.errors import DataError, QuantkitError
from quantkit.data import Batch, collect, write_shard

Encode = Callable[[str], list[int]]


def tokenizer(folder: Path | None) -> tuple[Encode, int]:
    """A function from text to token ids, and the id that pads. Raises DataError where `folder` cannot be read."""
    if folder is None:
        return lambda text: list(text.encode("utf-8")), 0
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise DataError(f"the tokenizer {folder} needs transformers", "it installed", "pip install quantkit[transformers]") from error
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer in {folder}: {error}", "a folder with tokenizer files") from error
    return loaded.encode, loaded.pad_token_id or 0


def blocks(text: str, encode: Encode, length: int) -> Batch:
    """Every whole block of `length` tokens, shape [blocks, length]."""
    ids = torch.tensor(encode(text), dtype=torch.int64)
    whole = ids[: len(ids) // length * length].reshape(-1, length)
    return Batch({"input_ids": whole, "attention_mask": torch.ones_like(whole)})


def lines(text: str, encode: Encode, length: int, padding: int) -> Batch:
    """Every line that is not empty, shape [lines, length], with labels where all lines end in a tab and a number."""
    pairs = [line.rpartition("\t") for line in text.splitlines() if line.strip()]
    labelled = bool(pairs) and all(tab and label.strip().isdigit() for _, tab, label in pairs)
    tokens = [encode(text if labelled else text + tab + label)[:length] for text, tab, label in pairs]
    ids = torch.tensor([item + [padding] * (length - len(item)) for item in tokens], dtype=torch.int64)
    mask = torch.tensor([[1] * len(item) + [0] * (length - len(item)) for item in tokens], dtype=torch.int64)
    labels = torch.tensor([int(label) for _, _, label in pairs]) if labelled else None
    return Batch({"input_ids": ids, "attention_mask": mask}, labels)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--help` says what each part means."""
    parser = argparse.ArgumentParser(description="Text to one shard of token ids.")
    parser.add_argument("text", type=Path, help="UTF-8 text")
    parser.add_argument("shard", type=Path, help="file to write, .npz or .safetensors")
    parser.add_argument("--length", type=int, default=128, help="tokens in an item")
    parser.add_argument("--count", type=int, help="how many items, from the start; all when left out")
    parser.add_argument("--lines", action="store_true", help="each line is an item")
    parser.add_argument("--tokenizer", type=Path, help="folder of a transformers tokenizer; bytes when left out")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the request is wrong."""
    asked = arguments(given)
    try:
        if not asked.text.is_file():
            raise DataError(f"no file {asked.text}", "a text file", "check the path")
        encode, padding = tokenizer(asked.tokenizer)
        text = asked.text.read_text(encoding="utf-8")
        batch = lines(text, encode, asked.length, padding) if asked.lines else blocks(text, encode, asked.length)
        labels = None if batch.labels is None else batch.labels[: asked.count]
        dataset = collect([Batch({name: values[: asked.count] for name, values in batch.inputs.items()}, labels)])
        write_shard(dataset, asked.shard)
    except QuantkitError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(dataset)} items of {asked.length} tokens in {asked.shard}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
