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
    "image), all, none, or versions and Triton releases; also together: images,1.27.0,26.08."
)
_NUMBER = "(?:0|[1-9][0-9]*)"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}")
_RELEASE = re.compile("[0-9]{2}[.][0-9]{2}")


def runtimes_from_text(text: str) -> tuple[str, ...]:
    """Versions of ONNX Runtime, oldest first, each once.

    Args:
        text: "none", or words with commas between them: "images" (the oldest and the newest in a Triton image),
            "all" (every one in an image), versions of ONNX Runtime (1.19.2) and Triton releases (26.07).

    Raises:
        ExportError: a word is none of these, or a release of which nobody says what it carries.
    """
    if text.strip() == NONE:
        return ()
    found = {version for word in text.split(",") for version in _versions(word.strip())}
    return tuple(sorted(found, key=lambda version: tuple(map(int, version.split(".")))))


def _versions(word: str) -> tuple[str, ...]:
    known = image_runtimes()
    keywords = {IMAGES: (known[0], known[-1]), ALL: known}
    if word in keywords:
        return keywords[word]
    if _VERSION.fullmatch(word):
        return (word,)
    if word in RELEASES:
        version = RELEASES[word].onnxruntime
        if version is not None:
            return (version,)
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
        expected="none, or images, all, versions such as 1.19.2 and Triton releases such as 26.07",
        fix=fix,
    )
