"""Tables of embeddings: stored as codes, gathered as codes, made float row by row; the simulation has the file's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import toys
from networks import Bench, build
from torch import Tensor, nn
from torch.nn import functional as F

from quantkit.core.graph import Layer
from quantkit.core.numerics.affine import dequantize
from quantkit.core.spec import parse_scheme, parse_schemes
from quantkit.data import Batch, collect, whole
from quantkit.export.file_size import promised_bytes
from quantkit.export.float_onnx import read_parameters
from quantkit.network.capture import capture
from quantkit.quantization.simulation.program import Simulation
from quantkit.sensitivity import SENSITIVITIES
from quantkit.sensitivity.passes.gradients import squared_gradients
from quantkit.sensitivity.passes.outputs import at_labels
from quantkit.targets import openvino, ort_cpu, tensorrt
from reference import pass_error

ITEMS, WORDS, VOCABULARY, WIDTH = 24, 6, 40, 16


class Sentences(nn.Module):
    """Words [items, words] → scores; with `tied`, of words, by the table itself."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY if tied else toys.CLASSES, bias=not tied)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(WORDS))
        return self.head((x + F.gelu(self.mix(x))).mean(dim=1))


def ids() -> Tensor:
    """Some words stand twice in an item, some in none."""
    return torch.randint(0, VOCABULARY - 5, (ITEMS, WORDS), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=[False, True], ids=["own", "tied"])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    inputs = {"ids": ids()}
    return Bench(capture(build(lambda: Sentences(request.param)), inputs), inputs, tmp_path_factory.mktemp("sentences"))


def table(work: Bench) -> Layer:
    """The words'; where it is tied, torch knows it by the name of the head's weight."""
    (found,) = [layer for layer in work.graph.layers if layer.is_table]
    return found


def shares(work: Bench) -> list[str]:
    """All layers that have its weight."""
    return [layer.name for layer in work.graph.layers if layer.weight == table(work).weight]


def test_a_table_is_a_layer_without_inputs_and_one_of_constant_places_is_none(work: Bench) -> None:
    words = table(work)
    assert (words.kind, words.inputs, words.macs, words.weight_shape) == ("embedding", (), 0, (VOCABULARY, WIDTH))
    assert [entry.reason for entry in work.graph.unsupported if entry.operation == "embedding.default"] in ([], ["reads a constant"])


def test_its_menu_leaves_its_neighbours_float(work: Bench) -> None:
    schemes = ort_cpu.check_schemes(["w8a8", "w8d8", "w8a32", "w16a32"])
    (group,) = [group for group in ort_cpu.groups(work.graph, schemes) if table(work).name in group.layers]
    tied = len(group.layers) == 2
    assert group.schemes == (("w8a32", "w16a32", "fp32") if tied else ("w8d8", "w8a32", "w16a32", "fp32"))


@pytest.mark.parametrize("scheme", ["w8a32", "w5a32", "w4a32", "w16a32", "c5a32", "w8d8", "w4d8", "c4d8"])
def test_the_file_answers_with_the_bits_of_the_simulation(work: Bench, scheme: str) -> None:
    if scheme.endswith("d8") and len(shares(work)) == 2:
        pytest.skip("a Gemm that shares the table does not quantize in each call")
    layer, allocation = table(work), dict.fromkeys((layer.name for layer in work.graph.layers), "fp32")
    placement = work.place(allocation | {layer.name: scheme})
    assert placement.stored.keys() == {layer.name} and not placement.dynamic and not placement.int8
    path, emitted = work.emit(placement, f"{scheme}.onnx")
    onnx.checker.check_model(path, full_check=True)
    found = work.parity(path, placement, emitted)
    assert found.agreement == 1.0 and work.executed(path, placement).mismatches == ()
    kept = {value.name for value in onnx.load(path).graph.initializer}
    assert (layer.weight in kept) == (len(shares(work)) == 2)  # the head's stays float here

    simulated = Simulation(work.captured, placement, work.bank).run(work.inputs)[layer.node]
    quantized = work.bank.under(layer, parse_scheme(scheme))
    by_hand = dequantize(quantized.codes, quantized.qparams)[work.inputs["ids"]]
    assert torch.equal(simulated, by_hand)
    if scheme != "w16a32":
        assert gathered(path, layer.node, work.inputs["ids"]) == pytest.approx(by_hand.numpy(), rel=0, abs=0)


def gathered(path: Path, node: str, words: Tensor) -> np.ndarray:
    """What the file's own table gives, by onnx's reference evaluator."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(node, onnx.TensorProto.FLOAT, None))
    return np.asarray(onnx.reference.ReferenceEvaluator(model).run([node], {"ids": words.numpy()})[0])


def test_a_scheme_that_it_cannot_take_leaves_it_float(work: Bench) -> None:
    """As in the uniform baseline, which has one scheme for all."""
    placement = work.place(dict.fromkeys((layer.name for layer in work.graph.layers), "w8a8"))
    assert table(work).name not in placement.schemes and "mix" in placement.schemes


@pytest.mark.parametrize("scheme", ["w8a32", "w5a32", "w4a32", "w16a32"])
def test_the_size_of_the_file_is_known_before_it_is_written(work: Bench, scheme: str) -> None:
    floats = dict.fromkeys((layer.name for layer in work.graph.layers), "fp32")
    placement = work.place(floats | dict.fromkeys(shares(work), scheme))
    path, _ = work.emit(placement)
    plain, _ = work.emit(work.place(floats), "plain.onnx")
    promised = promised_bytes(plain.stat().st_size, work.graph, placement, ort_cpu.weight_bytes)
    assert promised == pytest.approx(path.stat().st_size, rel=0.02)


def test_the_float_file_gives_its_parameters_back(work: Bench) -> None:
    found = read_parameters(work.float_file, work.graph)
    name = str(table(work).weight)
    assert torch.equal(found[name], work.captured.module.get_parameter(name))


def test_squared_gradients_are_those_of_each_item(work: Bench) -> None:
    labels = torch.arange(ITEMS) % toys.CLASSES
    items = whole(collect([Batch(work.inputs, labels)]))
    found = squared_gradients(
        work.captured, items.batches(7), lambda run, batch: [at_labels("softmax", run.outputs, batch.labels, torch.Generator())]
    ).traces
    module, total = work.captured.module, 0.0
    parameters = {name: value.detach().requires_grad_() for name, value in module.named_parameters()}
    for item in range(ITEMS):
        loss = F.cross_entropy(torch.func.functional_call(module, parameters, (ids()[item : item + 1],)), labels[item : item + 1])
        (gradient,) = torch.autograd.grad(loss, parameters[str(table(work).weight)])
        total += float(gradient.double().square().sum()) / ITEMS
    assert found[str(table(work).weight)].trace == pytest.approx(total, rel=2 * pass_error(work.graph))


@pytest.mark.parametrize("name", SENSITIVITIES)
def test_every_sensitivity_scores_it(name: str) -> None:
    captured = capture(build(Sentences), {"ids": ids()})
    schemes, items = parse_schemes(("fp32", "w8a32", "w3a32")), whole(collect([Batch({"ids": ids()}, torch.arange(ITEMS) % toys.CLASSES)]))
    scores = SENSITIVITIES[name](toys.context(toys.calibrated(captured, items, schemes), schemes=schemes)).table
    assert abs(scores.at("words", "w8a32")) < abs(scores.at("words", "w3a32"))


@pytest.mark.parametrize("target", [openvino, tensorrt])
def test_other_targets_keep_it_float_or_half(work: Bench, target: object) -> None:
    groups = target.groups(work.graph, target.check_schemes([*target.SCHEMES]))  # type: ignore[attr-defined]
    (group,) = [group for group in groups if table(work).name in group.layers]
    assert {parse_scheme(scheme).is_float for scheme in group.schemes} == {True}

class Words(nn.Module):
    """Words → scores of the next one, by the table itself, for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.gelu(self.mix(self.words(ids))))


@pytest.mark.parametrize("scheme", ["w8d8", "w4d8", "w5d8", "c4d8", "w8a8", "w8a32", "w4a32", "w5a32", "c5a32", "w16a32"])
def test_a_table_that_is_a_matrix_too_lies_in_the_file_once(scheme: str, tmp_path: Path) -> None:
    inputs = {"ids": ids()}
    work = Bench(capture(build(Words), inputs), inputs, tmp_path)
    placement = work.place(dict.fromkeys((layer.name for layer in work.graph.layers), scheme))
    path, emitted = work.emit(placement)
    assert work.executed(path, placement).mismatches == ()
    large = [entry.name for entry in onnx.load(path).graph.initializer if np.prod(entry.dims) >= VOCABULARY * WIDTH * 0.45]
    assert len(large) == 1, large
    parity = work.parity(path, placement, emitted) if scheme.endswith("a8") else None
    assert parity is None or parity.layers_exact == 1.0
    plain, _ = work.emit(work.place({}), "plain.onnx")
    promised = promised_bytes(plain.stat().st_size, work.graph, placement, ort_cpu.weight_bytes)
    assert abs(promised - path.stat().st_size) < 0.05 * path.stat().st_size
