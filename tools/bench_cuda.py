"""What `--device cuda` takes, stage by stage, beside this machine's CPU: ten minutes where a GPU is; prints JSON.

    python tools/bench_cuda.py                    # ResNet50 (224 pixels, 64 items), and ResNet44 by its recipe on both devices
    python tools/bench_cuda.py --write            # and writes it into docs/results/scale.json
    python tools/bench_cuda.py --device cpu --network squeezenet1_1 --side 32 --skip-recipe   # a trial of the script, 20 s

ResNet50 has random weights: how long its stages take does not hang on them. ResNet44 needs the data that its recipe names.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from known import known_figures, write_figures

import quantkit
from quantkit import pipeline
from quantkit.core.progress import Silent
from quantkit.settings.request import resolve

ROOT = Path(__file__).resolve().parent.parent
ITEMS, SCHEMES = 64, "fp32,w8a8,w4a8"
STAGES = {"round_weights_s": "weights", "isolated_divergences_s": "scores"}


def measured(name: str, side: int, device: str, folder: Path) -> dict[str, float]:
    """The whole of `measure`, and the stages that a GPU is for, in seconds."""
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.get_model(name).eval()
    images = torch.rand(4 * ITEMS, 3, side, side, generator=torch.Generator().manual_seed(1))
    said: dict[str, Any] = {
        "data": [quantkit.Batch({"x": images})], "metric": "agreement", "schemes": SCHEMES, "device": device, "run": folder / name,
        "calibration_items": ITEMS, "search_items": ITEMS, "gate_items": ITEMS,
    }  # fmt: skip
    seconds = pipeline.measure(resolve(network, said, promised=False), Silent()).seconds  # type: ignore[arg-type]
    return {"measure_s": sum(seconds.values()), **{key: seconds[stage] for key, stage in STAGES.items()}}


def allocated(device: str, folder: Path) -> float:
    """Seconds of ResNet44's recipe."""
    recipe = str(ROOT / "recipes" / "resnet44.py")
    return float(quantkit.allocate(recipe, device=device, run=folder / f"resnet44-{device}").seconds["total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--skip-recipe", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here: run this where one is")
    with tempfile.TemporaryDirectory() as name:
        found = {
            f"cuda.{arguments.network}.{key}": value
            for key, value in measured(arguments.network, arguments.side, arguments.device, Path(name)).items()
        }
        if not arguments.skip_recipe:
            times = {device: allocated(device, Path(name)) for device in dict.fromkeys((arguments.device, "cpu"))}
            found["cuda.resnet44.allocate_over_cpu"] = times[arguments.device] / times["cpu"]
    print(json.dumps(found, indent=1))
    if arguments.write and arguments.device == "cuda":
        output = ROOT / "docs" / "results" / "scale.json"
        write_figures(output, "scale.json", known_figures(output, any_isa=True) | found | {"cuda.measured": 1.0}, whole=False)


if __name__ == "__main__":
    main()
