"""What the tests of loading share: a small network, files of it, and a payload that shows whether code ran."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantkit.core.errors import ModelError
from quantkit.loading import LoadedModel, load_model

EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Payload:
    """Unpickles to a call of os.mkdir(path): a folder that appears is code that ran."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def saved(payload: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


def export(model: nn.Module, path: Path, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model, (EXAMPLE,), dynamic_shapes=shapes, strict=False), path)
    return path


def outputs(loaded: LoadedModel, x: torch.Tensor = EXAMPLE) -> torch.Tensor:
    runnable = loaded.module if loaded.program is None else loaded.program.module(check_guards=False)
    assert runnable is not None
    with torch.no_grad():
        result: torch.Tensor = runnable(x)
    return result


def refused(path: Path | str, *words: str, **options: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(str(path), **options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """For bare torch on hostile files: it logs tracebacks."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
