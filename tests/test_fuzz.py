"""Random networks × random allocations: every file loads, runs as planned, and is simulated layer by layer."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzz import draw
from networks import Bench

from quantkit.core.environment import isa_label
from quantkit.network.capture import capture
from quantkit.settings.options import SCHEMES
from quantkit.targets import ort_cpu

FAST, ALL = 12, 300
REPORT = "QUANTKIT_FUZZ_REPORT"  # a file to which each network adds a line, for `tools/bench.py targets`


def allocation(work: Bench, random: np.random.Generator) -> dict[str, str]:
    """Any scheme of its menu for each layer; how many are float varies from plan to plan."""
    share = random.random()
    found = {}
    groups = ort_cpu.groups(work.graph, ort_cpu.check_schemes(SCHEMES["ort-cpu"]))
    menus = {name: [scheme for scheme in group.schemes if scheme != "fp32"] for group in groups for name in group.layers}
    for layer in work.graph.layers:
        menu = menus[layer.name]
        found[layer.name] = "fp32" if random.random() < share else str(random.choice(menu))
    return found


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= FAST)) for seed in range(ALL)])
def test_a_random_network_runs_as_planned_and_is_simulated(seed: int, tmp_path: Path) -> None:
    net, inputs = draw(seed)
    work = Bench(capture(net, {name: value[:2] for name, value in inputs.items()}), inputs, tmp_path, "mse" if seed % 2 else "minmax")
    random = np.random.default_rng(seed)
    uniform = work.uniform("w8a8")
    total = sum(layer.macs for layer in work.graph.layers)
    told = []
    for plan in (uniform, allocation(work, random)):
        placement = work.place(plan)
        path, emitted = work.emit(placement)
        onnx.checker.check_model(path, full_check=True)
        ran = work.executed(path, placement)
        parity = work.parity(path, placement, emitted)
        int8 = sum(layer.macs for layer in work.graph.layers if ran.precisions.get(layer.name) == "int8") / total
        layers = len(work.graph.layers)
        told.append({"as_planned": 1 - len(ran.mismatches) / layers, "int8_macs": int8, **vars_of(parity), "uniform": plan is uniform})
        assert ran.mismatches == (), net.blocks
        assert parity.layers_exact == 1.0, net.blocks
        assert parity.agreement >= 0.97, net.blocks
        if plan is uniform:
            assert int8 >= 0.9
    if REPORT in os.environ:
        kinds = Counter(layer.kind for layer in work.graph.layers)
        with Path(os.environ[REPORT]).open("a") as file:
            file.write(json.dumps({"seed": seed, "blocks": net.blocks, "kinds": kinds, "isa": isa_label(), "plans": told}) + "\n")


def vars_of(parity: object) -> dict[str, float]:
    return {name: getattr(parity, name) for name in ("agreement", "exact", "layers_exact")}
