"""Which ONNX Runtimes an export is proven on, from what a user writes."""

from __future__ import annotations

import re

from export.sources.base import nearest
from orchestrator.errors import ExportError
from orchestrator.spec.triton import RELEASES, image_runtimes

IMAGES, ALL, NONE = "images", "all", "none"
DEFAULT_RUNTIMES = IMAGES
RUNTIMES_HELP = (
    "ONNX Runtimes to prove it on besides the installed one: images (the oldest and the newest in a Triton "
    "image), all, none, or versions and Triton releases such as 1.19.2,26.07."
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_RELEASE = re.compile(r"\d\d\.\d\d")


def runtimes_from_text(text: str) -> tuple[str, ...]:
    """Versions of ONNX Runtime, oldest first, each once.

    Args:
        text: "images" (the oldest and the newest in a Triton image), "all" (every one in an image), "none", or
            words with commas between them: versions of ONNX Runtime (1.19.2) and Triton releases (26.07).

    Raises:
        ExportError: a word is neither, or a release of which nobody says what it carries.
    """
    if text == NONE:
        return ()
    known = image_runtimes()
    if text == IMAGES:
        return known[0], known[-1]
    if text == ALL:
        return known
    found = {_version(word.strip()) for word in text.split(",")}
    return tuple(sorted(found, key=lambda version: tuple(map(int, version.split(".")))))


def _version(word: str) -> str:
    if _VERSION.fullmatch(word):
        return word
    if word in RELEASES:
        version = RELEASES[word].onnxruntime
        if version is not None:
            return version
        raise ExportError(
            f"runtime of Triton {word}",
            got="a release whose ONNX Runtime no public source names",
            expected="one that is known",
            fix="ask its image (`pip list`, or the folder of its backend) and give that version",
        )
    fix = nearest(word, RELEASES) if _RELEASE.fullmatch(word) else None
    raise ExportError(
        "--runtimes",
        got=repr(word),
        expected="images, all, none, or versions such as 1.19.2 and Triton releases such as 26.07",
        fix=fix,
    )
