"""JSON that somebody else wrote."""

from __future__ import annotations

import json
from typing import Any


def value_from_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, nested without end, or holds half a character, which no file can.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value
