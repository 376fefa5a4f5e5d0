"""Text classifiers of transformers: token ids, mask and token types in, logits out."""

import inspect
from typing import Any

import torch
from torch import nn

from export.sources import ExportOptions
from export.tensor_rows import TensorKind
from orchestrator.errors import ExportError
from orchestrator.spec import TensorSpec

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
KIND = "ForSequenceClassification"


class TextLogits(nn.Module):
    """A transformers classifier as int64 tensors (n, length) in, logits out."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Tensors in the order of `names` -> logits (n, k)."""
        logits: torch.Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


def text_inputs(model: nn.Module, options: ExportOptions, *, subject: str) -> tuple[TensorKind, ...]:
    """What a classifier takes, under its own names.

    Token types are left out where the model has one type only: it has no use for them, and tokenisers of such
    models do not give them.
    """
    config: Any = model.config
    types = int(getattr(config, "type_vocab_size", 0) or 0)
    takes = inspect.signature(model.forward).parameters
    below = {IDS: int(config.vocab_size), MASK: 2}
    if TYPES in takes and types > 1:
        below[TYPES] = types
    lacking = sorted({IDS, MASK} - set(takes))
    if lacking:
        expected = f"{IDS} and {MASK}: rows of several lengths share a batch"
        raise ExportError(subject, got=f"a model without {' and '.join(lacking)}", expected=expected)
    pad = getattr(config, "pad_token_id", None)
    pads = {IDS: 0.0 if pad is None else float(pad), **options.pads}
    unknown = sorted(set(pads) - set(below))
    if unknown:
        raise ExportError(f"{subject} `pads`", got=", ".join(unknown), expected=" or ".join(below))
    return tuple(
        TensorKind(
            spec=TensorSpec(name=name, dtype="INT64", dims=(-1,)),
            pad=pads.get(name, 0),
            below=size,
            is_mask=name == MASK,
        )
        for name, size in below.items()
    )


def longest_row(model: nn.Module, options: ExportOptions, *, subject: str) -> int:
    """Most tokens of a row: as many as the model has positions, or `max_length` where that is less.

    Models in RoBERTa's manner count positions from behind the padding's id on.
    """
    own = int(getattr(model.config, "max_position_embeddings", None) or 0)
    for name, module in model.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            own = module.num_embeddings - module.padding_idx - 1
    asked = options.max_length
    if own < 1 and asked is None:
        fix = "give the most tokens of a row with `max_length`"
        raise ExportError(subject, got="no max_position_embeddings in its config", fix=fix)
    if asked is not None and 0 < own < asked:
        raise ExportError(f"{subject} `max_length`", got=asked, expected=f"at most {own}, its positions")
    return asked or own
