"""BERT-base (110 M parameters) fine-tuned for sentiment, on labelled sentences of yours.

    SENTENCES=path/to/dev.tsv quantkit allocate recipes/bert_base.py --max-drop 0.5

SENTENCES is a .tsv with a sentence, a tab and 0 or 1 in each line, such as the dev set of SST-2. The network is the folder in BERT, any
that transformers saved with a classification head; without BERT it is downloaded once from the Hugging Face hub
(textattack/bert-base-uncased-SST-2). Offline: copy that repository's files into a folder, and set BERT to it. Needs
quantkit[transformers]. The same without a recipe: quantkit allocate path/to/folder --data path/to/dev.tsv --max-drop 0.5
Network: Devlin et al., arXiv 1810.04805.

Result: not measured, for want of the weights.
"""

from __future__ import annotations

import os
from pathlib import Path

import quantkit
from quantkit.core.errors import DataError, ModelError

REPOSITORY = "textattack/bert-base-uncased-SST-2"
FILES = ("config.json", "*.safetensors", "pytorch_model.bin", "vocab.txt", "tokenizer*.json", "special_tokens_map.json")


def folder() -> str:
    """Where the network and its tokenizer lie."""
    if "BERT" in os.environ:
        return os.environ["BERT"]
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError("transformers is not installed", "quantkit[transformers]", "pip install 'quantkit[transformers]'") from error
    try:
        return snapshot_download(REPOSITORY, allow_patterns=list(FILES))
    except (OSError, ValueError) as error:  # what the hub's client raises for a lost connection and a missing file is both
        do = "copy its files into a folder and set BERT to that folder"
        raise ModelError(f"cannot download {REPOSITORY}: {type(error).__name__}", "a connection, or the files", do) from error


def sentences() -> Path:
    """The file in SENTENCES."""
    path = os.environ.get("SENTENCES")
    if path is None:
        wanted = "a .tsv with a sentence, a tab and its label in each line"
        raise DataError("SENTENCES is not set", wanted, "export SENTENCES=path/to/dev.tsv")
    return Path(path)


def recipe() -> quantkit.Recipe:
    return quantkit.Recipe(name="bert_base", data=sentences(), model=folder(), metric="top1", max_drop=0.5)


if __name__ == "__main__":
    raise SystemExit(quantkit.recipe_main(recipe))
