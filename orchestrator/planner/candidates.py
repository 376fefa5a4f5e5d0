"""Candidate plans over recorded rows: what every subset of members answers, and what a plan makes of that.

The table of subsets is computed once and searched many times:
- The running combination depends on the members asked so far and on nothing else, so one label and one score per
  *subset in cost order* serve every ordering of members and every tuple of thresholds. `last` looks at the newest
  stage only, which is again a subset, combined like `mean_prob`.
- Rows go through in chunks that fit a core's cache; of the (n, k) combinations only labels and scores stay.
- The decision core does the arithmetic, member after member in plan order, so the bits are those of serving.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Accumulator, Combiner, confidence_score
from orchestrator.decision.combine import scaled_logits
from orchestrator.decision.exit_rule import exits
from orchestrator.decision.scores import agreement
from orchestrator.planner.pricing import CostPerRow, Prices, Pricing, Subset
from orchestrator.planner.records import Records
from orchestrator.progress import Advance, no_advance
from orchestrator.spec import CascadeSpec, Member, Stage
from orchestrator.spec.processor import core_count

F32 = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]

# Sums of decimals that a person would call equal must not be told apart by their last bit.
COST_TOLERANCE = 1e-12
# Committees larger than this are not looked at: the gain of a fifth member is small, the number of subsets is not.
MOST_MEMBERS = 4
# A chunk of combinations is about this large: it stays in a core's second-level cache between passes.
CHUNK_BYTES = 1 << 19


@dataclass(frozen=True, kw_only=True)
class SubsetTable:
    """Labels and scores of every subset, n rows.

    Args:
        pool: the members, in cost order; a subset is a tuple of places in it, ascending.
        index: subset -> its line in the arrays below.
        labels: mode -> int32 (subsets, n); modes are combine modes, with `last` kept as `mean_prob`.
        scores: (mode, score) -> float32 (subsets, n); `agreement` is derived from `tops`.
        tops: int32 (n, m), every member's own answer.
        pricing: what asking members costs.
    """

    pool: tuple[Member, ...]
    index: dict[Subset, int]
    labels: dict[str, Labels]
    scores: dict[tuple[str, str], F32]
    tops: Labels
    pricing: Pricing = field(default_factory=CostPerRow)

    @property
    def rows(self) -> int:
        """Number of rows n."""
        return len(self.tops)

    @property
    def costs(self) -> tuple[float, ...]:
        """Cost per row of each member."""
        return tuple(member.cost for member in self.pool)

    @functools.cached_property
    def prices(self) -> Prices:
        """What stages of the pool cost on these rows."""
        return self.pricing.prices(self.pool, self.rows)

    def take(self, rows: npt.NDArray[np.intp]) -> "SubsetTable":
        """The table of some of the rows, which may repeat."""
        return dataclasses.replace(
            self,
            labels={mode: part[:, rows] for mode, part in self.labels.items()},
            scores={key: part[:, rows] for key, part in self.scores.items()},
            tops=self.tops[rows],
        )

    def label(self, combine: str, subset: Subset) -> Labels:
        """What the subset answers, int32 (n,)."""
        return np.asarray(self.labels[mode_of(combine)][self.index[subset]])

    def score(self, combine: str, score: str, *, asked: Subset, subset: Subset) -> F32:
        """How sure that answer is, float32 (n,).

        All of `asked` were asked so far, and `subset` combined answers: the newest stage for `last`, else all.
        """
        if score != "agreement":
            return np.asarray(self.scores[mode_of(combine), score][self.index[subset]])
        weights = np.array([self.pool[place].weight for place in asked], np.float32)
        return agreement(self.tops[:, asked], weights, self.label(combine, subset).astype(np.int64))


def mode_of(combine: str) -> str:
    """The mode whose arrays a combine mode reads."""
    return "mean_prob" if combine == "last" else combine


def in_cost_order(members: Sequence[Member]) -> tuple[Member, ...]:
    """The pool as every plan asks it: cheapest first, then by name."""
    return tuple(sorted(members, key=lambda member: (member.cost, member.name)))


def subsets_of(members: int) -> list[Subset]:
    """Every subset of up to four, small ones first."""
    return [subset for size in range(1, MOST_MEMBERS + 1) for subset in combinations(range(members), size)]


def chunk_rows(classes: int) -> int:
    """Rows that one pass of work takes."""
    return int(np.clip(CHUNK_BYTES // (4 * classes), 64, 4096))


def table_from_records(
    base: CascadeSpec,
    records: Records,
    *,
    combines: Sequence[str] = ("mean_logit",),
    scores: Sequence[str] = ("max_prob",),
    pricing: Pricing | None = None,
    advance: Advance = no_advance,
    workers: int | None = None,
) -> SubsetTable:
    """Asks every subset of the pool, the members of `base`, about every recorded row.

    `advance` is told how many rows are done, from any thread: n per mode in all. There is a thread per core that
    this process may use, unless `workers` says how many.

    Raises:
        DataError: a member is missing from the records.
    """
    pool = in_cost_order(base.members)
    records.check_members(pool)
    subsets = subsets_of(len(pool))
    if len(pool) > MOST_MEMBERS:
        subsets.append(tuple(range(len(pool))))
    modes = sorted({mode_of(combine) for combine in combines})
    wanted = [score for score in scores if score != "agreement"]
    shape = (len(subsets), records.rows)
    table = SubsetTable(
        pool=pool,
        index={subset: line for line, subset in enumerate(subsets)},
        labels={mode: np.zeros(shape, np.int32) for mode in modes},
        scores={(mode, score): np.zeros(shape, np.float32) for mode in modes for score in wanted},
        tops=np.zeros((records.rows, len(pool)), np.int32),
        pricing=pricing or CostPerRow(),
    )
    step = chunk_rows(records.classes)
    jobs = [(mode, slice(at, at + step)) for mode in modes for at in range(0, records.rows, step)]
    fillers = {mode: _Filler(base, pool, table, mode=mode) for mode in modes}

    def work(job: tuple[str, slice]) -> None:
        mode, rows = job
        fillers[mode].fill([records.outputs[member.name][rows] for member in pool], rows)
        advance(min(rows.stop, records.rows) - rows.start)

    # numpy lets go of the interpreter inside every pass, so threads share the work without copies of the records.
    with ThreadPoolExecutor(workers or core_count()) as crew:
        for _ in crew.map(work, jobs):
            pass
    return table


class _Filler:
    """Fills one mode's lines of a table, chunk by chunk; holds nothing that changes, so threads may share it."""

    def __init__(self, base: CascadeSpec, pool: tuple[Member, ...], table: SubsetTable, *, mode: str) -> None:
        self._pool = pool
        self._table = table
        self._mode = mode
        # Logits and temperatures are settled once per chunk, not once per subset: the same bits for less work.
        ready = [dataclasses.replace(member, output_kind="logits", temperature=1.0) for member in pool]
        stages = tuple(Stage(members=(member,)) for member in ready)
        self._combiner = Combiner(
            dataclasses.replace(base, stages=stages, combine=mode, score="max_prob", fit=None, fused_prefix=None)
        )
        self._scores = [score for kept, score in table.scores if kept == mode]

    def fill(self, outputs: Sequence[F32], rows: slice) -> None:
        """Every subset of one chunk; outputs are float32 (rows, k) per member."""
        ready = [scaled_logits(member, raw)[0] for member, raw in zip(self._pool, outputs, strict=True)]
        for place, z in enumerate(ready):
            self._table.tops[rows, place] = np.argmax(z, axis=1)
        self._fill_larger(self._combiner.empty(len(ready[0])), (), ready=ready, rows=rows)
        if len(ready) > MOST_MEMBERS:
            sums = self._combiner.empty(len(ready[0]))
            for place, z in enumerate(ready):
                self._combiner.add_stage(sums, place, [z])
            self._keep(sums, tuple(range(len(ready))), rows)

    def _fill_larger(self, sums: Accumulator, subset: Subset, *, ready: Sequence[F32], rows: slice) -> None:
        """Every larger subset that begins with this one, each from the sums of the one it extends."""
        for place in range(subset[-1] + 1 if subset else 0, len(ready)):
            ties = None if sums.ties is None else sums.ties.copy()
            child = Accumulator(sums.total.copy(), sums.weight.copy(), ties, None)
            self._combiner.add_stage(child, place, [ready[place]])
            larger = (*subset, place)
            self._keep(child, larger, rows)
            if len(larger) < MOST_MEMBERS:
                self._fill_larger(child, larger, ready=ready, rows=rows)

    def _keep(self, sums: Accumulator, subset: Subset, rows: slice) -> None:
        p, label = self._combiner.distribution(sums)
        line = self._table.index[subset]
        self._table.labels[self._mode][line, rows] = label
        for score in self._scores:
            sure = confidence_score(score, p, label, None, self._combiner.weights)
            self._table.scores[self._mode, score][line, rows] = sure


@dataclass(frozen=True, kw_only=True)
class CandidatePlan:
    """One plan of a search: stages as they will be served, and a threshold for each but the last.

    Candidates are equal where the plans are, whatever was counted.

    Args:
        stages: places in the pool.
        thresholds: float32 values, one fewer than stages.
        correct: rows that count as correct, of those searched; 0 where the plan was not searched for.
        integer_cost: total cost of those rows in whole numbers, see `SearchResult.cost_scale`.
    """

    combine: str
    score: str
    stages: tuple[Subset, ...]
    thresholds: tuple[float, ...]
    correct: int = field(default=0, compare=False)
    integer_cost: float = field(default=0.0, compare=False)

    @property
    def members(self) -> Subset:
        """Places of all members."""
        return tuple(place for stage in self.stages for place in stage)


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """Groups of members, as places in the pool, that are asked one after another, without thresholds yet.

    Where the combination covers everything asked so far, a group that never exits and its successor are one
    parallel stage, so groups of one member and the threshold "never" cover every way of grouping. With `last`
    a group's answer is its own: groups are spelled out, since "never" would ask a member and ignore it.
    """

    combine: str
    score: str
    groups: tuple[Subset, ...]

    @property
    def may_never_exit(self) -> bool:
        """Whether a group may have the threshold "never"."""
        return self.combine != "last"

    def asked(self, stage: int) -> Subset:
        """All members asked when the group has answered."""
        return tuple(place for group in self.groups[: stage + 1] for place in group)

    def subset(self, stage: int) -> Subset:
        """The members whose combination is the answer there."""
        return self.groups[stage] if self.combine == "last" else self.asked(stage)

    def may_exit(self, stage: int) -> bool:
        """Whether the score says anything there: one member always agrees with itself."""
        return self.score != "agreement" or len(self.asked(stage)) > 1


def candidate_from_ordering(
    ordering: Ordering, thresholds: Sequence[float | None], *, correct: int = 0, integer_cost: float = 0.0
) -> CandidatePlan:
    """The plan of an ordering with one threshold per group but the last, None for never.

    Neighbours that never exit become one stage.
    """
    stages: list[Subset] = []
    begun: Subset = ()
    for group, threshold in zip(ordering.groups[:-1], thresholds, strict=True):
        begun = (*begun, *group)
        if threshold is not None:
            stages.append(begun)
            begun = ()
    stages.append((*begun, *ordering.groups[-1]))
    return CandidatePlan(
        combine=ordering.combine,
        score=ordering.score,
        stages=tuple(stages),
        thresholds=tuple(threshold for threshold in thresholds if threshold is not None),
        correct=correct,
        integer_cost=integer_cost,
    )


def orderings_of(
    pool: Sequence[Member],
    *,
    combines: Sequence[str],
    scores: Sequence[str],
    max_stages: int,
    max_worst_cost: float | None = None,
) -> list[Ordering]:
    """All orderings, winners of ties first: by worst cost, number of members, names, then as modes are listed.

    The pool stands in cost order, and `max_worst_cost` is the largest sum of the members' costs.
    """
    worst = {subset: sum(pool[place].cost for place in subset) for subset in subsets_of(len(pool))}
    most = float("inf") if max_worst_cost is None else max_worst_cost * (1 + COST_TOLERANCE)
    affordable = sorted(
        (subset for subset, cost in worst.items() if cost <= most),
        key=lambda subset: (worst[subset], len(subset), [pool[place].name for place in subset]),
    )
    return [
        Ordering(combine=combine, score=score, groups=groups)
        for subset in affordable
        for combine in combines
        for score in scores
        for groups in _groupings(subset, combine, max_stages)
        if combine != "last" or score != "agreement" or len(groups) == 1 or len(groups[0]) > 1
    ]


def _groupings(subset: Subset, combine: str, max_stages: int) -> Iterator[tuple[Subset, ...]]:
    if combine != "last":
        yield tuple((place,) for place in subset)
        return
    for stages in range(1, min(max_stages, len(subset)) + 1):
        for cuts in combinations(range(1, len(subset)), stages - 1):
            edges = (0, *cuts, len(subset))
            yield tuple(subset[low:high] for low, high in pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class TableAnswers:
    """What a plan answers to every row of a table.

    Args:
        stage: where each row is answered, intp (n,).
        label: its answer, int32 (n,).
        reached: rows that get to each stage.
        exit_share: share of rows answered at each stage.
        mean_cost: cost per row.
    """

    stage: npt.NDArray[np.intp]
    label: npt.NDArray[np.int32]
    reached: tuple[int, ...]
    exit_share: tuple[float, ...]
    mean_cost: float


def answers_of(plan: CandidatePlan, table: SubsetTable) -> TableAnswers:
    """Runs a plan over a table, with the exit rule of serving."""
    stage = np.full(table.rows, len(plan.stages) - 1, np.intp)
    label = np.zeros(table.rows, np.int32)
    left = np.ones(table.rows, np.bool_)
    asked: Subset = ()
    for place, group in enumerate(plan.stages):
        asked = (*asked, *group)
        subset = group if plan.combine == "last" else asked
        done = left
        if place < len(plan.thresholds):
            score = table.score(plan.combine, plan.score, asked=asked, subset=subset)
            done = left & exits(score, plan.thresholds[place])
        stage[done] = place
        label[done] = table.label(plan.combine, subset)[done]
        left &= ~done
    counts = np.bincount(stage, minlength=len(plan.stages))
    reached = tuple(int(count) for count in np.cumsum(counts[::-1])[::-1])
    return TableAnswers(
        stage=stage,
        label=label,
        reached=reached,
        exit_share=tuple(float(count) / table.rows for count in counts),
        mean_cost=float(table.prices.totals(plan.stages, reached).sum()) / table.rows,
    )
