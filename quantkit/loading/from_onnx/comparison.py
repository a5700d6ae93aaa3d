"""The translated network beside the file: its answers against ONNX Runtime's, and whether it is one of any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession, SessionOptions
from torch import Tensor, nn
from torch.export import ExportedProgram

from quantkit.core.errors import ModelError
from quantkit.loading.boundary import foreign
from quantkit.loading.from_onnx.bounded import bounded
from quantkit.loading.from_onnx.operators import TYPES

MOST_IN_MEMORY = (2 << 30) - (128 << 20)  # bytes of weights; a message of protobuf has 2 GiB at most
FOLDER = "session.model_external_initializers_file_folder_path"
SEED, RELATIVE, ABSOLUTE = 0, 1e-3, 1e-5  # sums in another order differ by far less


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _with_weights_outside(path: Path, options: SessionOptions) -> bytes:
    """The file's graph as it was parsed, not as it lies there, which ONNX Runtime may not survive; it finds the weights by `options`."""
    options.add_session_config_entry(FOLDER, str(path.resolve().parent))
    return bytes(onnx.load(path, load_external_data=False).SerializeToString())


@torch.no_grad()
def takes_more(module: nn.Module, example: Mapping[str, Tensor], batch: int) -> bool:
    """Whether a network that was written for `batch` items answers for more, an answer each."""
    more = [torch.cat([value[:1]] * (batch + 1)) for value in example.values()]
    try:
        found = module(*more)
    except (ModelError, RuntimeError, IndexError, ValueError, TypeError):
        return _is_exported_so(module, example)
    answers = found if isinstance(found, tuple) else (found,)
    return all(isinstance(one, Tensor) and one.dim() > 0 and len(one) == batch + 1 for one in answers)


def _is_exported_so(module: nn.Module, example: Mapping[str, Tensor]) -> bool:
    """Whether torch.export takes the batch for a symbol: constants that hold the file's batch are then known for it."""
    try:
        torch.export.export(module, tuple(example.values()), dynamic_shapes=[{0: torch.export.Dim("batch")}] * len(example), strict=False)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, IndexError, ValueError, TypeError, AssertionError):
        return False
    return True


def export_fixed(path: Path, module: nn.Module, example: Mapping[str, Tensor]) -> ExportedProgram:
    """The module as a program of the example's batch. Raises ModelError where torch.export refuses it."""
    with foreign(f"torch.export refuses {path.name}", "no control flow that depends on data", "pass the torch model"), torch.no_grad():
        return torch.export.export(module, tuple(example.values()), strict=False)


def sides_of(value: onnx.ValueInfoProto) -> list[int | None]:
    """The sides of a value, None where the file leaves one open."""
    return [side.dim_value if side.HasField("dim_value") and side.dim_value > 0 else None for side in value.type.tensor_type.shape.dim]


def all_known(sides: Mapping[str, Sequence[int | None]]) -> bool:
    """Whether all sides but the batch are known."""
    return bool(sides) and all(len(some) > 0 and None not in some[1:] for some in sides.values())


def example_of(value: onnx.ValueInfoProto, sides: Sequence[int | None], items: int) -> Tensor:
    """Random numbers of its type and sides, of so many items."""
    shape, kind = [items, *(side or 1 for side in sides[1:])], TYPES.get(value.type.tensor_type.elem_type, torch.float32)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(shape, generator=generator) if kind == torch.float32 else torch.randint(0, 2, shape, generator=generator).to(kind)


@torch.no_grad()
def differs(network: Callable[..., Any], given: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> bool:
    """Whether a translated network answers otherwise than `wanted`, by more than sums in another order can explain."""
    found = network(*map(torch.from_numpy, given))
    answers = [np.asarray(one) for one in (found if isinstance(found, tuple) else (found,))]
    if [one.shape for one in answers] != [one.shape for one in wanted]:
        return True
    pairs = ((one.astype(np.float64), other.astype(np.float64)) for one, other in zip(answers, wanted, strict=True))
    return not all(np.abs(one - other).max(initial=0) <= RELATIVE * np.abs(other).max(initial=0) + ABSOLUTE for one, other in pairs)


@torch.no_grad()
def compare(
    path: Path,
    model: onnx.ModelProto,
    module: nn.Module,
    inputs: Sequence[onnx.ValueInfoProto],
    sides: Mapping[str, Sequence[int | None]],
    *,
    whole: bool,
) -> None:
    """Raises ModelError where the module answers otherwise than the file in ONNX Runtime, for one random batch of the file's own size.

    A `model` that is the `whole` file may be larger than protobuf can write into memory: its weights are then read from beside it.
    """
    given = {value.name: example_of(value, sides[value.name], sides[value.name][0] or 2) for value in inputs}
    options = SessionOptions()
    options.log_severity_level = 4
    strange = f"{path.name} cannot be translated", "a network of known operators", "pass the torch model, or report this network"
    with foreign(*strange), bounded():  # before ONNX Runtime, which may not survive what torch refuses
        found = module(*given.values())
    with foreign(f"ONNX Runtime does not run {path.name}", "a file that it runs", "export it again"):
        types = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in inputs}
        content = _with_weights_outside(path, options) if whole and _weight_bytes(model) > MOST_IN_MEMORY else model.SerializeToString()
        session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
        theirs = session.run(None, {name: tensor.numpy().astype(types[name]) for name, tensor in given.items()})
    for output, one, other in zip(model.graph.output, found if isinstance(found, tuple) else (found,), theirs, strict=True):
        mine, wanted = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if not wanted.size:
            raise ModelError(f"output {output.name!r} of {path.name} holds no numbers", "an output for each item", "export it again")
        with np.errstate(invalid="ignore"):  # infinite answers differ by NaN, which is not within anything
            apart = float(np.abs(mine - wanted).max()) if mine.shape == wanted.shape else float("inf")
        if not apart <= RELATIVE * float(np.abs(wanted).max()) + ABSOLUTE:
            got = f"output {output.name!r} of {path.name} differs by {apart:.3g} from ONNX Runtime's where it is translated to torch"
            raise ModelError(got, "the same answers", "pass the torch model, and report this network")
