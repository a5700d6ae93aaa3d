"""A recipe and split seeds → a manifest of the items that it calibrates on, and a hash of those that it searches with and judges by.

python calibration/build_manifest.py recipes/resnet20.py calibration/manifests/cifar10.json --split-seeds 0,1,2,3,4
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.core.errors import DataError, QuantkitError
from quantkit.data import Concatenated, Dataset, Images, Subset, split
from quantkit.settings.recipe import Recipe, load_recipe


def name(dataset: Dataset, index: int) -> str:
    """The item's file behind the last folder or archive of its source. Raises DataError for items that are no files."""
    if isinstance(dataset, Images):
        return f"{Path(dataset.source).name}/{dataset.names[index]}"
    if isinstance(dataset, Subset):
        return name(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, Concatenated):
        for part in dataset.parts:
            if index < len(part):
                return name(part, index)
            index -= len(part)
    raise DataError(f"items of {type(dataset).__name__}", "image files, which have names")


def summary(subset: Subset) -> dict[str, Any]:
    """How many items, and the sha256 over their content hashes in order."""
    return {"count": len(subset), "sha256": hashlib.sha256("".join(subset.digests()).encode()).hexdigest()}


def described(recipe: Recipe, seeds: Sequence[int]) -> dict[str, Any]:
    """For each split seed the names of the calibration items, in order, and a summary of every split."""
    manifest: dict[str, Any] = {}
    for seed in seeds:
        splits = split(recipe.data, seed=seed, **{name: recipe.said.get(name) for name in ("calibration", "search", "gate")})
        parts = {"calibration": splits.calibration, "search": splits.search, "gate": splits.gate}
        items = [name(splits.calibration, index) for index in range(len(splits.calibration))]
        manifest[str(seed)] = {**{part: summary(subset) for part, subset in parts.items()}, "calibration_items": items}
    return manifest


def main(given: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the request is wrong."""
    parser = argparse.ArgumentParser(description="A recipe's splits to a manifest.")
    parser.add_argument("recipe", type=Path, help="recipe file whose data are image files")
    parser.add_argument("manifest", type=Path, help="file to write, .json")
    parser.add_argument("--split-seeds", default="0,1,2,3,4", help="with commas between")
    asked = parser.parse_args(given)
    try:
        manifest = described(load_recipe(asked.recipe), [int(seed) for seed in asked.split_seeds.split(",")])
    except QuantkitError as error:
        print(error, file=sys.stderr)
        return 2
    partial = asked.manifest.with_suffix(".json.tmp")
    partial.write_text(json.dumps({"split_seeds": manifest}, indent=1) + "\n", encoding="utf-8")
    partial.replace(asked.manifest)
    print(f"{len(manifest)} split seeds in {asked.manifest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
