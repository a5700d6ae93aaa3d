"""What a user may ask for, as the stages read it: `Options`, checked, made of what was given in the places that `arguments` describes.

Text is parsed into values here, once. Standard library only, so that `quantkit --help` needs nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantkit.core.errors import DataError, RequestError, SchemeError, unknown
from quantkit.core.machine import Machine
from quantkit.core.spec import Scheme, parse_scheme
from quantkit.settings.bounds import Bounds

# The packages that dispatch on these names hold the functions; a test compares the lists.
CHOICES: dict[str, tuple[str, ...]] = {
    "target": ("ort-cpu", "openvino", "tensorrt", "nbit"),
    "minimize": ("latency", "bytes", "bops", "drop"),
    "sensitivity": (
        "augmented",
        "aumann_shapley",
        "displacement",
        "fisher",
        "fisher_output",
        "gauss_newton",
        "hessian",
        "hessian_activation",
        "hessian_cross",
        "kl",
        "noise",
        "pairs",
        "pyhessian",
        "weight_error",
    ),
    "search": ("pareto", "bisection", "swaps", "refine"),
    "observer": ("mse", "percentile", "minmax", "output"),
    "rounding": ("gptq", "adaround", "nearest"),
    "equalization": ("none", "cross_layer"),
    "effort": ("fast", "balanced", "best"),
    "device": ("cpu", "cuda"),
    "undecided": ("point", "fail", "pass"),
}
# What each target can run; narrow weights run in its int8 kernels.
SCHEMES: dict[str, tuple[str, ...]] = {
    "ort-cpu": (
        "fp32",
        "w8a8",
        "w7a8",
        "w6a8",
        "w5a8",
        "w4a8",
        "w3a8",
        "w2a8",
        "c6a8",
        "c5a8",
        "c4a8",
        "c3a8",
        "c2a8",
        "w8d8",
        "w7d8",
        "w6d8",
        "w5d8",
        "w4d8",
        "w3d8",
        "w2d8",
        "c6d8",
        "c5d8",
        "c4d8",
        "c3d8",
        "c2d8",
        "w8b32d8",
        "w4b128d8",
        "w4b32d8",
        "w4b128a32",
        "w4b32a32",
        "w6g16a8",
        "w5g16a8",
        "w4g16a8",
        "w3g16a8",
        "w2g16a8",
        "w16a32",
        "w8a32",
        "w7a32",
        "w6a32",
        "w5a32",
        "w4a32",
        "w3a32",
        "w2a32",
        "c6a32",
        "c5a32",
        "c4a32",
        "c3a32",
        "c2a32",
    ),
    "openvino": ("fp32", "w8a8", "w4a8", "w16a32"),
    "tensorrt": ("fp16", "w8a8", "fp8", "w4a16", "fp32"),
    "nbit": ("fp32", "w16a16", "w8a8", "w8a4", "w4a8", "w4a4"),
}
# What is chosen from unless --schemes says otherwise. Narrow weights save bytes and no time, so a search for speed leaves them out.
DEFAULT_SCHEMES: dict[str, dict[str, tuple[str, ...]]] = {
    "ort-cpu": {
        "latency": ("fp32", "w8a8", "w8d8"),
        "bytes": (
            "fp32",
            "w8a8",
            "w8d8",
            "w6a8",
            "w6d8",
            "c5a8",
            "c5d8",
            "c4a8",
            "c4d8",
            "c3a8",
            "c3d8",
            "c2a8",
            "c2d8",
            "w16a32",
            "w8a32",
        ),
    },
    "openvino": {"latency": ("fp32", "w8a8"), "bytes": ("fp32", "w8a8", "w4a8", "w16a32")},
    "tensorrt": dict.fromkeys(("latency", "bytes"), ("fp16", "w8a8", "fp8", "w4a16")),
    "nbit": dict.fromkeys(("latency", "bytes"), ("fp32", "w16a16", "w8a8", "w8a4", "w4a8", "w4a4")),
}

ADDRESS = r"[a-z]+://\S+"
CERTIFICATE = {"fast": 40, "balanced": 16, "best": 16}  # plans that predictions are tested on, by effort


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to do the job, checked: every name is a known one. Raises RequestError, and SchemeError for schemes and targets.

    `schemes` None is what `minimize` can use (`menu` says which). `fix` holds (group, scheme) pairs and `exclude` patterns of group
    names; whether they exist is known after the capture.
    `undecided` is how an undecided verdict counts: by the point estimate, or always as failed, or always as passed.
    `certificate` is on how many unseen plans predictions are tested, 0 to fit and test nothing; None is 40, or 16 where every
    plan is rounded.
    `confidence` is how sure the search must be that the gate will keep the promise; None is 0.85, or 0.5 where the gate has too few items
    to be sure of anything and the measured drop decides. `bounds` are what a plan may use beside; after
    `time_limit_s` the search ends with the best so far. `output` is the ONNX file; `run` the folder that keeps the stages' results.
    `memory_mb` bounds what the passes of a sensitivity hold of activations. `effort` is for what weights are rounded in their plan's own
    network: "fast" for the plan that ships, "balanced" for all that the search measures, "best" so too, and the plan that ships by AdaRound
    at last; None is what the menu needs (`chosen_effort`).
    `machine` is what costs are modelled for where the target does not run here; None is tensor cores as data sheets have them.
    `equalization` "cross_layer" balances the channels between layers before anything else is done. `shape` holds (length, weight) pairs:
    at which lengths the file of any length is compared and timed, and how much each counts. `workers` is a count of processes of this
    machine, or the address of a Dask scheduler, which compute what stages can divide. `latency_workers` is the address of one whose
    workers are the device that files are timed on.
    """

    target: str = "ort-cpu"
    minimize: str = "latency"
    sensitivity: str = "kl"
    search: str = "pareto"
    schemes: tuple[Scheme, ...] | None = None
    fix: tuple[tuple[str, str], ...] = ()
    exclude: tuple[str, ...] = ()
    observer: str = "mse"
    rounding: str = "gptq"
    equalization: str = "none"
    effort: str | None = None
    seed: int = 0
    split_seed: int = 0
    batch_size: int = 32
    memory_mb: int = 2048
    threads: int = 1
    device: str = "cpu"
    output: Path | None = None
    run: Path | None = None
    undecided: str = "point"
    confidence: float | None = None
    certificate: int | None = None
    machine: Machine | None = None
    bounds: Bounds = field(default_factory=Bounds)
    time_limit_s: float | None = None
    shape: tuple[tuple[int, float], ...] = ()
    workers: str | None = None
    latency_workers: str | None = None

    def __post_init__(self) -> None:
        for option, known in CHOICES.items():
            value = getattr(self, option)
            if value not in known and not (option == "effort" and value is None):
                raise (SchemeError if option == "target" else RequestError)(*unknown(option, str(value), known))
        for scheme in (*self.menu, *(scheme for _, scheme in self.fix)):
            if scheme not in SCHEMES[self.target]:
                raise SchemeError(*unknown(f"scheme for {self.target}", scheme, SCHEMES[self.target]))
        if not self.menu:
            raise SchemeError("no scheme to choose from", "at least one", f"list them as --schemes {','.join(SCHEMES[self.target])}")
        if self.minimize == "drop" and not self.bounds.given():
            got = "--minimize drop without a bound: the float network loses nothing"
            raise RequestError(got, "one of --max-bytes, --max-latency, --max-bops, --average-bits", "pass --max-bytes 0.25x")
        if self.minimize == "drop" and self.search == "bisection":
            got = "--search bisection with --minimize drop, which stops at the promise"
            raise RequestError(got, "a search that goes on", "pass --search swaps or --search pareto")
        if self.workers is not None and not re.fullmatch(rf"[1-9]\d*|{ADDRESS}", self.workers):
            raise RequestError(f"--workers {self.workers}", "a count above 0, or tcp://SCHEDULER:PORT", "pass --workers 4")
        if self.latency_workers is not None and not re.fullmatch(ADDRESS, self.latency_workers):
            next_step = "pass --latency-workers tcp://10.0.0.7:8786"
            raise RequestError(f"--latency-workers {self.latency_workers}", "tcp://SCHEDULER:PORT", next_step)
        if self.workers is not None and self.device != "cpu":
            raise RequestError(f"--workers beside --device {self.device}", "workers that compute on CPUs", "leave one of the two out")
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise RequestError(f"--confidence {self.confidence}", "a probability of at least 0.5 and less than 1", "pass --confidence 0.85")
        for option, lowest in {"batch_size": 1, "memory_mb": 1, "threads": 1, "seed": 0, "split_seed": 0, "certificate": 0}.items():
            value = getattr(self, option)
            if value is not None and value < lowest:
                raise RequestError(
                    f"{_flag(option)} {value}",
                    f"an integer of at least {lowest}",
                    f"pass {_flag(option)} {max(lowest, 1)}, or leave it out",
                )

    @property
    def chosen_effort(self) -> str:
        """The effort; where none is asked for, "balanced" where weights of less than 8 bits are on the menu, which gain by it."""
        narrow = any(weights is not None and weights.bits < 8 for weights in (parse_scheme(name).weights for name in self.menu))
        return self.effort or ("balanced" if narrow else "fast")

    @property
    def tested_plans(self) -> int:
        """On how many unseen plans predictions are tested."""
        return self.certificate if self.certificate is not None else CERTIFICATE[self.chosen_effort]

    @property
    def menu(self) -> tuple[str, ...]:
        """The schemes to choose from."""
        if self.schemes is not None:
            return self.schemes
        narrow = self.minimize in ("bytes", "bops") or self.bounds.given().keys() - {"latency"}
        return DEFAULT_SCHEMES[self.target]["bytes" if narrow else "latency"]


def words(value: str | Iterable[str]) -> tuple[str, ...]:
    """`"w8a8,fp32"` or the words themselves → the words, none of them empty."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() for part in parts if part.strip())


def pins(value: str | Sequence[str] | Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """`["classifier=fp32"]` or a mapping → (group, scheme) pairs."""
    if isinstance(value, Mapping):
        return tuple(value.items())
    pairs = [text.rpartition("=")[::2] for text in words(value)]
    for (group, scheme), text in zip(pairs, words(value), strict=True):
        if not group or not scheme:
            raise SchemeError(f"--fix {text}", "GROUP=SCHEME, such as classifier=fp32", "`quantkit inspect` lists the groups")
    return tuple(pairs)


def lengths(value: str) -> tuple[tuple[int, float], ...]:
    """`"sequence=32,128"` or `"sequence=32:3,128:1"` → (length, weight) pairs, weights 1 unless given. Raises RequestError."""
    axis, _, rest = value.partition("=")
    found = [re.fullmatch(r"([1-9]\d*)(?::(\d+(?:\.\d+)?))?", part) for part in words(rest)]
    if axis.strip() != "sequence" or not found or not all(found):
        raise RequestError(f"--shape {value}", "sequence=LENGTH,…, each with a weight if wanted", "pass --shape sequence=32,128:0.5")
    pairs = tuple((int(one[1]), float(one[2] or 1)) for one in found if one)
    if len(dict(pairs)) < len(pairs) or not all(weight > 0 for _, weight in pairs):
        raise RequestError(f"--shape {value}", "each length once, and weights above 0", "leave out what counts for nothing")
    return pairs


def numbers(option: str, value: str | float | Iterable[float]) -> tuple[float, ...]:
    """`"0.485,0.456"`, one number or several → the numbers."""
    try:
        if isinstance(value, str):
            return tuple(float(part) for part in value.split(","))
        return (float(value),) if isinstance(value, int | float) else tuple(float(part) for part in value)
    except (TypeError, ValueError):
        raise DataError(
            f"{_flag(option)} {value}", "one number, or one a channel with commas between", "write 0.5, or 0.485,0.456,0.406"
        ) from None


def size(option: str, value: str | int | Sequence[int]) -> int | tuple[int, int]:
    """`"256"` → 256 (the short side), `"224x192"` → (224, 192) (height, width)."""
    sides = _whole(value)
    if len(sides) not in {1, 2} or min(sides) < 1:
        raise DataError(f"{_flag(option)} {value}", "pixels such as 224, or HEIGHTxWIDTH such as 224x192", "write 256, or 256x224")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _whole(value: str | int | Sequence[int]) -> tuple[int, ...]:
    """Whole numbers; (0,) where the text holds none, which no caller takes."""
    parts = value.lower().split("x") if isinstance(value, str) else [value] if isinstance(value, int) else value
    try:
        return tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        return (0,)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
