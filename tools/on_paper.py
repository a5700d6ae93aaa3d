"""What decoders of 7 and 70 billion weights would take, by what one of 110 million took.

    python tools/on_paper.py docs/results/transformers-avx2.json      # figures of `python tools/bench_transformers.py --parts large`

Each stage grows by its own law (LAWS), and two of them are divided among workers; a worker is the process that was measured, on its two
cores. The items are those of the measured job, 160 of 64 tokens: twice the items or the tokens is twice the time of all but the files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

WORKERS = (1, 8, 64)
HOUR_S = 3600
MANY = 10  # hours, of which parts say nothing


@dataclass(frozen=True)
class Decoder:
    """A llama-like network: layers of attention (`width`, keys and values of `kv_width`) and three products with `inner`."""

    layers: int
    width: int
    inner: int
    kv_width: int
    vocabulary: int = 32000

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the products of one layer."""
        attention = ((self.width, self.width),) * 2 + ((self.width, self.kv_width),) * 2
        return (*attention, *((self.width, self.inner),) * 2, (self.inner, self.width))

    @property
    def weights(self) -> int:
        """All of them; the table of tokens counts once."""
        return self.layers * sum(one * other for one, other in self.products) + self.vocabulary * self.width

    @property
    def rounding(self) -> int:
        """What rounding by second moments multiplies: for each weight the inputs of its layer."""
        return self.layers * sum(one * one * other for one, other in self.products)


MEASURED = "llama_100m"
DECODERS: Mapping[str, Decoder] = {
    MEASURED: Decoder(12, 768, 2048, 768),
    "7 B": Decoder(32, 4096, 11008, 4096),
    "70 B": Decoder(80, 8192, 28672, 1024),
}
# How each stage grows, and whether workers share it.
LAWS: Mapping[str, tuple[Callable[[Decoder], float], bool]] = {
    "capture": (lambda network: network.weights, False),
    "export": (lambda network: network.weights, False),
    "ranges": (lambda network: network.weights, False),
    "weights": (lambda network: network.rounding, True),
    "scores": (lambda network: network.layers * network.weights, True),  # a pass for each group
    "latency": (lambda network: network.weights, False),
    "search": (lambda network: network.weights, False),
    "accuracy": (lambda network: network.weights, False),
}


def hours(found: Mapping[str, float], name: str, workers: int) -> dict[str, float]:
    """Of each stage; `found` are the figures of the measured network."""
    network, measured = DECODERS[name], DECODERS[MEASURED]
    return {
        stage: found[f"{MEASURED}.seconds_{stage}"] / HOUR_S * grows(network) / grows(measured) / (workers if divided else 1)
        for stage, (grows, divided) in LAWS.items()
        if f"{MEASURED}.seconds_{stage}" in found
    }


def memory_gb(found: Mapping[str, float], name: str) -> float:
    """Of one process, by the bytes for each weight that the measured one took at its most."""
    return found[f"{MEASURED}.peak_gb"] * DECODERS[name].weights / DECODERS[MEASURED].weights


def rows(found: Mapping[str, float]) -> list[list[str]]:
    """A row for each network and number of workers: hours of the stages, of all, and memory."""
    stages = list(hours(found, MEASURED, 1))
    made = []
    for name in DECODERS:
        for workers in WORKERS if name != MEASURED else WORKERS[:1]:
            taken = hours(found, name, workers)
            each = [_told(taken[stage]) for stage in stages]
            made.append([name, str(workers), *each, f"**{_told(sum(taken.values()))}**", f"{memory_gb(found, name):,.0f}"])
    return made


def _told(hours: float) -> str:
    """Two digits, or whole hours."""
    return f"{hours:,.0f}" if hours >= MANY else f"{hours:.2g}"


def head(found: Mapping[str, float]) -> list[str]:
    """Above `rows`."""
    return ["network", "workers", *(f"`{stage}` h" for stage in hours(found, MEASURED, 1)), "together h", "memory of a process GB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figures", type=Path)
    arguments = parser.parse_args()
    found = json.loads(arguments.figures.read_text())["figures"]
    if f"{MEASURED}.peak_gb" not in found:
        raise SystemExit(f"{arguments.figures} holds no figures of {MEASURED}: run python tools/bench_transformers.py --parts large first")
    for row in (head(found), *rows(found)):
        print(" | ".join(row))


if __name__ == "__main__":
    main()
