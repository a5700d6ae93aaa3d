"""What `inspect` says before anything is measured: counts against torch's own counter of operations, names that are never cut."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from networks import captured
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from quantkit import pipeline
from quantkit.allocation.costs.overview import overview
from quantkit.cli.inspect_tables import show_inspection, summary_lines
from quantkit.core.spec import parse_scheme
from quantkit.loading import from_module
from quantkit.settings.options import Options
from quantkit.targets import find_target

BLOCKS, WIDTH, TOKENS, HEADS = 5, 16, 6, 2


class Block(nn.Module):
    """Attention written out, or torch's own, and a hidden layer, each behind a layer norm."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.before_attention, self.before_hidden = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries_keys_and_values_of_attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.hidden, self.out = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_and_values_of_attention(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + mixed.transpose(1, 2).flatten(2)
        return x + self.out(F.relu(self.hidden(self.before_hidden(x))))


class Encoder(nn.Module):
    """Tokens [items, TOKENS, WIDTH] → scores."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(fused) for _ in range(BLOCKS)))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


@cache
def inspected(fused: bool = False) -> pipeline.Inspection:
    example = {"x": torch.randn(2, TOKENS, WIDTH)}
    return pipeline.inspect(from_module(Encoder(fused).eval()), example, Options())


def test_multiply_accumulates_are_those_of_torchs_own_counter() -> None:
    found = inspected().overview
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Encoder(fused=False)(torch.randn(1, TOKENS, WIDTH))
    products = sum(count for operation, count in counter.get_flop_counts()["Global"].items() if "bmm" in str(operation))

    assert found.macs * 2 == counter.get_total_flops() and found.uncounted == ()
    assert (found.macs - found.int8_macs) * 2 == products > 0


def test_attention_in_one_call_counts_as_it_does_written_out() -> None:
    """torch's counter leaves out what its CPU kernel does."""
    assert inspected(fused=True).overview.macs == inspected().overview.macs


def test_one_row_for_each_operation_and_reason_that_stays_float() -> None:
    found, graph = inspected().overview, inspected().graph

    assert sum(len(row.nodes) for row in found.stays) == len(graph.unsupported)
    assert len({(row.operation, row.reason) for row in found.stays}) == len(found.stays)
    (norms,) = (row for row in found.stays if row.operation.startswith("layer_norm"))
    assert len(norms.nodes) == 2 * BLOCKS


def test_what_schemes_would_take_is_the_sum_over_layers() -> None:
    graph, groups = captured("residual").graph, pipeline.find_groups(captured("residual").graph, Options(minimize="bytes"))
    target = find_target("ort-cpu")
    found = overview(graph, groups, target)

    for scheme, use in found.schemes.items():
        total = 0.0
        for group in groups:
            taken = scheme if scheme in group.schemes else "fp32"
            total += sum(target.weight_bytes(layer, parse_scheme(taken)) for layer in graph.weights(group).values())
            plain = [layer for layer in map(graph.layer, group.layers) if not layer.weight]
            total += sum(target.weight_bytes(layer, parse_scheme(taken)) for layer in plain)
        assert use.weight_bytes == pytest.approx(total), scheme
        assert use.groups == sum(scheme in group.schemes for group in groups)
    assert found.schemes["w8a8"].weight_bytes < 0.4 * found.schemes["fp32"].weight_bytes


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_a_narrow_terminal_cuts_no_name(columns: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("quantkit.cli.console.WIDE", columns)
    found = inspected()
    show_inspection(found.graph, found.groups, found.overview, ("Loop", "TopK"), every_name=True)
    out = capfd.readouterr().out

    assert "…" not in out and max(map(len, out.splitlines()[2:])) <= columns and "Loop, TopK" in out
    cells = [re.split(r"\s{2,}", line)[0] for line in out.split("What can be quantized")[1].split("What stays float")[0].splitlines()]
    names = "".join(cell.strip() for cell in cells)
    assert all(group.name in names for group in found.groups)


def test_a_pipe_gets_every_name_whole_and_counts_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    found = inspected()
    show_inspection(found.graph, found.groups, found.overview, (), every_name=False)
    out = capfd.readouterr().out

    assert out.startswith(summary_lines(found.overview)[0]) and "…" not in out
    assert all(group.name in out for group in found.groups)
    (line,) = (line for line in out.splitlines() if "layer_norm" in line)
    assert f" {2 * BLOCKS} " in line and f"and {2 * BLOCKS - 2} more" in line


@pytest.mark.parametrize("kind", [lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True), lambda: nn.GRU(WIDTH, WIDTH, batch_first=True)])
def test_what_recurrent_layers_multiply_is_said_not_to_be_counted(kind: Callable[[], nn.RNNBase]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.head = kind(), nn.Linear(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.steps(x)[0][:, -1])

    found = pipeline.inspect(from_module(Recurrent().eval()), {"x": torch.randn(2, TOKENS, WIDTH)}, Options()).overview
    assert len(found.uncounted) == 1 and found.int8_macs == found.macs == WIDTH * 4
    assert any("Not counted" in line and found.uncounted[0] in line for line in summary_lines(found))


def test_what_transposed_convolutions_multiply_is_said_not_to_be_counted() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 2, stride=2))
    found = pipeline.inspect(from_module(network.eval()), {"x": torch.randn(2, 3, 8, 8)}, Options()).overview
    assert len(found.uncounted) == 1 and found.int8_macs == found.macs > 0


def test_narrow_weights_over_tokens_stand_behind_codes_of_each_call_alone_unless_asked_for() -> None:
    """As many bytes, and less is lost; w8a8 stays, as it is what others ship."""
    model = from_module(Encoder(fused=False).eval())
    example = {"x": torch.randn(2, TOKENS, WIDTH)}
    for options in (Options(minimize="bytes"), Options(minimize="bytes", schemes=("fp32", "c5a8", "c5d8"))):
        menus = [set(group.schemes) for group in pipeline.inspect(model, example, options).groups]
        over_tokens = [menu for menu in menus if "c5d8" in menu]
        assert over_tokens and all(("c5a8" in menu) == (options.schemes is not None) for menu in over_tokens)
        assert options.schemes is not None or all({"w8a8", "w8d8", "w8a32"} <= menu for menu in over_tokens)
