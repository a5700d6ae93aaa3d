"""The options of the commands, each described once."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option

from quantkit.settings.options import CHOICES, SCHEMES, Options


def _choice(option: str, text: str) -> Any:
    return Option(help=f"{text}: {', '.join(CHOICES[option])} (default: {getattr(Options(), option)}).")


def _number(option: str, text: str) -> Any:
    return Option(help=f"{text} (default: {getattr(Options(), option)}).")


Model = Annotated[
    str,
    Argument(help="A .pt2 archive, pickled module, float .onnx file, transformers folder, module:function, recipe or weights with --arch."),
]
MaxDrop = Annotated[str | None, Option(help="The drop allowed, in the metric's unit (0.5), or relative to the float score (0.5%).")]
Keep = Annotated[str | None, Option(help="The share of the float score to keep, such as 99.9%.")]
MaxBytes = Annotated[str | None, Option(help="Bytes of the file at most: 2MB, or 0.25x of the float file.")]
MaxLatency = Annotated[str | None, Option(help="Time of one inference at most: 5ms, or 0.5x of the float network's.")]
MaxBops = Annotated[str | None, Option(help="Bit operations at most, MACs · weight bits · activation bits: 2.5G, or 0.1x.")]
AverageBits = Annotated[str | None, Option(help="Bits of the weights on average at most, such as 4.5.")]
TimeLimit = Annotated[str | None, Option(help="Stop the search after this time, with the best plan so far: 10m, 90s, 1h.")]
Metric = Annotated[str | None, Option(help="top1, top5, agreement, mse, psnr, spearman, perplexity or module:function.")]
Undecided = Annotated[str | None, _choice("undecided", "What decides where the confidence interval does not")]
Certificate = Annotated[int | None, Option(help="On how many unseen plans predictions are tested; 0 measures none \
(default: 40, or 16 where weights are rounded for each plan).")]
Confidence = Annotated[float | None, Option(help="How sure the search must be that the gate will keep the promise \
(default: 0.85, or 0.5 where the gate's items are too few to prove it).")]
Data = Annotated[str | None, Option(help="An image folder, .npz, .safetensors, or .tsv of texts, to be cut into three splits.")]
CalibrationData = Annotated[str | None, Option(help="Items for the ranges only.")]
SearchData = Annotated[str | None, Option(help="Items that the search may evaluate.")]
GateData = Annotated[str | None, Option(help="Items for the verdict only.")]
Resize = Annotated[str | None, Option(help="Pixels of the short side, or HEIGHTxWIDTH.")]
Crop = Annotated[str | None, Option(help="Pixels of the central crop, or HEIGHTxWIDTH.")]
Mean = Annotated[str | None, Option(help="Mean that is subtracted: one number, or one per channel, separated by commas.")]
Std = Annotated[str | None, Option(help="Standard deviation to divide by: one number, or one per channel, separated by commas.")]
Scale = Annotated[str | None, Option(help="Factor that pixels are multiplied by first (default for images: 1/255).")]
Target = Annotated[str | None, _choice("target", "The runtime that the file is for")]
Minimize = Annotated[str | None, _choice("minimize", "What to minimize")]
Sensitivity = Annotated[str | None, _choice("sensitivity", "The sensitivity: how the effect of quantizing a group is estimated")]
Search = Annotated[str | None, _choice("search", "The search algorithm")]
_SCHEMES = "; ".join(f"{target}: {','.join(schemes)}" for target, schemes in SCHEMES.items())
Schemes = Annotated[str | None, Option(help=f"Schemes to choose from, with commas ({_SCHEMES}).")]
Fix = Annotated[list[str] | None, Option(help="GROUP=SCHEME pins a group; may be repeated.")]
Exclude = Annotated[list[str] | None, Option(help="A pattern of group names that stay float; may be repeated.")]
Observer = Annotated[str | None, _choice("observer", "The observer: how activation ranges are read from the calibration data")]
Rounding = Annotated[str | None, _choice("rounding", "How weights are rounded")]
Equalization = Annotated[str | None, _choice("equalization", "Whether channels between layers are balanced first")]
Effort = Annotated[str | None, Option(help=f"For which plans weights are rounded in the plan's own network: {', '.join(CHOICES['effort'])} \
(default: balanced where weights of less than 8 bits are on the menu, else fast).")]
Output = Annotated[str | None, Option(help="The ONNX file to write.")]
RunFolder = Annotated[str | None, Option("--run", help="The run directory, which keeps the results of all stages.")]
Seed = Annotated[int | None, _number("seed", "Seed of probes and resampling")]
SplitSeed = Annotated[int | None, _number("split_seed", "Seed that cuts --data into splits")]
BatchSize = Annotated[int | None, _number("batch_size", "Items in one batch")]
MemoryMb = Annotated[int | None, _number("memory_mb", "Memory limit in MB for the activations that the passes of a sensitivity hold")]
Threads = Annotated[int | None, _number("threads", "Threads of the runtime for timing")]
Device = Annotated[str | None, _choice("device", "Device on which torch computes")]
Arch = Annotated[str | None, Option(help="package.module:function that builds the network of a state dict.")]
TrustPickle = Annotated[bool, Option("--trust-pickle", help="Allow a pickled file to run code while it loads.")]
InputShape = Annotated[str | None, Option(help="Shape of an example input, such as 1x3x224x224.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object on stdout and nothing else.")]
