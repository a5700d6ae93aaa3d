from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from fuzz import draw
from networks import NETWORKS, Bench, Formed, build, captured, formed, images
from torch import Tensor, nn

import quantkit
from quantkit.calibration.channels import FIXED, find_channels
from quantkit.calibration.equalization import choose_exponents, equalize, largest
from quantkit.core.errors import RequestError
from quantkit.data.batch import Batch
from quantkit.loading.model import Variant
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.quantization.simulation.program import Simulation


def outputs(network: Captured, inputs: dict[str, Tensor]) -> list[Tensor]:
    found = network.module(*inputs.values())
    return [found] if isinstance(found, Tensor) else list(found)


def exponents_of(network: Captured, inputs: dict[str, Tensor]) -> tuple[Any, Any]:
    channels = find_channels(network.module)
    return channels, choose_exponents(network.module, channels, largest(network, channels, [Batch(inputs)]))


def unbalanced(model: nn.Module, seed: int = 0) -> nn.Module:
    """With rows of every weight, and their biases, 2^-6 to 2^6 as large as they were."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            factor = torch.exp2(12 * torch.rand(len(module.weight), generator=generator) - 6)
            module.weight.data *= factor.reshape(-1, *[1] * (module.weight.dim() - 1))
            if module.bias is not None:
                module.bias.data *= factor
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_the_same_bits_under_the_same_names(name: str) -> None:
    make, inputs = NETWORKS[name]
    network = capture(unbalanced(build(make)), inputs())
    before = {key: value.detach().clone() for key, value in network.module.named_parameters()}
    found = equalize(network, [Batch(inputs())])

    assert found.graph == network.graph
    assert all(map(torch.equal, outputs(found, inputs()), outputs(network, inputs())))
    assert all(torch.equal(value, before[key]) for key, value in network.module.named_parameters())
    changed = {key for key, value in found.module.named_parameters() if not torch.equal(value, before[key])}
    assert bool(changed) == (name in {"residual", "inception", "tokens", "chain"}), "in the others no factor passes between layers"
    stored = dict(found.program.state_dict)
    assert all(torch.equal(stored[key], value) for key, value in found.module.named_parameters())


@pytest.mark.parametrize("seed", range(3))
def test_random_networks_compute_the_same_bits(seed: int) -> None:
    model, inputs = draw(seed)
    network = capture(unbalanced(model, seed), inputs)
    found = equalize(network, [Batch(inputs)])

    assert all(map(torch.equal, outputs(found, inputs), outputs(network, inputs)))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_channels_of_very_different_size_lose_less_when_they_are_equalised(scheme: str, tmp_path: Path) -> None:
    make, inputs = NETWORKS["residual"]
    network = capture(unbalanced(build(make)), inputs())
    errors, exact = [], outputs(network, inputs())[0].detach()
    for place, one in enumerate((network, equalize(network, [Batch(inputs())]))):
        folder = tmp_path / str(place)
        folder.mkdir()
        bench = Bench(one, inputs(), folder)
        simulated = Simulation(one, bench.place(bench.uniform(scheme)), bench.bank).run(inputs())["output"][0]
        errors.append(float((simulated - exact).square().sum() / exact.square().sum()))

    assert errors[1] < errors[0] / 2


def test_a_factor_follows_from_what_was_seen_and_from_the_columns_that_read_it() -> None:
    """Written out for one pair of layers, channel by channel."""
    network = capture(unbalanced(build(lambda: Formed(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x)))))))), images())
    channels, exponents = exponents_of(network, images())
    a = channels.tensors["relu"].classes
    x = F.relu(F.conv2d(images()["x"], network.module.a.weight, network.module.a.bias, padding=1))
    # The largest of what flows under the class, in front of the ReLU too.
    before = F.conv2d(images()["x"], network.module.a.weight, network.module.a.bias, padding=1)
    seen = torch.maximum(x.abs().amax(dim=(0, 2, 3)), before.abs().amax(dim=(0, 2, 3))).double()
    weight = network.module.b.weight.detach().double()
    wanted = []
    for channel in range(8):
        shares = [weight[out, channel].abs() / weight[out].abs().max() for out in range(8)]
        r = torch.stack(shares).square().mean().sqrt()
        wanted.append(float(torch.log2(seen[channel] / r) / 2))

    np.testing.assert_array_equal(exponents[a], np.clip(np.rint(np.array(wanted) - np.mean(wanted)), -8, 8))


def test_what_a_batch_shows_changes_the_factors() -> None:
    make, inputs = NETWORKS["residual"]
    network = capture(unbalanced(build(make)), inputs())
    one, other = (largest(network, find_channels(network.module), [Batch({"x": inputs()["x"] * factor})]) for factor in (1.0, 3.0))

    assert not np.allclose(one, other)


def is_free(network: Captured, name: str) -> bool:
    """Whether any channel of that tensor may have a factor."""
    carried = find_channels(network.module).tensors.get(name)
    return carried is not None and bool((carried.classes != FIXED).any())


FREE: dict[str, tuple[Callable[[Formed, Tensor], Tensor], bool]] = {
    "relu": (lambda m, x: m.b(F.relu(m.a(x))), True),
    "leaky relu": (lambda m, x: m.b(F.leaky_relu(m.a(x))), True),
    "max pool": (lambda m, x: m.b(F.max_pool2d(m.a(x), 2)), True),
    "average pool": (lambda m, x: m.b(F.avg_pool2d(m.a(x), 2)), True),
    "padding": (lambda m, x: m.b(F.pad(m.a(x), (0, 1, 0, 1))), True),
    "depthwise": (lambda m, x: m.b(F.relu(m.depth(F.relu(m.a(x))))), True),
    "addition": (lambda m, x: m.c(m.a(x) + m.b(F.relu(m.a(x)))), True),
    "mean": (lambda m, x: m.fc(F.relu(m.a(x)).mean((2, 3))), True),
    "half of it": (lambda m, x: m.b(m.a(x) * 0.5), True),
    "a gate": (lambda m, x: m.b(m.a(x) * torch.sigmoid(m.a(x).mean((2, 3), keepdim=True))), False),
    "relu6": (lambda m, x: m.b(F.relu6(m.a(x))), False),
    "sigmoid": (lambda m, x: m.b(torch.sigmoid(m.a(x))), False),
    "silu": (lambda m, x: m.b(F.silu(m.a(x))), False),
    "padding with ones": (lambda m, x: m.b(F.pad(m.a(x), (0, 1, 0, 1), value=1.0)), False),
    "an input beside": (lambda m, x: m.b(m.a(x) + x.repeat(1, 3, 1, 1)[:, :8]), False),
}  # fmt: skip


@pytest.mark.parametrize(("form", "free"), FREE.values(), ids=FREE)
def test_what_commutes_with_a_factor_may_have_one(form: Callable[[Formed, Tensor], Tensor], free: bool) -> None:
    network = formed(form)
    node = next(layer.node for layer in network.graph.layers if layer.weight == "a.weight" or layer.weight == "b.weight")
    assert is_free(network, node) == free
    found = equalize(network, [Batch(images())])
    assert all(map(torch.equal, outputs(found, images()), outputs(network, images())))


def test_the_outputs_and_a_weight_that_is_used_twice_keep_their_channels() -> None:
    output = captured("chain").graph.outputs[0]
    assert not is_free(captured("chain"), output)
    tied = capture(toys.TiedToy().eval(), {"x": toys.images(2, seed=0)[0]})
    assert not any(is_free(tied, layer.node) for layer in tied.graph.layers if layer.weight == "twice.weight")


class Tokens(nn.Module):
    """A layer norm, an RMS norm and a gated unit in front of what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gain = nn.LayerNorm(8), nn.Parameter(torch.rand(8) + 0.5)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.query(y) * 0.5 + self.key(y)
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.gain
        return self.down(F.silu(self.gate(y)) * self.up(y))


def test_norms_and_gated_units_hand_their_factors_to_the_layers_behind_them() -> None:
    x = {"x": torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)) * torch.exp2(torch.arange(8) - 4.0)}
    model = build(Tokens)
    model.norm.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    network = capture(model, x)
    found = equalize(network, [Batch(x)])
    before, after = (dict(one.module.named_parameters()) for one in (network, found))
    changed = {name for name in before if not torch.equal(before[name], after[name])}

    assert all(map(torch.equal, outputs(found, x), outputs(network, x)))
    assert {"norm.weight", "norm.bias", "query.weight", "key.weight"} <= changed
    assert "gate.bias" not in changed  # behind it comes a sigmoid


def test_padding_is_not_looked_at() -> None:
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x[:, :5], 100 * torch.ones(2, 2, 8)], dim=1)
    network = captured("tokens")
    channels = find_channels(network.module)
    mask = torch.tensor([[True] * 5 + [False] * 2] * 2)
    plain = largest(network, channels, [Batch({"x": padded})])
    masked = largest(network, channels, [Batch({"x": padded}, mask=mask)])

    assert (masked <= plain).all() and (masked < plain).any()


def test_an_allocation_ships_the_equalised_network(tmp_path: Path) -> None:
    inputs, labels = toys.images(300, seed=4, noise=1.5)
    data = [Batch({"x": inputs}, labels)]
    model = unbalanced(toys.trained())
    runs = [
        quantkit.allocate(model, data=data, max_drop=10.0, minimize="bytes", run=tmp_path / how, certificate=0, equalization=how)
        for how in ("none", "cross_layer")
    ]
    floats = [next((tmp_path / how).glob("float-*.onnx")).read_bytes() for how in ("none", "cross_layer")]

    assert all(run.kept for run in runs)
    assert floats[0] != floats[1]
    assert runs[1].simulation.exact == 1.0


def test_other_forms_of_the_network_would_not_fit() -> None:
    recipe = quantkit.Recipe(
        model=toys.trained(), data=[Batch({"x": toys.images(300, seed=4)[0]})], metric="agreement", max_drop=1.0,
        equalization="cross_layer", variants={"other": Variant(toys.trained(), {"x": toys.images(2, seed=0)[0]})},
    )  # fmt: skip
    with pytest.raises(RequestError, match="equalization"):
        quantkit.allocate(recipe)
    assert "equalization" not in recipe.changed({"equalization": None}).arguments
