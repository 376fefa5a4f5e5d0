"""Cost in time: milliseconds by the batches that a plan's stages see.

- Offline (`batch`) rows that are deferred gather until they fill a batch, so every stage sees full ones; but every
  batch of the stage before that defers anything takes time for it, counted as if rows came from the first. With
  `alone` one request of so many rows is served at a time and nothing gathers: of B rows each goes on with the
  probability of its stage's reach, and the time is the mean over that binomial number, 0 where none does.
- Online (`rate`) a batch is what came while the one before it ran, at least one row. For Poisson arrivals of rate
  r and a call of t(b) that is b = x + exp(-x) rows on average, with x = r t(b): the least fixed point.
  The load of a stage is its share of the most it could carry, in batches of the best size.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlog1py, xlogy

from orchestrator.errors import DataError
from orchestrator.planner.pricing import DerivingPrice, Loads, Prices, finest_scale
from orchestrator.spec import CascadeSpec, Member
from orchestrator.spec.derived import Derived
from orchestrator.spec.timing import (
    CallTime,
    MemberTiming,
    Timing,
    added_ms,
    machine_here,
    ms_of_calls,
    parts_eaten_up,
)
from orchestrator.spec.validation import MOST_ROWS, Faults

Floats = npt.NDArray[np.float64]
# The iteration climbs from below and ends where it no longer moves; near full load it needs many steps.
_STEPS, _STILL = 500, 1e-6
# Reaches at once in the table of binomial means.
_CHUNK = 2048
# A budget so many times what all members together take is in another unit.
_OTHER_UNIT = 1000.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """How rows come: in batches offline, or as a rate online; one of both.

    Args:
        batch: rows per call.
        alone: whether one such call is served at a time, so that nothing gathers.
        rate: rows per second.
        servers: machines that share them evenly.
        cores: of each machine; None takes those of the machine that was timed.

    Raises:
        SpecError: values out of range, or arguments that contradict each other, keyed by argument.
    """

    batch: int | None = None
    alone: bool = False
    rate: float | None = None
    servers: int = 1
    cores: int | None = None

    def __post_init__(self) -> None:
        faults = Faults("plan", of_arguments=True)
        given = [f"`{name}`" for name in ("batch", "rate") if getattr(self, name) is not None]
        text = f"got {' and '.join(given) or 'neither'}, expected one of `batch` and `rate`"
        faults.check("timing", len(given) == 1, text)
        if self.batch is not None:
            faults.integer("batch", self.batch, low=1, high=MOST_ROWS)
        if self.rate is not None:
            faults.rate("rate", self.rate)
            faults.check("alone", not self.alone, "got `rate`, expected `batch`: at a rate rows gather")
        else:
            text = "got no `rate`, expected one: `servers` and `cores` say what carries it"
            faults.check("servers", self.servers == 1 and self.cores is None, text)
        faults.integer("servers", self.servers, low=1, high=MOST_ROWS)
        if self.cores is not None:
            faults.integer("cores", self.cores, low=1, high=MOST_ROWS)
        faults.close()

    @property
    def text(self) -> str:
        """In words."""
        if self.rate is not None:
            many = "one server" if self.servers == 1 else f"{self.servers} servers"
            return f"{self.rate:g} rows/s on {many}"
        return f"batches of {self.batch}" + (", one at a time" if self.alone else "")


@dataclass(frozen=True, kw_only=True)
class ClockPricing:
    """Every row costs milliseconds, by the batches that the stages see.

    Args:
        timing: of every member of the pool, and of every deriving model.
        load: how rows come.
        deriving: models that make what members read, each with these members.

    Raises:
        DataError: the load needs batches that were not measured.
    """

    timing: Timing
    load: Load
    deriving: tuple[tuple[str, frozenset[str]], ...] = ()

    def __post_init__(self) -> None:
        most = self.load.batch or 1
        fewest = most if self.load.batch is not None and not self.load.alone else 1
        runtime = [self.timing.first_stage, self.timing.later_stage]
        require_batches(self.timing, runtime, between=(fewest, most), load=self.load.text)

    def prices(self, pool: Sequence[Member], rows: int) -> Prices:
        """See `Pricing`."""
        share = np.arange(rows + 1) / max(rows, 1)
        members: list[Floats] = []
        later: list[Floats] = []
        first: list[float] = []
        for one in (self.timing.by_name[member.name] for member in pool):
            weights = self._weights(one, share)
            own = weights.mean_ms(one.ms) * rows
            beside = [
                weights.mean_ms(functools.partial(ms_of_calls, calls)) * rows
                for calls in (self.timing.first_stage, self.timing.later_stage)
            ]
            members.append(own)
            first.append(float(added_ms(own[-1], beside[0][-1])))
            more = self._deferring_ms(share) + self._rare_ms(share, pool)
            later.append(added_ms(own, beside[1] + more * rows))
        derived = [self._mean_ms(self.timing.by_name[name], share) * rows for name, _ in self.deriving]
        most = sum(float(np.abs(part).max()) for part in (*members, *later, *derived)) + max(map(abs, first))
        scale = finest_scale(most)
        return Prices(
            members=np.round(np.array(members) * scale),
            scale=scale,
            first=np.round(np.array(first) * scale),
            later=np.round(np.array(later) * scale),
            loads=None if self.load.rate is None else self._loads(pool),
            deriving=tuple(
                DerivingPrice(
                    readers=frozenset(place for place, member in enumerate(pool) if member.name in readers),
                    cost=np.round(cost * scale),
                )
                for (_, readers), cost in zip(self.deriving, derived, strict=True)
            ),
        )

    def _mean_ms(self, one: MemberTiming, share: Floats) -> Floats:
        """Milliseconds per row of all rows of a model that such shares of them get to, float64 (s,)."""
        return self._weights(one, share).mean_ms(one.ms)

    def _deferring_ms(self, share: Floats) -> Floats:
        """What deferring takes beyond one full batch for each that was deferred, ms per row, float64 (s,).

        Of full batches only: else every request that defers anything is a batch of the next stage.
        """
        size = self.load.batch
        if size is None or self.load.alone or not self.timing.deferring:
            return np.zeros(share.shape)
        each = float(ms_of_calls(self.timing.deferring, size))
        return np.asarray(each * (1 - (1 - share) ** size - share) / size, np.float64)

    def _rare_ms(self, share: Floats, pool: Sequence[Member]) -> Floats:
        """What a later stage takes longer because it pauses while the first is busy, ms per row, float64 (s,).

        It is reckoned with the quickest first stage there is. At a rate a whole server pauses, see
        `Timing.woken_ms`.
        """
        size = self.load.batch
        if size is None or not self.timing.pauses:
            return np.zeros(share.shape)
        called = 1 - (1 - share) ** size if self.load.alone else share
        quickest = min(float(self.timing.by_name[member.name].ms(size)) for member in pool)
        request_ms = quickest + float(added_ms(quickest, ms_of_calls(self.timing.first_stage, size)))
        pauses = request_ms * (1 - called) / np.maximum(called, 1e-9)
        return np.asarray(called * self.timing.rare_ms(pauses) / size, np.float64)

    def ms_alone(self, name: str) -> float:
        """Milliseconds per row of a member that every row is asked of, without the runtime's."""
        one = self.timing.by_name[name]
        return float(self._mean_ms(one, np.ones(1))[0])

    def batch(self, name: str, share: float) -> float:
        """Mean rows of a call of a member that this share of the rows reaches; of calls with any."""
        return self._weights(self.timing.by_name[name], np.array([share])).mean_batch

    def best_ms(self, calls: Sequence[CallTime]) -> float:
        """Milliseconds per row in batches of the best size."""
        # Between two measured batches time per row only falls, or only rises.
        return min((call.ms / call.batch for call in calls), default=0.0)

    @property
    def cores(self) -> int:
        """Of each server."""
        return self.load.cores or self.timing.machine.cores

    def _weights(self, one: MemberTiming, share: Floats) -> "_Batches":
        load = self.load
        if load.rate is not None:
            per_ms = load.rate / load.servers / one.instances / 1000
            return _Batches(share=share, sizes=gathered(one, per_ms * share, busy=self._stage_ms(one, share)))
        assert load.batch is not None
        if load.alone:
            return _Batches(share=share, sizes=None, binomial=load.batch)
        return _Batches(share=share, sizes=np.full(share.shape, float(load.batch)))

    def _stage_ms(self, one: MemberTiming, share: Floats) -> Callable[[Floats], Floats]:
        """How long a stage of the member is busy with a batch; where all rows come it is the first one."""
        first, later = self.timing.first_stage, self.timing.later_stage

        def busy(batch: Floats) -> Floats:
            beside = np.where(share < 1, ms_of_calls(later, batch), ms_of_calls(first, batch))
            return np.asarray(one.ms(batch) + added_ms(one.ms(batch), beside), np.float64)

        return busy

    def _loads(self, pool: Sequence[Member]) -> Loads:
        assert self.load.rate is not None
        per_ms = self.load.rate / self.load.servers / 1000
        timed = [self.timing.by_name[member.name] for member in pool]
        timed += [self.timing.by_name[name] for name, _ in self.deriving]
        busy = np.array([per_ms * self.best_ms(one.calls) for one in timed])
        used, cores = busy / [one.instances for one in timed], busy * (self.timing.threads or 1) / self.cores
        first, later = (
            max(per_ms * self.best_ms(calls), 0.0) for calls in (self.timing.first_stage, self.timing.later_stage)
        )
        return Loads(
            rate=self.load.rate,
            members=used[: len(pool)],
            member_cores=cores[: len(pool)],
            runtime=(first, later),
            runtime_cores=(first / self.cores, later / self.cores),
            deriving=tuple(used[len(pool) :].tolist()),
            deriving_cores=tuple(cores[len(pool) :].tolist()),
        )


def gathered(one: MemberTiming, per_ms: Floats, *, busy: Callable[[Floats], Floats]) -> Floats:
    """Mean batches of a member that rows come to at such rates, float64 (s,): what came while its stage was busy.

    `busy` is how many milliseconds the stage takes for each of such batches.
    """
    limit = min(one.max_batch_size or MOST_ROWS, one.calls[-1].batch)
    batch = np.ones(per_ms.shape)
    for _ in range(_STEPS):
        came = per_ms * busy(batch)
        following = np.clip(came + np.exp(-came), 1.0, limit)
        if np.all(np.abs(following - batch) <= _STILL * batch):
            break
        batch = following
    return batch


@dataclass(frozen=True, kw_only=True)
class _Batches:
    """Which batches a stage sees, for every share of the rows, float64 (s,), that may reach it.

    Args:
        sizes: float64 (s,), the one size; None where it is binomial.
        binomial: rows of a request, each of which reaches the stage with the probability of its share.
    """

    share: Floats
    sizes: Floats | None
    binomial: int = 0

    def mean_ms(self, ms: Callable[[Floats], Floats]) -> Floats:
        """Mean milliseconds per row of all rows, float64 (s,); `ms` is the time of a call of so many."""
        if self.sizes is not None:
            return np.asarray(self.share * ms(self.sizes) / self.sizes, np.float64)
        sizes = np.arange(self.binomial + 1, dtype=np.float64)
        times, found = ms(sizes), np.empty(self.share.shape)
        for at in range(0, len(self.share), _CHUNK):
            found[at : at + _CHUNK] = binomial_shares(self.binomial, self.share[at : at + _CHUNK]) @ times
        return found / self.binomial

    @property
    def mean_batch(self) -> float:
        """Mean rows of a call, of the first share; 0 where nothing comes."""
        if self.sizes is not None:
            return float(self.sizes[0]) if self.share[0] > 0 else 0.0
        none = float(binomial_shares(self.binomial, self.share[:1])[0, 0])
        return float(self.binomial * self.share[0] / (1 - none)) if none < 1 else 0.0


def binomial_shares(count: int, share: Floats) -> Floats:
    """Probabilities of 0 to `count` rows where each comes with such a probability, float64 (s, count + 1)."""
    many = np.arange(count + 1, dtype=np.float64)
    ways = gammaln(count + 1) - gammaln(many + 1) - gammaln(count - many + 1)
    some, none = xlogy(many, share[:, None]), xlog1py(count - many, -share[:, None])
    return np.asarray(np.exp(ways + some + none), np.float64)


def clock_for(timing: Timing, load: Load, pool: CascadeSpec, *, budget: float | None) -> ClockPricing:
    """The pricing of the members of a pool, once it is sure that their times are theirs.

    Args:
        timing: what was measured, of these members and maybe others.
        load: how rows come.
        pool: its members and deriving models.
        budget: a limit of a row's cost that was asked for; None where none was.

    Raises:
        DataError: a model was not timed, or another file of it; the load needs batches that were not; the budget
            cannot be milliseconds.
    """
    kept = timing_for(pool, timing)
    pricing = ClockPricing(timing=kept, load=load, deriving=deriving_of(pool))
    most = sum(pricing.ms_alone(one.name) for one in kept.members)
    if budget is not None and most > 0 and budget > _OTHER_UNIT * most:
        got, expected = f"{budget:g}", f"milliseconds per row: all members together take {most:.3g}"
        raise DataError("plan, cost allowed", got=got, expected=expected, fix="MACs and milliseconds do not mix")
    return pricing


def in_ms(pool: CascadeSpec, pricing: ClockPricing) -> CascadeSpec:
    """The pool with milliseconds per row as costs; those of deriving models are part of their readers' stages."""
    spec = pool.with_members(lambda one: dataclasses.replace(one, cost=pricing.ms_alone(one.name)))
    derived = tuple(dataclasses.replace(one, cost=0.0) for one in spec.derived)
    return dataclasses.replace(spec, derived=derived, cost_unit="ms")


def deriving_of(spec: CascadeSpec) -> tuple[tuple[str, frozenset[str]], ...]:
    """The deriving models of a pool or a plan, each with the members that read what it makes."""
    needs = {member.name: spec.derived_for_members([member]) for member in spec.members}
    return tuple(
        (one.name, frozenset(name for name, models in needs.items() if one in models)) for one in spec.derived
    )


def models_of_stages(
    stages: Sequence[Sequence[str]], deriving: Sequence[tuple[str, frozenset[str]]]
) -> list[tuple[str, ...]]:
    """The models that stages of such members ask: deriving models, see `deriving_of`, at their first reader's."""
    asked, found = set[str](), list[tuple[str, ...]]()
    for members in stages:
        new = [name for name, readers in deriving if name not in asked and not readers.isdisjoint(members)]
        asked.update(new)
        found.append((*new, *members))
    return found


def timing_for(spec: CascadeSpec, timing: Timing) -> Timing:
    """The timing of the members and deriving models of a pool or plan alone; DataError as of `timing_of_files`."""
    asked: list[Member | Derived] = [*spec.members, *spec.derived]
    return timing_of_files({one.name: one.sha256 for one in asked}, timing)


def timing_of_files(hashes: Mapping[str, str | None], timing: Timing) -> Timing:
    """The timing of these models alone.

    Args:
        hashes: of their files, by name; None where nothing says.
        timing: of them and maybe of others.

    Raises:
        DataError: a model was not timed, or its file was not the one timed.
    """
    known = timing.by_name
    if missing := [name for name in hashes if name not in known]:
        raise DataError(
            "timing",
            got=f"times of {', '.join(known)}, none of {', '.join(missing)}",
            expected="times of every member",
            fix="time them all with `committee time`",
        )
    for name, here in hashes.items():
        timed = known[name].sha256
        if timed is not None and here is not None and timed != here:
            got = f"times of a model file with sha256 {timed}"
            raise DataError(f"timing of {name}", got=got, expected=here, fix="time the members again")
    return dataclasses.replace(timing, members=tuple(known[name] for name in hashes))


def require_batches(
    timing: Timing, runtime: Sequence[Sequence[CallTime]], *, between: tuple[int, int], load: str
) -> None:
    """Refuses a timing whose members, or what the runtime adds to them, lack batches that a load needs.

    Args:
        timing: of the models that are asked, and of no others.
        runtime: what the runtime adds that counts.
        between: rows of the smallest and of the largest batch that have to be known.
        load: what needs them, in words.

    Raises:
        DataError: a batch would have to be guessed.
    """
    known = [(one.calls[0].batch, one.largest) for one in timing.members]
    known += [(calls[0].batch, calls[-1].batch) for calls in runtime if calls]
    low, high = max(first for first, _ in known), min(last for _, last in known)
    fewest, most = between
    if low > fewest or high < most:
        raise DataError(
            f"timing for {load}",
            got=f"batches of {low} to {'any' if high == MOST_ROWS else high}",
            expected=f"batches of {fewest} to {most}" if fewest < most else f"batches of {fewest} too",
            fix="time the members with such `time.batches`",
        )


def notes_on_clock(timing: Timing, members: Iterable[str]) -> list[str]:
    """What a plan of such members does not cover, and which of the times cannot be right."""
    here = machine_here()
    notes = [
        f"{text}: a stage counts as a tenth of its members at least; time again with nothing else running"
        for text in parts_eaten_up(timing, members)
    ]
    if not timing.is_served and (timing.machine.cpu, timing.machine.cores) != (here.cpu, here.cores):
        text = f"timed on {timing.machine.words}, not on this machine ({here.words}): the figures are of that one"
        notes.append(text)
    return notes
