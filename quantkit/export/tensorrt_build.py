"""Build the TensorRT engine of an ONNX file, check it against ONNX Runtime, time it, and report the precision of each layer.

    python build_and_check.py FILE.onnx [--inputs items.npz] [--batch 1] [--rounds 200] [--tolerance 0.1]

Written by quantkit beside the file, complete in itself. It needs tensorrt (10 or later), onnxruntime, numpy, and torch with CUDA or
cuda-python. Exit codes: 0 the engine answers as ONNX Runtime does; 1 it does not, or was not built; 2 something is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

MISSING, DIFFERS, AGREES = 2, 1, 0
WARM_UP = 20
INSTALL = {"numpy": "pip install numpy", "onnxruntime": "pip install onnxruntime", "tensorrt": "pip install tensorrt (10 or later)"}
# How the engine inspector writes precisions, in the order in which they are looked for.
PRECISIONS = {
    "int4": "int4", "fp8": "fp8", "float8": "fp8", "e4m3": "fp8", "int8": "int8", "bf16": "bf16", "bfloat16": "bf16",
    "half": "fp16", "fp16": "fp16", "float16": "fp16", "float": "fp32", "fp32": "fp32",
}  # fmt: skip


class Device(Protocol):
    """What lies on the GPU, and its clock. `stream` is the handle that TensorRT takes."""

    stream: int

    def put(self, array: Any) -> Any:
        """A copy of a numpy array on the device."""

    def pointer(self, held: Any) -> int:
        """Its address."""

    def get(self, held: Any) -> Any:
        """Back as a numpy array."""

    def milliseconds(self, run: Callable[[], None]) -> float:
        """What one call takes, by CUDA events."""


class TorchDevice:
    """By torch."""

    def __init__(self) -> None:
        import torch

        self._torch: Any = torch
        self._stream = self._torch.cuda.Stream()
        self.stream = int(self._stream.cuda_stream)

    def put(self, array: Any) -> Any:
        """As `Device`."""
        held = self._torch.from_numpy(array).cuda()
        self._torch.cuda.synchronize()
        return held

    def pointer(self, held: Any) -> int:
        """As `Device`."""
        return int(held.data_ptr())

    def get(self, held: Any) -> Any:
        """As `Device`."""
        self._torch.cuda.synchronize()
        return held.cpu().numpy()

    def milliseconds(self, run: Callable[[], None]) -> float:
        """As `Device`."""
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(self._stream)
        run()
        end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end))


class CudaDevice:
    """By cuda-python."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError:
            from cuda import cudart as runtime
        self._cuda = runtime
        self.stream = int(self._done(runtime.cudaStreamCreate()))

    def _done(self, answer: Sequence[Any]) -> Any:
        """The result of a call. Raises RuntimeError where CUDA says that it failed."""
        if int(answer[0]) != 0:
            raise RuntimeError(f"CUDA: {answer[0]}")
        return answer[1] if len(answer) > 1 else None

    def put(self, array: Any) -> Any:
        """As `Device`."""
        address = self._done(self._cuda.cudaMalloc(max(array.nbytes, 1)))
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._done(self._cuda.cudaMemcpy(address, array.ctypes.data, array.nbytes, kind))
        return address, array.copy()

    def pointer(self, held: Any) -> int:
        """As `Device`."""
        return int(held[0])

    def get(self, held: Any) -> Any:
        """As `Device`."""
        self._done(self._cuda.cudaDeviceSynchronize())
        address, array = held
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._done(self._cuda.cudaMemcpy(array.ctypes.data, address, array.nbytes, kind))
        return array

    def milliseconds(self, run: Callable[[], None]) -> float:
        """As `Device`."""
        start, end = (self._done(self._cuda.cudaEventCreate()) for _ in range(2))
        self._done(self._cuda.cudaEventRecord(start, self.stream))
        run()
        self._done(self._cuda.cudaEventRecord(end, self.stream))
        self._done(self._cuda.cudaEventSynchronize(end))
        return float(self._done(self._cuda.cudaEventElapsedTime(start, end)))


def say(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(f"{text}\n")


def missing() -> list[str]:
    """What must be installed first, each with how."""
    found = [f"{package}: {how}" for package, how in INSTALL.items() if find_spec(package) is None]
    if open_device() is None:
        found.append("a way to the GPU: torch with CUDA (pip install torch), or pip install cuda-python; and an NVIDIA GPU with its driver")
    return found


def open_device() -> Device | None:
    """The GPU through torch or cuda-python; None where neither is there, or finds one."""
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return TorchDevice()
    if find_spec("cuda") is None:
        return None
    try:
        return CudaDevice()
    except (ImportError, RuntimeError):
        return None


def build(path: Path, shapes: Mapping[str, Sequence[int]]) -> Any:
    """The engine of the ONNX file for inputs of these shapes, strongly typed. Raises ValueError with the parser's words."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # from TensorRT 11 on there is nothing else
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise ValueError("; ".join(str(parser.get_error(number)) for number in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, tuple(shape), tuple(shape), tuple(shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("TensorRT found no engine; its log above says for which layer")
    path.with_suffix(".engine").write_bytes(bytes(plan))
    return trt.Runtime(logger).deserialize_cuda_engine(plan)


def run_engine(engine: Any, feeds: Mapping[str, Any], device: Device, rounds: int) -> tuple[dict[str, Any], list[float]]:
    """The outputs by name, and the milliseconds of each of `rounds` runs."""
    import numpy as np
    import tensorrt as trt

    context, held = engine.create_execution_context(), {}
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    for name in given:
        context.set_input_shape(name, feeds[name].shape)
        held[name] = device.put(np.ascontiguousarray(feeds[name]))
    for name in set(names) - set(given):
        held[name] = device.put(np.zeros(tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))))
    for name in names:
        context.set_tensor_address(name, device.pointer(held[name]))

    def once() -> None:
        if not context.execute_async_v3(device.stream):
            raise ValueError("the engine did not run")

    times = [device.milliseconds(once) for _ in range(WARM_UP + rounds)][WARM_UP:]
    return {name: device.get(held[name]) for name in names if name not in given}, times


def read_shapes(path: Path, batch: int) -> dict[str, tuple[list[int], str]]:
    """Shape and type of each input of the file; the first axis is `batch` where it is a symbol, other symbols are 1."""
    found = {}
    for entry in open_reference(path).get_inputs():
        shape = [side if isinstance(side, int) else (batch if axis == 0 else 1) for axis, side in enumerate(entry.shape)]
        found[entry.name] = shape, entry.type
    return found


def open_reference(path: Path) -> Any:
    """ONNX Runtime on the CPU without optimisations, so that Q/DQ are computed as they stand."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level, settings.log_severity_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


def make_feeds(shapes: Mapping[str, tuple[Sequence[int], str]], given: Path | None) -> dict[str, Any]:
    """The arrays of an .npz under the inputs' names, or random ones. Raises ValueError for an input that the .npz lacks."""
    import numpy as np

    if given is not None:
        arrays = np.load(given)
        absent = sorted(set(shapes) - set(arrays.files))
        if absent:
            raise ValueError(f"{given} has no {', '.join(absent)}, only {', '.join(arrays.files)}")
        return {name: arrays[name] for name in shapes}
    random, kinds = np.random.default_rng(0), {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bool)": "bool"}
    return {name: random.standard_normal(shape).astype(kinds.get(kind, "int64")) for name, (shape, kind) in shapes.items()}


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """For each output: the relative difference ‖ours − theirs‖ / ‖theirs‖, the largest one, the share of equal top classes."""
    import numpy as np

    found = {}
    for name, wanted in theirs.items():
        one, other = (np.asarray(array, np.float64) for array in (ours[name], wanted))
        size = max(float(np.linalg.norm(other)), 1e-30)
        top = float((one.argmax(-1) == other.argmax(-1)).mean()) if other.ndim > 1 else 1.0
        difference = float(np.linalg.norm(one - other)) / size
        found[name] = {"relative": difference, "largest": float(np.abs(one - other).max(initial=0.0)), "same_top": top}
    return found


def agrees(compared: Mapping[str, Mapping[str, float]], tolerance: float) -> bool:
    """Whether every output is within the tolerance; NaN is not."""
    return all(row["relative"] <= tolerance for row in compared.values())


def precision_of(text: str) -> str:
    """`"Thirty-two wide channel vectorized row major Int8 format"` → `"int8"`; empty where it names none."""
    return next((name for mark, name in PRECISIONS.items() if mark in text.lower()), "")


def read_layers(information: str) -> list[tuple[str, str, str]]:
    """(name, kind, precision) of each layer of the engine inspector's JSON: that of its weights, or else of what it reads first.

    A layer that is listed by its name only has no precision: the engine was built without detailed verbosity.
    """
    found = []
    for layer in json.loads(information).get("Layers", []):
        if isinstance(layer, str):
            found.append((layer, "", ""))
            continue
        tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
        told = [str(tensor.get("Format/Datatype") or tensor.get("Datatype") or tensor.get("Format") or "") for tensor in tensors]
        weights = layer.get("Weights")
        told = [str(weights.get("Type", ""))] * isinstance(weights, dict) + told if weights else told
        precision = next(filter(None, map(precision_of, told)), "")
        found.append((str(layer.get("Name", "")), str(layer.get("LayerType", "")), precision))
    return found


def inspect(engine: Any) -> list[tuple[str, str, str]]:
    """`read_layers` of the engine."""
    import tensorrt as trt

    return read_layers(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def report(layers: Sequence[tuple[str, str, str]], compared: Mapping[str, Mapping[str, float]], times: Sequence[float]) -> None:
    """Print the report."""
    for name, kind, precision in layers:
        say(f"{precision or '?':>5}  {kind:<24} {name}")
    counts = Counter(precision or "unknown" for _, _, precision in layers)
    say("layers: " + ", ".join(f"{count} {precision}" for precision, count in counts.most_common()))
    for name, row in compared.items():
        told = f"differs by {row['relative']:.2e} of its size (largest {row['largest']:.2e})"
        say(f"output {name}: {told}, same top class for {100 * row['same_top']:.1f} %")
    low, median, high = (sorted(times)[len(times) * share // 10] for share in (1, 5, 9))
    say(f"latency: median {median:.4f} ms, from {low:.4f} (a tenth of the runs is faster) to {high:.4f} (a tenth is slower)")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="the ONNX file")
    parser.add_argument("--inputs", type=Path, help="an .npz with an array for each input; random numbers otherwise")
    parser.add_argument("--batch", type=int, default=1, help="items at once, where the file leaves that open")
    parser.add_argument("--rounds", type=int, default=200, help="timed runs")
    parser.add_argument("--tolerance", type=float, default=0.1, help="relative difference of an output that still agrees: codes may flip")
    options = parser.parse_args(argv)
    absent = missing()
    if absent:
        say(f"cannot build {options.file} here; missing:")
        for line in absent:
            say(f"  {line}")
        return MISSING
    device = open_device()
    assert device is not None
    try:
        feeds = make_feeds(read_shapes(options.file, options.batch), options.inputs)
        engine = build(options.file, {name: array.shape for name, array in feeds.items()})
        outputs, times = run_engine(engine, feeds, device, max(1, options.rounds))
        reference = open_reference(options.file)
        names = [entry.name for entry in reference.get_outputs()]
        compared = compare(outputs, dict(zip(names, reference.run(None, feeds), strict=True)))
    except ValueError as error:
        say(f"{options.file}: {error}")
        return DIFFERS
    report(inspect(engine), compared, times)
    say("the engine agrees with ONNX Runtime" if agrees(compared, options.tolerance) else f"beyond the tolerance of {options.tolerance}")
    return AGREES if agrees(compared, options.tolerance) else DIFFERS


if __name__ == "__main__":
    raise SystemExit(main())
