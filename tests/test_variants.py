"""Other forms of a network under its plan: the same weights, other inputs; a decoder's step with its cache above all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import quantkit
from quantkit.core.errors import ConfigError, ModelError
from quantkit.data import Batch
from quantkit.export.integer_weights import read_integer_weights
from quantkit.loading.decoder import step_variant
from quantkit.loading.model import Variant
from quantkit.runs.result import Result
from quantkit.runtimes.evaluation import open_session

ITEMS, TOKENS, WIDTH, CLASSES = 240, 5, 16, 4


class Running(nn.Module):
    """Scores of each token, from it and the sum of those before."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        states = self.down(F.gelu(self.up(x)))
        return self.head(F.gelu(states.cumsum(dim=1)))


class Step(nn.Module):
    """The same for tokens behind others, of which only the sum is known."""

    def __init__(self, network: Running) -> None:
        super().__init__()
        self.up, self.down, self.head = network.up, network.down, network.head

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        states = self.down(F.gelu(self.up(x))).cumsum(dim=1) + before
        return self.head(F.gelu(states)), states[:, -1:]


def inputs() -> Tensor:
    return torch.randn(ITEMS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> Running:
    torch.manual_seed(0)
    return Running().eval()


def recipe(network: Running, step: nn.Module, **changes: object) -> quantkit.Recipe:
    before = torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(3))
    example, typical = ({"x": inputs()[:2, :count], "before": before} for count in (2, 1))
    variant = Variant(step, example, {"x": (1,)}, typical, {"before": "past.sum"}, ("scores", "present.sum"))
    with torch.no_grad():
        labels = network(inputs()).argmax(dim=-1)
    return quantkit.Recipe(
        model=network, data=[Batch({"x": inputs()}, labels)], max_drop=50.0, certificate=0, variants={"step": variant}, **changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(network: Running, tmp_path_factory: pytest.TempPathFactory) -> Result:
    fixed = {"up": "w8a8", "down": "w4a32", "head": "w8d8"}
    return quantkit.allocate(recipe(network, Step(network), fix=fixed), run=tmp_path_factory.mktemp("runs") / "run")


def test_it_has_the_plan_and_runs_as_planned(result: Result) -> None:
    (row,) = result.variants
    assert row.as_planned and row.layers_exact == 1.0 and row.bytes_ratio < 1 and row.latency is not None
    assert row.onnx == result.run / "step.onnx" and row.float_onnx == result.run / "step-float.onnx"
    mine, theirs = ({weight.name: weight.codes for weight in read_integer_weights(path)} for path in (row.onnx, result.files.onnx))
    assert mine.keys() == theirs.keys() and mine
    assert all(np.array_equal(codes, theirs[name]) for name, codes in mine.items())


def test_its_inputs_and_outputs_are_called_as_asked(result: Result) -> None:
    for path in (result.variants[0].onnx, result.variants[0].float_onnx):
        graph = onnx.load(path).graph
        assert [value.name for value in graph.input] == ["x", "past.sum"]
        assert [value.name for value in graph.output] == ["scores", "present.sum"]


def test_axes_that_may_differ_do(result: Result, network: Running) -> None:
    session = open_session(result.variants[0].float_onnx, threads=1)
    x = inputs()[:3]
    with torch.no_grad():
        wanted = network(x).numpy()
    first = session.run({"x": x[:, :2].numpy(), "past.sum": np.zeros((3, 1, WIDTH), np.float32)})
    rest = session.run({"x": x[:, 2:].numpy(), "past.sum": first[1]})
    np.testing.assert_allclose(np.concatenate([first[0], rest[0]], axis=1), wanted, rtol=1e-5, atol=1e-5)


def test_it_is_told_of_in_the_result(result: Result) -> None:
    kept = json.loads((result.run / "result.json").read_text())
    assert kept["variants"][0]["name"] == "step" and kept["variants"][0]["layers_exact"] == 1.0
    assert Result.from_json(kept, None, result.run).variants == result.variants


def test_a_lost_file_is_written_again(network: Running, result: Result) -> None:
    before = result.variants[0].onnx.read_bytes()
    result.variants[0].onnx.unlink()
    fixed = {"up": "w8a8", "down": "w4a32", "head": "w8d8"}
    again = quantkit.allocate(recipe(network, Step(network), fix=fixed), run=result.run)
    assert again.variants[0].onnx.read_bytes() == before


def test_another_weight_of_the_same_name_is_refused(network: Running, tmp_path: Path) -> None:
    torch.manual_seed(5)
    with pytest.raises(ModelError, match="the weight of up in the variant step is not the network's"):
        quantkit.allocate(recipe(network, Step(Running().eval())), run=tmp_path / "run")


def test_a_decoder_with_its_cache_goes_token_by_token(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).eval().save_pretrained(tmp_path / "llama")
    ids = torch.randint(0, 50, (120, 12), generator=torch.Generator().manual_seed(1))
    labels = torch.cat([ids[:, 1:], torch.full((120, 1), -100)], dim=1)
    data = [Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels)]
    found = quantkit.allocate(
        str(tmp_path / "llama"), data=data, metric="perplexity", max_drop=30.0, minimize="bytes", certificate=0,
        schemes="w8a32,w6a32,fp32", run=tmp_path / "run",
    )  # fmt: skip
    (row,) = found.variants
    assert row.name == "decoder" and row.as_planned and row.layers_exact == 1.0 and row.bytes_ratio < 0.6
    whole, step = open_session(found.files.onnx, threads=1), open_session(row.onnx, threads=1)
    wanted = whole.run({"input_ids": ids[:1].numpy(), "attention_mask": np.ones((1, 12), np.int64)})[0]
    cache = {f"past_key_values.{n}.{kind}": np.zeros((1, 2, 0, 8), np.float32) for n in range(2) for kind in ("key", "value")}
    for place in range(12):
        mask = np.ones((1, place + 1), np.int64)
        scores, *present = step.run({"input_ids": ids[:1, place : place + 1].numpy(), "attention_mask": mask, **cache})
        np.testing.assert_allclose(scores[:, 0], wanted[:, place], rtol=1e-3, atol=1e-4)
        cache = dict(zip(cache, present, strict=True))
    assert all(value.shape == (1, 2, 12, 8) for value in cache.values())
    empty = {name: value[:, :, :0] for name, value in cache.items()}  # and the prompt at once, then several behind it
    first, *present = step.run({"input_ids": ids[:1, :7].numpy(), "attention_mask": np.ones((1, 7), np.int64), **empty})
    rest = step.run(
        {"input_ids": ids[:1, 7:].numpy(), "attention_mask": np.ones((1, 12), np.int64), **dict(zip(cache, present, strict=True))}
    )[0]  # fmt: skip
    np.testing.assert_allclose(np.concatenate([first, rest], axis=1), wanted, rtol=1e-3, atol=1e-4)


def test_another_variant_is_another_job(network: Running, result: Result) -> None:
    fixed = {"up": "w8a8", "down": "w4a32", "head": "w8d8"}
    asked = recipe(network, Step(network), fix=fixed)
    (variant,) = asked.variants.values()
    more = asked.changed({"variants": {"step": variant, "other": replace(variant, outputs=("y", "z"))}})
    again = quantkit.allocate(more, run=result.run)
    assert [row.name for row in again.variants] == ["step", "other"]
    assert [value.name for value in onnx.load(again.variants[1].onnx).graph.output] == ["y", "z"]


def test_a_dynamic_axis_of_one_is_refused(network: Running, tmp_path: Path) -> None:
    asked = recipe(network, Step(network))
    (variant,) = asked.variants.values()
    one = replace(variant, example={**variant.example, "x": inputs()[:2, :1]})
    with pytest.raises(ModelError, match="a dynamic axis of size 1 in its example of 'x'"):
        quantkit.allocate(asked.changed({"variants": {"step": one}}), run=tmp_path / "run")


class Loop(Step):
    """A form that cannot be captured."""

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, before if float(before.sum()) > 0 else -before)


def test_what_cannot_be_captured_is_left_out_and_the_result_stands(network: Running, tmp_path: Path) -> None:
    result = quantkit.allocate(recipe(network, Loop(network)), run=tmp_path / "run")
    assert result.variants == () and result.files.onnx.is_file() and not (tmp_path / "run" / "step.onnx").exists()


@pytest.mark.parametrize("name", ["model", "float", "../step", "Step.onnx", ""])
def test_a_variant_is_not_called_as_another_file_is(network: Running, name: str) -> None:
    variant = Variant(Step(network), {"x": inputs()[:2]})
    with pytest.raises(ConfigError, match="recipe has a variant"):
        quantkit.Recipe(model=network, data=[], variants={name: variant})


def test_a_cache_that_does_not_only_grow_has_no_step() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        vocab_size=30, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        sliding_window=4, max_position_embeddings=16,
    )  # fmt: skip
    assert step_variant(transformers.MistralForCausalLM(config).eval()) is None
