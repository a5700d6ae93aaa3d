"""The options of the commands, each described once."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option

from quantkit.settings.options import CHOICES, SCHEMES, Options


def _choice(option: str, text: str) -> Any:
    return Option(help=f"{text}: {', '.join(CHOICES[option])} (default: {getattr(Options(), option)}).")


def _number(option: str, text: str) -> Any:
    return Option(help=f"{text} (default: {getattr(Options(), option)}).")


Model = Annotated[str, Argument(help="A .pt2 archive, a pickled module, package.module:function, a recipe file, or weights with --arch.")]
MaxDrop = Annotated[str | None, Option(help="Largest allowed loss, in the metric's unit (0.5) or relative to the float score (0.5%).")]
Keep = Annotated[str | None, Option(help="Share of the float score to keep, such as 99.9%.")]
MaxBytes = Annotated[str | None, Option(help="Largest file: 2MB, or 0.25x of the float file.")]
MaxLatency = Annotated[str | None, Option(help="Largest latency of one inference: 5ms, or 0.5x of the float network's.")]
MaxBops = Annotated[
    str | None, Option(help="Most bit operations (MACs · weight bits · activation bits): 2.5G, or 0.1x of the float network's.")
]
AverageBits = Annotated[str | None, Option(help="Largest average number of bits per weight, such as 4.5.")]
TimeLimit = Annotated[str | None, Option(help="Time after which the search ends with the best plan so far: 10m, 90s, 1h.")]
Metric = Annotated[str | None, Option(help="The metric: top1, top5, agreement, mse, psnr or module:function.")]
Undecided = Annotated[str | None, _choice("undecided", "How an undecided verdict counts")]
Certificate = Annotated[int | None, _number("certificate", "Number of held-out plans on which predictions are tested; 0 for none")]
Confidence = Annotated[
    float | None, _number("confidence", "Required probability that the gate split keeps the promise, as the search estimates it")
]
Data = Annotated[str | None, Option(help="An image folder, .npz or .safetensors, to be cut into three splits.")]
CalibrationData = Annotated[str | None, Option(help="Items for calibration only.")]
SearchData = Annotated[str | None, Option(help="Items that the search measures on.")]
GateData = Annotated[str | None, Option(help="Items for the verdict only.")]
Resize = Annotated[str | None, Option(help="Pixels of the short side, or HEIGHTxWIDTH.")]
Crop = Annotated[str | None, Option(help="Pixels of the central crop, or HEIGHTxWIDTH.")]
Mean = Annotated[str | None, Option(help="Mean that is subtracted: one number, or one per channel, separated by commas.")]
Std = Annotated[str | None, Option(help="Standard deviation to divide by: one number, or one per channel, separated by commas.")]
Scale = Annotated[str | None, Option(help="Factor that pixels are multiplied by first (default for images: 1/255).")]
Target = Annotated[str | None, _choice("target", "The runtime that the file is for")]
Minimize = Annotated[str | None, _choice("minimize", "What to minimize")]
Sensitivity = Annotated[str | None, _choice("sensitivity", "Method that estimates the loss of quantizing a group")]
Search = Annotated[str | None, _choice("search", "Search method")]
_SCHEMES = "; ".join(f"{target}: {','.join(schemes)}" for target, schemes in SCHEMES.items())
Schemes = Annotated[str | None, Option(help=f"Allowed schemes, separated by commas ({_SCHEMES}).")]
Fix = Annotated[list[str] | None, Option(help="Pin a group to a scheme: GROUP=SCHEME; may be repeated.")]
Exclude = Annotated[list[str] | None, Option(help="Keep the groups whose names match this pattern in float; may be repeated.")]
Observer = Annotated[str | None, _choice("observer", "Observer that reads ranges from the calibration data")]
Rounding = Annotated[str | None, _choice("rounding", "Rounding of the weights")]
Output = Annotated[str | None, Option(help="The ONNX file to write.")]
RunFolder = Annotated[str | None, Option("--run", help="The run directory, which keeps the results of all stages.")]
Seed = Annotated[int | None, _number("seed", "Seed of probes and resampling")]
SplitSeed = Annotated[int | None, _number("split_seed", "Seed that cuts --data into splits")]
BatchSize = Annotated[int | None, _number("batch_size", "Items in one batch")]
MemoryMb = Annotated[int | None, _number("memory_mb", "Memory limit in MB for the activations that the passes of a sensitivity hold")]
Threads = Annotated[int | None, _number("threads", "Threads of the runtime for timing")]
Device = Annotated[str | None, _choice("device", "Device on which torch computes")]
Arch = Annotated[str | None, Option(help="package.module:function that builds the network of a state dict.")]
TrustPickle = Annotated[bool, Option("--trust-pickle", help="Allow the file to run code while it loads.")]
InputShape = Annotated[str | None, Option(help="Shape of an example input, such as 1x3x224x224.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout and nothing else.")]
