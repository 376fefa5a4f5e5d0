"""What `committee plan --timing` adds to a plan: its options, its pool in milliseconds, and what it prints."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from orchestrator.cli.console import new_table, stdout_console
from orchestrator.errors import DataError
from orchestrator.planner.clock import ClockPricing, Load, clock_for, in_ms, notes_on_clock
from orchestrator.spec import CascadeSpec
from orchestrator.spec.timing import timing_from_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClockOptions:
    """The options of `committee plan` about time, as they were given."""

    timing: Path | None
    batch: int | None
    alone: bool
    rate: float | None
    servers: int | None
    cores: int | None

    def check(self, *, cost: Path | None) -> None:
        """Refuses options that do not fit together, before anything is read.

        Raises:
            DataError, SpecError: naming them.
        """
        if self.timing is None:
            given = [f"--{name}" for name, value in vars(self).items() if value not in (None, False)]
            if given:
                got, fix = f"{', '.join(given)} without --timing", "measure one with `committee time`"
                raise DataError("plan", got=got, expected="a timing with it", fix=fix)
            return
        if cost is not None:
            fix = "MACs and milliseconds do not mix"
            raise DataError("plan", got="--timing and --cost", expected="one of them", fix=fix)
        self._load()

    def applied(
        self, base: CascadeSpec, *, budget: float | None
    ) -> tuple[CascadeSpec, ClockPricing | None, list[str]]:
        """The pool with milliseconds per row as costs, how its plans are priced, and notes.

        Without a timing the pool as it is, and no pricing.

        Raises:
            DataError, SpecError: the timing cannot be used for these members, or this load.
        """
        if self.timing is None:
            return base, None, []
        timing = timing_from_path(self.timing)
        pricing = clock_for(timing, self._load(), base, budget=budget)
        return in_ms(base, pricing), pricing, notes_on_clock(timing, [member.name for member in base.members])

    def _load(self) -> Load:
        return Load(
            batch=self.batch,
            alone=self.alone,
            rate=self.rate,
            servers=1 if self.servers is None else self.servers,
            cores=self.cores,
        )


def show_clock(facts: Mapping[str, Any], *, is_fallback: bool) -> None:
    """The prediction of a plan for people, from its facts, and the plans of fewer stages beside it.

    `is_fallback` says that the plan is the reference because no other could be certified.
    """
    is_online = facts["busiest"] is not None
    used = "load" if is_online else "share of time"
    columns = ("stage", "members", "reach", "rows per call", "ms per row there", used)
    table = new_table(f"by the clock, {facts['load']}", columns, left="members")
    for place, one in enumerate(facts["stages"]):
        table.add_row(
            str(place),
            " + ".join(one["members"]),
            f"{one['reach']:.1%}",
            f"{one['batch']:.3g}",
            f"{one['ms']:.4g}",
            f"{one['load']:.1%}",
        )
    stdout_console().print(table)
    typer.echo(
        f"predicted: {facts['ms']:.4g} ms per row on average, at most {facts['high_ms']:.4g} for 99 % of them"
    )
    if is_online:
        typer.echo(
            f"{facts['rows_per_s']:.4g} rows/s use {facts['busiest']:.0%} of what is busiest; "
            f"the most is {facts['knee']:.4g} rows/s, at 80 %"
        )
        if facts["answered_ms"] is not None:
            typer.echo(
                f"rows are answered after {facts['answered_ms']:.4g} ms on average, "
                f"99 % of them within {facts['answered_p99_ms']:.4g}"
            )
    else:
        typer.echo(f"{facts['rows_per_s']:.4g} rows/s; batches beyond {facts['knee']:g} gain less than a tenth")
    if (here := facts["in_process"]) is not None:
        typer.echo(
            f"stages to run in the cascade's own process, where a crash takes the cascade: {here['stages']}, for "
            f"{here['ms']:.4g} ms per row, {here['ms'] / facts['ms']:.3g} times this; "
            f"`committee render PLAN --in-process {here['stages']}`"
        )
    for one in facts["alternatives"]:
        _show_alternative(one, facts)
    if len(facts["stages"]) == 1 and not is_fallback:
        names = " and ".join(facts["stages"][0]["members"])
        typer.echo(f"note: by the clock {names} without a cascade is the best plan", err=True)


def _show_alternative(one: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    stages = " -> ".join("+".join(names) for names in one["stages"])
    low, high = one["difference_ci95"]
    kind = "one stage" if len(one["stages"]) == 1 else "two stages"
    times = f"{one['ms'] / facts['ms']:.3g} times this plan's" if facts["ms"] else "as this plan"
    paired = f"{100 * one['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}] points"
    typer.echo(
        f"best plan of {kind}: {stages}, {one['ms']:.4g} ms per row, {times}; "
        f"this plan's accuracy lies {paired} from it"
    )
