"""What a decoder of 1.5 billion random weights takes to allocate block by block, and whether its file runs; writes docs/results/large.json.

    python tools/bench_streamed.py                     # a quarter of an hour, 10 GB of disk
    python tools/bench_streamed.py --blocks 2          # the same width, two blocks: to try it

The folder is made here, a shard for each block, in bfloat16; the job runs in a process of its own, whose most memory is `peak_gb`, and a
third process opens the file. Random weights say nothing about loss: the plan is that of least predicted loss at AVERAGE_BITS, of codes of
8 and 4 bits. `peak_gb` counts pages of mapped files that were touched, so it is above what must be there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from known import known_figures, run_folder, write_figures

ROOT = Path(__file__).resolve().parent.parent
NAME, FILE = "llama_1_5b", "large.json"
WIDTH, INNER, BLOCKS, HEADS, VOCABULARY = 2048, 5504, 28, 16, 32000
TOKENS, ITEMS = 32, {"calibration_items": 8, "search_items": 8, "gate_items": 16}
AVERAGE_BITS = 6.0
DEVIATION = 0.02  # of weights, as transformers draws them


def make_folder(folder: Path, blocks: int) -> int:
    """A folder as transformers saves it, shard by shard; how many weights it has."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=blocks, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=1024, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    square, up, down, norm = (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER), (WIDTH,)
    block = {f"self_attn.{name}_proj": square for name in "qkvo"} | {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
    block |= {"input_layernorm": norm, "post_attention_layernorm": norm}
    shards = [{f"model.layers.{number}.{name}": shape for name, shape in block.items()} for number in range(blocks)]
    shards.append({"model.embed_tokens": (VOCABULARY, WIDTH), "model.norm": norm, "lm_head": (VOCABULARY, WIDTH)})
    count = sum(torch.Size(shape).numel() for shard in shards for shape in shard.values())
    if (folder / "config.json").exists():
        return count
    folder.mkdir(parents=True, exist_ok=True)
    placed = {}
    for number, shard in enumerate(shards, 1):
        generator, name = torch.Generator().manual_seed(number), f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        made = {
            f"{key}.weight": (torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * DEVIATION).bfloat16()
            for key, shape in shard.items()
        }
        save_file(made, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(made, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    config.save_pretrained(folder)  # last: with it the folder is whole
    return count


def allocate(folder: Path) -> None:
    """The job, in this process; prints a JSON line."""
    import torch

    import quantkit
    from quantkit.cli.console import ConsoleProgress, worked

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (sum(ITEMS.values()), TOKENS), generator=generator)
    batch, start = quantkit.Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), time.perf_counter()

    def job(progress: ConsoleProgress) -> quantkit.Result:
        return quantkit.allocate(
            str(folder), streamed=True, data=[batch], minimize="drop", average_bits=AVERAGE_BITS, rounding="nearest", threads=2,
            run=folder.with_name("run"), progress=progress, **ITEMS,
        )  # fmt: skip

    result = worked(job).to_json()
    schemes = [row["scheme"] for row in result["allocation"]]
    found = {
        "seconds": time.perf_counter() - start,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "as_planned": float(result["executed"]["as_planned"]),
        "agreement": result["simulation"]["agreement"],
        "groups_8_bits": float(sum(scheme.startswith("w8") for scheme in schemes)),
        "groups_4_bits": float(sum(scheme.startswith("w4") for scheme in schemes)),
        "average_weight_bits": float(next(row["used"] for row in result["bounds"] if row["name"] == "average_bits")),
        "bytes_over_float32": result["bytes"]["ratio"],
        "bytes_over_bfloat16": 2 * result["bytes"]["ratio"],
        "file_gb": result["bytes"]["quantized"] / 1e9,
    }
    found |= {f"seconds_{stage}": seconds for stage, seconds in result["seconds"].items() if stage != "total"}
    print(json.dumps(found))


def opens(path: Path) -> float:
    """1 if ONNX Runtime opens the file and gives finite scores for tokens, in another process."""
    code = (
        "import sys, numpy as np, onnxruntime as ort\n"
        "session = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "ids = np.arange(3, 8, dtype=np.int64)[None]\n"
        "print(float(np.isfinite(session.run(None, {'input_ids': ids, 'attention_mask': np.ones_like(ids)})[0]).all()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, check=False)
    return float(done.stdout or 0.0)


def figures(folder: Path, blocks: int) -> dict[str, float]:
    found = {"weights": float(make_folder(folder / "network", blocks))}
    command = [sys.executable, __file__, "--allocate", str(folder / "network")]
    found |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    found["opens"] = opens(folder / "run" / "model.onnx")
    return {f"{NAME}.{key}": value for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / FILE)
    parser.add_argument("--allocate", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.allocate:
        allocate(arguments.allocate)
        return
    known = known_figures(arguments.output)
    found = figures(arguments.folder or run_folder("streamed", FILE), arguments.blocks)
    if arguments.blocks == BLOCKS:
        write_figures(arguments.output, FILE, known | found)
    for key, value in found.items():
        print(f"{key:34s} {value:.4g}")


if __name__ == "__main__":
    main()
