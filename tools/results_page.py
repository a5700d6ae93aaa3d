"""Write docs/results/index.md: every figure of docs/results/*.json, beside the command that measures it.

    python tools/results_page.py            # write it
    python tools/results_page.py --check    # exit 1 if it is not what would be written

A new JSON file, or a new kind of figure, needs a line in SECTIONS: without one this stops and says so.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADMITTED = "admitted.json"  # no figures: how old they may be
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
HEAD = """# Results

Written by `python tools/results_page.py` from the JSON files in this folder; each file also names the machine and the versions. The
commands need the data and weights that the recipes' docstrings name. A drop is in points of the metric, positive where quality is lost;
a drop below zero is chance of the items. `a_over_b` is a ratio; times in it come from interleaved runs. What these numbers do not say:
[limits](../limits.md). `make results` measures what is older than the code that it describes; what is admitted to be older says so, with
the share of the sources that changed since (counted by `tools/stale_figures.py`).
"""


@dataclass(frozen=True)
class Section:
    """The figures of `file` whose keys match `keys`, with what to know of them. Two groups in `keys` are the column and the row."""

    file: str
    title: str
    keys: str
    command: str
    about: str
    means: Mapping[str, str] | None = None


SPINE = {
    "seeds": "how many split seeds",
    "kept_point": "on how many the measured drop is within the promise",
    "kept_sure": "on how many that is sure at 95 %",
    "broken": "on how many the opposite is sure at 95 %",
    "drop_mean": "of this plan, over the seeds",
    "drop_worst": "of the worst seed",
    "drop_spread": "standard deviation over the seeds",
    "uniform_drop_mean": "of our uniform w8a8",
    "static_drop_mean": "of ONNX Runtime's `quantize_static`",
    "latency_over_float": "time of this plan, median over the seeds",
    "latency_over_static": "time of this plan",
    "uniform_latency_over_float": "time of our uniform w8a8",
    "bytes_over_static": "size of this plan's file",
    "dominated_by_uniform": "on how many seeds uniform w8a8 loses no more, in a time below this plan's interval",
    "as_planned": "on how many every layer runs as planned",
    "agreement_min": "least share of items that simulation and file answer alike",
    "exact_min": "least share of items whose outputs are equal in all bits",
    "layers_exact_min": "least share of layers with equal codes, given equal inputs",
    "wall_s": "seconds of the whole command, at most",
    "peak_mb": "MB of memory at most",
}
NETWORK = r"((?:resnet20|resnet44|squeezenet1_1|mobilenet_v2)(?:\.bytes)?)"
SECTIONS = (
    Section(
        "spine.json", "Promises kept", rf"{NETWORK}\.(\w+)", "python tools/bench.py",
        "The four recipes over split seeds, `--max-drop` 0.5 (resnet20, resnet44) or 1.0. Columns that end in `.bytes` are with "
        "`--minimize bytes --max-drop 1.0`. One network and one seed: `python tools/bench.py --networks resnet20 --seeds 0`.", SPINE,
    ),
    Section(
        "spine.json", "Small things", r"(quantkit\.\w+)", "python tools/bench.py",
        "Seconds of `import quantkit`, and the price of one of our Hessian probes over one of the package PyHessian's.",
    ),
    Section(
        "targets.json", "Stored narrow", r"w\d\.(?:payload|file|latency)_over_w8|w\d\.load_seconds|((?:resnet44|mobilenet_v2)\.\w+)\.(\w+)",
        "python tools/bench_targets.py --only narrow",
        "ResNet44 and MobileNetV2, all layers under one way to store weights: bytes of codes and scales (`payload`), of the file, time, "
        "and what loading takes.",
    ),
    Section(
        "claims.json", "Claims and checks", r"([\w.]+)", "make coverage",
        "How many numbers of README and docs are held against files of figures or the code, and how many against neither; whether the "
        "certificate reports interactions that a network has, and none where there are none; layers that a method leaves out unsaid; "
        "branches that the fast tests try, in percent.",
    ),
    Section(
        "bytes.json", "Fewest bytes under a promise", r"(\w+)\.(\w+(?:\.\w+)?)", "python tools/bench_bytes.py",
        "Allocations with `--minimize bytes --max-drop 1.0` over split seeds: bytes over those of ONNX Runtime's static int8 file with a "
        "scale for each channel, time over that file's and over float's, points lost on the gate split, promises kept by the point and at "
        "95 %, what one allocation takes at most, and how well losses of unseen plans were predicted.",
    ),
    Section(
        "accuracy.json", "What each bit-width holds", r"(seeds)|(\w+\.\w+(?:\.(?:apart|best))?)\.(\w+)", "python tools/bench_accuracy.py",
        "Uniform plans over the gate split, means over three split seeds: points lost, items answered as by the float network in percent, "
        "mean KL, and how far the drops of the seeds lie apart. `.apart`: every layer rounded by itself; `.best`: in sequence by AdaRound. "
        "`w8a4` and `w4a4` are of the modelled target `nbit`.",
    ),
    Section(
        "timing.json", "Latency", r"((?:repeatability|budgets)\.\w+)|(\w+(?:\.repeatability|\.budgets|\.bops)?)\.(\w+)",
        "python tools/bench_latency.py",
        "Random plans that a run's table of latencies never saw, comparisons of two files made again, bounds that were asked for, and the "
        "plan by time over the plan by bit operations under one promise.",
    ),
    Section(
        "latency.json", "Latency on another device", r"(transfer\.\w+)|(\w+\.\w+)\.((?:prior\.)?\w+)", "python tools/bench_devices.py",
        "Settings of one machine taken for devices: what ten timed files say of twenty others there, as rank correlation and median error; "
        "`prior` is the table of the machine on which the run was measured, uncorrected.",
    ),
    Section(
        "onnx.json", "Float ONNX files as a start", r"([\w.]+)", "python tools/bench_onnx.py",
        "Files of torch's two exporters: of the recipes, and of deployed networks and transformers with random weights (`zoo`).",
    ),
    Section(
        "data-free.json", "Without data", r"(resnet44\.w8a8\.\w+|[a-z_]+)", "python tools/bench_data_free.py",
        "Items distilled from batch norms. ResNet44 in w8a8 with ranges from them, and what ResNet20's promises of agreement on them are "
        "worth on real items: points of top-1 lost.",
    ),
    Section(
        "targets.json", "OpenVINO", r"(openvino\.as_planned)|openvino\.(\w+)\.(\w+)", "python tools/bench_targets.py --only openvino",
        "Plans made for OpenVINO, beside float32, our uniform plan, and NNCF's `quantize` of the same file and items.",
    ),
    Section(
        "targets.json", "TensorRT, without TensorRT", r"tensorrt\.(\w+)\.(\w+)", "python tools/bench_targets.py --only tensorrt",
        "Plans of ONNX Runtime adapted to TensorRT. No engine was built: the layers that OpenVINO runs as planned, as a share.",
    ),
    Section(
        "targets.json", "Uniform plans under each way to store weights", r"forms\.(\w+\.\w+)\.(\w+)",
        "python tools/bench_targets.py --only forms", "kB of the file, and mean divergence from float.",
    ),
    Section(
        "targets.json", "Random networks and deployed ones", r"(fuzzed_graphs|worst\.\w+|layers_exact|zoo\.[\w.]+)",
        "python tools/bench_targets.py --only fuzz",
        "Random networks × allocations: the worst share of layers that ran as planned, of items answered alike, of exact layers.",
    ),
    Section(
        "targets.json", "Seconds to write and verify", r"(\w+\.emit_and_verify_seconds)", "python tools/bench_targets.py --only emit",
        "MobileNetV2's file written and examined.",
    ),
    Section(
        "costs.json", "What estimators and solvers cost", r"([\w.]+\.cost\.[\w.]+|solve\.[\w.]+|\w+\.gauss_newton_rank_correlation)",
        "python tools/bench_costs.py",
        "One thread's own processor seconds; the Gram's minutes by the clock and two threads, its memory of the whole process.",
    ),
    Section(
        "sensitivity.json", "Interactions over isolated scores", r"(\w+)\.seconds\.([\w.]+)", "make bench-sensitivity",
        "Processor seconds of all pairs by the Gram matrix over those of `kl`, and of measured pairs over the Gram matrix's.",
    ),
    Section(
        "sensitivity.json", "Which sensitivity allocates best", r"([\w.]+)", "make bench-sensitivity",
        "What is compared, and how: [sensitivity](sensitivity.md).",
    ),
    Section(
        "certificates.json", "What predictions are worth", r"([\w.]+)\.certificate\.(\w+)", "python tools/bench_certificates.py",
        "Rank correlation and R² of predicted with measured divergence, on 40 plans near the chosen one that were held out of its fit: as "
        "`fitted` (and `spearman`), fitted without interactions (`additive`), as estimated (`prior`).",
    ),
    Section(
        "transformers.json", "Products in blocks", r"blocks\.(\w+)\.(\w+)", "python tools/bench_transformers.py --parts blocks",
        "A float linear layer of 2,048 × 2,048 over 1, 8 and 64 rows under each scheme, over the float file: time, and bytes.",
    ),
    Section(
        "transformers.json", "Transformers of 110 million parameters", r"(bert_base|llama_100m)\.(\w+)",
        "python tools/bench_transformers.py --parts large",
        "Random weights (`tools/large_transformers.py`), 160 items of 128 tokens (BERT-base) or 64 (a Llama of 12 layers, "
        "`--minimize bytes` of w8d8, w4b32d8 and w4b128d8): what an allocation takes, and tokens a second of the decoder with its cache.",
    ),
    Section(
        "transformers.json", "Transformers", r"((?!zoo|blocks|bert_base|llama_100m)\w+(?:\.bytes)?)\.(\w+)",
        "python tools/bench_transformers.py",
        "MiniLM-L6 on SST-2 and STS-b, over `seeds` split seeds: `--max-drop 0.5` for latency, `--minimize bytes --max-drop 1.0` in the "
        "column that ends in `.bytes`. `dynamic` is ONNX Runtime's `quantize_dynamic`, per channel; drops are means over the seeds, on "
        "items that no search saw. `stories260k`: `--minimize bytes --max-drop 2% --average-bits 5`, weights alone.",
    ),
    Section(
        "transformers-avx2.json", "Transformers of 110 million parameters, without VNNI", r"(bert_base|llama_100m)\.(\w+)",
        "python tools/bench_transformers.py --parts large --output docs/results/transformers-avx2.json",
        "As with VNNI.",
    ),
    Section(
        "transformers-avx2.json", "Transformers without VNNI", r"((?!zoo|blocks|bert_base|llama_100m)\w+(?:\.bytes)?)\.(\w+)",
        "python tools/bench_transformers.py --output docs/results/transformers-avx2.json",
        "As with VNNI. `stories260k` is calibrated on 256 windows that it writes itself, and its weights are learned block by block "
        "(`--effort best`).",
    ),
    Section(
        "transformers.json", "Transformers in small", r"zoo\.(?:(\w+)\.)?(\w+)", "python tools/bench_transformers.py --parts zoo",
        "Architectures with random weights (`tests/transformer_zoo.py`), `--metric agreement --minimize bytes`: whether the file runs as "
        "planned, the share of quantized layers with the bits of the simulation, and of multiply-accumulates in int8.",
    ),
    Section(
        "items.json", "Items that a verdict needs", r"(?:(\w+)\.)?(\w+)", "python tools/bench_items.py",
        "Verdicts from margins against counted ones, on outputs of real networks: the items needed to call a drop kept whose budget is a "
        "point larger, how often a drop that equals the budget is called kept or broken (`draws` times `items` items), and standard errors "
        "between estimate and count on the real labels. `unlabelled`, `cross_fitting`: the variance with unlabelled items, and a search's "
        "doubt with calibration items, over those without.",
    ),
    Section(
        "scale.json", "Workers", r"(?:workers|kill|cuda|eta)\.([\w.]+)", "python tools/bench_scale.py",
        "Passes of the default sensitivity on ResNet44 by one and two workers of one thread, relative to one process of one thread "
        "(`overhead_1`) and to one worker (`speedup_2`), beside what two processes that know nothing of each other gain over one "
        "(`ceiling_2`); whether 1, 2 and 4 workers give its bits; of twenty jobs during which a worker "
        "was killed, how many ended with the same numbers. `stages`, `median_error_percent`: how far off the time is that a bar says is "
        "left, over the stages of two allocations of ResNet20. `measured`: whether a GPU was at hand.",
    ),
    Section(
        "scale-avx2.json", "Workers without VNNI", r"(?:workers|kill|cuda|eta)\.([\w.]+)",
        "python tools/bench_scale.py --output docs/results/scale-avx2.json", "As above, on another machine.",
    ),
    Section(
        "large.json", "A decoder that does not fit", r"llama_1_5b\.([\w.]+)", "python tools/bench_streamed.py",
        "A Llama of random weights in bfloat16, allocated block by block (`--streamed --minimize drop --average-bits 6`): the most memory "
        "of the process, with mapped pages that it touched; whether ONNX Runtime opens the file, and whether every matrix ran in "
        "MatMulNBits of the planned bits; `agreement` of its best tokens with the simulation's, which random scores leave close to ties: "
        "sums in another order move activations to the next of their 8-bit codes.",
    ),
    Section("gate.json", "The gate", r"([\w.-]+)", "python tools/bench_gate.py", "Gates of known truth: how often each verdict is wrong."),
    Section("report.json", "The report", r"(\w+)\.report\.(\w+)", "python tools/bench_report.py", "The page in a real headless Chromium."),
    Section(
        "structure.json", "The layout of the package", r"([\w.]+)", "python tools/sizes.py --figures",
        "Lines of the source; `reach` is how many of its own a file needs, with all it imports; parameters and returns that are typed.",
    ),
    Section(
        "first-hour.json", "What a new user meets", r"(.+)",
        "make results; python tools/first_line.py; make test-matrix; python tools/bench_first_hour.py",
        "Figures that different commands write, each its own. `stale_figures`: files older than the code that they describe, by more than "
        "is admitted; `admitted_figures`: those that are old and say so. `first_line_contradictions`: results whose first line and table "
        "disagree. `matrix`: the fast tests under settings that change the order of sums. `bytes`: the smallest file over "
        "`quantize_static`'s. `allocate`: seconds of a whole allocation over those of the code before.",
    ),
)  # fmt: skip


def page(folder: Path = RESULTS) -> str:
    """The whole page. Raises ValueError for a figure that no section has."""
    parts = [HEAD]
    admitted = json.loads((folder / ADMITTED).read_text()) if (folder / ADMITTED).exists() else {}
    for path in sorted(folder.glob("*.json")):
        if path.name == ADMITTED:
            continue
        stored = json.loads(path.read_text())
        left = dict(flat(stored["figures"]))
        environment = ", ".join(f"{name} {value}" for name, value in stored.get("environment", {}).items())
        parts.append(f"## {path.name}\n\n[The file]({path.name}). Measured on: {environment}.\n" if environment else f"## {path.name}\n")
        if "code" in stored:
            parts.append(f"{age(stored['code'], admitted.get(path.name))}\n")
        for section in SECTIONS:
            here = section.file == path.name.replace("-vnni", "")  # the same, on another processor
            mine = {key: left.pop(key) for key in list(left) if here and re.fullmatch(section.keys, key)}
            if mine:
                parts.append(f"### {section.title}\n\n{section.about}\n\n```\n{section.command}\n```\n\n{table(section, mine)}")
        if left:
            raise ValueError(f"{path.name} has {', '.join(list(left)[:5])}: add a Section for it, with the command behind it")
    return "\n".join(parts)


def age(code: Mapping[str, str], admitted: Mapping[str, Any] | None) -> str:
    """Which code was measured, and how old that is admitted to be. Not how old it is today: that changes with every line of code."""
    at = f"Code: commit `{code['commit']}`, fingerprint `{code['fingerprint']}`."
    if admitted is None or admitted["fingerprint"] != code["fingerprint"]:
        return at
    changed = f"{admitted['changed_percent']} % of it changed since, as of {admitted['date']}"
    return f"{at} **Older than the code:** {changed}. {admitted['reason']}"


def flat(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested figures under dotted keys; of a list only how long it is."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield (f"{before}{key}.count", len(value)) if isinstance(value, list) else (f"{before}{key}", value)


def table(section: Section, figures: Mapping[str, Any]) -> str:
    """Rows and columns where the keys have both, else a row a figure."""
    places = {key: [part for part in re.fullmatch(section.keys, key).groups() if part] for key in figures}  # type: ignore[union-attr]
    plain = [key for key, parts in places.items() if len(parts) < 2]
    crossed = {tuple(parts): figures[key] for key, parts in places.items() if len(parts) == 2}
    written = []
    if crossed:
        columns, rows = (list(dict.fromkeys(key[axis] for key in crossed)) for axis in (0, 1))
        if len(columns) > len(rows):
            columns, rows, crossed = rows, columns, {(row, column): value for (column, row), value in crossed.items()}
        means = section.means or {}
        lines = [f"| | {' | '.join(columns)} |{' |' if means else ''}", "|---" * (1 + len(columns) + bool(means)) + "|"]
        for name in rows:
            cells = " | ".join(show(crossed[column, name]) if (column, name) in crossed else "" for column in columns)
            lines.append(f"| `{name}` | {cells} |{f' {means.get(name, str())} |' if means else ''}")
        written.append("\n".join(lines))
    if plain:
        written.append("\n".join(["| | |", "|---|---|", *(f"| `{key}` | {show(figures[key])} |" for key in plain)]))
    return "\n\n".join(written) + "\n"


def show(value: Any) -> str:
    """Four digits, no more than such a measurement has."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) > 1e-12 else "0"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> int:
    """Write or check the page."""
    target = RESULTS / "index.md"
    if "--check" in sys.argv[1:]:
        return int(not target.exists() or target.read_text() != page())
    target.write_text(page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
