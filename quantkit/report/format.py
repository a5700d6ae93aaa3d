"""Verdicts and numbers in words, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.core.spec import FLOAT, Scheme
from quantkit.runs.outcome import ALTERNATIVE, Refused
from quantkit.settings.bounds import show_amount, show_drop, show_interval

RESOURCES = {"latency": "time", "bops": "bit operations", "average_bits": "bits a weight"}
NAMED = 8  # names told in full before "and N more"

INTERACTING = 0.1  # of the predicted variance: where sums over layers miss more, the certificate says so


def verdict_line(result: Mapping[str, Any]) -> str:
    """One sentence: kept or not, what was lost of what may be, how sure that is."""
    budget, verdict = result["budget"], result["verdict"]
    unit, decision = budget["unit"], verdict["decision"]
    told = "Kept" if result["kept"] else "Not kept"
    sure = {
        "kept": "sure at 95 %",
        "broken": "sure at 95 %",
        "undecided": "though these items are too few to be sure" if result["kept"] else "or not proven to be, on these items",
    }[decision]
    of = "" if budget["metric"] in unit.lower() else f" of {budget['metric']}"
    lost = f"{show_drop(verdict['drop'])} {unit}{of} lost, at most {budget['max_drop']:.2f} allowed"
    items = "items distilled from the network, as no data was given" if result.get("distilled") else "items that the search never saw"
    interval = f"{interval_words(verdict)}, on {verdict['n']} {items}"
    over = [f"{row['name'].replace('_', ' ')} {bound_words(row)}" for row in result.get("bounds", ()) if not row["kept"]]
    if over:
        return f"Not kept: {', '.join(over)}; {lost} ({interval})."
    gained = result.get("gained", False)  # False: a result of an older version, which does not say
    if gained:
        told += f" at {gained['ratio']:.2f} of float's {RESOURCES.get(gained['resource'], gained['resource'])}"
    elif gained is None and result["kept"]:
        told += ", but nothing is gained: " + _nothing(result)
        return f"{told} {lost} ({interval})."
    return f"{told}, {sure}: {lost} ({interval})."


def interval_words(verdict: Mapping[str, Any]) -> str:
    """Where the drop lies at 95 %, and the counted drop where the drop is an estimate."""
    return show_interval(verdict["low"], verdict["high"], verdict.get("counted_drop"))


def _nothing(result: Mapping[str, Any]) -> str:
    """What ships in place of a gain, and what was refused."""
    if any(row["scheme"] != FLOAT for row in result["allocation"]):
        return "the plan takes no less than the float network."
    if not result["refused"]:
        return "no plan that keeps the promise takes less than the float network, which ships."
    first, *others = result["refused"]
    also = ", ".join(f"{row['name']} ({row['ratio']:.2f}, {show_drop(row['drop'])} lost)" for row in others)
    beside = f" It lies beside, {ALTERNATIVE}." if first["name"] == Path(ALTERNATIVE).stem else ""
    return f"the float network ships, although {Refused(**first).words()}.{beside}{f' Within the budget too: {also}.' if also else ''}"


def bound_words(row: Mapping[str, Any]) -> str:
    """What is used of a bound."""
    return f"{show_amount(row['name'], row['used'])} of at most {show_amount(row['name'], row['at_most'])}"


def comparison_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The float file, the baselines and this plan, in the form of the baselines of `result.json`; this plan is the last."""
    latency, size, verdict = result["latency"], result["bytes"], result["verdict"]
    floats = {"name": "float", "drop": 0.0, "latency_ratio": 1.0 if latency else None, "bytes_ratio": 1.0}
    mine = {"name": "this plan", "drop": verdict["drop"], "latency_ratio": latency and latency["ratio"], "bytes_ratio": size["ratio"]}
    return [floats, *(dict(row) for row in result["baselines"] if row["name"] != "float"), mine]


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def counted(schemes: Sequence[Scheme]) -> str:
    """How often each scheme occurs: 3×fp32 60×w8a8."""
    return " ".join(f"{schemes.count(scheme)}×{scheme}" for scheme in sorted(set(schemes)))


def signed(name: str, value: float) -> str:
    """A change of a resource as a person writes it: +1.20 kB, -0.0312 ms."""
    if name == "latency":
        return f"{value:+.3g} ms"
    return ("-" if value < 0 else "+") + show_amount(name, abs(value))


def number(value: Any) -> str:
    """A JSON value as it is shown: four digits that count, and whole numbers in full; text as it is."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value of a JSON document with its path: `verdict.drop`, `allocation[3].bytes`; an empty list or object is one too."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from leaves(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for place, entry in enumerate(value):
            yield from leaves(entry, f"{path}[{place}]")
    else:
        yield path, value


def certificate_line(certificate: Mapping[str, Any], unit: str) -> str:
    """How well predictions agree with measurements."""
    fitted, additive, prior = (certificate[name] for name in ("fitted", "additive", "prior"))
    tested = f"{certificate['plans']} plans of nearly this cost that were held out of its fit"
    if fitted["spearman"] is None:
        return f"Predictions: {tested} do not differ, so the predictions cannot be assessed."
    ranks = f"rank correlation {fitted['spearman']:.2f}, R² {fitted['r2']:.2f}"
    share = certificate["beyond_additive"]  # None: the sensitivity measures no interactions
    rows = ([] if fitted == additive else [("fitted without interactions", additive)]) + [("as estimated", prior)]
    others = [f"{name} {row['spearman']:.2f}" for name, row in rows if row["spearman"] is not None]
    beyond = "" if share is None else f"; {100 * share:.0f} % of the predicted variance is not additive over layers"
    if share is not None and share >= INTERACTING and fitted == additive:
        beyond += ", which predictions by sums miss: `--sensitivity augmented` has pairs"
    away = "" if certificate["is_within_band"] else f", outside the band of a factor {certificate['band']:.2f}"
    own = f"this plan's divergence {certificate['predicted']:.3g} predicted, {certificate['measured']:.3g} measured{away}"
    drops = f"its drop {certificate['predicted_drop']:.2f} {unit} predicted, {certificate['measured_drop']:.2f} measured"
    return f"Predictions: {ranks} on {tested} ({', '.join(others)}){beyond}. {own[0].upper()}{own[1:]}; {drops}."
