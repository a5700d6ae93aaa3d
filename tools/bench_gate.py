"""Measure the goals of the deployment gate and write docs/results/gate.json. Nothing here passes or fails.

    python tools/bench_gate.py                          # all parts
    python tools/bench_gate.py --parts decisions pick   # some of them: decisions, kills, pick, file

Each part keeps what it has in --work, so that a bench that was stopped goes on where it was. `kills` and `decisions` do not care who else
works on the machine; `pick` and `file` want it quiet. `file` needs the data and weights that recipes name (QUANTKIT_DATA).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GATES, ITEMS = 2000, 400
BUDGETS = (0.5, 1.0, 2.0)  # points
GAINS = (0.0, 0.004, 0.02)  # the chance that an item is right only when quantized
DROPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # true drops, as shares of the budget
KILLS = 50
IN_POINTS = 100.0


def decisions(_: Path) -> dict[str, Any]:
    """How gates of known truth decide: each item is lost with one chance and gained with another, so that the drop is their difference.

    Judged as `quantkit gate` judges top-1; gates with equal counts are judged once, as which items flip does not matter.
    """
    from collections import Counter

    import numpy as np

    from quantkit.core.metrics import METRICS
    from quantkit.core.statistics import decide
    from quantkit.gating.findings import judge_drop

    def judged(losses: int, gains: int, budget: float) -> str:
        one, other = np.full(ITEMS, IN_POINTS), np.full(ITEMS, IN_POINTS)
        other[:losses], one[losses : losses + gains] = 0, 0
        verdict = decide(
            float_score=lambda index: float(one[index].mean()), quantized_score=lambda index: float(other[index].mean()), n=ITEMS,
            budget=budget, higher_is_better=True, per_item=(one, other), resamples=50,
        )  # fmt: skip
        return judge_drop(verdict, budget, METRICS["top1"], "point").decision

    rows, known = [], {}
    for place, (budget, gain, share) in enumerate((b, g, s) for b in BUDGETS for g in GAINS for s in DROPS):
        loss = gain + share * budget / IN_POINTS
        drawn = np.random.default_rng(place).multinomial(ITEMS, [loss, gain, 1 - loss - gain], size=GATES)
        seen: Counter[str] = Counter()
        for (losses, gains), count in Counter((int(row[0]), int(row[1])) for row in drawn).items():
            key = (losses, gains, budget)
            known[key] = known.get(key) or judged(*key)
            seen[known[key]] += count
        rows.append({"budget": budget, "gain": gain, "drop_over_budget": share, **{name: seen[name] / GATES for name in ANSWERS}})
    at_budget = [row for row in rows if row["drop_over_budget"] == 1.0]
    undecided = {f"{share:g}": sum(r["undecided"] for r in rows if r["drop_over_budget"] == share) / len(at_budget) for share in DROPS}
    return {
        "false_kept_rate": max(row["kept"] for row in at_budget), "false_broken_rate": max(row["broken"] for row in at_budget),
        "undecided_by_drop_over_budget": undecided, "gates_each": GATES, "items": ITEMS, "rows": rows,
    }  # fmt: skip


ANSWERS = ("kept", "broken", "undecided")


def make_network(folder: Path) -> None:
    """The demo's trained network and its items, once, in a process of its own: what trains must not fork."""
    import torch

    from quantkit.cli import demo
    from quantkit.core.progress import Silent

    recipe = demo.build(Silent())
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(recipe.model.state_dict(), folder / "digits.pt")
    items = {}
    for name in ("calibration", "search", "gate"):
        part = getattr(recipe.data, name)
        batch = next(part.batches(len(part)))
        items[name] = [batch.inputs["x"], batch.labels]
    torch.save(items, folder / "items.pt")


def kills(work: Path, points: int = KILLS) -> dict[str, Any]:
    """`kill -9` at moments spread over an allocation of the demo's network, each resumed to its end, with the latency table given."""
    folder = work / "kills"
    if not (folder / "items.pt").exists():
        subprocess.run([sys.executable, __file__, "--make-network", str(folder)], check=True)
    allocate = allocator(folder)
    whole = folder / "undisturbed"
    if not (whole / "result.json").exists():
        finish(fork(allocate, whole))
    if not (folder / "seconds").exists():  # how long it takes with the latency table given
        again = given(whole, folder / "timed")
        used = finish(fork(allocate, again))
        (folder / "seconds").write_text(str(used))
        assert outcome(again) == outcome(whole), "not even an undisturbed run repeats itself"
    seconds, expected = float((folder / "seconds").read_text()), outcome(whole)
    journal = folder / "kills.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    for place in range(len(rows), points):
        at = (place + 0.5) / points * seconds
        while True:
            run = given(whole, folder / f"run-{place}")
            child = fork(allocate, run)
            while processor_seconds(child) < at:
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and not finished(run):
                break
            at *= 0.97  # it had come to its end
        stages, candidates, torn = left(run)
        finish(fork(allocate, run))
        row = {
            "at": round(at / seconds, 3), "stages": stages, "candidates": candidates, "torn_files": torn,
            "same": outcome(run) == expected, "clean": not left(run)[2],
        }  # fmt: skip
        rows.append(row)
        with journal.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shutil.rmtree(run)
        print(f"kill {place}: {row}", file=sys.stderr, flush=True)
    return {
        "kill_points_resumed": sum(row["same"] for row in rows), "kill_points": len(rows),
        "left_nothing_torn": sum(row["clean"] for row in rows),
        "killed_with_stages": [row["stages"] for row in rows], "killed_with_candidates": [row["candidates"] for row in rows],
    }  # fmt: skip


def allocator(folder: Path) -> Callable[[Path], Any]:
    """The demo's job on the stored network, its own timings cut short: they change no answer where bytes are made small."""
    import torch

    import quantkit
    from quantkit.cli.demo import DigitNet
    from quantkit.data import Batch, collect, separate
    from quantkit.verification import verify

    torch.set_num_threads(1)
    verify.LATENCY_SECONDS = 0.3
    model = DigitNet()
    model.load_state_dict(torch.load(folder / "digits.pt"))
    items = torch.load(folder / "items.pt")
    splits = separate(*(collect([Batch({"x": inputs}, labels)]) for inputs, labels in items.values()))

    def allocate(run: Path) -> Any:
        run.mkdir(exist_ok=True)
        return quantkit.allocate(model.eval(), data=splits, max_drop=1.0, minimize="bytes", run=run, output=run / "shipped.onnx")

    return allocate


def fork(allocate: Callable[[Path], Any], run: Path) -> int:
    """A process of its own that does the job; torch is imported once for all."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        sys.stderr = sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - the process's own, to its end
        code = 0 if allocate(run) else 1
    finally:
        os._exit(code)


def finish(child: int) -> float:
    """Wait for its end; the seconds that it spent on the processor."""
    _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"an allocation ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime


def processor_seconds(child: int) -> float:
    """What a process has spent on the processor so far, which others who take it away do not lengthen; infinite once it has ended."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return math.inf if fields[0] in "ZX" else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def given(whole: Path, run: Path) -> Path:
    """A new run directory with nothing but what a clock decides: the latency table, and the times of the finalists."""
    shutil.rmtree(run, ignore_errors=True)
    (run / "stages").mkdir(parents=True)
    for kept in ("latency-*", "finalists-*"):
        for table in (whole / "stages").glob(kept):
            shutil.copy(table, run / "stages")
    return run


def finished(run: Path) -> bool:
    history = run / "history.jsonl"
    return history.exists() and '"event": "done"' in history.read_text()


def left(run: Path) -> tuple[int, int, int]:
    """Stages' results, journaled candidates, and torn or scratch files in a run directory."""
    journal = run / "measured.jsonl"
    candidates = journal.read_bytes().count(b"\n") if journal.exists() else 0
    torn = [*run.glob(".*"), *(run / "stages").glob(".*")]
    return len(list((run / "stages").glob("[!.]*"))), candidates, len(torn)


def outcome(run: Path) -> list[Any]:
    """The bytes that ship, and the plan."""
    digests = [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("model.onnx", "shipped.onnx")]
    return [*digests, json.loads((run / "plan.json").read_text())["layers"]]


def pick(work: Path) -> dict[str, Any]:
    """Wall seconds of `quantkit pick` in a fresh process on a run of the demo's network: the median of five."""
    run = work / "kills" / "undisturbed"
    if not run.exists():
        raise SystemExit("run the part `kills` first: it makes the run to pick from")
    return {"pick.seconds": median_seconds(["pick", str(run), "--max-drop", "1.5", "--json"])}


def file(work: Path) -> dict[str, Any]:
    """`quantkit gate` of SqueezeNet 1.1 (5 MB in float) on the gate split of its photographs: all four conditions, two cores."""
    run = work / "squeezenet1_1"
    recipe = str(ROOT / "recipes" / "squeezenet1_1.py")
    if not (run / "result.json").exists():
        command = ["allocate", recipe, "--run", str(run), "--json"]
        subprocess.run([sys.executable, "-m", "quantkit", *command], check=False, stdout=subprocess.DEVNULL)
    report = work / "gate.json"
    options = ["--data", recipe, "--max-drop", "1.0", "--max-latency-ratio", "1.0", "--max-bytes", "1.0x", "--require-int8", "50%"]
    start = time.perf_counter()
    with report.open("w") as told:
        code = subprocess.run([sys.executable, "-m", "quantkit", "gate", str(run), *options, "--json"], check=False, stdout=told).returncode
    seconds = time.perf_counter() - start
    gated = json.loads(report.read_text())
    rows = {row["condition"]: {"decision": row["decision"], "told": row["told"], "seconds": row["seconds"]} for row in gated["findings"]}
    return {"gate.seconds": seconds, "gate.exit_code": code, "gate.conditions": rows, "gate.cores": os.cpu_count()}


def median_seconds(command: list[str]) -> float:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "quantkit", *command], check=False, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return sorted(once() for _ in range(5))[2]


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"decisions": decisions, "kills": kills, "pick": pick, "file": file}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--kills", type=int, default=KILLS, help="moments at which a run is killed")
    parser.add_argument("--work", type=Path, help="where parts keep what they have; by default a folder for each state of the code")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "gate.json")
    parser.add_argument("--make-network", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make_network:
        make_network(arguments.make_network)
        return
    from known import run_folder, write_figures

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work = arguments.work or run_folder("gate", "gate.json")
    work.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(arguments.parts, 1):
        found = kills(work, arguments.kills) if name == "kills" else PARTS[name](work)
        kept = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"figures": {}}
        figures = {**kept["figures"], **found}
        whole = place == len(arguments.parts) and set(arguments.parts) == set(PARTS)
        write_figures(arguments.output, "gate.json", figures, whole=whole)
        print(name, {key: value for key, value in found.items() if isinstance(value, (int, float))})


if __name__ == "__main__":
    main()
