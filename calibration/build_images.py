"""Images → one shard that `--data` takes without preprocessing, and a manifest of exactly which items it holds.

    python calibration/build_images.py photos/ calibration.safetensors --count 512 --resize 256 --crop 224 \
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

The source is an image folder (class sub-folders, or a labels.csv) or a .zip of one. Items are chosen by a hash of their content and
the seed, so the same images give the same choice wherever they lie and whatever else is there; `--manifest` chooses the named ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.core.errors import DataError, QuantkitError
from quantkit.data import Images, Preprocessing, Subset, open_dataset, sample, write_shard


def size(text: str) -> int | tuple[int, ...]:
    """`"256"` → 256; `"224x192"` → (224, 192)."""
    sides = tuple(int(side) for side in text.split("x"))
    return sides[0] if len(sides) == 1 else sides


def numbers(text: str) -> tuple[float, ...]:
    """`"0.5,0.4"` → (0.5, 0.4)."""
    return tuple(float(number) for number in text.split(","))


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--help` says what each part means."""
    parser = argparse.ArgumentParser(description="Images to one shard and its manifest.")
    parser.add_argument("source", type=Path, help="image folder, or a .zip of one")
    parser.add_argument("shard", type=Path, help="file to write, .npz or .safetensors; the manifest goes beside it, as .json")
    parser.add_argument("--count", type=int, help="how many items; all when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--manifest", type=Path, help="choose the items that this manifest names, instead of a count")
    parser.add_argument("--resize", type=size, help="the short side, or HxW")
    parser.add_argument("--crop", type=size, help="a centred square's side, or HxW")
    parser.add_argument("--mean", type=numbers, help="after scaling; one number, or one a channel")
    parser.add_argument("--std", type=numbers)
    parser.add_argument("--scale", type=float, help="what a pixel is multiplied by; 1/255 when left out")
    return parser.parse_args(given)


def named(dataset: Images, manifest: Path) -> Subset:
    """The items of `manifest`, in its order. Raises DataError where one is missing, or has another content than it had then."""
    positions = {name: index for index, name in enumerate(dataset.names)}
    indices = []
    for item in json.loads(manifest.read_text(encoding="utf-8"))["items"]:
        index = positions.get(item["file"])
        if index is None or dataset.digest(index) != item["sha256"]:
            state = "is not there" if index is None else "has another content"
            raise DataError(f"{item['file']}, named in {manifest}, {state}", f"the file that it was, in {dataset.source}")
        indices.append(index)
    return Subset(dataset, tuple(indices))


def described(dataset: Images, chosen: Subset, seed: int) -> dict[str, Any]:
    """The manifest: how items were made, and for each its file, label and content hash."""
    labels = dataset.labels or (None,) * len(dataset)
    items = [{"file": dataset.names[i], "label": labels[i], "sha256": dataset.digest(i)} for i in chosen.indices]
    return {"preprocessing": dataset.preprocessing.to_json(), "seed": seed, "count": len(items), "items": items}


def main(given: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the request is wrong."""
    asked = arguments(given)
    try:
        preprocessing = Preprocessing(asked.resize, asked.crop, asked.mean, asked.std, asked.scale)
        dataset = open_dataset(asked.source, preprocessing)
        if not isinstance(dataset, Images):
            raise DataError(f"{asked.source} holds no image files", "an image folder or a .zip of one")
        chosen = named(dataset, asked.manifest) if asked.manifest else sample(dataset, count=asked.count, seed=asked.seed)
        write_shard(chosen, asked.shard)
    except QuantkitError as error:
        print(error, file=sys.stderr)
        return 2
    manifest, partial = asked.shard.with_suffix(".json"), asked.shard.with_suffix(".json.tmp")
    partial.write_text(json.dumps(described(dataset, chosen, asked.seed), indent=1) + "\n", encoding="utf-8")
    partial.replace(manifest)
    print(f"{len(chosen)} items in {asked.shard}, named in {manifest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
