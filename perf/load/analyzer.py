"""Closed loops and Poisson arrivals sent by perf_analyzer over gRPC, and the export it leaves, read as a window.

The export is JSON with raw bytes in its strings, so no UTF-8: decoded as latin-1 each character is one byte of a
tensor. Requests of all its measurements are in it; the measurements touch, so they are read as one window.
"""

import json
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import DataError, ServerFaultError, TimeLimitError
from perf.load.closed import RAMP_SHARE, Window, exits_of
from perf.load.programs import AnalyzerBinary

# perf_analyzer measures three times at least, and each measurement takes 1.2 times the interval it is given.
TRIALS = 3
STRETCH = 1.2
_GRACE_S = 90.0


@dataclass(frozen=True, kw_only=True)
class AnalyzerLoad:
    """What to send.

    Args:
        model: Triton name.
        address: host:port of the gRPC endpoint.
        input_data: file of rows.
        concurrency: requests in flight; ignored with a rate.
        rate: requests per second with Poisson arrivals, sent by its asynchronous mode; None is a closed loop.
        batch: rows per request.
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
                raise TimeLimitError(
                    f"perf_analyzer on {load.model}", got="no end", fix="see the server's log"
                ) from error
        if done.returncode or not export.is_file():
            raise ServerFaultError(f"perf_analyzer on {load.model}", got=_reason(said, done.returncode))
        return window_from_export(export, batch=load.batch)


def _reason(said: Path, status: int) -> str:
    """The last line of its output that is no warning about data types, which it writes for every request."""
    lines = said.read_text(encoding="latin-1").splitlines()
    telling = [line.strip() for line in lines if line.strip() and not line.startswith("WARNING: data type")]
    return telling[-1] if telling else f"exit status {status}"


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
    stages = _stages([requests[index] for index in counted], batch)
    deferred, exits = (None, None) if stages is None else exits_of(stages)
    return Window(
        latency_ms=(answered[counted] - sent[counted]) / 1e6,
        deferred=deferred,
        exits=exits,
        seconds=(last - start) / 1e9,
        batch=batch,
    )


def _stages(requests: list[dict[str, Any]], batch: int) -> Any:
    """int32 (n, batch), None where the model has no such output."""
    texts = [one["response_outputs"][-1].get("exit_stage") for one in requests]
    if any(text is None for text in texts):
        return None
    raw = "".join(texts).encode("latin-1")
    if len(raw) != 4 * batch * len(requests):
        raise DataError(
            "perf_analyzer's export", got=f"{len(raw)} bytes of exit_stage", expected=4 * batch * len(requests)
        )
    return np.frombuffer(raw, "<i4").reshape(len(requests), batch)
