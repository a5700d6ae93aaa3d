"""Twelve transformers that people deploy, in small configurations with random weights: torchvision's as modules, the others as folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ITEMS, TOKENS, VOCABULARY, SIDE = 160, 24, 300, 32
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SHALLOW = {key: value for key, value in TEXT.items() if key != "vocab_size"}


def vit_b_16() -> nn.Module:
    from torchvision.models import VisionTransformer

    network = VisionTransformer(SIDE, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10)
    nn.init.normal_(network.heads.head.weight)  # torchvision starts it at zero: every answer would be the same
    return network


def swin_t() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=10)


def convnext_t() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)], layer_scale=0.5, num_classes=10)


def maxvit_t() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit(
        (SIDE, SIDE), stem_channels=16, partition_size=4, block_channels=[16, 32], block_layers=[1, 1], head_dim=8,
        stochastic_depth_prob=0.0, num_classes=10,
    )  # fmt: skip


def _text(config: str, head: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        network: nn.Module = getattr(transformers, head)(getattr(transformers, config)(**settings))
        return network

    return build


MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "torchvision ViT-B/16": vit_b_16,
    "torchvision Swin-T": swin_t,
    "torchvision ConvNeXt-T": convnext_t,
    "torchvision MaxViT-T": maxvit_t,
}
FOLDERS: Mapping[str, Callable[[], nn.Module]] = {
    "BERT": _text("BertConfig", "BertForSequenceClassification", num_labels=5, **TEXT),
    "DistilBERT": _text(
        "DistilBertConfig", "DistilBertForSequenceClassification", num_labels=5, vocab_size=VOCABULARY, dim=48, n_layers=2, n_heads=4,
        hidden_dim=96,
    ),
    "RoBERTa": _text("RobertaConfig", "RobertaForSequenceClassification", num_labels=5, max_position_embeddings=40, **TEXT),
    "ViT": _text("ViTConfig", "ViTForImageClassification", num_labels=5, image_size=SIDE, patch_size=8, **SHALLOW),
    "DeiT": _text("DeiTConfig", "DeiTForImageClassification", num_labels=5, image_size=SIDE, patch_size=8, **SHALLOW),
    "GPT-2": _text("GPT2Config", "GPT2LMHeadModel", vocab_size=VOCABULARY, n_positions=64, n_embd=48, n_layer=2, n_head=4),
    "Llama": _text("LlamaConfig", "LlamaForCausalLM", num_key_value_heads=2, max_position_embeddings=64, **TEXT),
    "T5 encoder": _text("T5Config", "T5EncoderModel", vocab_size=VOCABULARY, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4),
}  # fmt: skip
NAMES = (*MODULES, *FOLDERS)


def file_name(name: str) -> str:
    """The name as part of a file's, and of a figure's."""
    return name.lower().replace("/", "_").replace(" ", "_").replace("-", "_")


def source(name: str, folder: Path) -> nn.Module | str:
    """The network: a module, or the path of a folder that is written below `folder`."""
    torch.manual_seed(0)
    if name in MODULES:
        return MODULES[name]().eval()
    path = folder / file_name(name)
    FOLDERS[name]().eval().save_pretrained(path)  # type: ignore[operator]
    return str(path)


def inputs(name: str, items: int = ITEMS) -> dict[str, Tensor]:
    """Random pixels, or token ids with masks of different lengths."""
    generator = torch.Generator().manual_seed(1)
    if name in MODULES or name in ("ViT", "DeiT"):
        coarse = torch.randn(items, 3, SIDE // 4, SIDE // 4, generator=generator)
        pictures = nn.functional.interpolate(coarse, SIDE) + 0.3 * torch.randn(items, 3, SIDE, SIDE, generator=generator)
        return {"x" if name in MODULES else "pixel_values": pictures}
    ids = torch.randint(3, VOCABULARY, (items, TOKENS), generator=generator)
    lengths = torch.randint(TOKENS // 2, TOKENS + 1, (items, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    return {"input_ids": torch.where(mask > 0, ids, 0), "attention_mask": mask}
