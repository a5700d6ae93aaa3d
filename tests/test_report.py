"""The report of a run: a page that asks nobody for anything and holds every number, its charts, Markdown, plots."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import allocate, hurry, remember

from quantkit.cli import main
from quantkit.core.graph import Graph, Layer, Tensor
from quantkit.core.spec import FLOAT, parse_allocation
from quantkit.report import page
from quantkit.report.charts import plan_rows, prediction_chart
from quantkit.report.format import leaves, verdict_line
from quantkit.report.layers import MOST, REST, interaction_chart, sensitivity_chart, time_chart
from quantkit.report.markdown import to_markdown
from quantkit.report.network import lay_out, network_chart
from quantkit.report.run_data import Evidence, read_evidence

vl_convert = pytest.importorskip("vl_convert")


@pytest.fixture(scope="session")
def allocated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        remember(patch)
        return allocate(
            tmp_path_factory.mktemp("reported") / "run", schemes="fp32,w8a8,w4a8", fix=["stem=fp32"], sensitivity="augmented"
        ).run


@pytest.fixture
def run(allocated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(allocated, tmp_path / "run"))


@pytest.fixture(scope="session")
def text(allocated: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", str(allocated), "--output", str(file)]) == 0
    return file.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """What a browser would load and show: addresses, cells, headings, text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.shown: list[str] = []
        self.scripts: dict[str, str] = {}
        self.policy = ""
        self._inside: list[str] = []
        self._script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.addresses += [value for key in ("src", "href", "data", "action", "srcset", "poster") if (value := told.get(key))]
        if told.get("http-equiv") == "Content-Security-Policy":
            self.policy = told["content"] or ""
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        self._script = told.get("id") or "" if tag == "script" else self._script
        if tag not in ("meta", "link"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, f"<{tag}> is closed out of turn"

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif "style" not in self._inside and "title" not in self._inside:
            if "td" in self._inside:
                self.rows[-1][-1] += data
            self.shown.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader._inside
    return reader


def document(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def rewrite(run: Path, name: str, change: Any) -> Evidence:
    found = document(run, name)
    change(found)
    (run / name).write_text(json.dumps(found))
    return read_evidence(run)


# The page.


def test_the_page_is_one_file_that_nothing_is_loaded_for(text: str) -> None:
    reader = read(text)

    assert reader.policy.startswith("default-src 'none'")
    assert all(address.startswith("#") or address == "data:," for address in reader.addresses)
    assert not re.search(r"@import|url\((?!data:)", text.split("</style>")[0])
    assert len(text.encode()) < 3e6


def test_the_verdict_comes_first_in_words(text: str, allocated: Path) -> None:
    words = " ".join(read(text).shown)
    line = verdict_line(document(allocated, "result.json"))

    notes = read_evidence(allocated).notes
    assert line in words
    assert notes and all(note in words for note in notes)
    assert all(
        words.index(line) < words.index(heading) for heading in ("Each mark is a plan", "All plans, cheapest", "Machine and versions")
    )


def test_every_value_of_the_result_is_on_the_page_under_its_path(text: str, allocated: Path) -> None:
    result, reader = document(allocated, "result.json"), read(text)
    shown = {row[0]: row[1] for row in reader.rows if len(row) == 2}

    found = list(leaves(result))
    assert len(found) > 60
    for path, value in found:
        assert json.loads(shown[path]) == value, path
    assert json.loads(reader.scripts["data"])["result"] == result


def test_every_plan_of_the_front_is_there_with_its_button_and_all_its_schemes(text: str, allocated: Path) -> None:
    front, embedded = document(allocated, "front.json"), json.loads(read(text).scripts["data"])
    groups = [row["group"] for row in embedded["groups"]]
    plans = {tuple(sorted(zip(groups, row["schemes"], strict=True))) for row in embedded["plans"]}

    assert plans == {tuple(sorted(row["allocation"].items())) for row in (*front["plans"], *front["measured"])}
    assert sorted(re.findall(r'data-plan="(\d+)"', text)) == sorted(str(row["id"]) for row in embedded["plans"])
    assert [row["mine"] for row in embedded["plans"]].count(True) == 1


def test_every_chart_compiles(allocated: Path) -> None:
    for name, chart in page.charts_of(read_evidence(allocated)).items():
        assert chart.spec is not None, (name, chart.absent)
        compiled = vl_convert.vegalite_to_vega(json.dumps(chart.spec))
        assert compiled["marks"], name


def test_the_text_of_a_run_cannot_become_markup(run: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    evidence = rewrite(run, "request.json", lambda found: found["model"].update(name=evil))

    text = page.render(evidence, page.charts_of(evidence), "var vegaEmbed; // </script>")

    assert "<script>alert" not in text
    read(text)


@pytest.mark.parametrize("name", ["prediction", "sensitivity", "time", "interactions", "front"])
def test_what_a_run_does_not_hold_is_said_in_words_in_place_of_a_chart(run: Path, name: str) -> None:
    for file in ("tables.json", "front.json", "profile.json"):  # as an older version left it
        (run / file).unlink()

    charts = page.charts_of(read_evidence(run))
    reader = read(page.render(read_evidence(run), charts, ""))

    assert charts[name].spec is None and charts[name].absent in " ".join(reader.shown)
    assert name not in json.loads(reader.scripts["data"])["charts"]


def test_a_run_that_was_only_measured_has_a_page_without_a_verdict(run: Path) -> None:
    for file in ("result.json", "plan.json", "profile.json"):
        (run / file).unlink()

    evidence = read_evidence(run)
    charts = page.charts_of(evidence)

    assert charts["baselines"].spec is None and charts["front"].spec is not None and charts["sensitivity"].spec is not None
    assert "nothing was allocated yet" in page.render(evidence, charts, "") and "nothing was allocated yet" in to_markdown(evidence)


def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


# The charts.


def test_the_scores_of_the_sensitivity_chart_are_the_tables(allocated: Path) -> None:
    tables, chart = document(allocated, "tables.json"), sensitivity_chart(read_evidence(allocated))
    loss = tables["loss"]

    seen = {(row["group"], row["under"]): row for row in chart.rows}
    for row, group in enumerate(loss["groups"]):
        for column, scheme in enumerate(loss["schemes"]):
            value = loss["values"][row][column]
            assert ((group, scheme) in seen) == (value is not None)
            if value is not None:
                assert seen[group, scheme]["loss"] == pytest.approx(value, rel=1e-5)
                assert seen[group, scheme]["bytes"] == pytest.approx(tables["resources"]["bytes"]["table"]["values"][row][column], rel=1e-5)
    assert seen["stem", "fp32"]["scheme"] == "fp32"


def test_the_times_of_all_layers_and_the_rest_are_the_times_of_the_files(allocated: Path) -> None:
    result, chart = document(allocated, "result.json"), time_chart(read_evidence(allocated))
    profile = document(allocated, "profile.json")

    for file, key, whole in (("float file", "float", "float_ms"), ("this plan", "plan", "quantized_ms")):
        rows = {row["layer"]: row["ms"] for row in chart.rows if row["file"] == file}
        assert rows["down"] == pytest.approx(profile[key]["down"], rel=1e-5) and rows["down"] > 0
        assert sum(rows.values()) == pytest.approx(max(result["latency"][whole], sum(profile[key].values())), rel=1e-4)
        assert REST in rows


def test_without_a_profile_the_table_tells_the_time_and_says_so(run: Path) -> None:
    (run / "profile.json").unlink()
    evidence = read_evidence(run)
    chart = time_chart(evidence)

    assert "table of latencies" in chart.reading
    table = evidence.predictor.resources["latency"].table
    assert {row["layer"]: row["ms"] for row in chart.rows if row["file"] == "this plan"} == pytest.approx(
        {group: table.at(group, scheme) for group, scheme in evidence.allocation.items()}, rel=1e-5
    )


def test_interactions_are_correlations_of_errors_in_the_order_of_the_network(allocated: Path) -> None:
    evidence = read_evidence(allocated)
    pairs = evidence.predictor.interactions
    usual = evidence.usual
    values = interaction_chart(evidence).spec["data"]["values"]

    quantized = [group.name for group in evidence.groups if any(not scheme.is_float for scheme in group.schemes)]
    assert list(dict.fromkeys(row["one"] for row in values)) == quantized and "stem" not in quantized
    assert len(values) == len(quantized) * (len(quantized) - 1)
    for row in values:
        menus = {group.name: group.schemes for group in evidence.groups}
        one, other = (
            pairs.index(name, usual if usual in menus[name] else next(s for s in menus[name] if not s.is_float))
            for name in (row["one"], row["other"])
        )
        expected = pairs.matrix[one, other] / sqrt(pairs.matrix[one, one] * pairs.matrix[other, other])
        assert row["correlation"] == pytest.approx(expected, rel=1e-4)


def test_a_heat_map_is_no_larger_than_can_be_seen(allocated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantkit.report.layers.MOST", 3)
    chart = interaction_chart(read_evidence(allocated))

    assert MOST >= 50 and len(chart.spec["data"]["values"]) == 3 * 2 and "the 3 groups that interact most" in chart.reading


def test_a_method_without_interactions_says_so(run: Path) -> None:
    evidence = rewrite(run, "tables.json", lambda found: found.update(interactions=None))

    assert interaction_chart(evidence).spec is None and "estimates no interactions" in interaction_chart(evidence).absent


def test_latency_is_held_against_the_plans_that_the_model_never_saw(allocated: Path) -> None:
    evidence = read_evidence(allocated)
    rows = [row for row in prediction_chart(evidence, plan_rows(evidence)).rows if row["what"] == "latency"]
    tested = document(allocated, "tables.json")["latency_fit"]["tested"]

    assert [(row["predicted"], row["measured"]) for row in rows if row["kind"] == "held out"] == [
        pytest.approx(pair, rel=1e-5) for pair in tested
    ]
    assert len(tested) == 3 and [row["kind"] for row in rows].count("this plan") == 1


# The network.


def test_every_operation_has_a_place_of_its_own_and_edges_run_down(allocated: Path) -> None:
    evidence = read_evidence(allocated)
    layout = lay_out(evidence.graph)

    assert {layer.name for layer in evidence.graph.layers} <= layout.nodes.keys()
    assert len({(node.x, node.level) for node in layout.nodes.values()}) == len(layout.nodes)
    producers = {layer.output: layer.name for layer in evidence.graph.layers}
    for layer in evidence.graph.layers:
        for tensor in layer.inputs:
            maker = producers.get(evidence.graph.source(tensor))
            if maker:
                assert (maker, layer.name) in layout.edges
    for (one, other), points in layout.edges.items():
        assert layout.nodes[one].level < layout.nodes[other].level
        assert [level for _, level in points] == sorted(level for _, level in points)


def test_a_shortcut_runs_beside_what_it_passes() -> None:
    def layer(name: str, kind: str, *inputs: str) -> Layer:
        return Layer(name, kind, name, name, inputs)

    layers = (layer("a", "conv", "x"), layer("b", "conv", "a"), layer("c", "conv", "b"), layer("sum", "add", "c", "a"))
    tensors = (
        Tensor("x", (1,), ("a",)),
        Tensor("a", (1,), ("b", "sum")),
        Tensor("b", (1,), ("c",)),
        Tensor("c", (1,), ("sum",)),
        Tensor("sum", (1,), (), True),
    )
    layout = lay_out(Graph(layers, (), (), tensors, ("x",), ("sum",), {}))

    assert [layout.nodes[name].level for name in ("input x", "a", "b", "c", "sum", "output sum")] == [0, 1, 2, 3, 4, 5]
    passing = {x for x, level in layout.edges["a", "sum"][2:4] if 1 < level < 4}
    assert passing and max(passing) < min(node.x for node in layout.nodes.values())
    assert len(layout.edges["a", "b"]) == 2


def test_boundaries_are_where_precision_changes_and_nowhere_else(run: Path) -> None:
    evidence = rewrite(run, "plan.json", lambda found: found["layers"].update(stem="fp32", depthwise="w8a8", point="w8a8", down="fp32"))
    lines, marks, _ = network_chart(evidence).spec["layer"]
    boundary = {row["edge"]: row["boundary"] for row in lines["data"]["values"]}

    assert boundary["stem → depthwise"] and boundary["add → down"] != evidence.scheme_of("add").is_float
    layers = parse_allocation(document(run, "plan.json")["layers"])
    for edge, changes in boundary.items():
        one, other = (layers.get(name, FLOAT) for name in edge.split(" → "))
        assert changes == (one.is_float != other.is_float and " → output" not in edge), edge
    assert {row["operation"]: row["scheme"] for row in marks["data"]["values"]}["down"] == "fp32"


# Markdown and plots.


def test_markdown_tells_the_verdict_the_comparison_and_every_layer(allocated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = document(allocated, "result.json")
    assert main(["report", str(allocated), "--markdown"]) == 0
    out = capsys.readouterr().out

    assert out.startswith("## quantkit: ") and f"**{verdict_line(result)}**" in out
    assert f"| **this plan** | {result['verdict']['drop']:.2f} |" in out
    for row in result["allocation"]:
        assert f"| {row['group']} | {row['scheme']} |" in out
    tables = [block for block in re.split(r"\n\n", out) if block.startswith("|")]
    for block in tables:
        assert len({line.count("|") - line.count("\\|") for line in block.splitlines()}) == 1
    assert len(out) < 65_536  # what a comment of a pull request takes


def test_plots_are_written_for_every_chart_as_svg_and_png(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "profile.json").unlink()
    evidence = rewrite(run, "tables.json", lambda found: found.update(interactions=None))
    drawn = [name for name, chart in page.charts_of(evidence).items() if chart.spec]
    assert main(["report", str(run), "--plots", str(tmp_path / "plots"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)

    assert {path.name for path in (tmp_path / "plots").iterdir()} == {f"{name}.{kind}" for name in drawn for kind in ("svg", "png")}
    assert (tmp_path / "plots" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plots" / "network.svg").read_text()
    assert list(told["absent"]) == ["interactions"] and told["bytes"] == (run / "report.html").stat().st_size


def test_reading_a_run_loads_no_torch(allocated: Path) -> None:
    code = (
        "import sys; from quantkit.cli import main\n"
        f"run = {str(allocated)!r}\n"
        "codes = [main(['report', run, '--markdown']), main(['explain', run, 'down']), main(['diff', run, run])]\n"
        "print(codes, sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    assert done.stdout.splitlines()[-1] == "[0, 0, 0] []"
