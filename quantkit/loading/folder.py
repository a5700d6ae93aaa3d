"""A folder as `transformers` saves a network: config.json, weights, a tokenizer. Read offline; no code that lies in it runs unasked.

The network is wrapped so that it takes tensors by name and gives one: the logits of its head, or without a head the mean embedding of the
unmasked tokens.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.core.errors import DataError, ModelError
from quantkit.core.metric import NO_LABEL
from quantkit.loading.any_length import ANY_LENGTH, length_variant
from quantkit.loading.boundary import foreign
from quantkit.loading.decoder import step_variant
from quantkit.loading.model import Variant

CONFIG, TOKENIZERS, PIXELS = "config.json", ("tokenizer.json", "vocab.txt", "tokenizer_config.json"), "preprocessor_config.json"
WEIGHTS = ("*.safetensors", "*.bin")
CAUSAL = "AutoModelForCausalLM"
# How an architecture's name ends → the class that loads it. Those of pictures read pixels, all others tokens.
HEADS: Mapping[str, str] = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": CAUSAL,
    "LMHeadModel": CAUSAL,
    "ForImageClassification": "AutoModelForImageClassification",
    "EncoderModel": "AutoModelForTextEncoding",
    "Model": "AutoModel",
}
PICTURES = "ForImageClassification"
EXAMPLE_TOKENS, LONGEST, STEP = 32, 128, 8  # tokens of an example; of a sentence unless more are asked for; lengths are multiples


class Text(nn.Module):
    """Token ids and mask, each [items, tokens] → logits, or [items, width] embeddings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The head's logits, or the mean of the last hidden states over the unmasked tokens."""
        found = self.network(input_ids=input_ids, attention_mask=attention_mask)
        if hasattr(found, "logits"):
            logits: Tensor = found.logits
            return logits
        weights = attention_mask.unsqueeze(-1).to(found.last_hidden_state.dtype)
        mean: Tensor = (found.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)
        return mean


class Picture(nn.Module):
    """Pixels [items, channels, height, width] → logits [items, classes]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The head's logits."""
        logits: Tensor = self.network(pixel_values=pixel_values).logits
        return logits


def is_folder(path: Path) -> bool:
    """Whether `transformers` may have saved it."""
    return path.is_dir() and (path / CONFIG).is_file()


def read_folder(path: Path, trust_code: bool) -> tuple[nn.Module, dict[str, Tensor], dict[str, Variant]]:
    """The network, wrapped, inputs of two items, and its other form: of a causal language model the step with its cache (`decoder`), of
    another that reads text the same network at any length (`any_length`).

    ModelError where `transformers` is missing, the architecture is none of HEADS, weights are missing or cut off, or the folder wants code
    of its own to run and `trust_code` does not allow it.
    """
    config = read_config(path)
    architecture, auto = _head(path, config)
    if config.get("auto_map") and not trust_code:
        do = "pass --trust-pickle if you trust who made it"
        raise ModelError(f"{path} runs code of its own ({CONFIG}, auto_map)", "an architecture that transformers has", do)
    if not any(any(path.glob(pattern)) for pattern in WEIGHTS):
        raise ModelError(f"no weights in {path}", " or ".join(WEIGHTS), "copy the whole folder: save_pretrained(folder)")
    library = transformers()
    doing = f"transformers cannot load {path}"
    with foreign(doing, "a complete folder, as save_pretrained writes it", "copy or download it again"):
        network, report = getattr(library, auto).from_pretrained(
            str(path), local_files_only=True, trust_remote_code=trust_code, attn_implementation="eager", dtype=torch.float32,
            use_safetensors=True if any(path.glob("*.safetensors")) else None, output_loading_info=True,
        )  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        got = f"{len(missing)} weights of {architecture} are not in {path}, {missing[0]} among them"
        raise ModelError(got, "every weight", "copy the folder again, or correct `architectures` in its config.json")
    network.config.use_cache = False
    if architecture.endswith(PICTURES):
        size, channels = config.get("image_size", 224), config.get("num_channels", 3)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return Picture(network).eval(), {"pixel_values": torch.zeros(2, channels, height, width)}, {}
    tokens = min(EXAMPLE_TOKENS, positions(path))
    ones = torch.ones(2, tokens, dtype=torch.int64)
    text, example = Text(network.eval()).eval(), {"input_ids": ones, "attention_mask": ones}
    if auto != CAUSAL:
        return text, example, {ANY_LENGTH: length_variant(text, config.get("vocab_size", 2), tokens, positions(path))}
    step = step_variant(network)
    return text, example, {} if step is None else {"decoder": step}


def hash_folder(path: Path) -> str:
    """The sha256 of what decides the network: its configuration and its weights, by name and content."""
    digest = hashlib.sha256()
    for file in sorted([path / CONFIG, *(one for pattern in WEIGHTS for one in path.glob(pattern))]):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def tokenize(path: Path, texts: Sequence[str], tokens: int | None) -> dict[str, Tensor]:
    """Ids and mask of the texts, cut or padded to so many `tokens`; None for the longest text's, at most LONGEST, a multiple of STEP.

    DataError for an empty text and for more tokens than the network has positions; ModelError where the folder has no tokenizer.
    """
    for row, text in enumerate(texts, 1):
        if not text.strip():
            raise DataError(f"row {row} has no text", "a sentence", "leave the row out, or correct it")
    most = _checked_positions(path, tokens)
    with foreign(f"the tokenizer in {path} fails", "one that transformers reads offline", "tokenizer.save_pretrained(folder)"):
        read = _tokenizer(path)
        length = tokens
        if length is None:
            longest = max(len(row) for row in read(list(texts), truncation=True, max_length=min(LONGEST, most))["input_ids"])
            length = min(most, -(-longest // STEP) * STEP)
        found = read(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def tokenize_windows(path: Path, texts: Sequence[str], tokens: int | None) -> dict[str, Tensor]:
    """As `tokenize`, but what is longer is cut into windows of that length, and nothing is lost but a last single token."""
    most = _checked_positions(path, tokens)
    with foreign(f"the tokenizer in {path} fails", "one that transformers reads offline", "tokenizer.save_pretrained(folder)"):
        read = _tokenizer(path)
        rows = read(list(texts))["input_ids"]
    length = tokens or min(most, LONGEST, -(-max(map(len, rows)) // STEP) * STEP)
    windows = [row[first : first + length] for row in rows for first in range(0, len(row), length)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise DataError("no text has two tokens", "a token to go by and one behind it", "pass longer texts, or a larger --input-shape")
    padding = read.pad_token_id or 0  # masked, so any token will do
    ids = torch.tensor([window + [padding] * (length - len(window)) for window in windows])
    mask = torch.tensor([[1] * len(window) + [0] * (length - len(window)) for window in windows])
    return {"input_ids": ids, "attention_mask": mask}


def next_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """The label of each position: the token behind it, or NO_LABEL where that is padding or there is none."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = torch.full_like(ids, NO_LABEL)
    labels[:, :-1] = torch.where(mask[:, 1:] > 0, ids[:, 1:], NO_LABEL)
    return labels


def label_numbers(path: Path, labels: Sequence[str]) -> Tensor:
    """Labels as the network counts them: numbers as they are, names by `label2id` of its configuration. DataError for another name."""
    known = {str(name): int(number) for name, number in (read_config(path).get("label2id") or {}).items()}
    found = []
    for row, label in enumerate(labels, 1):
        number = label.strip()
        if number not in known and not _is_number(number):
            raise DataError(f"row {row} has the label {label!r}", f"a number, or one of {', '.join(known)}", "correct the row")
        found.append(float(known.get(number, number)))
    whole = all(value.is_integer() for value in found)
    return torch.tensor(found, dtype=torch.int64 if whole else torch.float32)


def image_settings(path: Path) -> dict[str, Any]:
    """resize, crop, mean, std and scale of the folder's image processor, as far as it says so."""
    if not (path / PIXELS).is_file():
        return {}
    said = json.loads((path / PIXELS).read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    size, crop = said.get("size") or {}, said.get("crop_size") or {}
    if said.get("do_resize", True) and size:
        found["resize"] = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    if said.get("do_center_crop") and crop:
        found["crop"] = (crop["height"], crop["width"]) if isinstance(crop, dict) else crop
    if said.get("do_normalize", True) and "image_mean" in said:
        found |= {"mean": tuple(said["image_mean"]), "std": tuple(said["image_std"])}
    return found


def positions(path: Path) -> int:
    """The most tokens that the network takes."""
    config = read_config(path)
    most = next((config[key] for key in ("max_position_embeddings", "n_positions", "seq_length") if isinstance(config.get(key), int)), 512)
    padding = config.get("pad_token_id") or 0
    return int(most) - (padding + 1 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0)


def continues_text(path: Path) -> bool:
    """Whether its network gives scores of the next token."""
    return _head(path, read_config(path))[1] == CAUSAL


def reads_text(path: Path) -> bool:
    """Whether its network takes tokens."""
    return not _head(path, read_config(path))[0].endswith(PICTURES)


def read_config(path: Path) -> dict[str, Any]:
    """What config.json says. ModelError where it cannot be read."""
    try:
        found = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / CONFIG} cannot be read: {error}", "the JSON that save_pretrained writes", "save it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path / CONFIG} holds a {type(found).__name__}", "an object", "save it again: save_pretrained(folder)")
    return found


def _head(path: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """The architecture's name and the class that loads it."""
    named = config.get("architectures") or []
    architecture = str(named[0]) if named else ""
    auto = next((auto for end, auto in HEADS.items() if architecture.endswith(end)), None)
    if auto is None:
        got = f"{path / CONFIG} names the architecture {architecture or 'nothing'}"
        do = "write a function that returns the model (from_pretrained) and pass package.module:function"
        raise ModelError(got, f"one that ends in {', '.join(HEADS)}", do)
    return architecture, auto


def _checked_positions(path: Path, tokens: int | None) -> int:
    """The most tokens that the network takes; the errors of `tokenize`."""
    most = positions(path)
    if tokens is not None and tokens > most:
        raise DataError(f"{tokens} tokens for a network of {most} positions", f"at most {most}", f"--input-shape 1x{most}")
    if not any((path / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"no tokenizer in {path}", ", ".join(TOKENIZERS), "save it there: tokenizer.save_pretrained(folder)")
    return most


def _tokenizer(path: Path) -> Any:
    read = transformers().AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    if read.pad_token is None:
        read.pad_token = read.eos_token
    return read


def transformers() -> Any:
    """The package. ModelError where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise ModelError("a transformers folder, and transformers is not installed", "it", "pip install 'quantkit[transformers]'")
    return importlib.import_module("transformers")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
