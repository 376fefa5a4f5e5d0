"""Recipes of scenarios, and what they make: members and plan on disk, kept, and rows whose exits are known.

Making them takes half a minute for the small networks and minutes for the large ones, so they lie in a folder
named after what made them: other code or another ONNX Runtime makes them anew.
"""

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from orchestrator.decision.evaluate import Evaluator
from orchestrator.decision.exit_rule import exits
from orchestrator.errors import DataError
from orchestrator.local import LocalMembers
from orchestrator.planner.records import Records
from orchestrator.planner.replay import impose_exits
from orchestrator.repository.files import new_folder
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, Member, Stage, cascade_from_path, json_from_cascade
from perf.load.inputs import next_prime
from perf.routes.spec import BenchRows, Rows, Scenario

# Sessions run a chunk at a time, so that a pool of large rows never lies in memory as a whole.
CHUNK_ROWS = 64
# The score of a row moves by about 1e-6 with the batch it is in; rows this near a threshold are not used at all.
MARGIN = 1e-4
# What `predicted_speedup` times: rows of a batch, batches of each member in a round, rounds.
_TIMED_BATCH, _TIMED_BATCHES, _TIMED_ROUNDS = 32, 4, 7
_TIMED_ROWS = 256


class Predict(Protocol):
    """Measures what a plan promises."""

    def __call__(self, repository: Path, spec: CascadeSpec, *, reach: Sequence[float], rows: Rows) -> float:
        """Rows/s of the cascade over its largest member's."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes one scenario; everything follows from fixed seeds.

    Args:
        scenario: its members.
        pool: rows there are to choose from.
        make: writes the members into a repository and gives the cascade of them, one member per stage.
        rows_at: rows by number, 0..pool - 1, (n, *dims).
        settings: what else decides the members and the plan, as text.
        predict: gives BenchRepository's predicted_speedup; None for members whose plan promises nothing.
        margin: rows whose score comes nearer to a threshold are not used.
        open_members: opens members of a repository, to see where rows exit.
        fitted: gives the recipe that is used instead, its members sized to this machine; told the folder that
            keeps what is made. None for members that are what they are.
    """

    scenario: Scenario
    pool: int
    make: Callable[[Path], CascadeSpec]
    rows_at: Callable[[Sequence[int]], Rows]
    settings: str = ""
    predict: Predict | None = None
    margin: float = MARGIN
    open_members: Callable[[Path, Sequence[str]], LocalMembers] = LocalMembers
    fitted: "Callable[[Path], Recipe] | None" = None


def chunks_of(pool: int) -> Iterator[range]:
    """The row numbers 0..pool - 1 in chunks of `CHUNK_ROWS`."""
    return (range(start, min(start + CHUNK_ROWS, pool)) for start in range(0, pool, CHUNK_ROWS))


def member_from_manifest(manifest: Manifest) -> Member:
    """A member of a plan as its export describes it, its cost in multiply-accumulates."""
    return Member(
        name=manifest.name,
        output=manifest.output.name,
        output_kind=manifest.output_kind,
        cost=float(manifest.macs),
        max_batch_size=manifest.max_batch_size,
        sha256=manifest.sha256,
    )


def imposed_cascade(
    repository: Path,
    members: Sequence[str],
    rows_at: Callable[[Sequence[int]], Rows],
    *,
    name: str,
    recorded: int,
    exit_share: Sequence[float],
    open_members: Callable[[Path, Sequence[str]], LocalMembers] = LocalMembers,
) -> CascadeSpec:
    """A cascade of members in stage order, with random weights, that lets given shares of rows exit.

    The thresholds are taken from the first `recorded` rows; `exit_share` of them exits at each stage but the last.
    """
    local = open_members(repository, members)
    manifests = [local.manifest(member) for member in members]
    source = manifests[0].input
    base = CascadeSpec(
        name=name,
        inputs=(InputSpec(name=source.name, dtype=source.dtype, dims=source.dims),),
        classes=local.classes(members[0]),
        # `impose_exits` fills in the thresholds of all stages but the last.
        stages=tuple(Stage(members=(member_from_manifest(manifest),)) for manifest in manifests),
    )
    said = [[local.ask(member, rows) for member in members] for rows in map(rows_at, chunks_of(recorded))]
    records = Records(
        ids=np.arange(recorded),
        labels=None,
        outputs=dict(zip(members, map(np.concatenate, zip(*said, strict=True)), strict=True)),
        cost={member: local.cost(member) for member in members},
        meta={"members": {member: {"random_weights": True} for member in members}},
    )
    return replace(impose_exits(base, records, exit_share=exit_share), fit=None)


def predicted_speedup(repository: Path, spec: CascadeSpec, *, reach: Sequence[float], rows: Rows) -> float:
    """The speed-up that a plan promises: milliseconds per row of the last member over those of the plan.

    Members are asked in this process with one thread, as they are configured where they are served, one after
    another in each round; the median over rounds counts. Decisions and calls are taken to cost nothing, and no two
    stages to work at the same time: a server pays for the former and, with a core to spare, gains by the latter.

    `reach` is the share of rows that get to each stage; there are at least 32 rows (n, *dims).
    """
    names = [member.name for member in spec.members]
    members = LocalMembers(repository, names, threads=1)
    ms_per_row = _ms_per_row(members, names, rows)
    plan = sum(
        share * sum(ms_per_row[member.name] for member in stage.members)
        for share, stage in zip(reach, spec.stages, strict=True)
    )
    return ms_per_row[names[-1]] / plan


def _ms_per_row(members: LocalMembers, names: Sequence[str], rows: Rows) -> dict[str, float]:
    whole = min(_TIMED_BATCHES, len(rows) // _TIMED_BATCH)
    batches = [rows[number * _TIMED_BATCH : (number + 1) * _TIMED_BATCH] for number in range(whole)]
    figures: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        members.ask(name, batches[0])
    for number in range(_TIMED_ROUNDS):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            # Processor time of the one thread that computes. By wall clock, other work on the machine moved the
            # promise by a quarter; on an idle machine both agree.
            begun = time.thread_time()
            for batch in batches:
                members.ask(name, batch)
            figures[name].append(1000 * (time.thread_time() - begun) / (_TIMED_BATCH * len(batches)))
    return {name: float(np.median(values)) for name, values in figures.items()}


CACHE = Path(__file__).parents[2] / "build" / "bench" / "members"
_CODE = Path(__file__).parent
_PLAN, _EXITS = "cascade.json", "exits.npz"

BLOCK_ROWS = 200
Ask = Callable[[str, Rows], npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class BenchScenario:
    """Members and plan of a scenario on disk.

    `exit_stage`, int32 (pool,), is where the cascade answers each row, `margin`, float32 (pool,), how near the row
    came to a threshold.
    """

    recipe: Recipe
    repository: Path
    spec: CascadeSpec
    exit_stage: npt.NDArray[np.int32]
    margin: npt.NDArray[np.float32]

    def rows_for(self, *, reach: Sequence[float] | None, rows: int, seed: int) -> BenchRows:
        """Rows with exactly the asked mix of exits, as near as whole rows come to it, or drawn as they come.

        They are in random order within blocks of about `BLOCK_ROWS`, each of one mix, so that a load that ends
        anywhere in the file has had that mix too. Rows come twice only where the pool has too few of a kind. Drawn
        as they come, none comes twice. None is so near a threshold that it might go either way.

        Args:
            reach: share of rows that get to each stage, 1.0 first; None for any exits.
            rows: how many; a prime, because a file of them then falls into step with no number of clients.
            seed: of the choice and the order.

        Raises:
            DataError: the arguments make no sense, or the pool has no row or too few of what is asked for.
        """
        if next_prime(rows) != rows:
            raise DataError("rows", got=rows, expected="a prime number of rows")
        rng = np.random.default_rng(seed)
        numbers = self._drawn(rows, rng) if reach is None else self._mixed(reach, rows, rng)
        return BenchRows(rows=self.recipe.rows_at(numbers.tolist()), exit_stage=self.exit_stage[numbers])

    def _drawn(self, rows: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        there = np.flatnonzero(self.margin >= self.recipe.margin)
        if len(there) < rows:
            raise DataError(f"rows of {self.recipe.scenario.name}", got=len(there), expected=f"at least {rows}")
        return rng.permutation(there)[:rows]

    def _mixed(self, reach: Sequence[float], rows: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        stages = len(self.spec.stages)
        falling = all(one >= other for one, other in itertools.pairwise(reach))
        if len(reach) != stages or reach[0] != 1 or not falling or reach[-1] < 0:
            given = ", ".join(f"{share:g}" for share in reach)
            raise DataError("reach", got=given, expected=f"{stages} shares, 1 first, none above the one before")
        counts = -np.diff([*(round(share * rows) for share in reach), 0])
        chosen = [self._some(stage, int(count), rng) for stage, count in enumerate(counts)]
        blocks = max(1, round(rows / BLOCK_ROWS))
        block = np.concatenate([np.arange(len(part)) * blocks // max(1, len(part)) for part in chosen])
        return np.concatenate(chosen)[np.lexsort((rng.random(rows), block))]

    @property
    def reach(self) -> tuple[float, ...]:
        """Share of the pool that gets to each stage, 1.0 first."""
        return tuple(float((self.exit_stage >= stage).mean()) for stage in range(len(self.spec.stages)))

    def predicted_speedup(self) -> float | None:
        """Rows/s of the cascade over its largest member's, as its plan promises them; None where none does."""
        if self.recipe.predict is None:
            return None
        rows = self.recipe.rows_at(range(min(self.recipe.pool, _TIMED_ROWS)))
        return self.recipe.predict(self.repository, self.spec, reach=self.reach, rows=rows)

    def _some(self, stage: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        there = rng.permutation(np.flatnonzero((self.exit_stage == stage) & (self.margin >= self.recipe.margin)))
        if count and not len(there):
            what, got = f"rows of {self.recipe.scenario.name}", f"none that exits at stage {stage}"
            raise DataError(what, got=got, expected=count)
        return np.resize(there, count)


@lru_cache(maxsize=8)
def bench_scenario(recipe: Recipe, cache: Path = CACHE) -> BenchScenario:
    """The scenario of a recipe, made unless it is there already.

    Raises:
        CommitteeError: a member cannot be made, or the disk refuses.
    """
    if recipe.fitted is not None:
        return bench_scenario(recipe.fitted(cache), cache)
    folder = cache / f"{recipe.scenario.name}-{_key(recipe)}"
    if not (folder / _EXITS).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as building:
            repository = building / "repository"
            spec = recipe.make(repository)
            ask = recipe.open_members(repository, [member.name for member in spec.members]).ask
            parts = [_exits_of(spec, ask, recipe.rows_at(numbers)) for numbers in chunks_of(recipe.pool)]
            exit_stage, margin = (np.concatenate(column) for column in zip(*parts, strict=True))
            (building / _PLAN).write_text(json_from_cascade(spec), encoding="utf-8")
            np.savez(building / _EXITS, exit_stage=exit_stage, margin=margin)
    with np.load(folder / _EXITS) as stored:
        exit_stage, margin = stored["exit_stage"], stored["margin"]
    return BenchScenario(
        recipe=recipe,
        repository=folder / "repository",
        spec=cascade_from_path(folder / _PLAN),
        exit_stage=exit_stage,
        margin=margin,
    )


def _exits_of(spec: CascadeSpec, ask: Ask, rows: Rows) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Where each row exits, and its margin; the last stage is not asked: every row that gets there exits there."""
    evaluator = Evaluator(spec)
    exit_stage = np.full(len(rows), len(spec.stages) - 1, np.int32)
    margin = np.full(len(rows), np.inf, np.float32)
    left, sums = np.arange(len(rows)), evaluator.combiner.empty(len(rows))
    for number, stage in enumerate(spec.stages[:-1]):
        if not len(left):
            break
        evaluator.combiner.add_stage(sums, number, [ask(member.name, rows[left]) for member in stage.members])
        score = evaluator.answer(sums).confidence
        threshold = np.inf if stage.threshold is None else stage.threshold
        margin[left] = np.minimum(margin[left], np.abs(score - np.float32(threshold)))
        leaves = exits(score, threshold)
        exit_stage[left[leaves]] = number
        sums, left = sums[np.flatnonzero(~leaves)], left[~leaves]
    return exit_stage, margin


def _key(recipe: Recipe) -> str:
    """A short hash of what the members and exits depend on."""
    digest = hashlib.sha256(f"{onnxruntime.__version__} {recipe.pool} {recipe.settings}".encode())
    for path in (_CODE / "recipes.py", _CODE / "three_cnn.py", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
