"""Every weight rounded under every scheme of every menu: with the ranges, whatever a plan's file is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from quantkit.calibration.ranges import Ranges
from quantkit.core.graph import Group, Layer
from quantkit.core.run_files import WEIGHTS
from quantkit.core.spec import Scheme, parse_scheme
from quantkit.quantization.moments import second_moments
from quantkit.quantization.rounding import BLIND, ROUNDINGS
from quantkit.quantization.weights import WeightBank
from quantkit.runs.workbench import Workbench, stage_key
from quantkit.sensitivity.passes.batches import network_batches
from quantkit.stages.candidates import Candidates
from quantkit.stages.capture import Network
from quantkit.targets import other_widths

if TYPE_CHECKING:
    from quantkit.settings.request import Request

MOMENT_ITEMS, MOMENT_BATCH = 64, 4  # a batch takes nine times the activations of its largest 3×3 layer
UNIFORM = parse_scheme("w8a8")  # the baseline that others would ship


def prepare_candidates(
    bench: Workbench, request: Request, network: Network, groups: tuple[Group, ...], ranges: Ranges, folder: Path
) -> Candidates:
    """Whatever a plan needs to become a file: weights rounded under every scheme of every menu, and under that of the uniform baseline."""
    graph, target, options = network.captured.graph, network.target, request.options
    state = {name: value.detach().cpu() for name, value in network.captured.module.named_parameters(remove_duplicate=False)}
    activations = ranges.qparams(options.observer, graph, target.ACTIVATIONS)
    widths = {bits: ranges.qparams(options.observer, graph, spec) for bits, spec in other_widths(target).items()}
    schemes = {name: dict.fromkeys([*group.schemes, UNIFORM]) for group in groups for name in group.layers}

    def compute() -> Mapping[str, NDArray[Any]]:
        items, moments = request.splits.calibration.first(MOMENT_ITEMS), {}
        if options.rounding not in BLIND:
            with bench.progress.stage("second moments", len(items), "items") as advance:
                moments = second_moments(network.on_device, network_batches(graph, items, MOMENT_BATCH, options.device), advance)
        bank = WeightBank(
            graph, state, activations, target.product_rows, rounding=ROUNDINGS[options.rounding], moments=moments, widths=widths
        )
        parts = [[(layer, scheme) for scheme in schemes[layer.name]] for layer in graph.layers if layer.weight]
        # A rounding goes from column to column, all rows at once: of small layers the columns take the time, of large ones most of it.
        columns = [len(part) * prod(part[0][0].weight_shape[1:]) for part in parts]
        with bench.progress.stage("round weights", sum(columns), "columns") as advance:
            found: dict[str, NDArray[Any]] = {}
            made = bench.workers.run(_rounded, bank.to(torch.device(options.device)), parts)
            for count, arrays in zip(columns, made, strict=True):
                found |= arrays
                advance(count)
            return found

    menus = [[group.name, list(group.layers), list(group.schemes)] for group in groups]
    depends_on = {
        "network": network.key, "schemes of each group": menus, "observer": options.observer, "rounding": options.rounding,
        "calibration data": request.splits.calibration.fingerprint(), "ranges": ranges.to_json(),
    }  # fmt: skip
    key = stage_key(WEIGHTS, depends_on, compute)
    rounded = bench.keep_arrays(WEIGHTS, depends_on, compute)
    bank = WeightBank(
        graph, state, activations, target.product_rows, rounding=ROUNDINGS[options.rounding], rounded=rounded, widths=widths
    )
    return Candidates(network.float_file, graph, groups, target, bank, folder, key)


def _rounded(bank: WeightBank, pairs: Sequence[tuple[Layer, Scheme]]) -> dict[str, NDArray[Any]]:
    """One layer under its schemes."""
    return bank.rounded(pairs)
