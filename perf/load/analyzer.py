"""A closed loop sent by perf_analyzer: a number of requests in flight at any time, over gRPC."""

from __future__ import annotations

import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import ServerFaultError, TimeLimitError
from perf.load.analyzer_binary import AnalyzerBinary
from perf.load.export_file import window_from_export
from perf.load.window import Window

# It measures three times at least, and each measurement takes 1.2 times the interval it is given.
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
    """The last line it wrote that is not about data types, of which it writes one per request."""
    lines = said.read_text(encoding="latin-1").splitlines()
    telling = [line.strip() for line in lines if line.strip() and not line.startswith("WARNING: data type")]
    return telling[-1] if telling else f"exit status {status}"
