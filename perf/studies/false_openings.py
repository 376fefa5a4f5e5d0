"""`python -m perf false-openings`: how often a breaker opens for failures that have nothing to do with each other.

Calls come at random (Poisson) and fail with one probability, independently of each other, and so do probes. Time
is simulated, the rule is the breaker's own code. Every cell has its own generator, made from the seed.
"""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from orchestrator.bls.breaker import PROBE_S, WINDOW_S, Breaker
from orchestrator.planner.intervals import clopper_pearson
from perf.harness.machine import write_json
from perf.harness.report import console_table, number_text, progress_shown, show

FAILED_SHARES = (0.01, 0.05, 0.10, 0.20)
CALLS_PER_S = (1, 10, 100, 1000)
_HOUR_S = 3600.0
# Drawn at once, so that numpy's own time hardly counts.
_CHUNK = 100_000


@dataclass(frozen=True, kw_only=True)
class FalseOpenings:
    """A breaker under calls that fail independently.

    Args:
        failed_share: probability that a call fails.
        calls_per_s: mean rate.
        calls: that the breaker saw.
        openings: during those.
        per_hour: openings, with the exact 95 % interval `per_hour_ci95`.
        open_share: share of the time in which it was not closed.
        starts_opened: share of starts from an empty window after which it opened within ten seconds of traffic.
    """

    failed_share: float
    calls_per_s: int
    calls: int
    openings: int
    per_hour: float
    per_hour_ci95: tuple[float, float]
    open_share: float
    starts_opened: float


class _Traffic:
    """Calls one after another on a simulated clock."""

    def __init__(self, calls_per_s: float, failed_share: float, rng: np.random.Generator) -> None:
        self._rate, self._share, self._rng = calls_per_s, failed_share, rng
        self.now_s = self.open_s = 0.0
        self.breaker = Breaker()

    def calls(self, most: int, until_s: float = np.inf) -> tuple[int, int]:
        """Makes so many calls, or those until a time; returns the openings, and the calls made."""
        openings = made = 0
        while made < most and self.now_s < until_s:
            size = min(_CHUNK, most - made)
            pauses_s = self._rng.exponential(1 / self._rate, size).tolist()
            for pause_s, is_failed in zip(pauses_s, (self._rng.random(size) < self._share).tolist(), strict=True):
                self.now_s += pause_s
                if self.now_s >= until_s:
                    break
                made += 1
                if self.breaker.note(is_failed=is_failed, now_s=self.now_s):
                    openings += 1
                    self._probe()
        return openings, made

    def _probe(self) -> None:
        """Waits with a breaker that opens until a probe is answered."""
        self.breaker.move("trip")
        is_failed = True
        while is_failed:
            self.now_s += PROBE_S
            self.open_s += PROBE_S
            self.breaker.move("probe")
            is_failed = bool(self._rng.random() < self._share)
            self.breaker.probed(is_failed=is_failed)


def measured(
    failed_share: float, calls_per_s: int, *, calls: int, starts: int, rng: np.random.Generator
) -> FalseOpenings:
    """One cell, by so many calls of steady traffic and so many starts."""
    steady = _Traffic(calls_per_s, failed_share, rng)
    openings, made = steady.calls(calls)
    # Later than this it has hundreds of calls to look at, and what comes is the steady traffic.
    opened = sum(
        _Traffic(calls_per_s, failed_share, rng).calls(500, until_s=2 * WINDOW_S)[0] > 0 for _ in range(starts)
    )
    hours = steady.now_s / _HOUR_S
    low, high = clopper_pearson(openings, made)
    return FalseOpenings(
        failed_share=failed_share,
        calls_per_s=calls_per_s,
        calls=made,
        openings=openings,
        per_hour=openings / hours,
        per_hour_ci95=(low * made / hours, high * made / hours),
        open_share=steady.open_s / steady.now_s,
        starts_opened=opened / starts,
    )


def false_openings(
    calls: Annotated[int, typer.Option(min=1000, help="Of each cell, and an hour's at least.")] = 2_000_000,
    starts: Annotated[int, typer.Option(min=10, help="Of traffic in each cell.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for false_openings.json.")] = Path("build/false_openings"),
    as_json: Annotated[bool, typer.Option("--json", help="Print false_openings.json.")] = False,
) -> None:
    """Count how often a breaker opens where calls fail independently of each other.

    Example: python -m perf false-openings --calls 100000
    """
    pairs = list(product(FAILED_SHARES, CALLS_PER_S))
    generators = np.random.default_rng(seed).spawn(len(pairs))
    found = []
    with progress_shown() as tell:
        for (share, rate), rng in zip(pairs, generators, strict=True):
            tell(f"{100 * share:g} % of {rate} calls/s")
            most = max(calls, round(rate * _HOUR_S))
            found.append(asdict(measured(share, rate, calls=most, starts=starts, rng=rng)))
    head = ("fail", "calls/s", "openings/h", "95 % interval", "time open", "starts that open it")
    rows = [
        [
            f"{100 * one['failed_share']:g} %",
            str(one["calls_per_s"]),
            number_text(one["per_hour"]),
            " to ".join(map(number_text, one["per_hour_ci95"])),
            f"{100 * one['open_share']:.2g} %",
            f"{100 * one['starts_opened']:.2g} %",
        ]
        for one in found
    ]
    path = output / "false_openings.json"
    write_json(found, path)
    title = f"A breaker under calls that fail independently, seed {seed}"
    show(found, console_table(title, head[:1], head[1:], rows), as_json=as_json, written=[path])
