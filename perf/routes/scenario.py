"""Members and plan of a scenario on disk, made once and kept, and rows of it whose exits are known.

Making them takes half a minute for the small networks and minutes for the large ones, so they lie in a folder
named after what made them: other code or another ONNX Runtime makes them anew.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from orchestrator.decision.evaluate import Evaluator
from orchestrator.decision.exit_rule import exits
from orchestrator.errors import DataError
from orchestrator.repository.files import new_folder
from orchestrator.spec import CascadeSpec, cascade_from_path, json_from_cascade
from perf.routes.recipe import Recipe, chunks_of
from perf.routes.spec import BenchRows, Rows

CACHE = Path(__file__).parents[2] / "build" / "bench" / "members"
_CODE = Path(__file__).parent
_PLAN, _EXITS = "cascade.json", "exits.npz"

BLOCK_ROWS = 200
Ask = Callable[[str, Rows], npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class BenchScenario:
    """Members and plan of a scenario on disk.

    Args:
        recipe: what made it.
        repository: holds the members.
        spec: the cascade of them.
        exit_stage: int32 (pool,), where the cascade answers each row.
        margin: float32 (pool,), how near the row came to a threshold.
    """

    recipe: Recipe
    repository: Path
    spec: CascadeSpec
    exit_stage: npt.NDArray[np.int32]
    margin: npt.NDArray[np.float32]

    def rows_for(self, *, reach: Sequence[float] | None, rows: int, seed: int) -> BenchRows:
        """Rows with exactly the asked mix of exits, as near as whole rows come to it, or drawn as they come.

        They are in random order within blocks of about `BLOCK_ROWS`, each of one mix, so that a load that ends
        anywhere in the file has had that mix too. Rows come twice only where the pool has too few of a kind.

        Args:
            reach: share of rows that get to each stage, 1.0 first; None for any exits.
            rows: how many; a prime, because a file of them then falls into step with no number of clients.
            seed: of the choice and the order.

        Raises:
            DataError: the arguments make no sense, or the pool has no row or too few of what is asked for.
        """
        if reach is None:
            return self._rows_as_they_come(rows=rows, seed=seed)
        self._check(reach, rows)
        reaching = [round(share * rows) for share in reach]
        counts = -np.diff([*reaching, 0])
        rng = np.random.default_rng(seed)
        chosen = [self._some(stage, int(count), rng) for stage, count in enumerate(counts)]
        blocks = max(1, round(rows / BLOCK_ROWS))
        block = np.concatenate([np.arange(len(part)) * blocks // max(1, len(part)) for part in chosen])
        numbers = np.concatenate(chosen)[np.lexsort((rng.random(rows), block))]
        return BenchRows(rows=self.recipe.rows_at(numbers.tolist()), exit_stage=self.exit_stage[numbers])

    def _rows_as_they_come(self, *, rows: int, seed: int) -> BenchRows:
        """Rows drawn by chance, none twice and none so near a threshold that it might go either way."""
        require_prime(rows)
        there = np.flatnonzero(self.margin >= self.recipe.margin)
        if len(there) < rows:
            raise DataError(f"rows of {self.recipe.scenario.name}", got=len(there), expected=f"at least {rows}")
        numbers = np.random.default_rng(seed).permutation(there)[:rows]
        return BenchRows(rows=self.recipe.rows_at(numbers.tolist()), exit_stage=self.exit_stage[numbers])

    @property
    def reach(self) -> tuple[float, ...]:
        """Share of the pool that gets to each stage, 1.0 first."""
        return tuple(float((self.exit_stage >= stage).mean()) for stage in range(len(self.spec.stages)))

    def _some(self, stage: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
        there = rng.permutation(np.flatnonzero((self.exit_stage == stage) & (self.margin >= self.recipe.margin)))
        if count and not len(there):
            raise DataError(
                f"rows of {self.recipe.scenario.name}", got=f"none that exits at stage {stage}", expected=count
            )
        return np.resize(there, count)

    def _check(self, reach: Sequence[float], rows: int) -> None:
        stages = len(self.spec.stages)
        falling = all(one >= other for one, other in itertools.pairwise(reach))
        if len(reach) != stages or reach[0] != 1 or not falling or reach[-1] < 0:
            given = ", ".join(f"{share:g}" for share in reach)
            raise DataError("reach", got=given, expected=f"{stages} shares, 1 first, none above the one before")
        require_prime(rows)


def require_prime(rows: int) -> None:
    """Refuses a number of rows that could fall into step with a number of clients.

    Raises:
        DataError: it is not prime.
    """
    if rows < 2 or any(rows % divisor == 0 for divisor in range(2, int(rows**0.5) + 1)):
        raise DataError("rows", got=rows, expected="a prime number of rows")


def bench_scenario(recipe: Recipe, cache: Path = CACHE) -> BenchScenario:
    """The scenario of a recipe, made unless it is there already.

    Raises:
        CommitteeError: a member cannot be made, or the disk refuses.
    """
    return _made(recipe if recipe.fitted is None else _fitted(recipe, cache), cache)


@lru_cache(maxsize=4)
def _fitted(recipe: Recipe, cache: Path) -> Recipe:
    assert recipe.fitted is not None
    return recipe.fitted(cache)


@lru_cache(maxsize=4)
def _made(recipe: Recipe, cache: Path) -> BenchScenario:
    folder = cache / f"{recipe.scenario.name}-{_key(recipe)}"
    if not (folder / _EXITS).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as building:
            repository = building / "repository"
            spec = recipe.make(repository)
            exit_stage, margin = exits_of(spec, recipe.open_members(repository, _names(spec)).ask, recipe)
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


def exits_of(spec: CascadeSpec, ask: Ask, recipe: Recipe) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Where each row of the pool exits, int32 (pool,), and its margin, float32 (pool,).

    The last stage is not asked: every row that gets there exits there.
    """
    parts = [_exits_of_rows(spec, ask, recipe.rows_at(numbers)) for numbers in chunks_of(recipe.pool)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _exits_of_rows(
    spec: CascadeSpec, ask: Ask, rows: Rows
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
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


def _names(spec: CascadeSpec) -> list[str]:
    return [member.name for member in spec.members]


def _key(recipe: Recipe) -> str:
    """A short hash of what the members and exits depend on."""
    digest = hashlib.sha256(f"{onnxruntime.__version__} {recipe.pool} {recipe.settings}".encode())
    for path in sorted([*_CODE.glob("recipes/*.py"), _CODE / "recipe.py", Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
