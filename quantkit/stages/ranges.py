"""Ranges of every activation, on the calibration split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from quantkit.calibration.ranges import BY_OUTPUT, NEAR, SETTLED, Ranges, calibrate
from quantkit.data import Batch
from quantkit.network.capture import check_inputs
from quantkit.quantization.weights import WeightBank
from quantkit.runs.workbench import Workbench
from quantkit.sensitivity.passes.batches import cached_batch, network_batches
from quantkit.sensitivity.passes.outputs import divergence
from quantkit.sensitivity.passes.ranges import choose_by_output
from quantkit.stages.capture import Network, advanced
from quantkit.targets import other_widths

if TYPE_CHECKING:
    from quantkit.settings.request import Request

RANGE_ITEMS, RANGE_BATCH = 16, 4


def calibrate_ranges(bench: Workbench, request: Request, network: Network) -> Ranges:
    """Ranges of every activation, on the calibration split."""
    items = request.splits.calibration
    graph, options = network.captured.graph, request.options

    check_inputs(network.captured, next(network_batches(graph, items, 1)).inputs)

    def compute() -> Ranges:
        batches = network_batches(graph, items, min(options.batch_size, cached_batch(graph)), options.device)
        with ExitStack() as shown:

            def counted() -> Iterator[Batch]:
                yield from advanced(batches, shown.enter_context(bench.progress.stage("calibrate", len(items), "items")))
                shown.close()  # what follows takes its own time, however many the items
                shown.enter_context(bench.progress.stage("see when the ranges settled"))

            return calibrate(network.on_device, counted())

    depends_on = {"network": network.key, "calibration data": items.fingerprint()}
    ranges = bench.keep("ranges", depends_on, compute, Ranges.from_json)
    bench.progress.note(
        f"calibrated on {ranges.items} items: {SETTLED:.0%} of the ranges were within {NEAR:.0%} of their last width "
        + (f"after {ranges.settled}" if ranges.settled else "only with the last of them; more calibration items would make them surer")
    )
    return ranges if options.observer != BY_OUTPUT else _choose_ranges(bench, request, network, ranges, depends_on)


def _choose_ranges(bench: Workbench, request: Request, network: Network, ranges: Ranges, depends_on: Mapping[str, Any]) -> Ranges:
    """The ranges with those that move the outputs least, for every width of the target's activations."""
    graph, target, device = network.captured.graph, network.target, request.options.device
    items, measure = request.splits.calibration.first(RANGE_ITEMS), divergence(request.metric.curvature)
    specs = {target.ACTIVATIONS.bits: target.ACTIVATIONS, **other_widths(target)}
    bank = WeightBank(graph, {}, {}, target.product_rows)

    def compute() -> Ranges:
        with bench.progress.stage("choose ranges by the outputs", len(items) * len(specs), "items") as advance:
            chosen = {}
            for bits, spec in specs.items():
                batches = network_batches(graph, items, RANGE_BATCH, device)
                chosen[bits] = choose_by_output(network.on_device, bank, ranges, spec, batches, measure, advance)
            return Ranges({}, chosen)

    widths = {str(bits): asdict(spec) for bits, spec in specs.items()}
    depends_on = {**depends_on, "metric's curvature": request.metric.curvature, "widths of activations": widths}
    return replace(ranges, chosen=bench.keep("output_ranges", depends_on, compute, Ranges.from_json).chosen)
