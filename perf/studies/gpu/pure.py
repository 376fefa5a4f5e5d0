"""What the device itself can do: rows/s of each network in this process, without a server and without copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from orchestrator.errors import MemberError
from orchestrator.spec import Manifest
from perf.harness.windows import Journal, WindowRecord
from perf.routes.spec import Rows
from perf.studies.gpu.device import CPU
from perf.studies.gpu.members import manifest_of

Progress = Callable[[str], None]
_WARM_RUNS = 3


def key_of(member: str, batch: int) -> str:
    """The key of a record."""
    return f"alone/{member}/b{batch}"


def measure_alone(
    repository: Path,
    members: Sequence[str],
    *,
    batches: Sequence[int],
    rounds: int,
    seconds: float,
    providers: Sequence[Any],
    rows_at: Callable[[Sequence[int]], Rows],
    journal: Journal,
    progress: Progress,
) -> dict[str, str]:
    """Runs every member over and over at every batch size; records go into the journal.

    Input and output stay on the device, so nothing but the network is timed.

    Args:
        repository: holds the members.
        members: names.
        batches: rows per run.
        rounds: windows per batch size.
        seconds: of each window.
        providers: ONNX Runtime's.
        rows_at: gives rows by number.
        journal: where records go; what it holds already is not measured again.
        progress: told what is measured.

    Returns:
        what could not be measured, and why, by key.
    """
    rows, failures = rows_at(range(min(batches))), {}
    for member in members:
        manifest = manifest_of(repository, member)
        left = [batch for batch in batches if len(journal.of(key_of(member, batch))) < rounds]
        if not left:
            continue
        progress(f"{member} alone: opening")
        session = _opened(repository / member / manifest.file, manifest, providers)
        for batch in left:
            key = key_of(member, batch)
            progress(f"{member} alone, {batch} rows at a time")
            try:
                run = _bound(session, manifest, np.resize(rows, (batch, *rows.shape[1:])), providers)
                for number in range(len(journal.of(key)) + 1, rounds + 1):
                    journal.add(_window(run, key, batch=batch, round_number=number, seconds=seconds))
            # Too large a batch for the device's memory is the usual reason; the smaller ones count all the same.
            except Exception as error:
                failures[key] = " ".join(str(error).split())[:300]
    return failures


def best_rows_per_s(journal: Journal, member: str, batches: Sequence[int]) -> float | None:
    """The most a member reached, as the median over its rounds; None where nothing was measured."""
    medians = [
        float(np.median([one["rows_per_s"] for one in records]))
        for batch in batches
        if (records := journal.of(key_of(member, batch)))
    ]
    return max(medians, default=None)


def _opened(path: Path, manifest: Manifest, providers: Sequence[Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    first = providers[0][0]
    if first not in session.get_providers():
        raise MemberError(f"member {manifest.name}", got=", ".join(session.get_providers()), expected=first)
    return session


def _bound(session: Any, manifest: Manifest, rows: Rows, providers: Sequence[Any]) -> Callable[[], None]:
    """One run that returns once the device is done."""
    place = "cpu" if providers[0][0] == CPU else "cuda"
    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy(rows, place, 0)
    binding.bind_ortvalue_input(manifest.input.name, value)
    binding.bind_output(manifest.output.name, place, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _window(run: Callable[[], None], key: str, *, batch: int, round_number: int, seconds: float) -> WindowRecord:
    for _ in range(_WARM_RUNS):
        run()
    times, start = [], time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        run()
        times.append(time.perf_counter() - now)
    spent = time.perf_counter() - start
    return {
        "key": key,
        "round": round_number,
        "attempt": 0,
        "why": "",
        "requests": len(times),
        "seconds": spent,
        "requests_per_s": len(times) / spent,
        "rows_per_s": batch * len(times) / spent,
        **{f"p{percent}_ms": 1000 * float(np.percentile(times, percent)) for percent in (50, 95, 99)},
    }
