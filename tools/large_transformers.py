"""Transformers of the size that people deploy, with random weights: what an allocation takes, in seconds and in memory.

    python tools/large_transformers.py bert_base --folder runs/large      # prints a JSON line; bench_transformers.py calls it

Random weights say nothing about loss, so the budget is wide, and the answers are compared with the float network's (`agreement`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ITEMS = 160
MAX_DROP = 20.0
STAGES = ("capture", "export", "ranges", "weights", "scores", "latency", "search", "accuracy")


@dataclass(frozen=True)
class Large:
    """A network of `transformers`, the length of its items in tokens, and how it is allocated."""

    config: str
    head: str
    settings: Mapping[str, int]
    tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)


LARGE: Mapping[str, Large] = {
    "bert_base": Large("BertConfig", "BertForSequenceClassification", {"num_labels": 2}, 128),
    "llama_100m": Large(
        "LlamaConfig", "LlamaForCausalLM",
        {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
         "num_key_value_heads": 12, "max_position_embeddings": 1024, "tie_word_embeddings": True},
        64, {"minimize": "bytes", "schemes": ("fp32", "w8d8", "w4b32d8", "w4b128d8"), "effort": "fast"},
    ),
}  # fmt: skip


def allocate(name: str, folder: Path) -> dict[str, float]:
    """An allocation of the network in this process: seconds, the most memory of it, and what came of it."""
    import torch
    import transformers

    import quantkit

    large, source = LARGE[name], folder / name
    torch.manual_seed(0)
    config = getattr(transformers, large.config)(**large.settings)
    if not source.exists():
        getattr(transformers, large.head)(config).eval().save_pretrained(source)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocab_size, (ITEMS, large.tokens), generator=generator)
    batch = quantkit.Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    result = quantkit.allocate(
        str(source), data=[batch], metric="agreement", max_drop=MAX_DROP, certificate=0, run=folder / f"run-{name}", **large.options
    ).to_json()  # fmt: skip
    found = {
        "seconds": result["seconds"]["total"],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "as_planned": float(result["executed"]["as_planned"]),
        "latency_over_float": result["latency"]["ratio"],
        "bytes_over_float": result["bytes"]["ratio"],
    }
    found |= {f"seconds_{stage}": result["seconds"][stage] for stage in STAGES if stage in result["seconds"]}
    for decoder in (row for row in result["variants"] if row["name"] == "decoder"):
        found["tokens_per_s"] = 1000 / decoder["latency"]["quantized_ms"]
        found["tokens_per_s_over_float"] = 1 / decoder["latency"]["ratio"]
    return found


def figures(folder: Path, names: Sequence[str] = tuple(LARGE), run: Callable[..., Any] = subprocess.run) -> dict[str, float]:
    """Of each of these networks what a process of its own says, kept from before or made now."""
    found: dict[str, float] = {}
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, __file__, name, "--folder", str(folder)]
            path.write_text(run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found |= {f"{name}.{key}": value for key, value in json.loads(path.read_text()).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=list(LARGE))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "large")
    arguments = parser.parse_args()
    print(json.dumps(allocate(arguments.network, arguments.folder)))


if __name__ == "__main__":
    main()
