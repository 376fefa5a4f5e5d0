"""A tokenizer of transformers as a model: its tokenizer.json, its settings, and proof of equal tokens."""

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import transformers

from export.deriving.served import tokens
from export.deriving.writing import SERVED, DerivingModel
from export.sources import local_folder, member_name
from orchestrator.errors import ExportError, first_line
from orchestrator.spec.deriving import PaddedTensor
from orchestrator.spec.validation import MOST_SIZE

OVER_LENGTH = ("truncate", "refuse")
EMPTY = ("refuse", "keep")
SIDES = ("right", "left")
_SAID = {"truncate": "longer texts are cut", "refuse": "longer texts are refused"}
TEXTS = ("text", "text_pair")  # as transformers calls a row's text, and the second one of a pair
PACKAGES = ("tokenizers",)  # that the server needs besides numpy
_EXPECTED = f"{tokens.TOKENIZER} and tokenizer_config.json, as save_pretrained writes them"
# Larger numbers stand for a longest length that nobody has written down.
_UNKNOWN_LENGTH = 10**9
# Texts on which exported tokens are compared with the original's, besides longer ones made of them.
_TEXTS = (
    "", " ", "A plain sentence, with 3 commas, and a full stop.", "  Two  spaces\tand\na line  ",
    "Grüße aus Köln: ça va? Ελληνικά, кириллица, 日本語, हिन्दी, العربية", "naïve café ﬁ ½ ™", "👩‍👩‍👧 🎉",
    "don't can't I'm", "http://example.org/a?b=c&d", "x" * 300,
    "[SEP] <s> </s> <pad> [MASK]", "\x00\x07\u200b\ufeff",
)  # fmt: skip


def tokenizer_model(
    source: str,
    *,
    name: str | None = None,
    pair: bool = False,
    max_length: int | None = None,
    over_length: str = "truncate",
    empty: str = "refuse",
    max_bytes: int = 1 << 18,
    padding_side: str | None = None,
    max_batch_size: int = 64,
    progress: Callable[[str], None] = lambda _: None,
) -> DerivingModel:
    """The model of the tokenizer that `hf:<folder or hub id>` has; nothing is written.

    Args:
        source: where it comes from.
        name: of the model; None for "tokenizer_" and the last part of the source, and "_pair" for pairs.
        pair: whether rows are two texts, TEXTS, that go into one sequence of tokens.
        max_length: most tokens of a row, special ones included; None for the tokenizer's own.
        over_length: what becomes of rows of more tokens, one of OVER_LENGTH; of a pair the longer text is cut.
        empty: what becomes of texts without a token of their own, one of EMPTY.
        max_bytes: longer texts are refused before they are tokenised.
        padding_side: where shorter rows are filled up, one of SIDES; None for the tokenizer's own.
        max_batch_size: most texts of one request.
        progress: told what is being done.

    Raises ExportError where there is no fast tokenizer, or what it needs to know is missing.
    """
    kind, _, what = source.partition(":")
    if kind != "hf" or not what:
        raise ExportError(f"source {source}", got="no hf:", expected="hf:<hub id or folder>")
    given = (
        ("over_length", over_length, OVER_LENGTH),
        ("empty", empty, EMPTY),
        ("padding_side", padding_side, SIDES),
    )
    for word, value, known in given:
        if value not in (*known, None):
            raise ExportError(f"`{word}`", got=value, expected=" or ".join(known))
    progress(f"reading {source}")
    original = _tokenizer(_folder(what, source), source)
    original.padding_side = padding_side or original.padding_side
    pads = {
        tokens.INPUT_IDS: int(_pad_id(original, source)),
        tokens.ATTENTION_MASK: 0,
        tokens.TOKEN_TYPE_IDS: int(original.pad_token_type_id),
    }
    options: dict[str, Any] = {
        "max_length": _longest(original, max_length, source, pair=pair),
        "over_length": over_length,
        "empty": empty,
        "max_bytes": max_bytes,
        "pads": pads,
        "padding_side": original.padding_side,
        "truncation_side": original.truncation_side,
        "pair": pair,
    }
    files = {
        tokens.TOKENIZER: original.backend_tokenizer.to_str().encode(),
        "derive.py": (SERVED / "tokens.py").read_bytes(),
    }
    progress("comparing tokens")
    return DerivingModel(
        name=name or f"tokenizer_{member_name(what)}{'_pair' if pair else ''}",
        derives="tokens",
        source=source,
        inputs=TEXTS if pair else TEXTS[:1],
        outputs=tuple(PaddedTensor(name=one, dtype="INT64", dims=(-1,), pad=pad) for one, pad in pads.items()),
        files=files,
        packages=PACKAGES,
        options=options,
        said=f"up to {options['max_length']} tokens, {_SAID[over_length]}",
        max_batch_size=max_batch_size,
        parity=_proof(original, files[tokens.TOKENIZER], options, source),
    )


def _folder(what: str, source: str) -> Path:
    folder = local_folder(what, source, expected=f"a folder with {tokens.TOKENIZER}, or a hub id")
    if folder is not None:
        return folder
    # Optional: a local folder needs none.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Of a hub that does not answer, the one line below is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        # No weights: vocabularies and settings are enough.
        return Path(snapshot_download(what, allow_patterns=["*.json", "*.txt", "*.model"]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        got = f"no local folder of that name, and the hub did not give its files ({type(error).__name__})"
        fix = "bring a folder with these files here and name it"
        raise ExportError(source, got=got, expected=_EXPECTED, fix=fix) from error


def _tokenizer(folder: Path, source: str) -> Any:
    how = {"trust_remote_code": False, "local_files_only": True}
    try:
        if not (folder / "config.json").is_file() and (folder / tokens.TOKENIZER).is_file():
            # Without config.json the class of the tokenizer may be unknown; its file says all that is needed.
            found: Any = transformers.PreTrainedTokenizerFast.from_pretrained(folder, **how)
        else:
            found = transformers.AutoTokenizer.from_pretrained(folder, **how)
    # A damaged file fails inside transformers, tokenizers or json, which share no error.
    except Exception as error:
        got = f"no tokenizer that loads ({first_line(error)})"
        raise ExportError(source, got=got, expected=_EXPECTED, fix="name a folder with these files") from error
    if not getattr(found, "is_fast", False):
        got = f"{type(found).__name__}, which has no {tokens.TOKENIZER}"
        raise ExportError(source, got=got, expected="a fast tokenizer of transformers")
    return found


def _pad_id(original: Any, source: str) -> int:
    if original.pad_token_id is None:
        fix = "name one of its tokens as pad_token in tokenizer_config.json, as the model was trained with"
        raise ExportError(source, got="no pad token", expected="one, for rows of different length", fix=fix)
    return int(original.pad_token_id)


def _longest(original: Any, asked: int | None, source: str, *, pair: bool) -> int:
    special = original.num_special_tokens_to_add(pair)
    most = original.model_max_length if asked is None else asked
    if asked is None and most > _UNKNOWN_LENGTH:
        got = "no model_max_length in tokenizer_config.json"
        fix = "give `max_length`, which is the number of positions the model was made with"
        raise ExportError(source, got=got, expected="the most tokens the model takes", fix=fix)
    if not special < most <= MOST_SIZE:
        got = f"a longest length of {most}"
        raise ExportError(source, got=got, expected=f"room for a token besides the {special} special ones")
    return int(most)


def _proof(original: Any, file: bytes, options: dict[str, Any], source: str) -> dict[str, Any]:
    """Compares what will be served with the original, cut to the longest length; ExportError where it differs."""
    texts = [*_TEXTS, " ".join(_TEXTS[2:7]) * 3, "a word " * (options["max_length"] + 8)]
    with TemporaryDirectory() as folder:
        (Path(folder) / tokens.TOKENIZER).write_bytes(file)
        served = tokens.RowTokens(
            Path(folder), **{**options, "over_length": "truncate", "empty": "keep", "max_bytes": 1 << 30}
        )
    # Each text stands beside short, long and empty ones of a pair.
    columns = [texts, texts[::-1]] if options["pair"] else [texts]
    how = {"truncation": True, "max_length": options["max_length"], "return_token_type_ids": True}
    # A tokenizer without special tokens has none at all for an empty text.
    rows = [row for row in zip(*columns, strict=True) if original(*row, **how)["input_ids"]]
    for batch in (rows, *([row] for row in rows)):
        taken = [list(column) for column in zip(*batch, strict=True)]
        wanted = original(*taken, padding=True, **how, return_attention_mask=True, return_tensors="np")
        asked = [tuple(text.encode() for text in row) for row in batch]
        got = served(asked if options["pair"] else [one for (one,) in asked])
        wrong = [name for name, array in got.items() if not np.array_equal(array, wanted[name])]
        if wrong:
            subject = f"{source} {', '.join(wrong)}"
            expected = "those that transformers gives"
            raise ExportError(subject, got=f"other tokens for {batch[0][0][:40]!r}", expected=expected)
    return {"texts": len(rows), "equal_to": f"transformers {transformers.__version__}"}
