"""Write the numbers in README and docs from docs/results/*.json, so that none is typed by hand.

    python tools/page_figures.py            # write them
    python tools/page_figures.py --check    # exit 1 if a page is not what would be written

A page marks where they stand, `<!-- figures: NAME -->` to `<!-- end of figures: NAME -->`; BLOCKS says what is written there.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import on_paper
from bench import BUDGETS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
ADMITTED = "admitted.json"
MARK = re.compile(r"<!-- figures: ([\w-]+) -->\n.*?<!-- end of figures: \1 -->", re.DOTALL)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Results:
    """The files of figures in a folder."""

    folder: Path

    def read(self, file: str) -> dict[str, Any]:
        """The whole file. Raises FileNotFoundError."""
        return dict(json.loads((self.folder / file).read_text()))

    def figures(self, file: str) -> dict[str, float]:
        """Its figures."""
        return dict(self.read(file)["figures"])

    def origin(self, file: str) -> str:
        """The machine, the versions, and how old the figures are admitted to be."""
        stored = self.read(file)
        machine = stored["environment"]
        text = f"Measured on {machine['cpu']}, {machine['isa']}, ONNX Runtime {machine['onnxruntime']}, torch {machine['torch']}"
        code = stored.get("code", {})
        entry = self.read(ADMITTED).get(file, {}) if (self.folder / ADMITTED).exists() else {}
        if not code or entry.get("fingerprint") != code["fingerprint"]:
            return f"{text}, with the code of commit `{code['commit']}`." if code else f"{text}."
        share = f"{entry['changed_percent']} % of the code behind them changed since (as of {entry['date']})"
        return f"{text}, with the code of commit `{entry['commit']}`. **These figures are older than the code**: {share}. {entry['reason']}"


def number(value: float, digits: int = 2) -> str:
    """Rounded, and never a minus before zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if not float(text) else text


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def prose(*sentences: str) -> str:
    """A paragraph, wrapped."""
    return textwrap.fill(" ".join(sentences), width=140, break_long_words=False, break_on_hyphens=False)


def summary(results: Results) -> str:
    """README's first screen: what four recipes gain and lose."""
    spine = results.figures("spine.json")
    rows = [
        [
            name, f"{budget} points", f"{number(spine[f'{name}.drop_mean'])} points", f"{number(spine[f'{name}.static_drop_mean'])} points",
            number(spine[f"{name}.latency_over_float"]), f"{spine[f'{name}.kept_point']:.0f} of {spine[f'{name}.seeds']:.0f}",
        ]
        for name, budget in BUDGETS.items()
    ]  # fmt: skip
    head = (
        "network", "allowed loss", "measured loss", "loss of `quantize_static`", "time relative to float", "runs within the allowed loss",
    )  # fmt: skip
    explained = "Losses are means over split seeds, times are medians; details, machine and age of the figures are [below](#results)."
    return f"{table(head, rows)}\n\n{explained}"


def promises(results: Results) -> str:
    """README: the recipes over their split seeds, with the uniform plan and `quantize_static` beside them."""
    spine = results.figures("spine.json")
    rows = []
    for name, budget in BUDGETS.items():
        found = {key.removeprefix(f"{name}."): value for key, value in spine.items() if key.startswith(f"{name}.")}
        of = f"of {found['seeds']:.0f}"
        rows.append([
            f"{name}, {budget}", f"{number(found['drop_mean'])} ({number(found['drop_worst'])})", number(found["uniform_drop_mean"]),
            number(found["static_drop_mean"]), f"{found['kept_point']:.0f} {of}", f"{found['kept_sure']:.0f} {of}",
            number(found["latency_over_float"]), number(found["uniform_latency_over_float"]), number(found["latency_over_static"]),
            f"{found['dominated_by_uniform']:.0f} {of}",
        ])  # fmt: skip
    head = (
        "network, promise", "points lost, mean (worst)", "uniform int8 loses", "`quantize_static` loses",
        "within the promise (`kept_point`)", "sure at 95 % (`kept_sure`)", "time relative to float",
        "time of uniform int8 relative to float", "time relative to `quantize_static`", "uniform int8 is better",
    )  # fmt: skip
    seeds = " or ".join(NUMBERS[int(count)] for count in sorted({spine[f"{name}.seeds"] for name in BUDGETS}))
    return "\n\n".join([
        prose(f"{NUMBERS[len(rows)].capitalize()} image recipes, each over {seeds} split seeds (`python tools/bench.py`), on items that",
              "the search never used:"),
        table(head, rows),
        prose("*Within the promise*: the measured drop is at most the promise. *Sure at 95 %*: its one-sided 95 % bound is too, which is",
              "the verdict *kept* below; on the other seeds the verdict is *undecided* or *broken*.",
              "*Uniform int8 is better*: uniform w8a8 loses no more, in a time below this plan's interval.",
              "A drop below zero is chance of the items. Each time is a median over the seeds. Losses are estimated from margins",
              "([how](docs/explanation/promise.md)); counted, these plans lose",
              ", ".join(f"{number(spine[f'{name}.counted_drop_mean'])} ({name})" for name in BUDGETS) + "."),
        smallest(spine),
        prose(results.origin("spine.json"), "One thread, batch 1."),
    ])  # fmt: skip


def smallest(spine: Mapping[str, float]) -> str:
    """With `--minimize bytes`, and over how many seeds."""
    rows = []
    for name in BUDGETS:
        if f"{name}.bytes.seeds" in spine:
            seeds, size, time, drop = (
                spine[f"{name}.bytes.{key}"] for key in ("seeds", "bytes_over_static", "latency_over_static", "drop_mean")
            )
            share = f"{number(size)} of `quantize_static`'s bytes at {number(time)} of its time"
            rows.append(f"{name} takes {share} and loses {number(drop)} points ({seeds:.0f} split seed{'s' if seeds > 1 else ' only'})")
    return prose("With `--minimize bytes --max-drop 1.0`:", f"{'; '.join(rows)}.")


def transformers(results: Results) -> str:
    """README: MiniLM beside the one-line quantizers."""
    found, rows = results.figures("transformers.json"), []
    for label, what in TRANSFORMERS.items():
        mine = {key.removeprefix(f"{label}."): value for key, value in found.items() if key.startswith(f"{label}.")}
        if "drop" in mine:
            named = f"{what} ({mine['seeds']:.0f} seed{'s'[: mine['seeds'] > 1]})"
            rows.append([
                named, f"{number(mine['drop'])} ({number(mine['drop_worst'])})", number(mine["dynamic_drop"]), number(mine["static_drop"]),
                number(mine["latency_over_float"]), number(mine["latency_over_dynamic"]), number(mine["bytes_over_float"]),
                number(mine["bytes_over_dynamic"]),
            ])  # fmt: skip
    head = (
        "network, what is minimised, promise (split seeds)", "points lost, mean (worst)",
        "`quantize_dynamic` loses", "`quantize_static` loses",
        "time relative to float", "time relative to `quantize_dynamic`", "bytes relative to float", "bytes relative to `quantize_dynamic`",
    )  # fmt: skip
    plain = results.figures("transformers-avx2.json")
    told = [_zoo(found), results.origin("transformers.json"), "One thread, batch 1."]
    without = [_without_vnni(plain), _decoder(plain), results.origin("transformers-avx2.json")]
    return "\n\n".join([table(head, rows), prose(*filter(None, told)), prose(*filter(None, without))])


def _without_vnni(found: Mapping[str, float]) -> str:
    rows = []
    for label, what in TRANSFORMERS.items():
        if f"{label}.drop" in found:
            seeds, drop, time, rival, lost = (
                found[f"{label}.{key}"] for key in ("seeds", "drop", "latency_over_float", "latency_over_dynamic", "dynamic_drop")
            )
            rows.append(
                f"{what} ({seeds:.0f} seed{'s'[: seeds > 1]}): {number(drop)} points lost at {number(time)} of float's time, "
                f"{number(rival)} of `quantize_dynamic`'s, which loses {number(lost)}"
            )
    return f"On a processor without VNNI: {'; '.join(rows)}." if rows else ""


def _decoder(found: Mapping[str, float]) -> str:
    mine = {key.removeprefix("stories260k."): value for key, value in found.items() if key.startswith("stories260k.")}
    if not mine:
        return ""
    rise, bits = number(mine["perplexity_rise_percent"]), number(mine["average_weight_bits"])
    speed, size = number(mine["tokens_per_s_over_float"]), number(mine["decoder_bytes_over_float"])
    return (
        "A decoder, `recipes/stories260k.py` (weights alone quantized, at most 5 bits on average): the perplexity of "
        f"{number(mine['perplexity'])} rises by {rise} % on stories that the search never saw, at {bits} bits a weight. With its key/value "
        f"cache it gives {mine['tokens_per_s']:,.0f} tokens a second, {speed} times the float decoder's, in {size} of its bytes."
    )


def _zoo(found: Mapping[str, float]) -> str:
    if "zoo.served" not in found:
        return ""
    exact = [value for key, value in found.items() if key.startswith("zoo.") and key.endswith(".layers_exact")]
    all_exact, served, named = sum(value == 1 for value in exact), f"{found['zoo.served']:.0f}", f"{found['zoo.named']:.0f}"
    return (
        f"Of {named} architectures in small, with random weights (`tests/transformer_zoo.py`), {served} are allocated and run as planned, "
        f"and in {all_exact} every quantized layer has the bits of the simulation."
    )


def items(results: Results) -> str:
    """What a verdict from margins needs, and how often it is wrong."""
    found = results.figures("items.json")
    shares = {
        word: f"in {100 * found[f'false_{word}_mean']:.1f} % of cases (at most {100 * found[f'false_{word}_max']:.1f} %)"
        for word in ("kept", "broken")
    }
    needed, most = number(found["needed_over_before"]), number(found["needed_over_before_max"])
    undecided, doubted = found.get("undecided", 0), found["real_doubted"]
    contradicted = f", save for {doubted:.0f} of the plans, where the two contradict each other and the count is taken" if doubted else ""
    neither = f"; for {undecided:.0f} plan{'s'[: undecided != 1]} neither is sure with the most that were tried" if undecided else ""
    return prose(
        f"On outputs of {found['plans']:.0f} plans of {found['networks']:.0f} real networks (`python tools/bench_items.py`) it is as sure",
        f"with {needed} of the items that counting needs (median; {most} at most{neither}). Where the true drop equals the budget,",
        f"{found['items']:.0f} items call it kept {shares['kept']} and broken {shares['broken']}; 5 % are promised. On the real labels",
        f"the estimate lies at most {number(found['real_deviations_max'], 1)} standard errors from the count{contradicted}.",
        *more_items(found),
        results.origin("items.json"),
    )


def more_items(found: Mapping[str, float]) -> list[str]:
    """What was tried and is not there, as it gains nothing."""
    if "unlabelled_median" not in found:
        return []
    return [
        f"**Tried, and not built**: four times as many unlabelled items as a control variate leave {number(found['unlabelled_median'])} of",
        f"the variance (median; {number(found['unlabelled_min'])} at best), since margins already say what such items could; calibration",
        f"items by cross-fitting, which takes twice the work, would leave a search {number(found['cross_fitting_median'])} of its doubt",
        f"({number(found['cross_fitting_min'])} at best), as most of that is the gate's own.",
    ]


TRANSFORMERS = {
    "minilm_sst2": "MiniLM-L6 on SST-2, time, 0.5 points",
    "minilm_sst2.bytes": "MiniLM-L6 on SST-2, bytes, 1.0 point",
    "minilm_stsb": "MiniLM-L6 on STS-b, time, 0.5 points of Spearman's correlation",
}


def openvino(results: Results) -> str:
    """The table of plans made for OpenVINO."""
    found, rows = results.figures("targets.json"), []
    for name in ("resnet44", "mobilenet_v2", "squeezenet1_1"):
        mine = {key.removeprefix(f"openvino.{name}."): value for key, value in found.items() if key.startswith(f"openvino.{name}.")}
        time, beside = mine["latency_over_float32"], mine["latency_over_nncf"]
        rows.append([
            f"{name}, {BUDGETS[name]}", f"{number(time)} ({number(mine['drop'])})",
            f"{number(time / beside)} ({number(mine['drop_nncf'])})",
            number(time / mine["latency_over_uniform"]), number(beside), number(mine["bytes_over_nncf"]),
        ])  # fmt: skip
    head = ("network, promise", "of float32's time", "NNCF's `quantize`", "our uniform w8a8", "time over NNCF's", "bytes over NNCF's")
    return f"{table(head, rows)}\n\n{prose(results.origin('targets.json'))}"


def openvino_amx(results: Results) -> str:
    """ResNet44 in OpenVINO where the processor has bfloat16."""
    found = {key.removeprefix("openvino.resnet44."): value for key, value in results.figures("targets-vnni.json").items()}
    time = found["latency_over_float32"]
    nncf, uniform, bf16 = (number(time / found[f"latency_over_{key}"]) for key in ("nncf", "uniform", "bf16"))
    return prose(
        "On a processor with AMX (`--networks resnet44`, cores shared with other jobs) ResNet44 takes",
        f"{number(time)} of float32's time and loses {number(found['drop'])} points; NNCF's file takes {nncf} and loses",
        f"{number(found['drop_nncf'])}; our uniform plan takes {uniform}, bfloat16 {bf16}. The plan's file has",
        f"{number(found['bytes_over_float32'])} of float32's bytes. The other two networks were not measured there.",
        results.origin("targets-vnni.json"),
    )


def stored_narrow(results: Results) -> str:
    """README: what narrow weights save."""
    found = results.figures("targets.json")
    slowest = max(found[f"{width}.latency_over_w8"] for width in ("w4", "w2"))
    four, two = (number(found[f"{width}.payload_over_w8"]) for width in ("w4", "w2"))
    return prose(
        f"On ResNet44 4-bit codes and scales take {four} of the bytes of 8-bit ones, 2-bit ones {two}, at most {number(slowest)} of the",
        "time ([figures](docs/results/index.md#stored-narrow)).",
    )


def forms(results: Results) -> str:
    """docs/targets/ort-cpu.md: what narrow weights take in the file and while a session loads."""
    found, names = results.figures("targets.json"), {"resnet44": "ResNet44", "mobilenet_v2": "MobileNetV2"}
    schemes = ("w8a8", "w5a8", "c5a8", "w4g16a8", "w4a8", "c4a8", "w2a8")
    head = [f"{title}, {what}" for title in names.values() for what in ("bytes", "MB while loading")]
    rows = [
        [f"`{scheme}`", *(text for name in names for text in (
            number(found.get(f"{name}.{scheme}.file_over_w8a8", 1.0)), number(found[f"{name}.{scheme}.load_peak_mb"], 0),
        ))]
        for scheme in schemes
    ]  # fmt: skip
    return "\n\n".join([table(["scheme", *head], rows), prose(results.origin("targets.json"))])


def blocks(results: Results) -> str:
    """docs/targets/ort-cpu.md: one product under each way to quantize it."""
    found, named = results.figures("transformers.json"), re.compile(r"blocks\.(\w+)\.latency_over_float_(\d+)")
    keys = [match for match in map(named.fullmatch, found) if match]
    schemes, rows = dict.fromkeys(key[1] for key in keys), dict.fromkeys(key[2] for key in keys)
    cells = [
        [f"`{scheme}`", *(number(found[f"blocks.{scheme}.latency_over_float_{count}"]) for count in rows),
         number(found[f"blocks.{scheme}.bytes_over_float"])]
        for scheme in schemes
    ]  # fmt: skip
    head = ["scheme", *(f"time, {count} row{'s'[: count != '1']}" for count in rows), "bytes"]
    about = "A matrix of 2,048 × 2,048, one thread (`python tools/bench_transformers.py --parts blocks`)."
    return "\n\n".join([table(head, cells), prose(about, results.origin("transformers.json"))])


def accuracy(results: Results) -> str:
    """README: points that uniform plans lose, each layer rounded by itself and in sequence."""
    found = results.figures("accuracy.json")
    names = {"resnet20": "ResNet20", "resnet44": "ResNet44", "squeezenet1_1": "SqueezeNet", "mobilenet_v2": "MobileNetV2"}
    schemes = ("w8a8", "w6a8", "w4a8", "c4a8", "w3a8", "c2a8")
    rows = [
        [title, *(f"{number(found[f'{name}.{s}.apart.drop'])} → {number(found[f'{name}.{s}.drop'])}" for s in schemes)]
        for name, title in names.items()
    ]
    text = prose(
        f"Points lost by uniform plans, each layer by itself → in sequence (means of {NUMBERS[int(found['seeds'])]} split seeds, "
        "[figures](docs/results/index.md#what-each-bit-width-holds)):",
    )
    best = ", ".join(f"{number(found[f'{name}.w4a8.best.drop'])} on {title}" for name, title in names.items())
    behind = prose(f"At `w4a8` AdaRound in sequence (`--effort best` tries it for the plan that ships) loses {best}.")
    return f"{text}\n\n{table(['', *schemes], rows)}\n\n{behind}"


def nbit(results: Results) -> str:
    """The page of target nbit: points that uniform plans with 4-bit activations lose."""
    found = results.figures("accuracy.json")
    names = {"resnet20": "ResNet20", "squeezenet1_1": "SqueezeNet"}
    ways = {"apart": ".apart", "in sequence": "", "in sequence, by AdaRound": ".best"}
    rows = [
        [f"{title}, {scheme}", *(number(found[key]) if (key := f"{name}.{scheme}{way}.drop") in found else "" for way in ways.values())]
        for name, title in names.items()
        for scheme in ("w8a4", "w4a4")
    ]
    text = prose(
        f"Points lost by uniform plans, first and last layer among them (means of {NUMBERS[int(found['seeds'])]} split seeds, "
        "`python tools/bench_accuracy.py --targets nbit`):"
    )
    return f"{text}\n\n{table(['', *ways], rows)}"


def data_free(results: Results) -> str:
    """How-to: what a promise without data is worth."""
    found = results.figures("data-free.json")
    share, sure = (number(100 * found[key], 0) for key in ("kept_share", "sure_share"))
    return prose(
        "Measured (`python tools/bench_data_free.py`): ResNet44 in w8a8 with ranges and rounding from distilled items loses",
        f"{number(found['resnet44.w8a8.drop'])} points of real top-1 ({NUMBERS[int(found['seeds'])]} seeds).",
        f"Of {found['promises']} promises of 1 to 8 points of agreement for ResNet20, for bytes, {share} %",
        f"lost no more real points than that, and {sure} % of the {found['called_kept']} that were called kept; the median lost",
        f"{number(found['lost_over_budget'])} of its budget, the worst {number(found['lost_over_budget_most'])}.",
    )


def claim(results: Results) -> str:
    """The claim of the founding paper, network by network."""
    found, rows = results.figures("sensitivity.json"), []
    for name in ("squeezenet1_1", "mobilenet_v2", "resnet20", "resnet44", "minilm_sst2"):
        key = f"{name}.hypervolume.augmented_over_hessian"
        rows.append([name, interval(found, f"{key}.pareto"), interval(found, f"{key}.bisection"), sense(found, f"{key}.pareto")])
    return table(("network", "optimum of the table", "way down of the ordering", "so"), rows)


def interval(found: Mapping[str, float], key: str) -> str:
    return f"{number(found[key], 3)} ({number(found[f'{key}.low'], 3)} to {number(found[f'{key}.high'], 3)})"


def sense(found: Mapping[str, float], key: str) -> str:
    """What the interval of a ratio says."""
    if found[f"{key}.low"] > 1:
        return "better"
    return "worse" if found[f"{key}.high"] < 1 else "no difference shown"


def default(results: Results) -> str:
    """How the default does on networks that did not choose it."""
    found = results.figures("sensitivity.json")
    shares = {key.split(".")[0]: value for key, value in found.items() if key.endswith("hypervolume.default_over_best_single")}
    listed = [f"{number(value, 3)} ({name})" for name, value in sorted(shares.items(), key=lambda item: -item[1])]
    return prose(
        f"On the gate split of the network left out it reached {', '.join(listed[:-1])} and {listed[-1]} of that network's best method."
    )


def costs(results: Results) -> str:
    """What estimators and solvers cost."""
    seconds = results.figures("sensitivity.json")
    twenty, fortyfour = (f"{seconds[f'{name}.seconds.pairs_over_interactions']:.0f}" for name in ("resnet20", "resnet44"))
    found = {key.split(".")[-1]: value for key, value in results.figures("costs.json").items()}
    return "\n\n".join([
        prose("In the runs of the experiment, by processor seconds: all pairs of interactions by the Gram matrix cost",
              f"{interval(seconds, 'mobilenet_v2.seconds.interactions_over_isolated')} of `kl`'s isolated scores on MobileNetV2; measured",
              f"pairs cost {twenty} times the Gram matrix on ResNet20 and {fortyfour} times on ResNet44 (one seed), and grow with the",
              "square of the groups."),
        prose("`python tools/bench_costs.py` ([figures](index.md#what-estimators-and-solvers-cost)): on ResNet44, one batch of 16,",
              f"PyHessian's total trace costs {number(found['pyhessian_over_hessian'])} times ours at equal standard error (1.2 was the",
              "goal), ours yielding every layer's as well, and",
              f"{number(found['pyhessian_over_gauss_newton'])} times `gauss_newton`'s (3 was the goal); the order of layers by",
              f"`gauss_newton` has a rank correlation of {number(found['gauss_newton_rank_correlation'])} with PyHessian's own traces,",
              "layer by layer. A plan of 500 groups × 5 schemes under",
              f"interactions took at most {number(found['seconds'])} seconds (2 was the goal), with a gap",
              f"of at most {number(found['gap'])} to the proven bound. The Gram matrix of MobileNetV2 takes",
              f"{number(found['gram_256_minutes'], 1)} minutes for 256 images, scaled from {found['gram_items']:.0f}, and",
              f"{number(found['gram_peak_gb'], 1)} GB.", results.origin("costs.json")),
    ])  # fmt: skip


CERTIFIED = {name: name for name in ("squeezenet1_1", "mobilenet_v2", "minilm_sst2", "resnet44")} | {
    "resnet44.augmented": "resnet44, `augmented`"
}


def certificates(results: Results) -> str:
    """What the certificates of four networks say."""
    found, rows = results.figures("certificates.json"), []
    for name, label in CERTIFIED.items():
        rows.append([label, *(number(found[f"{name}.certificate.{key}"]) for key in ("fitted_spearman", "fitted_r2", "band"))])
    return "\n\n".join([
        "With `kl` and `--minimize bytes` ([figures](results/index.md#what-predictions-are-worth)):",
        table(("network", "rank correlation", "R²", "band"), rows),
        prose(results.origin("certificates.json")),
    ])  # fmt: skip


def timing(results: Results) -> str:
    """How plans that nobody timed are predicted, and whether claims of time hold."""
    found = results.figures("timing.json")
    names = [key.removesuffix(".median_error_percent") for key in found if key.endswith(".median_error_percent")]
    rows = [
        [
            name, f"{found[f'{name}.plans']:.0f}", number(found[f"{name}.median_error_percent"], 1),
            number(found[f"{name}.rank_correlation"]), f"{found[f'{name}.table_seconds']:.0f}",
        ]
        for name in names
    ]  # fmt: skip
    told = []
    if "repeatability.claims" in found:
        claims, held = found["repeatability.claims"], found["repeatability.held"]
        told.append(
            f"Of {claims:.0f} comparisons of two files, each in a process of its own, {held:.0f} have the median of the others within "
            "their interval."
        )
    if "budgets.budgets" in found:
        told.append(
            f"Of {found['budgets.budgets']:.0f} bounds on latency that were asked for, {found['budgets.met']:.0f} were kept by the file "
            f"when it was timed once more, {found['budgets.met_by_point']:.0f} of them by the point, the others by the interval."
        )
    over = {key.split(".")[0]: value for key, value in found.items() if key.endswith(".over_bops_plan")}
    if over:
        ratios = ", ".join(f"{number(value)} ({name})" for name, value in over.items())
        told.append(f"Under one promise, the plan by time takes {ratios} of the time of the plan by bit operations.")
    return "\n\n".join([
        "Plans that the table never saw, one thread, batch 1 (`python tools/bench_latency.py`, [figures](results/index.md#latency)):",
        table(("network", "plans", "median error, %", "rank correlation", "seconds for the table"), rows),
        prose(*told, results.origin("timing.json")),
    ])  # fmt: skip


def outgrowing(results: Results) -> str:
    """Hours and memory of networks that nobody ran here, from those of one that was."""
    found = results.figures("transformers.json")
    return "\n\n".join([
        table(on_paper.head(found), on_paper.rows(found)),
        prose(f"The first row is measured ({found[f'{on_paper.MEASURED}.peak_gb']:.1f} GB). {results.origin('transformers.json')}"),
    ])  # fmt: skip


def streamed(results: Results) -> str:
    """What a decoder of 1.5 billion weights took, block by block."""
    found = {key.removeprefix("llama_1_5b."): value for key, value in results.figures("large.json").items()}
    ran = "every matrix ran as planned" if found["as_planned"] and found["opens"] else "not every matrix ran as planned"
    return prose(
        f"A Llama of {found['weights'] / 1e9:.2f} billion random weights (`python tools/bench_streamed.py`) took",
        f"{found['peak_gb']:.1f} GB at most and {found['seconds'] / 60:.0f} minutes,",
        f"{found['seconds_blocks'] / 60:.0f} of them for the blocks and {found['seconds_outline'] / 60:.0f} for torch's exporter.",
        f"{found['groups_8_bits']:.0f} groups got 8 bits and",
        f"{found['groups_4_bits']:.0f} got 4: {number(found['average_weight_bits'])} bits a weight.",
        f"The file takes {found['file_gb']:.2f} GB, {number(found['bytes_over_float32'])} of float32's; ONNX Runtime opens it, and {ran}.",
        results.origin("large.json"),
    )


def gates(results: Results) -> str:
    """How often a simulated gate is wrong."""
    found = results.figures("gate.json")
    kept, broken = (number(100 * found[f"false_{answer}_rate"], 1) for answer in ("kept", "broken"))
    return prose(
        f"Simulated with known truth, {found['gates_each']:,} gates of {found['items']} items each: at a true drop of exactly the budget",
        f"at most {kept} % of gates answer *kept* and at most {broken} % *broken*, whichever the budget (0.5, 1 or 2 points) and",
        "however many items flip both ways ([figures](results/index.md#the-gate)).",
    )


BLOCKS: dict[str, Callable[[Results], str]] = {
    "items": items, "forms": forms, "blocks": blocks, "accuracy": accuracy, "nbit": nbit, "data_free": data_free,
    "summary": summary,
    "promises": promises, "transformers": transformers, "stored-narrow": stored_narrow,
    "openvino": openvino, "openvino-amx": openvino_amx, "claim": claim,
    "default": default, "costs": costs, "certificates": certificates, "gates": gates, "timing": timing,
    "outgrowing": outgrowing, "streamed": streamed,
}  # fmt: skip


def pages() -> list[Path]:
    """Every page with a mark."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in every if MARK.search(path.read_text())]


def filled(text: str, results: Results) -> str:
    """The text with what is written between its marks. Raises KeyError for a mark or a figure that there is not."""

    def write(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- figures: {name} -->\n{BLOCKS[name](results)}\n<!-- end of figures: {name} -->"

    return MARK.sub(write, text)


def differing(results: Results) -> dict[Path, str]:
    """The pages that are not what would be written, with what would be."""
    written = {path: filled(path.read_text(), results) for path in pages()}
    return {path: text for path, text in written.items() if path.read_text() != text}


def main() -> int:
    """Write or check the pages."""
    wrong = differing(Results(RESULTS))
    if "--check" in sys.argv[1:]:
        for path in wrong:
            print(f"{path.relative_to(ROOT)} is not what its figures say: run python tools/page_figures.py")
        return int(bool(wrong))
    for path, text in wrong.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
