"""A file over data: an ONNX Runtime session on the CPU, and what it answers for every item of a split.

The runtime is the fastest simulator there is, so candidates are measured here and not in torch.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import Tensor

from quantkit.core.errors import DataError
from quantkit.core.metric import Outputs
from quantkit.data import Batch, KeptBatches, Subset, bind
from quantkit.export.onnx_file import data_of, has_data

if TYPE_CHECKING:
    from quantkit.core.progress import Advance

QUIET = 3  # errors only: the runtime's warnings about folding are noise here


Feeds = Mapping[str, NDArray[np.generic]]


class Session(Protocol):
    """An open file. `batch` is its fixed batch size, None where any will do; `threads` is 1 only if the caller's own thread does all."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names that `run` is fed by."""
        ...

    @property
    def batch(self) -> int | None:
        """How many items, and no others."""
        ...

    @property
    def in_call(self) -> bool:
        """Whether ranges of activations are those of each call, so that items come one at a time."""
        ...

    @property
    def threads(self) -> int:
        """How many; 0 for all cores."""
        ...

    def run(self, feeds: Feeds, /) -> Outputs:
        """The outputs for one batch."""


@dataclass(frozen=True, slots=True, eq=False)
class OnnxRuntimeSession:
    """A session of ONNX Runtime; `handle` is its own object."""

    path: Path
    handle: onnxruntime.InferenceSession
    input_names: tuple[str, ...]
    batch: int | None
    in_call: bool
    threads: int

    def run(self, feeds: Feeds) -> Outputs:
        """The outputs for one batch; shorter than a fixed batch is padded and cut again. Raises DataError for shapes it does not take."""
        count = len(next(iter(feeds.values())))
        if self.batch is None or count == self.batch:
            return self._run(feeds)
        if count > self.batch:
            raise DataError(f"a batch of {count} for a network of fixed batch {self.batch}", f"at most {self.batch}", "--batch-size")
        padded = {name: np.concatenate([array, np.repeat(array[-1:], self.batch - count, axis=0)]) for name, array in feeds.items()}
        return tuple(output[:count] for output in self._run(padded))

    def _run(self, feeds: Feeds) -> Outputs:
        try:
            return tuple(self.handle.run(None, dict(feeds)))
        except InvalidArgument as error:
            got = f"items whose shape or type {self.path.name} does not take: {' '.join(str(error).split())[:200]}"
            raise DataError(got, "those of the network's inputs", "correct the data, or its --resize and --crop") from error


def open_session(
    path: Path,
    *,
    threads: int,
    options: Mapping[str, str] | None = None,
    optimized: Path | None = None,
    profile: Path | None = None,
    literal: bool = False,
) -> OnnxRuntimeSession:
    """Open `path` with all of the runtime's optimisations, or, if `literal`, with none: Q/DQ are then computed as they stand.

    `threads` 0 takes every core. `optimized` receives the graph that really runs, `profile` prefixes a profile's name.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, QUIET
    if literal:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        settings.optimized_model_filepath = str(optimized)
        if has_data(path):
            settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", data_of(optimized).name)
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    # Idle workers that spin would take the cores from torch, which runs between the sessions.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    handle = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    sides = [entry.shape[0] if entry.shape else None for entry in handle.get_inputs()]
    fixed = next((side for side in sides if isinstance(side, int)), None)
    return OnnxRuntimeSession(path, handle, tuple(entry.name for entry in handle.get_inputs()), fixed, quantizes_in_call(path), threads)


def convolve_in_runtime(x: Tensor, weight: Tensor, bias: Tensor, padding: int, groups: int) -> Tensor:
    """One float convolution in the runtime, one thread: what `blocked.find_block` asks."""
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in (("w", weight), ("b", bias))]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[padding] * 4, group=groups)
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c", "h", "w"]) for name in "xy")
    inputs.type.tensor_type.shape.dim[1].dim_value = x.shape[1]
    graph = helper.make_graph([node], "convolution", [inputs], [outputs], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, QUIET
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def quantizes_in_call(path: Path) -> bool:
    """Whether the ranges of a file's activations are those of each call. By the operation's name, wherever it stands."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"DynamicQuantizeLinear") >= 0


def feeds(batch: Batch, names: Iterable[str]) -> dict[str, NDArray[np.generic]]:
    """The arrays of `batch` under the file's input names."""
    return {name: tensor.numpy() for name, tensor in bind(batch.inputs, list(names)).items()}


@dataclass(frozen=True, slots=True)
class Early:
    """When to stop: once, after at least so many `items`, where `enough` says so of their outputs."""

    items: int
    enough: Callable[[Outputs], bool]


def _joined(rows: Sequence[Outputs]) -> Outputs:
    return tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))


def items_at_once(session: Session, batch_size: int) -> int:
    """How many items the file is given. One that quantizes in each call gets one, so that no answer depends on an item's neighbours."""
    return session.batch or (1 if session.in_call else batch_size)


def evaluate(
    session: Session, subset: Subset | KeptBatches, batch_size: int, early: Early | None = None, advance: Advance | None = None
) -> Outputs:
    """The outputs for every item of `subset`, in its order, or of the first where `early` says so. Raises DataError for what is not finite.

    `advance(items)` after each batch.
    """
    at_once = items_at_once(session, batch_size)
    rows: list[Outputs] = []
    for batch in subset.batches(at_once):
        rows.append(session.run(feeds(batch, session.input_names)))
        if advance is not None:
            advance(batch.size)
        if early is not None and len(rows) == -(-early.items // at_once) and early.enough(_joined(rows)):
            break
    outputs = _joined(rows)
    if not all(np.isfinite(output).all() for output in outputs if np.issubdtype(output.dtype, np.floating)):
        raise DataError(f"{session.path.name} returns NaN or infinite values", "finite outputs", "check the inputs' preprocessing")
    return outputs
