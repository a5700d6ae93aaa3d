"""Decoders block by block: the same numbers as of the whole network, in the room of one block, and a file that runs as planned."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import quantkit
from quantkit.cli.app import main
from quantkit.core.errors import ContractError, DataError, ModelError, OutputError, QuantkitError, RequestError, SchemeError
from quantkit.core.numerics.affine import choose_weight_qparams
from quantkit.core.spec import PerBlock, QuantSpec, Scheme, parse_allocation, parse_scheme
from quantkit.core.statistics import Verdict
from quantkit.data import Batch, collect, split
from quantkit.export.outline import Blocks, Plain, Slice, gather, laid, slices
from quantkit.quantization.moments import shrunk
from quantkit.quantization.rounding import LayerMoments
from quantkit.settings.arguments import Arguments
from quantkit.settings.bounds import Bound, Bounds
from quantkit.settings.request import resolve_streamed
from quantkit.streaming import job, passes
from quantkit.streaming.checkpoint import Checkpoint
from quantkit.streaming.files import not_as_planned
from quantkit.streaming.items import read_tokens
from quantkit.streaming.passes import Passed, Work, items_at_once, relative_error, run_blocks
from quantkit.streaming.plans import Choices, front
from quantkit.streaming.rounding import block_scales, real, round_matrix, weights_of
from quantkit.streaming.search import bisect
from quantkit.streaming.shelf import Shelf
from quantkit.streaming.simulation import read_rounded, simulate
from quantkit.streaming.skeleton import Skeleton

transformers = pytest.importorskip("transformers")

BLOCKS, WIDTH, TOKENS, VOCABULARY = 2, 64, 12, 96
MENU = ("w8b32d8", "w4b32a32", "fp32")
ITEMS = {"calibration_items": 6, "search_items": 4, "gate_items": 6}


def save_network(folder: Path, shard: str = "1GB", kind: str = "Llama", **more: Any) -> Path:
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": BLOCKS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 32, **more,
    }  # fmt: skip
    network = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1).add_(0.1 * torch.randn(parameter.shape) if parameter.dim() == 1 else 0)
    network.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network"), "40KB")


def batch() -> Batch:
    """Items of several lengths, padded on the right."""
    ids = torch.randint(3, VOCABULARY, (16, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[::3, -4:] = 0
    return Batch({"input_ids": ids, "attention_mask": mask})


def work_of(folder: Path, run: Path, rounding: str = "gptq", memory_bytes: int = 1 << 30, menu: tuple[str, ...] = MENU) -> Work:
    run.mkdir(exist_ok=True, parents=True)
    splits = split(collect([batch()]), seed=0, calibration=6, search=4, gate=6)
    schemes = tuple(map(parse_scheme, menu))
    shelf = Shelf(run, "0" * 64, "0" * 64)
    return Work(Skeleton(folder, Checkpoint(folder)), read_tokens(splits), shelf, lambda _: schemes, rounding, memory_bytes)


def nothing(_: int) -> None:
    pass


@pytest.fixture(scope="module")
def passed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Passed]:
    work = work_of(folder, tmp_path_factory.mktemp("run"))
    return work, run_blocks(work, nothing)


def choices_of(work: Work, found: Passed) -> Choices:
    return Choices(found.records, found.table.table.bytes, work.skeleton.checkpoint.weights)


def whole(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), attn_implementation="eager", dtype=torch.float32).eval()


def files_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.rglob("*.*")) if path.suffix in (".bin", ".json")}


def test_losses_of_the_float_network_are_those_of_the_whole_one(folder: Path, passed: tuple[Work, Passed]) -> None:
    work, found = passed
    tokens = work.tokens
    with torch.no_grad():
        scores = whole(folder)(input_ids=tokens.ids, attention_mask=tokens.mask).logits.double()
    losses = nn.functional.cross_entropy(scores.transpose(1, 2), tokens.labels, ignore_index=-100, reduction="none").sum(dim=1)
    assert found.losses == pytest.approx(losses.numpy(), rel=1e-5)
    assert int((tokens.labels >= 0).sum()) < tokens.labels.numel() - len(tokens)  # padding counts nowhere


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral"])
def test_other_decoders_of_that_form_are_the_whole_one_too(tmp_path: Path, kind: str) -> None:
    folder = save_network(tmp_path / "network", kind=kind, **({"tie_word_embeddings": True} if kind == "Qwen3" else {}))
    work = work_of(folder, tmp_path / "run", "nearest", menu=("w8b32d8",))
    found, tokens = run_blocks(work, nothing), work.tokens
    with torch.no_grad():
        scores = whole(folder)(input_ids=tokens.ids, attention_mask=tokens.mask).logits.double()
    losses = nn.functional.cross_entropy(scores.transpose(1, 2), tokens.labels, ignore_index=-100, reduction="none").sum(dim=1)
    assert found.losses == pytest.approx(losses.numpy(), rel=1e-5)


def test_products_of_one_tensor_are_one_group(passed: tuple[Work, Passed]) -> None:
    work, found = passed
    groups = choices_of(work, found).groups
    assert len(groups) == 4 * BLOCKS + 1
    attention = "model.layers.1.self_attn"
    assert groups[f"{attention}.q_proj"] == tuple(f"{attention}.{name}_proj" for name in "qkv")
    assert groups["model.layers.1.mlp.gate_proj"] == ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    assert groups["lm_head"] == ("lm_head",)


def test_moments_are_those_of_the_whole_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Tensor] = {}

    def rounded(weight: Tensor, scheme: Scheme, rounding: str, moments: LayerMoments | None) -> Any:
        if moments is not None and tuple(weight.shape) == (WIDTH, 96):
            given[f"down {len(given)}"] = moments.values
        return round_matrix(weight, scheme, rounding, moments)

    monkeypatch.setattr(passes, "round_matrix", rounded)
    work = work_of(folder, tmp_path, memory_bytes=1, menu=("w8b32d8",))  # one item at a time
    run_blocks(work, nothing)
    network, seen = whole(folder), list[Tensor]()
    for layer in network.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    few = slice(0, work.tokens.calibration)
    with torch.no_grad():
        network(input_ids=work.tokens.ids[few], attention_mask=work.tokens.mask[few])
    assert len(given) == BLOCKS
    for mine, x in zip(given.values(), seen, strict=True):
        rows = x[work.tokens.mask[few] > 0].double()
        assert torch.allclose(mine.double(), shrunk((rows.mT @ rows)[None] / len(rows), len(rows)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("scheme", "inputs"), [("w4b32d8", 96), ("w8b32d8", 96), ("w4b128d8", 256)])
def test_codes_are_the_nearest_on_a_grid_that_errs_least(scheme: str, inputs: int) -> None:
    weight = torch.randn(40, inputs, generator=torch.Generator().manual_seed(2)) ** 3
    spec = weights_of(parse_scheme(scheme), inputs)
    assert isinstance(spec.granularity, PerBlock)
    theirs, mine = choose_weight_qparams(weight, spec, paired=False).scale, block_scales(weight, spec)
    blocks = weight.reshape(40, -1, spec.granularity.size).double()

    def error(scale: Tensor) -> Tensor:
        codes = (blocks / scale[..., None]).round().clamp(spec.code_min, spec.code_max)
        return (codes * scale[..., None].double() - blocks).square().sum(dim=-1)

    assert torch.allclose(error(mine), error(theirs), rtol=1e-5)  # the same scales, but where two err alike
    assert (mine != theirs).double().mean() < 0.01
    found = round_matrix(weight, parse_scheme(scheme), "nearest", None)
    steps = weight / torch.from_numpy(found.scale).repeat_interleave(spec.granularity.size, dim=1)
    codes = real(found) / torch.from_numpy(found.scale).repeat_interleave(spec.granularity.size, dim=1)
    assert torch.allclose(codes, steps.round().clamp(spec.code_min, spec.code_max), atol=1e-4)


def test_gptq_errs_less_where_it_matters() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, x, mixing = (torch.randn(rows, 64, generator=generator) for rows in (32, 500, 64))
    x = x @ mixing
    moments = LayerMoments((x.mT @ x)[None] / 500)
    near, gptq = (real(round_matrix(weight, parse_scheme("w4b32d8"), name, moments)) for name in ("nearest", "gptq"))
    assert (x @ (gptq - weight).mT).square().mean() < 0.8 * (x @ (near - weight).mT).square().mean()
    assert torch.equal(near, real(round_matrix(weight, parse_scheme("w4b32d8"), "gptq", None)))  # nothing is known: to nearest


def test_codes_on_the_disk_never_leave_their_grid(passed: tuple[Work, Passed]) -> None:
    work, found = passed
    parts = [part for record in found.records for layers in record.parts.values() for part in layers.values() if isinstance(part, Blocks)]
    assert {part.bits for part in parts} == {4, 8}
    for part in parts:
        rounded = read_rounded(work.shelf, part)
        codes = real(replace(rounded, scale=np.ones_like(rounded.scale)))
        most = QuantSpec(part.bits, signed=True, symmetric=True, granularity=PerBlock(1, part.size)).code_max
        assert codes.abs().max() <= most and torch.equal(codes, codes.round())


def test_a_score_is_the_error_of_its_block_alone(folder: Path, passed: tuple[Work, Passed]) -> None:
    work, found = passed
    network, few = whole(folder), slice(0, work.scored)
    states = list[Tensor]()
    layer = network.model.layers[1]
    layer.register_forward_hook(lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output))
    name = "model.layers.1.mlp.down_proj"
    part = found.records[1].parts["w4b32a32"][name]
    kept = layer.mlp.down_proj.weight.detach().clone()
    for weight in (kept, real(read_rounded(work.shelf, part))):
        layer.mlp.down_proj.weight = nn.Parameter(weight)
        with torch.no_grad():
            network(input_ids=work.tokens.ids[few], attention_mask=work.tokens.mask[few])
    expected = relative_error(states[1], states[0], work.tokens.mask[few])
    assert found.records[1].loss[name]["w4b32a32"] == pytest.approx(expected, rel=1e-3)
    assert found.records[1].loss[name]["fp32"] == 0
    assert 0 < found.records[1].loss[name]["w8b32d8"] < expected


def test_the_simulation_is_the_whole_network_with_the_codes_in_place_of_its_weights(folder: Path, passed: tuple[Work, Passed]) -> None:
    work, found = passed
    choices, network = choices_of(work, found), whole(folder)
    plan = {name: parse_scheme("w4b32a32" if place % 2 else "fp32") for place, name in enumerate(choices.groups)}
    for layer, part in choices.parts(plan).items():
        if isinstance(part, Blocks):
            network.get_submodule(layer).weight = nn.Parameter(real(read_rounded(work.shelf, part)))
    ids, mask = work.tokens.ids[:3], work.tokens.mask[:3]
    with torch.no_grad():
        expected = network(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(simulate(work, choices, plan, ids, mask), expected, atol=1e-5 * float(expected.abs().max()))


def test_one_block_is_held_at_a_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most, read = list[weakref.ref[nn.Module]](), 0, Skeleton.block

    def block(self: Skeleton, number: int) -> nn.Module:
        nonlocal most
        made = read(self, number)
        alive.append(weakref.ref(made))
        most = max(most, sum(one() is not None for one in alive))
        return made

    monkeypatch.setattr(Skeleton, "block", block)
    work = work_of(folder, tmp_path, "nearest", menu=("w8b32d8",))
    run_blocks(work, nothing)
    assert len(alive) == BLOCKS and most == 1
    assert all(value.is_meta for value in work.skeleton.network.parameters())  # nothing stays behind


def test_activations_are_as_few_as_memory_asks_for(folder: Path, tmp_path: Path) -> None:
    much, little = (work_of(folder, tmp_path / name, memory_bytes=size) for name, size in (("a", 1 << 30), ("b", 1)))
    assert items_at_once(little) == items_at_once(little, head=True) == 1
    assert items_at_once(much) > len(much.tokens)
    assert list(little.tokens.chunks(4)) == [(0, 4), (4, 6), (6, 10), (10, 14), (14, 16)]


def test_what_was_killed_goes_on_and_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path, passed: tuple[Work, Passed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_blocks(work_of(folder, tmp_path), stop)
    (tmp_path / f"streamed-{'0' * 16}" / ".torn-01234567.bin").write_bytes(b"half")
    asked, read = list[int](), Skeleton.block
    monkeypatch.setattr(Skeleton, "block", lambda self, number: (asked.append(number), read(self, number))[1])
    again = run_blocks(work_of(folder, tmp_path), nothing)
    assert asked == [1]  # the first is there
    work, found = passed
    assert files_of(tmp_path) == files_of(work.shelf.folder.parent)
    assert again.losses.tolist() == found.losses.tolist()
    assert not list(work.shelf.folder.glob("hidden-*")) and not list(tmp_path.rglob(".torn*"))


def test_a_request_of_another_key_removes_what_the_last_one_left(tmp_path: Path) -> None:
    first = Shelf(tmp_path, "1" * 64, "3" * 64)
    first.keep(0, {"a": 1})
    assert Shelf(tmp_path, "1" * 64, "3" * 64).record(0) == {"a": 1}
    assert Shelf(tmp_path, "2" * 64, "3" * 64).record(0) is None and not first.folder.exists()


def test_shards_change_nothing(tmp_path: Path, passed: tuple[Work, Passed]) -> None:
    one = work_of(save_network(tmp_path / "network"), tmp_path / "run")
    run_blocks(one, nothing)
    work, _ = passed
    mine, theirs = (list(each.skeleton.checkpoint.folder.glob("*.safetensors")) for each in (one, work))
    assert len(mine) == 1 < len(theirs)
    assert files_of(tmp_path / "run") == files_of(work.shelf.folder.parent)


def test_the_front_goes_from_the_most_careful_to_the_smallest(passed: tuple[Work, Passed]) -> None:
    choices = choices_of(*passed)
    plans = front(choices, Bounds(), smaller=True)
    sizes, losses = [choices.bytes(plan) for plan in plans], [choices.predicted(plan) for plan in plans]
    assert sizes == sorted(sizes, reverse=True) and losses == sorted(losses) and len(plans) > 3
    assert set(plans[0].values()) == {"fp32"} and set(plans[-1].values()) == {"w4b32a32"}
    assert front(choices, Bounds(), smaller=False) == plans[:1]
    small = Bounds(average_bits=Bound(6.0))
    assert all(choices.average_bits(plan) <= 6 for plan in front(choices, small, smaller=True))
    half = Bounds(bytes=Bound(0.5, relative=True))
    assert all(choices.bytes(plan) <= 2 * choices.weights for plan in front(choices, half, smaller=True))
    with pytest.raises(RequestError, match="below what the schemes reach"):
        front(choices, Bounds(bytes=Bound(1000.0)), smaller=True)


@pytest.mark.parametrize(("good", "chosen", "sure"), [(7, 7, True), (3, 3, True), (0, 0, True), (-1, 0, False)])
def test_the_search_takes_the_smallest_plan_that_is_sure_enough(good: int, chosen: int, sure: bool) -> None:
    plans = [parse_allocation({"group": f"w{bits}a8"}) for bits in (8, 7, 6, 5, 4, 3, 2)] + [parse_allocation({"group": "fp32"})]
    measured = list[int]()

    def judge(plan: Any, where: Any) -> Verdict:
        measured.append(plans.index(plan))
        return Verdict("undecided", 9, 0.0, 0.0, float(measured[-1] > good), 0.0, 0.0, None)

    work = SimpleNamespace(tokens=SimpleNamespace(search_part=None))
    bench = cast("Any", SimpleNamespace(judge=judge, chance_kept=lambda one: (1 - one.drop, 0.85), work=work))
    found = bisect(bench, plans, lambda: False, nothing, smallest=True)
    assert (found.plan, found.sure) == (plans[chosen], sure) and len(measured) <= 5
    assert bisect(bench, plans, lambda: True, nothing, smallest=True).verdicts.keys() == {7}  # late: one is measured
    assert bisect(bench, plans, lambda: False, nothing, smallest=False).plan == plans[0]


def test_slices_are_copied_in_order_and_once(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"..codes")
    one, other = Slice("a.bin", 2, 5, "uint8", (5,)), Slice("a.bin", 0, 2, "uint8", (2,))
    parts = {"x": Plain(one), "y": Plain(one), "z": Plain(other)}
    placed = gather(parts, tmp_path, tmp_path / "all.data")
    content = (tmp_path / "all.data").read_bytes()
    assert [content[each.offset : each.offset + each.bytes] for each in slices(placed.values())] == [b"codes", b".."]
    assert placed == laid(parts, "all.data") and placed["x"] == placed["y"] and len(content) == 4096 + 2
    with pytest.raises(ContractError, match="early"):
        gather({"x": Plain(replace(one, bytes=9))}, tmp_path, tmp_path / "all.data")


@pytest.fixture(scope="module")
def allocated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A whole job through the front door, and its result."""
    run = tmp_path_factory.mktemp("job") / "run"
    result = quantkit.allocate(
        str(folder), streamed=True, data=[batch()], average_bits=5.5, minimize="drop", schemes="w8b32d8,w4b32d8", run=run,
        output=run.parent / "out.onnx", **ITEMS,
    )  # fmt: skip
    return run, result.to_json()


def test_a_job_ends_in_a_mixed_file_that_runs_as_planned(folder: Path, allocated: tuple[Path, dict[str, Any]]) -> None:
    run, result = allocated
    assert json.loads((run / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {row["scheme"] for row in result["allocation"]} == {"w8b32d8", "w4b32d8"}
    assert result["kept"] and result["executed"]["as_planned"] and result["executed"]["int8_macs"] == 1
    assert result["bounds"][0]["used"] <= 5.5
    sizes = {row["name"]: row["bytes_ratio"] for row in result["baselines"]}
    assert sizes.keys() == {"uniform w8b32d8", "uniform w4b32d8"}
    assert sizes["uniform w4b32d8"] < result["bytes"]["ratio"] < sizes["uniform w8b32d8"]  # files all, graphs and alignment counted
    tokens = batch().inputs
    for path in (run / "model.onnx", run.parent / "out.onnx"):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for items, length in ((1, 5), (3, TOKENS)):  # any number of items, any length
            feeds = {name: value[:items, :length].numpy() for name, value in tokens.items()}
            assert session.run(["logits"], feeds)[0].shape == (items, length, VOCABULARY)
    assert sum(path.stat().st_size for path in (run / "model.onnx", run / "model.onnx.data")) == result["bytes"]["quantized"]
    assert any("with a cache" in note for note in result["notes"])


def test_a_file_in_float_sums_gives_the_simulation_s_scores(folder: Path, tmp_path: Path, allocated: tuple[Path, dict[str, Any]]) -> None:
    """Sums of float32 in another order: their errors are as many units of the last place as the square root of the products."""
    (outlines,) = allocated[0].glob("outline-*")
    shutil.copytree(outlines, tmp_path / "run" / outlines.name)  # made once for a network, whatever the schemes
    result = quantkit.allocate(
        str(folder), streamed=True, data=[batch()], max_drop="500%", schemes="w4b32a32,fp32", run=tmp_path / "run", exclude=["lm_head"],
        fix=["model.layers.0.mlp.gate_proj=fp32"], **ITEMS,
    )  # fmt: skip
    schemes = {row.group: str(row.scheme) for row in result.allocation}
    assert schemes.pop("lm_head") == schemes.pop("model.layers.0.mlp.gate_proj") == "fp32"
    assert set(schemes.values()) == {"w4b32a32"} and result.executed.int8 == 0 and result.executed.as_planned
    note = next(note for note in result.notes if "simulation" in note)
    assert float(note.split("at most ")[1].split()[0]) < 100 * np.sqrt(WIDTH * 4 * BLOCKS) * np.finfo(np.float32).eps
    cache = next(note for note in result.notes if "cache" in note)
    assert float(cache.split("differs by ")[1].split()[0]) < 100 * np.sqrt(WIDTH * 4 * BLOCKS) * np.finfo(np.float32).eps
    assert result.simulation.agreement == 1


def test_the_same_command_computes_nothing_twice(
    folder: Path, allocated: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = allocated
    content = (run / "model.onnx.data").read_bytes()
    monkeypatch.setattr(passes, "round_matrix", None)  # would fail
    monkeypatch.setattr("quantkit.streaming.files.write_outline", None)
    monkeypatch.setattr("quantkit.streaming.search.measure", None)
    again = quantkit.allocate(
        str(folder), streamed=True, data=[batch()], average_bits=5.5, minimize="drop", schemes="w8b32d8,w4b32d8", run=run, **ITEMS
    ).to_json()
    assert all(again[key] == before[key] for key in ("allocation", "verdict", "bytes", "baselines"))
    assert (run / "model.onnx.data").read_bytes() == content


@pytest.mark.parametrize("command", [("report",), ("explain", "lm_head"), ("verify",), ("pick", "--max-bytes", "0.5x")], ids=str)
def test_commands_that_read_tables_say_that_there_are_none(
    allocated: tuple[Path, dict[str, Any]], command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *rest = command
    assert main([name, str(allocated[0]), *rest]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "wanted" in line and ("no tables" in line or "no plan" in line)


def test_what_does_not_run_as_planned_is_named(allocated: tuple[Path, dict[str, Any]]) -> None:
    run, _ = allocated
    lying = Slice("x", 0, 1, "uint8", (1, 1, 1))
    wide, narrow = Blocks(lying, lying, 8, 32, 4), Blocks(lying, lying, 4, 32, 4)
    schemes = {row["group"]: row["scheme"] for row in json.loads((run / "result.json").read_text())["allocation"]}
    narrow_group = next(group for group, scheme in schemes.items() if scheme == "w4b32d8")
    ran = {f"node_{narrow_group}": "MatMulNBits"}
    assert not_as_planned(run / "model.onnx", {narrow_group: narrow}, ran) == []
    assert "ran MatMulNBits of 4 bits" in not_as_planned(run / "model.onnx", {narrow_group: wide}, ran)[0]
    assert "ran nothing" in not_as_planned(run / "model.onnx", {narrow_group: narrow}, {})[0]


def damaged(folder: Path, to: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, to)
    change(to)
    return to


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def with_tensor(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = next(path for path in folder.glob("*.safetensors") if "model.norm.weight" in load_file(path))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


INDEX = "model.safetensors.index.json"
DAMAGES: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda folder: first_shard(folder).unlink(), "is missing"),
    "a shard is cut off": (lambda folder: first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:-10]), "truncated"),
    "a shard is no safetensors": (lambda folder: first_shard(folder).write_bytes(b"\x80\x04pickle"), "truncated or no safetensors"),
    "the index is no JSON": (lambda folder: (folder / INDEX).write_text("{"), "cannot be read"),
    "the index leads out": (
        lambda folder: rewrite(folder / INDEX, lambda index: index["weight_map"].update(x="../x.safetensors")), "beside it",
    ),
    "the index names what no shard has": (
        lambda folder: rewrite(folder / INDEX, lambda index: index["weight_map"].update(x=first_shard(folder).name)), "in no shard",
    ),
    "a weight is missing": (lambda folder: with_tensor(folder, lambda tensors: tensors.pop("model.norm.weight")), "shard"),
    "a weight has another shape": (lambda folder: with_tensor(folder, lambda t: t.update({"model.norm.weight": torch.ones(3)})), "shape"),
    "weights are quantized": (
        lambda folder: with_tensor(folder, lambda t: t.update({"model.norm.weight": torch.ones(WIDTH, dtype=torch.int8)})), "I8",
    ),
    "there are no weights": (
        lambda folder: [path.unlink() for path in [folder / INDEX, *folder.glob("*.safetensors")]], "no safetensors",
    ),
    "it runs its own code": (
        lambda folder: rewrite(folder / "config.json", lambda c: c.update(auto_map={"AutoModel": "x.Y"})), "no causal",
    ),
    "it has a window": (
        lambda folder: rewrite(folder / "config.json", lambda c: c.update(layer_types=["sliding_attention"] * BLOCKS)), "differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    change, says = DAMAGES[name]
    with pytest.raises(ModelError, match=says) as caught:
        run_blocks(work_of(damaged(folder, tmp_path / "network", change), tmp_path / "run", "nearest"), nothing)
    assert "\n" not in str(caught.value) and "next:" in str(caught.value)


@pytest.mark.parametrize("kind", ["Gemma", "GPT2"])
def test_an_architecture_of_another_form_is_refused(tmp_path: Path, kind: str) -> None:
    name = "GPT2LMHeadModel" if kind == "GPT2" else "GemmaForCausalLM"
    gemma = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    own = {"n_embd": 32, "n_layer": 1, "n_head": 2} if kind == "GPT2" else {**gemma, "intermediate_size": 32}
    settings = {"vocab_size": 50, **own}
    getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**settings)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="of another form"):
        Skeleton(tmp_path, Checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"sensitivity": "kl"}, RequestError, "--sensitivity beside --streamed"),
        ({"metric": "top1"}, RequestError, "--metric top1"),
        ({"minimize": "latency"}, RequestError, "--minimize latency"),
        ({"max_latency": "5ms"}, RequestError, "--max-latency"),
        ({"data": None}, DataError, "without data"),
        ({"schemes": "w9b32d8"}, SchemeError, "w9b32d8"),
    ],
)
def test_what_a_streamed_job_does_not_read_is_refused(folder: Path, options: dict[str, Any], error: type[QuantkitError], says: str) -> None:
    with pytest.raises(error, match=says):
        resolve_streamed(str(folder), Arguments(**{"data": [batch()], "max_drop": "5%", "streamed": True, **options}))


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder of transformers"):
        resolve_streamed(str(tmp_path / "net.onnx"), Arguments(streamed=True))


def test_defaults_of_a_streamed_job(folder: Path) -> None:
    request = resolve_streamed(str(folder), Arguments(data=[batch()], max_drop="5%"))
    assert request.metric.name == "perplexity" and request.options.minimize == "bytes" and request.options.menu == ("w8b32d8", "w4b32d8")


@pytest.mark.parametrize("scheme", ["w8a8", "w8a32", "w16a32"])
def test_schemes_without_blocks_are_refused(scheme: str) -> None:
    with pytest.raises(SchemeError, match="schemes in blocks"):
        job.check_schemes(["fp32", scheme])


def test_a_layer_that_blocks_do_not_divide_stays_float(tmp_path: Path) -> None:
    work = work_of(save_network(tmp_path / "network", intermediate_size=100), tmp_path / "run", "nearest", menu=("w8b32d8", "w4b32d8"))
    choices = choices_of(work, run_blocks(work, nothing))
    assert {tuple(losses) for name, losses in choices.loss.items() if "down_proj" in name} == {("fp32",)}
    assert {tuple(losses) for name, losses in choices.loss.items() if "down_proj" not in name} == {("w8b32d8", "w4b32d8")}
    assert set(front(choices, Bounds(), smaller=True)[-1].values()) == {"fp32", "w4b32d8"}


def test_tokens_that_the_network_has_not_are_refused(folder: Path, tmp_path: Path) -> None:
    work = work_of(folder, tmp_path, "nearest")
    work.tokens.ids[0, 0] = VOCABULARY
    with pytest.raises(DataError, match=f"token {VOCABULARY} for a table of {VOCABULARY}"):
        run_blocks(work, nothing)


def test_items_of_several_lengths_are_refused() -> None:
    lengths = {"calibration": 4, "search": 5, "gate": 6}
    parts = {name: collect([Batch({"input_ids": torch.full((2, length), length)})]) for name, length in lengths.items()}
    with pytest.raises(DataError, match="4, 5, 6 tokens"):
        read_tokens(split(parts, seed=0))


def test_a_disk_that_is_too_small_is_refused_before_all_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(folder, tmp_path)
    job.check_space(work)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="free in"):
        job.check_space(work)


def test_a_disk_that_is_full_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quantkit.streaming.shelf.Tray.put", full)
    with pytest.raises(OutputError, match="No space left"):
        run_blocks(work_of(folder, tmp_path, "nearest"), nothing)
    assert not list(tmp_path.rglob("*.bin"))


WORDS = ("once", "there", "was", "a", "cat", "who", "sat", "on", "the", "mat", ".", "and")


def test_texts_come_in_by_the_command_line(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a tokenizer; the search is not run, nor anything written."""
    tokenizers = pytest.importorskip("tokenizers")
    network = damaged(folder, tmp_path / "network", lambda _: None)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, **{word: 3 + place for place, word in enumerate(WORDS)}}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<unk>").save_pretrained(network)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS[place:] + WORDS[:place]) for place in range(12)))
    seen = list[Any]()

    def stop(work: Work, advance: Any) -> None:
        seen.append(work)
        raise DataError("enough", "no more", "stop")

    monkeypatch.setattr(job, "run_blocks", stop)
    command = ["allocate", str(network), "--streamed", "--data", str(tmp_path / "texts.txt"), "--max-drop", "5%"]
    options = {"input-shape": "1x12", "memory-mb": "7", "rounding": "nearest", "run": str(tmp_path / "run")}
    assert main([*command, *(word for name, value in options.items() for word in (f"--{name}", value))]) == 2
    assert "enough" in capfd.readouterr().err
    assert len(seen[0].tokens) == 12 and seen[0].tokens.length == 12
    assert (seen[0].memory_bytes, seen[0].rounding) == (7 << 20, "nearest")
    assert [scheme.name for scheme in seen[0].menu("any")] == ["w8b32d8", "w4b32d8"]
    assert main(["allocate", str(network), "--streamed", "--max-drop", "5%", "--observer", "mse"]) == 2
    assert "--observer beside --streamed" in capfd.readouterr().err
