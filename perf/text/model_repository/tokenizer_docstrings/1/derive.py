"""Texts into token ids, as a tokenizer of transformers gives them. Needs numpy and `tokenizers`, nothing else."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Parallelism comes from requests and instances: every instance is a process of its own, and pools of threads as
# wide as the machine would fight each other.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Encoding, Tokenizer

TOKENIZER = "tokenizer.json"
INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS = "input_ids", "attention_mask", "token_type_ids"
# output -> the field of an encoding that it is made of
_FIELDS = {INPUT_IDS: "ids", ATTENTION_MASK: "attention_mask", TOKEN_TYPE_IDS: "type_ids"}


class TextError(ValueError):
    """A text that is not tokenised; its text is one line without the content of the row."""


class RowTokens:
    """A tokenizer with its truncation and padding.

    Args:
        folder: holds tokenizer.json.
        max_length: most tokens of a text, special ones included.
        over_length: "truncate" or "refuse", for texts of more tokens.
        empty: "refuse" or "keep", for texts without a token of their own.
        max_bytes: most bytes of a text.
        pads: output -> value behind, or in front of, the tokens of shorter rows.
        padding_side: "right" or "left".
        truncation_side: "right" or "left".
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_length: int,
        over_length: str,
        empty: str,
        max_bytes: int,
        pads: dict[str, int],
        padding_side: str,
        truncation_side: str,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        # What the file says of padding and truncation is overruled, as transformers does in every call.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if over_length == "truncate":
            self._tokenizer.enable_truncation(max_length, direction=truncation_side)
        self._max_length, self._max_bytes = max_length, max_bytes
        self._refuse_empty, self._pads, self._left = empty == "refuse", pads, padding_side == "left"

    def __call__(self, rows: Sequence[object], wanted: Sequence[str] = ()) -> dict[str, npt.NDArray[np.int64]]:
        """The outputs, int64 (n, longest of these rows), of n texts as UTF-8 bytes; all of them for none wanted.

        Raises TextError for a text that is null, too long or not UTF-8, or has no tokens.
        """
        texts = [self._text(place, row) for place, row in enumerate(rows)]
        encodings = self._tokenizer.encode_batch_fast(texts)
        for place, encoding in enumerate(encodings):
            self._check(place, encoding)
        longest = max(map(len, encodings), default=0)
        return {name: self._padded(name, encodings, longest) for name in wanted or _FIELDS}

    def _text(self, place: int, row: object) -> str:
        if not isinstance(row, bytes):
            raise TextError(f"row {place}: got a null, expected a text")
        if len(row) > self._max_bytes:
            raise TextError(
                f"row {place}: got {len(row)} bytes, expected at most {self._max_bytes}; shorten the text"
            )
        try:
            return row.decode("utf-8")
        except UnicodeDecodeError as error:
            got = f"byte 0x{row[error.start]:02x} at {error.start}, which is not UTF-8"
            raise TextError(f"row {place}: got {got}, expected text in UTF-8") from error

    def _check(self, place: int, encoding: Encoding) -> None:
        if self._refuse_empty and sum(encoding.special_tokens_mask) == len(encoding):
            raise TextError(f"row {place}: got a text without a token, expected some text")
        if not len(encoding):
            raise TextError(f"row {place}: got a text that has no tokens at all, expected some text")
        if len(encoding) > self._max_length:
            raise TextError(
                f"row {place}: got {len(encoding)} tokens, expected at most {self._max_length}; shorten the text, "
                "or export the tokenizer with --over-length truncate"
            )

    def _padded(self, name: str, encodings: Sequence[Encoding], longest: int) -> npt.NDArray[np.int64]:
        made = np.full((len(encodings), longest), self._pads[name], np.int64)
        for row, encoding in zip(made, encodings, strict=True):
            values: Any = getattr(encoding, _FIELDS[name])
            row[longest - len(encoding) if self._left else 0 :][: len(encoding)] = values
        return made


# What the model file asks this module for.
REFUSAL = TextError
load = RowTokens
