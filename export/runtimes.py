"""Other versions of ONNX Runtime: chosen by a user, unpacked into a cache, asked in processes of their own."""

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.sources import nearest
from export.tensor_rows import AnyRows, TensorRows
from orchestrator.errors import ExportError
from orchestrator.spec.triton import RELEASES, image_runtimes

CACHE_VARIABLE = "COMMITTEE_CACHE"
PACKAGES = ("onnxruntime", "onnxruntime-gpu")
# By default pip waits minutes for an index that does not answer.
_PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--retries", "1", "--timeout", "20", "--quiet")
_FETCH_TIMEOUT_S = 600
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


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
    if own := os.environ.get(CACHE_VARIABLE):
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
            unpacked = Path(name) / "unpacked"
            _unpack(_fetched(wanted, Path(name), what), unpacked, what)
            # A folder that is not whole makes room, and goes with the temporary one.
            if not _is_whole(folder) and (folder.exists() or folder.is_symlink()):
                folder.rename(unpacked.with_name("replaced"))
            try:
                unpacked.rename(folder)
            except OSError:
                # Another process may have put the same there meanwhile.
                if not _is_whole(folder):
                    raise
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or folder})"
        fix = f"make room, or name another folder with {CACHE_VARIABLE}"
        raise ExportError(what, got=reason, expected="a cache that can be written", fix=fix) from error
    return folder


def _folder_of(wanted: str) -> Path:
    return cache_folder() / "onnxruntime" / f"{wanted}-cp{_PYTHON.replace('.', '')}"


def _is_whole(folder: Path) -> bool:
    """Whether the package is there with its library: without either, Python would import the installed one."""
    package = folder / "onnxruntime"
    return (package / "__init__.py").is_file() and any((package / "capi").glob("*.so"))


def _fetched(wanted: str, folder: Path, what: str) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", *_PIP_OPTIONS]
    command += ["--dest", str(folder), f"onnxruntime=={wanted}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        got = f"no wheel after {_FETCH_TIMEOUT_S} s"
        raise ExportError(what, got=got, expected="one from the index") from error
    wheel = next(folder.glob("onnxruntime-*.whl"), None)
    if done.returncode or wheel is None:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ExportError(
            what,
            got=errors[-1][:200] if errors else _last_line(done.stderr, "no wheel"),
            expected=f"a wheel for Python {_PYTHON} that pip can fetch",
            fix=f"unpack one into {_folder_of(wanted)}, or choose other versions",
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
        version = RELEASES[word]
        if version is not None:
            return (version,)
        raise ExportError(
            f"runtime of Triton {word}",
            got="a release whose ONNX Runtime no public source names",
            expected="one that is known",
            fix="ask its image (`pip list`, or the folder of its backend) and give that version",
        )
    raise ExportError(
        "`runtimes`",
        got=repr(word),
        expected="none, or images, all, versions such as 1.19.2 and Triton releases such as 26.07",
        fix=nearest(word, RELEASES) if _RELEASE.fullmatch(word) else None,
    )


Array = npt.NDArray[Any]
WORKER = Path(__file__).with_name("runtimes_worker.py")
# Networks of tens of GMACs take minutes; a process that hangs must end all the same.
_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """Rows for an ONNX file, as an array for its only input; `batches`: how many are sent in each size."""

    model: Path
    rows: AnyRows
    batches: Mapping[int, int]


def answers_in_own_process(
    questions: Sequence[Question],
    *,
    folder: Path | None = None,
    wanted: str | None = None,
    prefix: Sequence[str] = (),
) -> list[dict[int, Array] | str]:
    """The models' answers, computed in a process of its own by the ONNX Runtime in a folder, or the installed one.

    `wanted` is the version that must answer; `prefix` a command that runs the interpreter, such as an emulator of
    another processor.

    Returns:
        for each question, batch size -> the first output (n, k), or one line that says why there is none.

    Raises:
        ExportError: ONNX Runtime cannot be imported there, or is another version than wanted.
    """
    with tempfile.TemporaryDirectory(prefix="committee-runtime-") as name:
        cases = []
        for index, question in enumerate(questions):
            into = Path(name) / str(index)
            into.mkdir()
            batches = list(question.batches.items())
            tensors = _saved(question.rows, into)
            cases.append(
                {"model": str(question.model.resolve()), "into": str(into), "batches": batches, "tensors": tensors}
            )
        own = [] if folder is None else [str(folder.resolve())]
        output, why = _run([*prefix, sys.executable, str(WORKER), *own], json.dumps(cases))
        first, *lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")] or [{}]
        found = first.get("version")
        if found is None or wanted not in (None, found):
            raise ExportError(
                f"ONNX Runtime {wanted or 'as installed'}",
                got=why if found is None else f"version {found}",
                expected=f"version {wanted}" if wanted else "one that can be imported",
                fix="install it again" if folder is None else f"remove {folder} and run again",
            )
        faults = [line["fault"] for line in lines] + [why] * (len(cases) - len(lines))
        return [
            {size: np.load(Path(name) / str(index) / f"{size}.npy") for size in question.batches}
            if fault is None
            else fault
            for index, (question, fault) in enumerate(zip(questions, faults, strict=True))
        ]


def _saved(rows: AnyRows, folder: Path) -> list[dict[str, Any]]:
    """Writes rows into a folder; gives the tensors in order, each by its name, null for the only one.

    Of one whose length varies "lengths" are those of its rows, null of others.
    """
    several = rows if isinstance(rows, TensorRows) else None
    arrays = rows.arrays.items() if isinstance(rows, TensorRows) else [(None, rows)]
    tensors = []
    for place, (name, array) in enumerate(arrays):
        np.save(folder / f"rows_{place}.npy", array)
        varies = several is not None and name in several.pad
        tensors.append({"name": name, "lengths": several.lengths.tolist() if several and varies else None})
    return tensors


def _run(command: Sequence[str], text: str) -> tuple[str, str]:
    """Output of a process that gets `text` on stdin, and one line about how it ended."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        # subprocess gives bytes here, even with text=True.
        return (error.stdout or b"").decode(errors="replace"), f"its process did not end within {_TIMEOUT_S:g} s"
    except OSError as error:
        return "", f"its process failed: {error}"
    return (
        done.stdout,
        f"its process ended with status {done.returncode} ({_last_line(done.stderr, 'no message')})",
    )


def _last_line(text: str, otherwise: str) -> str:
    return (text.strip().splitlines() or [otherwise])[-1][:200]
