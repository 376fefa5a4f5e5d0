"""One measured window as it is kept: every number of one cell in one round."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from perf.load.window import Window

# A window whose rows got to a stage in another share than they were made for is measured again.
REACH_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Record:
    """One window of one cell.

    Args:
        key: of the cell.
        round: 1 is the first that counts.
        attempt: 0, and one more for each window that replaced an earlier one.
        why: what was wrong with the window it replaces: "reach" or "spread"; empty for a first one.
        requests: answered.
        failed: refused, or not answered at all.
        seconds: of the window.
        requests_per_s, rows_per_s: answered per second.
        latency_ms: p50_ms, p95_ms, p99_ms, the same with easy_ and hard_ before; None where not known.
        reach: share of rows that got to each stage, None where the answers do not say.
        reach_off: the largest difference from the share the rows were made for.
        cpu_s_per_request: of the server's processes.
        client_cpu_s_per_request: of whoever sent the load.
        mean_batch: rows per call, by model asked.
        resident_bytes, shm_bytes: at the peak, of the server and the route's own processes.
        lag_ms: p50 and p99 of how late requests left, None in a closed loop.
        rate: requests per second that were due, None in a closed loop.
    """

    key: str
    round: int
    attempt: int = 0
    why: str = ""
    requests: int
    failed: int
    seconds: float
    requests_per_s: float
    rows_per_s: float
    latency_ms: Mapping[str, float | None]
    reach: tuple[float, ...] | None
    reach_off: float
    cpu_s_per_request: float
    client_cpu_s_per_request: float
    mean_batch: Mapping[str, float] = field(default_factory=dict)
    resident_bytes: int
    shm_bytes: int
    lag_ms: tuple[float, float] | None = None
    rate: float | None = None

    @property
    def reach_is_off(self) -> bool:
        """Whether the window answered another mix of rows than it should have."""
        return self.reach_off > REACH_TOLERANCE


def reach_off(window: Window, wanted: tuple[float, ...]) -> tuple[tuple[float, ...] | None, float]:
    """Reach of a window, and its largest difference from the wanted one (0 where it is not known)."""
    reach = window.reach(len(wanted))
    if reach is None:
        return None, 0.0
    return reach, max(abs(one - other) for one, other in zip(reach, wanted, strict=True))


class Journal:
    """The records of a run in a file, one per line, so that an interrupted run can go on.

    Args:
        path: of the file; its first line says which run it belongs to.
        settings: of this run.
        resume: keep what the file holds already.

    Raises:
        DataError: the file is of another run, or cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(dict(settings)))
        self.records: list[Record] = []
        if resume and path.is_file():
            self.records = self._read()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._settings) + "\n", encoding="utf-8")

    def add(self, record: Record) -> None:
        """Keeps a record."""
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(record)) + "\n")

    def of(self, key: str) -> list[Record]:
        """The records of a cell that count: the last attempt of each round, in the order of the rounds."""
        return latest(record for record in self.records if record.key == key)

    def _read(self) -> list[Record]:
        try:
            text = self._path.read_text(encoding="utf-8")
            # An interrupted run may have been cut off within its last line.
            whole = text[: text.rfind("\n") + 1]
            head, *lines = whole.splitlines()
            settings = json.loads(head)
            if not isinstance(settings, dict):
                raise ValueError(f"its first line is {head[:40]}")
            records = [record_from_json(json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"journal {self._path}", got=error, fix="start afresh without --resume") from error
        differing = sorted(
            name for name in {*settings, *self._settings} if settings.get(name) != self._settings.get(name)
        )
        if differing:
            raise DataError(
                f"journal {self._path}",
                got=f"another run's (differs in {', '.join(differing)})",
                expected="this run's",
                fix="start afresh without --resume",
            )
        if whole != text:
            # What comes next must not be written onto the rest of a line.
            os.truncate(self._path, len(whole.encode()))
        return records


def latest(records: Iterable[Record]) -> list[Record]:
    """The last attempt of each round, in the order of the rounds."""
    by_round: dict[int, Record] = {}
    for record in records:
        known = by_round.get(record.round)
        if known is None or record.attempt >= known.attempt:
            by_round[record.round] = record
    return [by_round[number] for number in sorted(by_round)]


def record_from_json(value: Mapping[str, Any]) -> Record:
    """A record as `dataclasses.asdict` and JSON leave it.

    Raises:
        TypeError: fields are missing or strange.
    """
    fields = dict(value)
    for name in ("reach", "lag_ms"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    return Record(**fields)
