"""Text classifiers of transformers with random weights: two layers, a vocabulary of a hundred, 64 positions."""

from pathlib import Path
from typing import Any

import torch
import transformers

CLASSES, VOCABULARY, POSITIONS = 3, 100, 64
LABELS = {0: "bad", 1: "fair", 2: "good"}
_COMMON: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "id2label": LABELS,
}  # fmt: skip
_MODERN = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 3}
# model type -> its settings
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _COMMON | {"pad_token_id": 0},
    "distilbert": {
        "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS, "id2label": LABELS, "pad_token_id": 0,
    },
    "roberta": _COMMON | {"pad_token_id": 1, "type_vocab_size": 1},
    "deberta-v2": _COMMON | {
        "relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
        "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0, "pad_token_id": 0,
    },
    "modernbert": _COMMON | _MODERN | {"global_attn_every_n_layers": 2, "local_attention": 8},
}  # fmt: skip


def text_classifier(model_type: str, **settings: Any) -> transformers.PreTrainedModel:
    """A classifier whose answers differ from row to row."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **CONFIGS[model_type] | settings)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            # As drawn they are so small that every row gets nearly the same answer.
            weights.mul_(4 if weights.ndim > 1 else 1)
    return model


def save_text_classifier(folder: Path, model_type: str, **settings: Any) -> str:
    """Saves one as the hub has them, without a tokeniser; gives its source."""
    text_classifier(model_type, **settings).save_pretrained(folder)
    return f"hf:{folder}"
