"""`LoadedModel`: a network as it came in, with finite weights and in eval mode; and how one in memory becomes one."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from quantkit.core.errors import ModelError
from quantkit.loading.boundary import foreign
from quantkit.loading.from_onnx.rest import OnnxFile

IN_MEMORY = "memory"


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """Another form of a network: the same parameters under the same names, other inputs. It is exported with the network's plan.

    `example`: its inputs by name; `dynamic`: by input, the axes behind the batch whose size may differ from call to call, and is at least 2
    in the example. `typical`: inputs to compare and to time with, where those are others. `names`: what an input is called in the file,
    where that is no name of an argument; `outputs`: what the outputs are called, in their order. Best known: the step of a decoder that is
    given the keys and values of the tokens before. `longest`: the largest size of those axes, where there is one.
    """

    module: nn.Module
    example: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, Sequence[int]] = field(default_factory=dict)
    typical: Mapping[str, torch.Tensor] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    longest: int | None = None

    @property
    def has_one_length(self) -> bool:
        """Whether all axes whose size may differ have the same size."""
        given = self.typical or self.example
        return len({given[name].shape[axis] for name, axes in self.dynamic.items() for axis in axes}) == 1

    def of_length(self, length: int) -> dict[str, torch.Tensor]:
        """Its typical inputs, cut to that length or repeated up to it."""
        found = dict(self.typical or self.example)
        for name, axes in self.dynamic.items():
            for axis in axes:
                found[name] = found[name].index_select(axis, torch.arange(length) % found[name].shape[axis])
        return found

    def describe(self) -> dict[str, Any]:
        """What its files hang on besides the network's weights, as JSON: the module's class, and what goes in and out."""
        inputs = {name: [list(value.shape), str(value.dtype)] for name, value in {**self.example, **(self.typical or {})}.items()}
        dynamic = {name: list(axes) for name, axes in self.dynamic.items()}
        kind = f"{type(self.module).__module__}.{type(self.module).__qualname__}"
        return {"module": kind, "inputs": inputs, "dynamic": dynamic, "names": dict(self.names), "outputs": list(self.outputs)}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A network and where it came from. Exactly one of `module` (in eval mode, ours alone) and `program` is set.

    `digest` is a sha256 in hex: of the file's bytes; of the file's bytes and the architecture's name, for a state dict;
    of class name and state dict for what has no file. A TorchScript `module` still needs `loading.to_program`. `example`: inputs of two
    items, where the file says what the network takes. `variants`: its other forms, by the name of the file that each becomes. `outputs`:
    what they are called, where the file says so. `file`: the user's own, where that is ONNX.
    """

    name: str
    source: str
    digest: str
    module: nn.Module | None
    program: torch.export.ExportedProgram | None
    example: Mapping[str, torch.Tensor] | None = None
    variants: Mapping[str, Variant] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    file: OnnxFile | None = None


def from_module(module: nn.Module) -> LoadedModel:
    """A deep copy of `module` in eval mode; the caller's keeps its weights, its training flags and its hooks.

    The digest covers class name and state dict, tensors in name order. ModelError for what is not a module, cannot be
    copied, or holds NaN, infinite, quantized or unmaterialised weights.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"a {type(module).__name__} as the model", "a torch.nn.Module", "pass the module itself")
    name = type(module).__name__
    check_module(module)
    with foreign(f"the model {name} cannot be copied", "a module that copy.deepcopy takes", "pass a function that builds it"):
        own = copy.deepcopy(module).eval()
    return LoadedModel(name, IN_MEMORY, _digest(own), own, None)


def has_batch_norm(model: LoadedModel) -> bool:
    """Whether the network has a batch norm, whose stored statistics say what it was trained on."""
    if model.program is not None:
        return any("batch_norm" in str(node.target) for node in model.program.graph.nodes)
    parts = [] if model.module is None else model.module.modules()
    return any(getattr(part, "original_name", type(part).__name__).startswith("BatchNorm") for part in parts)


def check_module(module: nn.Module) -> None:
    """`check_finite` over parameters and buffers; a buffer may hold -inf, as additive attention masks do."""
    buffers = dict(module.named_buffers())
    check_finite({**dict(module.named_parameters()), **buffers}, masks=buffers)


def check_program(program: torch.export.ExportedProgram) -> None:
    """`check_finite` over parameters, buffers and constants of an exported program."""
    tensors = {name: value for name, value in {**program.constants, **program.state_dict}.items() if isinstance(value, torch.Tensor)}
    check_finite(tensors, masks=set(tensors) - set(program.graph_signature.parameters))


def check_finite(state: Mapping[str, torch.Tensor], masks: Collection[str] = ()) -> None:
    """ModelError that names the first tensor with a NaN or infinite number, or with no float numbers to look at.

    `masks` names the tensors in which -inf is a value like any other.
    """
    for name, tensor in state.items():
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            raise ModelError(f"weight {name!r} has no values yet", "a model with its weights", "load them, or run a lazy model once")
        if tensor.is_quantized:
            raise ModelError(f"weight {name!r} is quantized already ({tensor.dtype})", "the float network", "pass the model from before")
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        numbers = tensor.detach()
        bad = ~torch.isfinite(numbers if numbers.element_size() > 1 else numbers.float())
        if name in masks and tensor.is_floating_point():
            bad &= ~torch.isneginf(numbers)
        if count := int(bad.sum()):
            raise ModelError(
                f"weight {name!r} holds {count} NaN or infinite of {tensor.numel()} numbers",
                "finite weights",
                "go back to a checkpoint from before the training diverged",
            )


def parse_input_shape(text: str) -> tuple[int, ...]:
    """`"1x3x224x224"` → (1, 3, 224, 224). The leading 1 is the batch. ModelError for anything else."""
    if not re.fullmatch(r"[0-9]+([xX×][0-9]+)+", text.strip()):
        raise ModelError(f"input shape {text!r}", "numbers joined by x, such as 1x3x224x224", "write the batch as a leading 1")
    shape = tuple(int(side) for side in re.split("[xX×]", text.strip()))
    if shape[0] != 1:
        items = "x".join(map(str, shape[1:]))
        raise ModelError(
            f"input shape {text!r} starts with {shape[0]}", "a leading 1, the batch", f"write 1x{items}, or 1x{shape[0]}x{items}"
        )
    if 0 in shape:
        raise ModelError(f"input shape {text!r} has a side of 0", "sides of at least 1", "write the shape of one item, such as 1x3x224x224")
    return shape


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):  # a module may add anything as extra state
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
