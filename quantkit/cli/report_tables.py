"""Terminal output of `explain` and `diff`: one layer explained, two plans compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from quantkit.cli.console import Printed
from quantkit.report.format import named, number, signed
from quantkit.settings.bounds import show_amount

COSTS = ("latency", "bytes", "bops", "average_bits")


def show_explanation(found: Mapping[str, Any]) -> None:
    """One layer: its scheme and group, the scores and effect of each scheme, what was measured, and where its error propagates."""
    console = Printed()

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, markup=False, soft_wrap=True)

    if found["group"] is None:
        say(f"{found['layer']} ({found['kind']}): {found['reason']}", "bold")
        _show_flow(found, say)
        return
    say(f"{found['layer']} ({found['kind']}) is {found['scheme']}{' in the picked plan' if found['picked'] else ''}", "bold")
    others = [name for name in found["layers"] if name != found["layer"]]
    together = f", with {named(others)}" if others else ""
    say(f"Its group is {found['group']}{together}: {found['reason']}. {found['weights']:,} weights, {found['macs']:,} MACs.")
    say(f"\nEach scheme, and the effect of changing the plan to it (loss in {found['loss_unit']}, drop in {found['unit']})")
    table = Table("", "scheme", box=None)
    for heading in ("score", "alone", "plan's loss", *(name.replace("_", " ") for name in COSTS), "plan's drop"):
        table.add_column(heading, justify="right")
    for row in found["schemes"]:
        change = (
            [signed(name, row["change"][name]) for name in COSTS] if not row["chosen"] else [show_amount(n, row["costs"][n]) for n in COSTS]
        )
        loss = "" if row["chosen"] else f"{row['change']['loss']:+.3g}"
        drop = "" if row["drop"] is None else f"{row['drop']:.2f} {row['drop_is']}"
        table.add_row(
            "→" if row["chosen"] else "",
            row["scheme"],
            number(row["score"]),
            number(row["own_loss"]),
            loss,
            *change,
            drop,
            style="bold" if row["chosen"] else "",
        )
    console.print(table)
    for row in found["schemes"]:
        say(f"  {row['scheme']}: {row['why']}")
    for why in dict.fromkeys(found["not_offered"].values()):
        say(f"  {named([scheme for scheme, said in found['not_offered'].items() if said == why])}: {why}")
    _show_tried(found, say)
    _show_interactions(found, say)
    _show_flow(found, say)
    for line in found["mismatches"]:
        say(f"Not run as planned: {line}")


def show_comparison(found: Mapping[str, Any]) -> None:
    """Two plans: what is not comparable, which groups changed and the effect of each change, what was measured, how the requests differ."""
    console = Printed()
    told = f"{len(found['groups'])} groups changed, {found['same']} are the same"
    console.print(f"{found['one']} → {found['other']}: {told}", style="bold", markup=False, soft_wrap=True)
    for caution in found["cautions"]:
        console.print(caution, style="yellow", markup=False, soft_wrap=True)
    for key, where in (("only_one", "before"), ("only_other", "after")):
        if found[key]:
            console.print(f"only {where}: {named(found[key])}", markup=False, soft_wrap=True)
    if found["groups"]:
        console.print(_changes(found["groups"]))
    for key, title in (("predicted", "Predicted"), ("measured", "Measured on the files")):
        if found[key]:
            table = Table("", title=f"\n{title}", box=None, title_justify="left")
            for heading in ("before", "after", "change"):
                table.add_column(heading, justify="right")
            for row in found[key]:
                change = "" if row["change"] is None else f"{row['change']:+.4g}"
                table.add_row(row["name"], number(row["before"]), number(row["after"]), change)
            console.print(table)
    if found["asked"]:
        table = Table("", "before", "after", title="\nDifferences in request and environment", box=None, title_justify="left")
        for row in found["asked"]:
            table.add_row(row["name"], str(row["before"])[:40], str(row["after"])[:40])
        console.print(table)


def _changes(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("group", "before", "after", title="\nPredicted effect of each change alone", box=None, title_justify="left")
    for heading in ("loss", *(name.replace("_", " ") for name in COSTS)):
        table.add_column(heading, justify="right")
    for row in groups:
        effect = row["effect"]
        told = ["" for _ in range(5)] if effect is None else [f"{effect['loss']:+.3g}", *(signed(name, effect[name]) for name in COSTS)]
        table.add_row(row["group"], row["before"], row["after"], *told)
    return table


def _show_tried(found: Mapping[str, Any], say: Any) -> None:
    if not found["tried"]:
        say("\nNo plan was measured.")
        return
    say("\nPlans measured on the search split, by the scheme of this group")
    unit = found["unit"]
    for row in found["tried"]:
        least = f"least drop {row['best_drop']:.2f} {unit}, least divergence {row['best_divergence']:.3g}"
        say(f"  {row['scheme']}: {row['plans']} plans, {least}")
    for row in found["alone"]:
        say(f"  {row['before']} → {row['after']} with all else equal: drop {row['drop']:+.2f}, divergence {row['divergence']:+.3g}")


def _show_interactions(found: Mapping[str, Any], say: Any) -> None:
    whole = found["plan_loss"]
    parts = f"{found['own_loss']:.3g} alone, {found['shared_loss']:+.3g} shared"
    say(f"\nIts part in the plan's predicted loss of {whole:.3g} {found['loss_unit']}: {parts}")
    if found["partners"] is None:
        say("  This sensitivity estimates no interactions; --sensitivity augmented does.")
    for row in found["partners"] or ():
        does = "adds up" if row["loss"] > 0 else "cancels"
        say(f"  {does} with {row['group']} ({row['scheme']}): {row['loss']:+.3g}, correlation {row['correlation']:+.2f}")


def _show_flow(found: Mapping[str, Any], say: Any) -> None:
    say("\nIts output is read by")
    for row in found["readers"]:
        scheme = f", {row['scheme']}" if row["scheme"] else ""
        say(f"  {row['name']} ({row['kind']}{scheme}){': precision changes on the way' if row['converts'] else ''}")
    if found["joins"]:
        say(f"  and joins other branches in {', '.join(found['joins'])}")
    say(f"  {found['layers_behind']} layers follow it")
