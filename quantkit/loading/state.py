"""State dicts: weights without a network, which fill the one that `--arch` names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from quantkit.core.errors import ModelError
from quantkit.loading.callables import build_module

_NESTED_UNDER = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "module._orig_mod.")  # of DataParallel, torch.compile, and both
_NAMED = 3


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        got = f"{path.name} is truncated or no safetensors file: {error}"
        raise ModelError(got, "a complete .safetensors file", "save or download it again") from error


def find_state(content: object) -> dict[str, torch.Tensor] | None:
    """The state dict that a checkpoint is, or nests under "state_dict", "model_state_dict" or "model"; else None."""
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        return dict(content)
    for key in _NESTED_UNDER:
        if found := find_state(content.get(key)):
            return found
    return None


def fill(state: Mapping[str, torch.Tensor], arch: str | None, path: Path) -> nn.Module:
    """The network that `arch` builds, with `state` loaded; a wrapper's prefix is dropped where that makes it fit.

    ModelError without `arch`, or if it does not match: names a few missing, unexpected and misshapen tensors.
    """
    if arch is None:
        raise ModelError(
            f"{path.name} holds only a state dict of {len(state)} tensors",
            "the network that they belong to",
            "pass --arch package.module:function, a function that returns it",
        )
    module = build_module(arch)
    for candidate in _unwrapped(state):
        try:
            module.load_state_dict(candidate, strict=True)
        except RuntimeError:
            continue
        return module
    closest = min(_unwrapped(state), key=lambda candidate: sum(map(len, _differences(module.state_dict(), candidate).values())))
    parts = [f"{len(names)} {kind} ({few(names, _NAMED)})" for kind, names in _differences(module.state_dict(), closest).items() if names]
    raise ModelError(
        f"the state dict in {path.name} does not fit {arch}: {', '.join(parts) or 'load_state_dict refuses it'}",
        "the architecture that it was saved from",
        "check --arch and its options (classes, width, depth)",
    )


def _unwrapped(state: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    prefixes = ("", *(prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in state)))
    return [{name[len(prefix) :]: tensor for name, tensor in state.items()} for prefix in prefixes]


def _differences(wanted: Mapping[str, Any], got: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items() if isinstance(tensor, torch.Tensor)}
    misshapen = [name for name, shape in shapes.items() if name in got and got[name].shape != shape]
    return {
        # Checkpoints from before torch 0.4.1 have no such counter, and batch norm does without.
        "missing": [name for name in shapes if name not in got and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in got if name not in wanted],
        "of another shape": [f"{name} {tuple(got[name].shape)}, not {shapes[name]}" for name in misshapen],
    }


def few(names: Collection[str], count: int) -> str:
    """The first `count` of the names in one line."""
    return ", ".join(list(names)[:count]) + (", …" if len(names) > count else "")
