"""The glyphs data set: pictures of letters and digits, drawn from fonts and a seed, in three parts.

It is made here, so it proves nothing about other data. Picture number i depends on i and the seed alone, so any
slice of a part can be drawn by itself. All parts use the same fonts; only the distortions differ.

Every picture has a difficulty between 0 and 1, which limits how far each distortion (shape, light, occlusion,
blur, noise) reaches: most pictures are easy to read and a tail is hard, as in data that people photograph.
"""

import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from orchestrator.errors import ExportError
from orchestrator.repository.files import write_all
from perf.studies.drawn import DrawnPart

SEED = 2012
SplitName = Literal["train", "plan", "test"]
# part -> (number of its first picture, pictures)
SPLITS: dict[SplitName, tuple[int, int]] = {
    "train": (0, 60_000),
    "plan": (60_000, 20_000),
    "test": (80_000, 20_000),
}
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

SIDE_PX = 32
_STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")
# The fonts that ship with matplotlib and hold every letter and digit at its usual place.
FONTS = (
    *(f"{face}{style}" for face in ("DejaVuSans", "DejaVuSansMono") for style in _STYLES),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
# Drawn large once and shrunk with the distortion, so that every picture is antialiased.
_MASTER_PX = 96
_DOUBLE_PX = 2 * SIDE_PX
# Of Beta(a, b): mean 0.29, and one picture in twelve above 0.6.
_DIFFICULTY = (1.1, 2.7)


def glyphs_split(
    part: SplitName, *, rows: int | None = None, progress: Callable[[int, int], None] | None = None
) -> DrawnPart:
    """Draws a part or its first rows, uint8 (n, 1, 32, 32), about 4,000 a second; tells (rows drawn, in all).

    Raises:
        ExportError: no such part, or it has fewer rows.
    """
    if part not in SPLITS:
        raise ExportError("part of the glyphs", got=repr(part), expected=", ".join(SPLITS))
    first, size = SPLITS[part]
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
    return DrawnPart(ids=ids, images=images, labels=labels)


def _picture(number: int) -> tuple[npt.NDArray[np.uint8], int]:
    rng = np.random.default_rng([SEED, number])
    label = int(rng.integers(len(CLASSES)))
    group = GROUPS[CLASSES[label]]
    character = group[int(rng.integers(len(group)))]
    font = FONTS[int(rng.integers(len(FONTS)))]
    return draw(character, font, rng=rng), label


@functools.cache
def master(character: str, font: str) -> Image.Image:
    """The undistorted shape, white on black, two thirds of the picture long; mode L, 96 x 96 pixels."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    # The basic layout engine: the other one is a library that not every machine has.
    face = ImageFont.truetype(str(path), 200, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(character)
    shape = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
    ImageDraw.Draw(shape).text((2 - left, 2 - top), character, fill=255, font=face)
    inside = shape.getbbox()
    assert inside is not None, f"{font} has no {character}"
    shape = shape.crop(inside)
    factor = _MASTER_PX * 2 / 3 / max(shape.size)
    size = (max(1, round(shape.width * factor)), max(1, round(shape.height * factor)))
    canvas = Image.new("L", (_MASTER_PX, _MASTER_PX))
    small = shape.resize(size, Image.Resampling.LANCZOS)
    canvas.paste(small, ((_MASTER_PX - size[0]) // 2, (_MASTER_PX - size[1]) // 2))
    return canvas


def draw(character: str, font: str, *, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One picture, uint8 (32, 32)."""
    hard = float(rng.beta(*_DIFFICULTY))
    shape = _distorted(master(character, font), hard, rng)
    ink, paper = _light(hard, rng)
    levels = paper + (ink - paper) * shape
    levels = _uneven(levels, hard, rng)
    levels = _occluded(levels, hard, rng)
    levels = _blurred(levels, hard, rng)
    levels += rng.normal(0, 1, levels.shape) * (2 + 52 * hard * rng.random())
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _distorted(shape: Image.Image, hard: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Rotated, scaled, sheared, shifted; float64 (32, 32) of ink from 0 to 1."""

    def reach(most: float) -> float:
        return float(rng.uniform(-most, most)) * (0.2 + 0.8 * hard)

    angle, shear = math.radians(reach(40)), reach(0.35)
    size = 1.05 - (0.1 + 0.5 * hard) * rng.random()
    wide, high = size * math.exp(reach(0.25)), size * math.exp(reach(0.25))
    cos, sin = math.cos(angle), math.sin(angle)
    # From picture to master: PIL asks where each pixel comes from.
    a, b = cos / wide, (sin + shear * cos) / wide
    d, e = -sin / high, (cos - shear * sin) / high
    ratio = _MASTER_PX / _DOUBLE_PX
    a, b, d, e = (value * ratio for value in (a, b, d, e))
    centre_x, centre_y = _DOUBLE_PX / 2 + 2 * reach(5), _DOUBLE_PX / 2 + 2 * reach(5)
    c = _MASTER_PX / 2 - a * centre_x - b * centre_y
    f = _MASTER_PX / 2 - d * centre_x - e * centre_y
    size_px, bilinear = (_DOUBLE_PX, _DOUBLE_PX), Image.Resampling.BILINEAR
    moved = shape.transform(size_px, Image.Transform.AFFINE, (a, b, c, d, e, f), bilinear)
    return np.asarray(moved.reduce(2), np.float64) / 255


def _light(hard: float, rng: np.random.Generator) -> tuple[float, float]:
    """Levels of ink and paper, either of them the brighter one."""
    contrast = 255 * (1 - (0.15 + 0.8 * hard) * rng.random())
    low = rng.uniform(0, 255 - contrast)
    return (low, low + contrast) if rng.random() < 0.5 else (low + contrast, low)


def _uneven(levels: npt.NDArray[np.float64], hard: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Light that falls off to one side."""
    angle, depth = rng.uniform(0, 2 * math.pi), 90 * hard * rng.random()
    ramp = np.linspace(-0.5, 0.5, SIDE_PX)
    return levels + depth * (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None])


def _occluded(levels: npt.NDArray[np.float64], hard: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Bars and patches of one level in front of the character."""
    for _ in range(rng.binomial(3, 0.75 * hard)):
        level = rng.uniform(0, 255)
        height, width = rng.integers(2, 5 + round(9 * hard), 2)
        if rng.random() < 0.4:
            height, width = (2, SIDE_PX) if rng.random() < 0.5 else (SIDE_PX, 2)
        top, left = rng.integers(0, SIDE_PX - height + 1), rng.integers(0, SIDE_PX - width + 1)
        levels[top : top + height, left : left + width] = level
    return levels


def _blurred(levels: npt.NDArray[np.float64], hard: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    sigma = 2.0 * hard * rng.random()
    if sigma < 0.2:
        return levels
    picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma)), np.float64)


def store_split(path: Path, part: str, *, rows: int | None = None, progress: Callable[[str], None]) -> int:
    """Draws a part or its first rows into an .npz, whole or not at all, and returns the number of rows.

    The file has `ids`, `images`, `labels`, and the classes' names as `classes`.

    Raises:
        ExportError: no such part, or it has fewer rows.
        RepositoryError: the file cannot be written.
    """
    drawn = glyphs_split(
        cast(SplitName, part), rows=rows, progress=lambda done, of: progress(f"drawing {part}: {done:,} of {of:,}")
    )
    stored = io.BytesIO()
    np.savez(stored, ids=drawn.ids, images=drawn.images, labels=drawn.labels, classes=np.array(CLASSES))
    write_all(path.parent, {path.name: stored.getvalue()})
    return len(drawn.ids)
