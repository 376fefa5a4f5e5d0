"""Other versions of ONNX Runtime than the installed one, unpacked once into a cache that all projects share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from export.sources.base import nearest
from orchestrator.errors import ExportError
from orchestrator.spec.triton import RELEASES, image_runtimes

CACHE_VARIABLE = "COMMITTEE_CACHE"
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
# By default pip waits minutes for an index that does not answer.
_PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--retries", "1", "--timeout", "20", "--quiet")
_FETCH_TIMEOUT_S = 600


def installed_version() -> str:
    """Version of the ONNX Runtime in this environment; empty where there is none."""
    for package in PACKAGES:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def cache_folder() -> Path:
    """Where unpacked wheels are kept: $COMMITTEE_CACHE, else the user's cache folder."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "committee"


def runtime_folder(wanted: str) -> Path | None:
    """The folder to put first on a process's path for a version of ONNX Runtime; None for the installed one.

    Raises:
        ExportError: there is no wheel of it for this Python, or it cannot be fetched or kept.
    """
    if wanted == installed_version():
        return None
    folder = _folder_of(wanted)
    if _is_whole(folder):
        return folder
    what = f"ONNX Runtime {wanted}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder.parent) as name:
            _unpack(_fetched(wanted, Path(name), what), Path(name) / "unpacked", what)
            _move(Path(name) / "unpacked", folder)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or folder})"
        fix = f"make room, or name another folder with {CACHE_VARIABLE}"
        raise ExportError(what, got=reason, expected="a cache that can be written", fix=fix) from error
    return folder


def _folder_of(wanted: str) -> Path:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return cache_folder() / "onnxruntime" / f"{wanted}-{tag}"


def _is_whole(folder: Path) -> bool:
    """Whether the package is there with its library: without either, Python would import the installed one."""
    package = folder / "onnxruntime"
    return (package / "__init__.py").is_file() and any((package / "capi").glob("*.so"))


def _fetched(wanted: str, folder: Path, what: str) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *_PIP_OPTIONS]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), f"onnxruntime=={wanted}"],
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            what, got=f"no wheel after {_FETCH_TIMEOUT_S} s", expected="one from the index"
        ) from error
    wheel = next(folder.glob("onnxruntime-*.whl"), None)
    if done.returncode or wheel is None:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ExportError(
            what,
            got=(errors or done.stderr.strip().splitlines() or ["no wheel"])[-1][:200],
            expected=f"a wheel for Python {sys.version_info.major}.{sys.version_info.minor} that pip can fetch",
            fix=f"unpack one into {_folder_of(wanted)}, or choose others with `runtimes`",
        )
    return wheel


def _unpack(wheel: Path, folder: Path, what: str) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise ExportError(what, got=f"a damaged wheel ({error})", expected="a whole one") from error
    if not _is_whole(folder):
        raise ExportError(what, got=f"a damaged wheel ({wheel.name} without its library)", expected="a whole one")


def _move(made: Path, folder: Path) -> None:
    """Puts the unpacked wheel in place, over a folder that is not whole.

    Another process may have done so meanwhile, with the same content. The old folder goes with the temporary one.
    """
    if not _is_whole(folder) and (folder.exists() or folder.is_symlink()):
        folder.rename(made.with_name("replaced"))
    try:
        made.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


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
        ExportError: a word is none of these, or a release whose ONNX Runtime is not known.
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
        "`runtimes`",
        got=repr(word),
        expected="none, or images, all, versions such as 1.19.2 and Triton releases such as 26.07",
        fix=fix,
    )
