"""The glyphs data set: pictures of letters and digits, drawn from fonts and a seed, in three parts.

It is made here, so it proves nothing about other data. Picture number i depends on i and the seed alone, so any
slice of a part can be drawn by itself. All parts use the same fonts: what differs is the distortion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from export.glyphs.drawing import FONTS, SIDE_PX, draw
from orchestrator.errors import ExportError

SEED = 2012
Part = Literal["train", "plan", "test"]
# part -> (number of its first picture, pictures)
PARTS: dict[Part, tuple[int, int]] = {"train": (0, 60_000), "plan": (60_000, 20_000), "test": (80_000, 20_000)}
# Once size is free nobody can tell these apart, so each group is one class.
ALIKE = ("Cc", "Oo0", "Ss", "Vv", "Ww", "Xx", "Zz", "Il")
_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Name of a class -> the characters it holds; in the order of the members' outputs.
GROUPS: dict[str, str] = {
    group[0]: group
    for group in sorted([*ALIKE, *(c for c in _CHARACTERS if not any(c in group for group in ALIKE))])
}
CLASSES: tuple[str, ...] = tuple(GROUPS)
_REPORT_EVERY = 1_000


@dataclass(frozen=True, kw_only=True)
class GlyphsPart:
    """Rows of one part.

    Args:
        ids: str (n,), "glyph:<number>".
        images: uint8 (n, 1, 32, 32).
        labels: int64 (n,), index into CLASSES.
    """

    ids: npt.NDArray[np.str_]
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def sha256(self) -> str:
        """Of pictures and labels. Another version of Pillow or of the fonts may draw other pictures."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()


def glyphs_part(
    part: Part, *, rows: int | None = None, progress: Callable[[int, int], None] | None = None
) -> GlyphsPart:
    """Draws a part, about 4,000 pictures a second.

    Args:
        part: "train" (60,000 rows), "plan" or "test" (20,000 each).
        rows: only the first so many.
        progress: told (rows drawn, rows in all) now and then.

    Raises:
        ExportError: no such part, or it has fewer rows.
    """
    if part not in PARTS:
        raise ExportError("part of the glyphs", got=repr(part), expected=", ".join(PARTS))
    first, size = PARTS[part]
    count = size if rows is None else rows
    if not 0 < count <= size:
        raise ExportError(f"rows of the glyphs' {part} part", got=count, expected=f"1 to {size}")
    images = np.empty((count, 1, SIDE_PX, SIDE_PX), np.uint8)
    labels = np.empty(count, np.int64)
    for row in range(count):
        images[row, 0], labels[row] = _picture(first + row)
        if progress is not None and (row + 1) % _REPORT_EVERY == 0:
            progress(row + 1, count)
    ids = np.array([f"glyph:{number}" for number in range(first, first + count)])
    return GlyphsPart(ids=ids, images=images, labels=labels)


def _picture(number: int) -> tuple[npt.NDArray[np.uint8], int]:
    rng = np.random.default_rng([SEED, number])
    label = int(rng.integers(len(CLASSES)))
    group = GROUPS[CLASSES[label]]
    character = group[int(rng.integers(len(group)))]
    font = FONTS[int(rng.integers(len(FONTS)))]
    return draw(character, font, rng=rng), label
