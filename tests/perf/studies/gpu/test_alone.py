from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf.harness.windows import Journal
from perf.routes.recipes.trained import COMMITTED
from perf.studies.gpu import device
from perf.studies.gpu.device import CPU, best_rows_per_s, key_of, measure_alone

MEMBER = "digits_small"


def rows_at(numbers: Sequence[int]) -> Any:
    return np.zeros((len(numbers), 1, 8, 8), np.float32)


def measured(journal: Journal, told: list[str]) -> dict[str, str]:
    return measure_alone(
        COMMITTED, [MEMBER], batches=(2, 16), rounds=2, seconds=0.02, providers=[(CPU, {})], rows_at=rows_at,
        journal=journal, progress=told.append,
    )  # fmt: skip


def test_every_batch_size_is_run_and_a_run_that_goes_on_runs_none_again(tmp_path: Path) -> None:
    told: list[str] = []
    journal = Journal(tmp_path / "alone.jsonl", {}, resume=False)
    assert measured(journal, told) == {}
    assert [len(journal.of(key_of(MEMBER, batch))) for batch in (2, 16)] == [2, 2]
    record = journal.of(key_of(MEMBER, 16))[0]
    assert record["rows_per_s"] == pytest.approx(16 * record["requests_per_s"])
    best = best_rows_per_s(journal, MEMBER, (2, 16))
    assert best == max(best_rows_per_s(journal, MEMBER, [batch]) or 0 for batch in (2, 16))
    told.clear()
    again = Journal(tmp_path / "alone.jsonl", {}, resume=True)
    assert measured(again, told) == {}
    assert told == []


def test_a_batch_too_large_for_the_device_is_reported_and_the_smaller_ones_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = device._window

    def window(run: Any, key: str, *, batch: int, **more: Any) -> Any:
        if batch > 8:
            raise RuntimeError("Failed to allocate memory for requested buffer\nof size 4096")
        return real(run, key, batch=batch, **more)

    monkeypatch.setattr(device, "_window", window)
    journal = Journal(tmp_path / "alone.jsonl", {}, resume=False)
    failures = measured(journal, [])
    assert failures == {key_of(MEMBER, 16): "Failed to allocate memory for requested buffer of size 4096"}
    assert best_rows_per_s(journal, MEMBER, (2, 16)) is not None
    assert best_rows_per_s(journal, MEMBER, [16]) is None
