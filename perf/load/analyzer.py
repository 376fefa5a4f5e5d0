"""perf_analyzer and the embedded tritonserver as programs that start like NVIDIA's own, and perf_analyzer's loads.

perf_analyzer is the user's own or the one inside an old wheel of tritonclient: the package that carries its name
is empty and later wheels carry none (or need glibc 2.38), so 2.45.0 is taken. Its two shared libraries lie in the
embedded server's wheel under mangled names. Both programs need variables set before they start. A script of a few
lines sets them and then becomes the program, so that whoever started it also ends it.

Its export is JSON with raw bytes in its strings, so no UTF-8: decoded as latin-1 each character is one byte of a
tensor. Requests of all its measurements are in it; the measurements touch, so they are read as one window.
"""

import hashlib
import importlib.util
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from orchestrator.errors import DataError, ServerFaultError, ServingError, TimeLimitError
from orchestrator.files import sha256_of_path, write_file
from orchestrator.serving.machine import (
    BACKENDS,
    ServingMachine,
    check_machine,
    environment_from,
    machine_here,
    make_backend_directory,
)
from orchestrator.serving.options import ServeOptions
from perf.load.closed import RAMP_SHARE, Window, window_from_stages

VARIABLE = "PERF_ANALYZER"
VERSION = "2.45.0"
WHEEL_SHA256 = "28b2d550bf5445ccd3f457bbcabf890db1d271924957d4d26abd431f94b078c1"
BINARY_SHA256 = "d442680a17d594ac5acb059e0a0da2ba7c2537d66936ed829154be1355474742"
IN_WHEEL = f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"
# Library that the binary asks for -> first letters of the file in the wheel.
LIBRARIES = {"libb64.so.0d": "libb64-", "libcudart.so.12": "libcudart-"}
_OWN = f"install one (it is in NVIDIA's -py3-sdk image) and set {VARIABLE} to its path"
_DOWNLOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class AnalyzerBinary:
    """A perf_analyzer that starts here, with the variables it runs with and what it says of its version.

    `libraries` is the folder its environment names for it; None for the user's own program.
    """

    path: Path
    environment: Mapping[str, str] = field(repr=False)
    version: str
    libraries: Path | None = None


Fetch = Callable[[Path], Path]


def _cache_base(environment: Mapping[str, str]) -> Path:
    """Folder of programs that were fetched or made once."""
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path(environment.get("HOME", "~")).expanduser() / ".cache") / "committee"


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Folder of the fetched perf_analyzer."""
    return _cache_base(environment) / f"perf_analyzer-{VERSION}"


def find_analyzer(environment: Mapping[str, str] | None = None, *, fetch: Fetch | None = None) -> AnalyzerBinary:
    """A perf_analyzer that starts, fetched the first time; `PERF_ANALYZER` in the environment names another.

    `fetch` puts the wheel into a folder and returns its path; None asks pip.

    Raises:
        ServingError: there is none, it is not the file it should be, or it does not start; says what to do.
    """
    variables = dict(os.environ if environment is None else environment)
    if own := variables.get(VARIABLE):
        path = Path(own)
        if not path.is_file() or not os.access(path, os.X_OK):
            expected = "the path of perf_analyzer"
            raise ServingError(f"{VARIABLE}={own}", got="no program there", expected=expected)
        return _checked(path.resolve(), variables)
    folder = cache_folder(variables)
    path = folder / "perf_analyzer"
    if not path.is_file() or sha256_of_path(path) != BINARY_SHA256:
        _install(folder, fetch or _pip_download)
    libraries = _linked_libraries(folder, _wheel_libraries())
    known = variables.get("LD_LIBRARY_PATH")
    variables["LD_LIBRARY_PATH"] = os.pathsep.join([str(libraries), *([known] if known else [])])
    return _checked(path, variables, libraries=libraries)


def _install(folder: Path, fetch: Fetch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        wheel = fetch(Path(name))
        found = sha256_of_path(wheel)
        if found != WHEEL_SHA256:
            raise ServingError(
                f"perf_analyzer: {wheel.name}", got=f"sha256 {found[:16]}...",
                expected=f"{WHEEL_SHA256[:16]}...", fix=f"the index served another file; {_OWN}",
            )  # fmt: skip
        unpacked = Path(name) / "perf_analyzer"
        with zipfile.ZipFile(wheel) as archive, archive.open(IN_WHEEL) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
        unpacked.chmod(0o755)
        # Renaming takes one step, so two benches that fetch at the same time never see half a program.
        unpacked.replace(folder / "perf_analyzer")


def _pip_download(folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--platform", "manylinux1_x86_64", "--dest", str(folder),
        f"tritonclient=={VERSION}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ServingError("perf_analyzer: pip download", got="no end in five minutes", fix=_OWN) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ServingError(
            f"perf_analyzer: pip download tritonclient=={VERSION}",
            got=lines[-1] if lines else f"exit status {done.returncode}",
            fix=f"try again where the package index can be reached, or {_OWN}",
        )
    return wheels[0]


def _wheel_libraries() -> Path:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        got = "no nvidia-pytriton in this environment"
        raise ServingError("perf_analyzer", got=got, fix="pip install 'committee[serve]'")
    return Path(spec.origin).parents[1] / "nvidia_pytriton.libs"


def _linked_libraries(folder: Path, source: Path) -> Path:
    """A folder with the libraries under the names the binary asks for; one per environment that was used."""
    links = folder / f"lib-{hashlib.sha256(str(source).encode()).hexdigest()[:12]}"
    links.mkdir(parents=True, exist_ok=True)
    for name, prefix in LIBRARIES.items():
        found = sorted(source.glob(f"{prefix}*"))
        if not found:
            raise ServingError(
                f"perf_analyzer needs {name}", got=f"no {prefix}* in {source}", expected="nvidia-pytriton 0.7.0",
                fix=f"pip install 'committee[serve]', or {_OWN}",
            )  # fmt: skip
        link = links / name
        if not link.is_symlink() or link.readlink() != found[0]:
            fresh = links / f"{name}.{os.getpid()}"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(found[0])
            fresh.replace(link)
    return links


def _checked(path: Path, environment: Mapping[str, str], *, libraries: Path | None = None) -> AnalyzerBinary:
    try:
        done = subprocess.run(
            [path, "--version"], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServingError(f"{path} does not start", got=error, fix=_OWN) from error
    said = done.stdout + done.stderr
    words = said.split()
    if done.returncode or "Version" not in words[:-1]:
        text = next((line for line in said.splitlines() if line.strip()), "no output")
        raise ServingError(f"{path} does not start", got=text, fix=_OWN)
    version = words[words.index("Version") + 1].rstrip(",")
    return AnalyzerBinary(path=path, environment=environment, version=version, libraries=libraries)


# The stand-in for ONNX Runtime completes configurations from model files and is not told where they lie.
_FIND_REPOSITORY = """\
before=
for word; do
  case "$before" in --model-repository|--model-store) COMMITTEE_MODEL_REPOSITORY=$word ;; esac
  case "$word" in --model-repository=*|--model-store=*) COMMITTEE_MODEL_REPOSITORY=${word#*=} ;; esac
  before=$word
done
export COMMITTEE_MODEL_REPOSITORY
"""


def analyzer_program(found: AnalyzerBinary) -> Path:
    """A path that runs perf_analyzer; the program itself where it needs no help."""
    if found.libraries is None:
        return found.path
    folder = found.libraries.with_name(found.libraries.name.replace("lib-", "bin-"))
    folder.mkdir(parents=True, exist_ok=True)
    return _script(folder / "perf_analyzer", [found.path], variables={"LD_LIBRARY_PATH": [found.libraries]})


def server_program(machine: ServingMachine, environment: Mapping[str, str] | None = None) -> Path:
    """A path that runs the embedded tritonserver with its backends, and takes Triton's own options.

    Unlike `committee serve` it leaves the repository API open, as tools that load and unload models need it. Any
    endpoint it opens is bound to 127.0.0.1 unless an option says otherwise.

    Raises:
        PlatformError, ServingError: the server cannot run here.
    """
    check_machine(machine)
    assert machine.wheel is not None, "check_machine looked for it"
    base = _cache_base(os.environ if environment is None else environment)
    # Of everything the program is made of.
    digest = hashlib.sha256(f"{machine.wheel} {machine.stub} {sys.executable}".encode())
    for path in sorted(BACKENDS.glob("*/model.py")):
        digest.update(path.read_bytes())
    folder = base / f"tritonserver-{digest.hexdigest()[:12]}"
    libraries = environment_from(machine, {}, repository=base, hide_gpus=False)["LD_LIBRARY_PATH"]
    # Of two equal options Triton takes the later one.
    options = ServeOptions(repository=base)
    words = [
        machine.wheel / "tritonserver" / "bin" / "tritonserver",
        f"--backend-directory={_backends(machine, folder)}",
        *(f"--{endpoint}-address={options.host}" for endpoint in ("http", "grpc", "metrics")),
        f"--backend-config=python,shm-default-byte-size={options.shm_bytes}",
        f"--backend-config=python,shm-growth-byte-size={options.shm_bytes}",
        f"--backend-config=python,thread-pool-size={options.bls_threads}",
    ]
    variables: dict[str, Sequence[object]] = {
        "LD_LIBRARY_PATH": libraries.split(os.pathsep),
        "PATH": [Path(sys.executable).parent],
    }
    return _script(folder / "tritonserver", words, variables=variables, first=_FIND_REPOSITORY)


def _backends(machine: ServingMachine, folder: Path) -> Path:
    """The backend directory, made once and never replaced: a server that runs has its files open."""
    backends = folder / "backends"
    if not backends.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix="backends.", dir=folder))
        try:
            make_backend_directory(machine, building / "made")
            (building / "made").rename(backends)
        except OSError:
            # Another process has made it meanwhile.
            if not backends.is_dir():
                raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return backends


def _script(
    path: Path, words: Sequence[object], *, variables: Mapping[str, Sequence[object]], first: str = ""
) -> Path:
    """A shell script that puts folders before those of variables and becomes a command."""
    lines = [
        f"export {name}={shlex.quote(os.pathsep.join(map(str, folders)))}${{{name}:+:${name}}}"
        for name, folders in variables.items()
    ]
    command = " ".join(shlex.quote(str(word)) for word in words)
    text = "\n".join(["#!/bin/sh", *lines, f'{first}exec {command} "$@"', ""])
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_file(path, text, mode=0o755)
    return path


# perf_analyzer measures three times at least, and each measurement takes 1.2 times the interval it is given.
TRIALS = 3
STRETCH = 1.2
_GRACE_S = 90.0


@dataclass(frozen=True, kw_only=True)
class AnalyzerLoad:
    """What to send to a model at host:port of a gRPC endpoint: rows of a file, `batch` in a request.

    Args:
        concurrency: requests in flight; ignored with a rate.
        rate: requests per second with Poisson arrivals, sent by its asynchronous mode; None is a closed loop.
        seconds: of the whole window.
        composing: members whose queue and compute times its report should show.
    """

    model: str
    address: str
    input_data: Path
    concurrency: int = 1
    rate: float | None = None
    batch: int = 1
    seconds: float = 10.0
    composing: tuple[str, ...] = ()


def command_from(load: AnalyzerLoad, binary: Path, *, export: Path) -> list[str]:
    """The command line.

    A threshold of 99,999 % calls any window stable: our own rounds judge that, and three measurements in a row
    are one window.

    One thread sends everything, asynchronously. With more, as in its synchronous mode, every thread walks the
    file from its first row in steps of the number of threads: at 16 in flight all sixteen ask for the same rows at
    the same time, and a sixteenth of the file is all a window ever sees.
    """
    if load.rate is not None:
        how = ["--async", "--request-rate-range", f"{load.rate:.3f}", "--request-distribution", "poisson"]
    elif load.concurrency == 1:
        how = ["--sync", "--concurrency-range", "1"]
    else:
        how = ["--async", "--concurrency-range", str(load.concurrency)]
    return [
        str(binary), "-m", load.model, "-i", "grpc", "-u", load.address,
        "--input-data", str(load.input_data), "-b", str(load.batch), *how, "--max-threads", "1",
        "-p", str(math.ceil(1000 * load.seconds / TRIALS / STRETCH)), "-s", "99999", "-r", str(TRIALS),
        "--percentile", "99", "--profile-export-file", str(export),
        *(["--bls-composing-models", ",".join(load.composing)] if load.composing else []),
    ]  # fmt: skip


def run_analyzer(binary: AnalyzerBinary, load: AnalyzerLoad) -> Window:
    """Sends the load and returns what was measured.

    Raises:
        ServerFaultError: a request failed, or the model cannot be asked.
        TimeLimitError: perf_analyzer did not end.
        DataError: it left no export that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="committee-analyzer-") as folder:
        export = Path(folder) / "export.json"
        said = Path(folder) / "said.txt"
        with said.open("wb") as file:
            try:
                done = subprocess.run(
                    command_from(load, binary.path, export=export),
                    env=dict(binary.environment), cwd=folder, stdout=file, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, timeout=load.seconds + _GRACE_S, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                what = f"perf_analyzer on {load.model}"
                raise TimeLimitError(what, got="no end", fix="see the server's log") from error
        if done.returncode or not export.is_file():
            lines = [line.strip() for line in said.read_text(encoding="latin-1").splitlines()]
            # Warnings about data types come with every request.
            telling = [line for line in lines if line and not line.startswith("WARNING: data type")]
            got = telling[-1] if telling else f"exit status {done.returncode}"
            raise ServerFaultError(f"perf_analyzer on {load.model}", got=got)
        return window_from_export(export, batch=load.batch)


def window_from_export(path: Path, *, batch: int) -> Window:
    """What was measured, without the ramp at the start.

    Raises:
        DataError: the file is missing, is not an export, or holds no answered request.
    """
    try:
        document = json.loads(path.read_bytes().decode("latin-1"))
        experiment = document["experiments"][0]
        boundaries = experiment["window_boundaries"]
        requests = [one for one in experiment["requests"] if one["response_timestamps"]]
        first, last = int(boundaries[0]), int(boundaries[-1])
        sent = np.array([one["timestamp"] for one in requests], np.int64)
        answered = np.array([one["response_timestamps"][-1] for one in requests], np.int64)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"perf_analyzer's export {path}", got=f"{type(error).__name__}: {error}") from error
    start = first + RAMP_SHARE * (last - first)
    counted = np.flatnonzero((answered >= start) & (answered <= last))
    if not len(counted):
        raise DataError(f"perf_analyzer's export {path}", got="no answered request", fix="take a longer window")
    texts = [requests[index]["response_outputs"][-1].get("exit_stage") for index in counted]
    stages = None
    if None not in texts:
        raw, expected = "".join(texts).encode("latin-1"), 4 * batch * len(texts)
        if len(raw) != expected:
            raise DataError("perf_analyzer's export", got=f"{len(raw)} bytes of exit_stage", expected=expected)
        stages = np.frombuffer(raw, "<i4").reshape(len(texts), batch)
    return window_from_stages((answered[counted] - sent[counted]) / 1e6, stages, (last - start) / 1e9, batch)


_Words = Annotated[list[str] | None, typer.Argument(help="Run it with these.", metavar="ARGS", show_default=False)]


def analyzer(arguments: _Words = None) -> None:
    """Run a perf_analyzer that works here, fetched the first time; without arguments print its path.

    PERF_ANALYZER names another one. Everything after the word goes to it as it is.

    Example: python -m perf analyzer -m digits_cascade -i grpc -u 127.0.0.1:8001 --input-data build/rows.json
    """
    _print_or_become(analyzer_program(find_analyzer()), arguments)


def tritonserver(arguments: _Words = None) -> None:
    """Run the embedded tritonserver with Triton's own options; without arguments print its path.

    For tools that start a server themselves, or load and unload models: unlike that of `committee serve`, its
    repository API is open to whoever reaches the port.

    Example: python -m perf tritonserver --model-repository model_repository --model-control-mode explicit
    """
    _print_or_become(server_program(machine_here()), arguments)


def _print_or_become(program: Path, arguments: list[str] | None) -> None:
    if not arguments:
        typer.echo(str(program))
        return
    # The program replaces this process, so that signals, output and exit status are its own.
    os.execv(program, [str(program), *arguments])
