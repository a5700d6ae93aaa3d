"""Tiny networks that between them hold every form the captured graph knows, and a `Bench` that takes one of them to a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantkit.calibration.ranges import calibrate
from quantkit.core.spec import parse_scheme
from quantkit.data import Batch, collect, whole
from quantkit.export.executed_layers import Executed, read_executed
from quantkit.export.float_onnx import export_float
from quantkit.export.qdq import Emitted, emit
from quantkit.network.capture import capture
from quantkit.network.captured import Captured
from quantkit.quantization.weights import WeightBank
from quantkit.runtimes.evaluation import Session, open_session
from quantkit.targets import ort_cpu
from quantkit.targets.placement import Placement
from quantkit.verification.parity import Parity, compare_simulation

ITEMS = 8


class Residual(nn.Module):
    """Convolutions with batch norm, a residual addition, a strided shortcut, a mean and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm_one = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 16, 1, stride=2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.two(F.relu(self.norm_one(self.one(x))))
        x = F.relu(y + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Three branches (grouped, depthwise and dilated convolutions, a max pool) into one concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dilated = nn.Conv2d(8, 4, 3, padding=2, dilation=2)
        self.last = nn.Conv2d(20, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, ceil_mode=True)
        branches = [F.relu(self.grouped(x)), F.relu6(self.depthwise(x)), F.max_pool2d(self.dilated(x), 3, 1, 1)]
        return F.adaptive_avg_pool2d(F.relu(self.last(torch.cat(branches, 1))), 1).flatten(1)


class Mlp(nn.Module):
    """Linear layers with a batch norm; the middle one is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(12, 16, bias=False)
        self.norm = nn.BatchNorm1d(16)
        self.middle = nn.Linear(16, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(x)))
        x = F.relu(self.middle(x))
        return self.last(F.relu(self.middle(x)))


class Tokens(nn.Module):
    """Linear layers over [batch, tokens, features], with a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(F.relu(self.up(x))))


class Several(nn.Module):
    """Two named inputs, two outputs, one of which is also read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3, padding=1)
        self.text = nn.Linear(6, 4)
        self.score = nn.Linear(8, 3)

    def forward(self, picture: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([F.relu(self.image(picture)).mean((2, 3)), F.relu(self.text(words))], 1)
        return features, self.score(features)


class Chain(nn.Module):
    """Convolutions one after the other, without a tail: the last writes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Formed(nn.Module):
    """Convolutions and linear layers, as many as are asked for, in a forward pass that the test writes out."""

    def __init__(self, form: Callable[[Formed, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.form = form
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.one = nn.Conv1d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 8)
        self.fd = nn.Linear(8, 8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two = nn.Conv2d(2, 8, 3, padding=1)
        self.wide = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.form(self, x)


def images(count: int = ITEMS) -> dict[str, Tensor]:
    return {"x": torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(1))}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "residual": (Residual, images),
    "inception": (Inception, images),
    "mlp": (Mlp, lambda: {"x": torch.randn(ITEMS, 12, generator=torch.Generator().manual_seed(1))}),
    "tokens": (Tokens, lambda: {"x": torch.randn(ITEMS, 7, 8, generator=torch.Generator().manual_seed(1))}),
    "several": (Several, lambda: {"picture": images()["x"], "words": torch.randn(ITEMS, 6, generator=torch.Generator().manual_seed(2))}),
    "chain": (Chain, images),
}


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network in eval mode, with batch norms that have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.2)
    return model


@dataclass(eq=False)
class Bench:
    """One network on its way to files in `folder`."""

    captured: Captured
    inputs: dict[str, Tensor]
    folder: Path
    observer: str = "minmax"
    bank: WeightBank = field(init=False)
    float_file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.graph = self.captured.graph
        self.float_file = self.folder / "float.onnx"
        if not self.float_file.exists():
            export_float(self.captured, self.float_file, ort_cpu.OPSET)
        ranges = calibrate(self.captured, [Batch(dict(self.inputs))])
        state = dict(self.captured.module.named_parameters(remove_duplicate=False))
        self.bank = WeightBank(self.graph, state, ranges.qparams(self.observer, self.graph), ort_cpu.product_rows)

    def uniform(self, scheme: str) -> dict[str, str]:
        """`scheme` for layers with weights, and for the others the 8-bit one that goes with it."""
        other = "fp32" if parse_scheme(scheme).is_float else "w8a8"
        return {layer.name: scheme if layer.weight else other for layer in self.graph.layers}

    def place(self, allocation: Mapping[str, str]) -> Placement:
        """The target's answer for one scheme per layer, by name."""
        return ort_cpu.place(self.graph, {name: parse_scheme(scheme) for name, scheme in allocation.items()})

    def emit(self, placement: Placement, name: str = "plan.onnx") -> tuple[Path, Emitted]:
        """The plan's file and the names of its codes."""
        path = self.folder / name
        return path, emit(self.float_file, self.graph, placement, self.bank, path)

    def executed(self, path: Path, placement: Placement) -> Executed:
        """What the runtime makes of `path`."""
        optimized = path.with_suffix(".optimized.onnx")
        open_session(path, threads=1, optimized=optimized)
        return read_executed(optimized, self.graph, placement)

    def parity(self, path: Path, placement: Placement, emitted: Emitted) -> Parity:
        """The simulation against the file, over the bench's own items."""
        data = collect([Batch(self.inputs)])
        return compare_simulation(self.captured, placement, self.bank, path, emitted, whole(data), len(data), self.folder, lambda _: None)


@cache
def captured(name: str) -> Captured:
    """A network of NETWORKS, captured once for all tests, which only read it."""
    make, inputs = NETWORKS[name]
    return capture(build(make), inputs())


def formed(form: Callable[[Formed, Tensor], Tensor | tuple[Tensor, ...]]) -> Captured:
    """A captured network whose forward pass the test writes out."""
    return capture(build(lambda: Formed(form)), images())


def bench(name: str, folder: Path, observer: str = "minmax") -> Bench:
    """A network of NETWORKS."""
    return Bench(captured(name), NETWORKS[name][1](), folder, observer)


def run(session: Session, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """The file's outputs as tensors."""
    return [torch.from_numpy(output) for output in session.run({name: value.numpy() for name, value in inputs.items()})]
