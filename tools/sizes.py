"""The size of every module: lines, functions, layer and reach, against the ceilings.

Run `python tools/sizes.py` before a change and after it; `--ceilings` prints only what breaks one, and exits 1 then; `--figures` writes
docs/results/structure.json.
Reach is the number of the package's own lines that a module needs in order to be understood: its own and those of all it imports.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import networkx

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "results" / "structure.json"
SENSITIVITIES = tuple(
    f"sensitivity.{path.stem}" for path in sorted((ROOT / "quantkit" / "sensitivity").glob("*.py")) if path.stem != "__init__"
)
SOLVERS = tuple(f"allocation.{name}" for name in ("greedy", "pareto", "milp", "quadratic"))
FILE_CEILING = 400
FUNCTION_CEILING = 60


@dataclass(frozen=True)
class Function:
    """Lines from `def` to the last statement, the docstring aside."""

    name: str
    lines: int


@dataclass(frozen=True)
class Module:
    """One file of the package. `layer` is its package's, counted from the lowest in the import contract."""

    name: str
    path: Path
    lines: int
    functions: tuple[Function, ...]
    imports: frozenset[str]
    layer: int


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
            docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
            yield Function(node.name, (node.end_lineno or node.lineno) - node.lineno + 1 - docstring)


def own_imports(tree: ast.Module, known: set[str]) -> frozenset[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= parts if parts <= known else {node.module, *parts}  # `from package import module` is about the modules
    return frozenset(found & known)


def layers() -> dict[str, int]:
    """The layer of each package, read from the import contract, so that there is one list of them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    found = {}
    for layer, row in enumerate(reversed(rows)):
        for package in row.replace(":", "|").split("|"):
            found[package.strip(" ()")] = layer
    return found


def modules() -> list[Module]:
    """The package, file by file."""
    files = sorted((ROOT / "quantkit").rglob("*.py"))
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    known = layers()
    found = []
    for name, path in paths.items():
        text = path.read_text()
        tree = ast.parse(text)
        package = name.split(".")[1] if "." in name else ""
        layer = known.get(package, max(known.values()) + 1)
        imports = own_imports(tree, set(paths) - {name, "quantkit"})
        found.append(Module(name, path, text.count("\n"), tuple(functions(tree)), imports, layer))
    return found


def reach(start: Module, by_name: dict[str, Module]) -> int:
    """Own lines plus those of everything imported, directly or not."""
    seen, queue = set(), [start.name]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += by_name[name].imports
    return sum(by_name[name].lines for name in seen)


def breaches(found: list[Module]) -> list[str]:
    """One line for each file and function above its ceiling."""
    sizes = [(m.name, m.lines, FILE_CEILING) for m in found]
    sizes += [(f"{m.name}.{f.name}", f.lines, FUNCTION_CEILING) for m in found for f in m.functions]
    return [f"{name}: {lines} lines, ceiling {ceiling}" for name, lines, ceiling in sizes if lines > ceiling]


def typed_share(found: list[Module]) -> float:
    """Of all parameters (but self and cls) and returns, those that are annotated. mypy --strict says whether they are right."""
    said = []
    for module in found:
        for node in ast.walk(ast.parse(module.path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                said += [argument.annotation is not None for argument in every if argument.arg not in ("self", "cls")]
                said.append(node.returns is not None)
    return sum(said) / len(said)


def figures(found: list[Module]) -> dict[str, float]:
    """What the layout of the package is measured by. A cycle counts every import, wherever it stands; 0 if there is none."""
    by_name = {module.name: module for module in found}
    imports = networkx.DiGraph((module.name, other) for module in found for other in module.imports)
    circles = [len(knot) for knot in networkx.strongly_connected_components(imports) if len(knot) > 1]
    measured = {
        "files": len(found),
        "lines": sum(module.lines for module in found),
        "longest_file": max(module.lines for module in found),
        "longest_function": max(function.lines for module in found for function in module.functions),
        "top_level_entries": len({module.name.split(".")[1] for module in found if "." in module.name}),
        "largest_cycle": max(circles, default=0),
        "typed_percent": 100 * typed_share(found),
    }
    kinds = {"sensitivity": SENSITIVITIES, "solver": SOLVERS}
    reached = {kind: {name: reach(by_name[f"quantkit.{name}"], by_name) for name in names} for kind, names in kinds.items()}
    measured |= {f"reach.{name.split('.')[1]}": lines for names in reached.values() for name, lines in names.items()}
    return measured | {"reach.any_sensitivity": max(reached["sensitivity"].values()), "reach.solver": max(reached["solver"].values())}


def main() -> int:
    """Print every module, highest layer first, then what breaks a ceiling."""
    found = modules()
    by_name = {module.name: module for module in found}
    if "--figures" in sys.argv:
        FIGURES.write_text(json.dumps({"figures": figures(found)}, indent=1) + "\n")
        return 0
    if "--ceilings" not in sys.argv:
        print(f"{'layer':>5}  {'module':<36}{'lines':>6}{'functions':>11}{'longest':>9}{'reach':>7}")
        for m in sorted(found, key=lambda m: (-m.layer, m.name)):
            longest = max((f.lines for f in m.functions), default=0)
            print(f"{m.layer:>5}  {m.name:<36}{m.lines:>6}{len(m.functions):>11}{longest:>9}{reach(m, by_name):>7}")
        lines = [module.lines for module in found]
        print(f"{len(found)} files, {sum(lines)} lines, median {median(lines):g}, longest {max(lines)}")
    broken = breaches(found)
    print("\n".join(broken) if broken else "all ceilings kept")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
