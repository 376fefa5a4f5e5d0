"""Texts, or pairs of them, into token ids, as transformers makes them. Needs numpy and `tokenizers` alone."""

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
    """A text that is not tokenised; its text is one line without the content of the row.

    Its `input` is 1 for the second text of a pair, None where the fault is of both.
    """

    def __init__(self, text: str, *, input: int | None = 0) -> None:
        super().__init__(text)
        self.input = input


class RowTokens:
    """A tokenizer with its truncation and padding.

    Args:
        folder: holds tokenizer.json.
        max_length: most tokens of a row, special ones included.
        over_length: "truncate" or "refuse", for rows of more tokens.
        empty: "refuse" or "keep", for texts without a token of their own.
        max_bytes: most bytes of a text.
        pads: output -> value behind, or in front of, the tokens of shorter rows.
        padding_side: "right" or "left".
        truncation_side: "right" or "left".
        pair: whether a row is two texts.
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
        pair: bool = False,
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        # What the file says of padding and truncation is overruled, as transformers does in every call.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if over_length == "truncate":
            self._tokenizer.enable_truncation(max_length, direction=truncation_side)
        self._max_length, self._max_bytes = max_length, max_bytes
        self._refuse_empty, self._pads, self._left = empty == "refuse", pads, padding_side == "left"
        self._pair = pair

    def __call__(self, rows: Sequence[object], wanted: Sequence[str] = ()) -> dict[str, npt.NDArray[np.int64]]:
        """The outputs, int64 (n, longest of these rows), of n texts as UTF-8 bytes; all of them for none wanted.

        Of pairs a row is a tuple of two texts. Raises TextError for a text that is null, too long or not UTF-8, or
        has no tokens.
        """
        texts: list[Any] = [self._row(place, row) for place, row in enumerate(rows)]
        encodings = self._tokenizer.encode_batch_fast(texts)
        for place, encoding in enumerate(encodings):
            self._check(place, encoding)
        longest = max(map(len, encodings), default=0)
        return {name: self._padded(name, encodings, longest) for name in wanted or _FIELDS}

    def _row(self, place: int, row: Any) -> "str | tuple[str, str]":
        return (self._text(place, row[0]), self._text(place, row[1], 1)) if self._pair else self._text(place, row)

    def _text(self, place: int, text: object, input: int = 0) -> str:
        if not isinstance(text, bytes):
            raise TextError(f"row {place}: got a null, expected a text", input=input)
        if len(text) > self._max_bytes:
            got = f"{len(text)} bytes, expected at most {self._max_bytes}"
            raise TextError(f"row {place}: got {got}; shorten the text", input=input)
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            got = f"byte 0x{text[error.start]:02x} at {error.start}, which is not UTF-8"
            raise TextError(f"row {place}: got {got}, expected text in UTF-8", input=input) from error

    def _check(self, place: int, encoding: Encoding) -> None:
        for input in range(1 + self._pair):
            own = zip(encoding.special_tokens_mask, encoding.sequence_ids, strict=True)
            if self._refuse_empty and not any(not special and of == input for special, of in own):
                raise TextError(f"row {place}: got a text without a token, expected some text", input=input)
        whole = None if self._pair else 0
        if not len(encoding):
            raise TextError(f"row {place}: got a text that has no tokens at all, expected some text", input=whole)
        if len(encoding) > self._max_length:
            got = f"{len(encoding)} tokens, expected at most {self._max_length}"
            fix = "shorten the text, or export the tokenizer with --over-length truncate"
            raise TextError(f"row {place}: got {got}; {fix}", input=whole)

    def _padded(self, name: str, encodings: Sequence[Encoding], longest: int) -> npt.NDArray[np.int64]:
        made = np.full((len(encodings), longest), self._pads[name], np.int64)
        for row, encoding in zip(made, encodings, strict=True):
            values: Any = getattr(encoding, _FIELDS[name])
            row[longest - len(encoding) if self._left else 0 :][: len(encoding)] = values
        return made


# What the model file asks this module for.
REFUSAL = TextError
load = RowTokens
