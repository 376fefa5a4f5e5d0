"""Small tokenizers, trained here and saved as transformers saves them, of the shapes that classifiers have."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MAX_LENGTH = 24
# Docstrings of a library that is at hand, with a few lines in other letters.
TEXTS = [inspect.getdoc(getattr(np, name)) or "" for name in sorted(np.__all__)[:120]]
TEXTS += ["Grüße aus Köln, ça va? Ελληνικά, кириллица, 日本語", "don't, can't; naïve café 🎉"] * 5


def bert(**more: Any) -> transformers.PreTrainedTokenizerFast:
    """WordPiece with the normalisation and the special tokens of BERT."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=600, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _wrapped(made, pad="[PAD]", unk="[UNK]", **more)


def roberta(**more: Any) -> transformers.PreTrainedTokenizerFast:
    """BPE of bytes, as RoBERTa and ModernBERT have it; its pad id is not 0."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return _wrapped(made, pad="<pad>", unk="<unk>", **more)


def deberta(**more: Any) -> transformers.PreTrainedTokenizerFast:
    """Unigram, as DeBERTa and XLNet have it, padded and cut on the left."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\n", " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="[UNK]")
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    # What such files often say, and transformers overrules in every call.
    made.enable_padding(length=40)
    made.enable_truncation(9)
    return _wrapped(made, pad="[PAD]", unk="[UNK]", padding_side="left", truncation_side="left", **more)


def _wrapped(made: Tokenizer, *, pad: str, unk: str, **more: Any) -> transformers.PreTrainedTokenizerFast:
    how = {"model_max_length": MAX_LENGTH, **more}
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, unk_token=unk, **how)
    # As people add them after training.
    found.add_tokens(["<user>"])
    return found


SHAPES: dict[str, Callable[..., transformers.PreTrainedTokenizerFast]] = {
    "bert": bert, "roberta": roberta, "deberta": deberta,
}  # fmt: skip


def save_tokenizer(folder: Path, shape: str, **more: Any) -> str:
    """Saves one; gives the source that names it."""
    SHAPES[shape](**more).save_pretrained(folder)
    return f"hf:{folder}"
