"""What a plan promises in bytes is what its file takes, within 2 %, names and nodes included."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import NETWORKS, Bench
from torch import Tensor

from quantkit.core.spec import parse_scheme, parse_schemes
from quantkit.export.file_size import promised_bytes
from quantkit.network.capture import capture
from quantkit.settings.recipe import load_recipe
from quantkit.targets import ort_cpu
from quantkit.targets.placement import Placement

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
DATA = Path(os.environ.get("QUANTKIT_DATA", RECIPES.parent.parent / "shared" / "data"))
SCHEMES = parse_schemes(("fp32", "w8a8", "w4a8", "w5a8", "c4a8", "c3a8", "w4g16a8", "w16a32", "w8a32", "w5a32"))
CODEBOOKS = ("c5a32", "c4a32")  # of float layers


def miss(work: Bench, placement: Placement) -> float:
    """Of the file's bytes, the share by which the promise differs; no network of the tests is larger than 20 kB, most of it names."""
    plain = work.emit(work.place(work.uniform("fp32")), "plain.onnx")[0].stat().st_size
    return promised_bytes(plain, work.graph, placement, ort_cpu.weight_bytes) / work.emit(placement)[0].stat().st_size - 1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_takes_what_its_plan_promises(benches: Callable[[str], Bench], name: str) -> None:
    work = benches(name)
    for scheme in (*SCHEMES, *CODEBOOKS):
        assert abs(miss(work, work.place(work.uniform(scheme)))) < 0.025, scheme


@pytest.mark.parametrize("name", NETWORKS)
def test_so_does_a_mixed_one(benches: Callable[[str], Bench], name: str) -> None:
    work = benches(name)
    weights = sorted({layer.weight for layer in work.graph.layers if layer.weight})
    drawn = {weight: ("w8a8", "w8a32", "fp32", "c4a8")[place % 4] for place, weight in enumerate(weights)}
    assert abs(miss(work, work.place({layer.name: drawn.get(str(layer.weight), "w8a8") for layer in work.graph.layers}))) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet44", "squeezenet1_1", "mobilenet_v2"])
def test_files_of_real_networks_take_what_their_plans_promise(name: str, tmp_path: Path) -> None:
    if not DATA.is_dir():
        pytest.skip("no data folder: set QUANTKIT_DATA")
    recipe = load_recipe(RECIPES / f"{name}.py")
    side = 32 if name == "resnet44" else 224
    inputs: dict[str, Tensor] = {"x": torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))}
    work = Bench(capture(recipe.model, inputs), inputs, tmp_path)
    for scheme in (*SCHEMES, *CODEBOOKS, "w2a8"):
        assert abs(miss(work, work.place(work.uniform(scheme)))) < 0.01, scheme
    mixed = {layer.name: SCHEMES[place % len(SCHEMES)] if layer.weight else "w8a8" for place, layer in enumerate(work.graph.layers)}
    placement = work.place(mixed)
    assert placement.barriers and abs(miss(work, placement)) < 0.01
    assert {parse_scheme(scheme).is_float for scheme in mixed.values()} == {True, False}
