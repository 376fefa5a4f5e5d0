"""What chosen plans achieve on the test part: accuracy and cost, with 95 % intervals, and time; and results.json.

Accuracy and cost come from a replay through the decision core that serves plans. Accuracies have exact
(Clopper-Pearson) intervals. Differences of accuracy are paired by row and have a normal interval; ratios of costs
are paired too and have one by the delta method.

Times are of one thread of ONNX Runtime in this process:
- All plans are timed in the same rounds, one after another in an order that turns, so that drift of the machine
  affects all alike. Factors are formed within a round; their median is given with the smallest and the largest.
- A single model is asked batch by batch. A cascade runs the decision core, and its decisions count: the first
  stage takes whole batches, deferred rows gather until they fill a batch (at batch 1 that is at once), and the
  rows left at the end are asked about as they are.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from orchestrator.decision import CascadeRun, Policy, arrivals_from_policies
from orchestrator.errors import DataError
from orchestrator.local import LocalMembers
from orchestrator.planner.intervals import clopper_pearson, discordant_pairs, paired_difference
from orchestrator.planner.replay import replay
from orchestrator.repository.files import sha256_of_path
from orchestrator.spec import CascadeSpec
from orchestrator.spec.processor import core_count
from orchestrator.spec.shares import evenly_spread
from perf.harness.machine import machine_here
from perf.studies.reproduce.parts import PlanPart, Say, TestPart
from perf.studies.reproduce.plans import CHOICES, DELTA, HEADLINE, Choices, ChosenPlan, PlanComparison

# 97.5th percentile of the normal distribution.
_NORMAL_95 = 1.959963984540054
_WARM_UP_BATCHES = 4
RESULTS = "results.json"
WRITTEN_BY = "python -m perf reproduce writes them"
FORMAT = 2
# Formats whose times can be kept: they hold them in the same place.
_TIMED_FORMATS = (1, FORMAT)
_MEASURE_ANEW = "measure everything: leave out --again"
# Claims whose plans are timed.
_TIMED = (HEADLINE, "3", "5")
# Another version of these may draw other pictures.
_DRAWN_WITH = ("pillow", "matplotlib")

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlanOutcome:
    """What a plan does to every row of the test part: is its label right, MACs spent, the stage that answered."""

    right: npt.NDArray[np.bool_]
    cost: Floats
    stage: npt.NDArray[np.int32]


class ChoiceEvaluator:
    """Replays plans on the test part, each plan once."""

    def __init__(self, part: TestPart) -> None:
        self._part = part
        self._outcomes: dict[ChosenPlan, PlanOutcome] = {}

    def outcome(self, plan: ChosenPlan) -> PlanOutcome:
        """What a plan does to every row."""
        if plan not in self._outcomes:
            spec = plan.spec_of(self._part.base)
            answers = replay(spec, self._part.records)
            # In float64: the sums of the decision core are float32, good for seven digits.
            spent = np.cumsum([stage.cost for stage in spec.stages])
            self._outcomes[plan] = PlanOutcome(
                right=answers.label == self._part.records.labels,
                cost=spent[answers.exit_stage],
                stage=answers.exit_stage,
            )
        return self._outcomes[plan]

    def facts(self, plan: ChosenPlan) -> dict[str, Any]:
        """A plan and its numbers as JSON values."""
        outcome = self.outcome(plan)
        rows, right = len(outcome.right), int(outcome.right.sum())
        counts = np.bincount(outcome.stage, minlength=len(plan.stages))
        mean = float(outcome.cost.mean())
        reach = _NORMAL_95 * float(outcome.cost.std()) / math.sqrt(rows)
        return {
            "plan": plan.text,
            "stages": [list(stage) for stage in plan.stages],
            "thresholds": list(plan.thresholds),
            "combine": plan.combine,
            "score": plan.score,
            "n": rows,
            "right": right,
            "accuracy": right / rows,
            "accuracy_ci95": list(clopper_pearson(right, rows)),
            "plan_part_accuracy": plan.accuracy,
            "mean_cost": mean,
            "mean_cost_ci95": [mean - reach, mean + reach],
            "worst_cost": plan.spec_of(self._part.base).worst_cost,
            "exit_share": (counts / rows).tolist(),
        }

    def line(self, comparison: PlanComparison) -> dict[str, Any]:
        """A comparison and its numbers as JSON values."""
        line: dict[str, Any] = {name: getattr(comparison, name) for name in ("label", "note", "guarantee")}
        line |= {"other": self.facts(comparison.other), "one": None}
        if comparison.one is None:
            return line
        one, other = self.outcome(comparison.one), self.outcome(comparison.other)
        difference, interval = paired_difference(one.right, other.right)
        if comparison.one.decides_as(comparison.other):
            # A plan compared with itself differs by exactly 0.
            interval = (0.0, 0.0)
        factor, factor_interval = ratio_of_means(other.cost, one.cost)
        gains, losses = int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum())
        facts = self.facts(comparison.one)
        return line | {
            "one": facts,
            "difference": difference,
            "difference_ci95": list(interval),
            "gains": gains,
            "losses": losses,
            "worse_by_at_most": discordant_pairs(losses, gains, len(one.right), DELTA),
            "macs_factor": factor,
            "macs_factor_ci95": list(factor_interval),
            "worst_cost_factor": line["other"]["worst_cost"] / facts["worst_cost"],
        }


def evaluate_choices(choices: Choices, part: TestPart, *, say: Say) -> dict[str, Any]:
    """The numbers of all tables and of the figure, as JSON values."""
    evaluator = ChoiceEvaluator(part)
    say(f"test part: judging {len(choices.comparisons)} comparisons")
    claims: dict[str, list[dict[str, Any]]] = {}
    for comparison in choices.comparisons:
        claims.setdefault(comparison.claim, []).append(evaluator.line(comparison))
    hardest = _against_test_best(choices, evaluator)
    return {
        "claims": claims,
        "against_test_best": None if hardest is None else evaluator.line(hardest),
        "picture": {kind: [evaluator.facts(plan) for plan in plans] for kind, plans in choices.picture.items()},
    }


def _against_test_best(choices: Choices, evaluator: ChoiceEvaluator) -> PlanComparison | None:
    """The headline plan against the single model that is most accurate on the test part; None without such a plan.

    Which model that is cannot be known beforehand, and no plan is chosen by it. The comparison shows how much of
    the headline is owed to the chance by which another model was the most accurate on the plan part.
    """
    if choices.headline is None:
        return None
    singles = choices.picture["single"]
    best = max(singles, key=lambda one: (int(evaluator.outcome(one).right.sum()), -one.mean_cost))
    label = "the most accurate on the test part"
    return PlanComparison(claim=HEADLINE, label=label, one=choices.headline, other=best)


def ratio_of_means(above: Floats, below: Floats) -> tuple[float, tuple[float, float]]:
    """Mean of one cost over the mean of another on the same rows, with a 95 % interval by the delta method."""
    ratio = float(above.mean() / below.mean())
    rest = above - ratio * below
    reach = _NORMAL_95 * math.sqrt(float((rest**2).mean()) / len(rest)) / float(below.mean())
    return ratio, (ratio - reach, ratio + reach)


# Batch size -> plan-> milliseconds per row, one figure per round.
Figures = Mapping[int, Mapping[ChosenPlan, Sequence[float]]]


@dataclass(frozen=True, kw_only=True)
class TimingLoad:
    """How plans are asked while they are timed: rows per call, rows per round, number of rounds."""

    batch: int
    rows: int
    rounds: int


def timed(
    plans: Sequence[ChosenPlan],
    part: TestPart,
    *,
    members: LocalMembers,
    load: TimingLoad,
    say: Say,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[ChosenPlan, list[float]]:
    """Milliseconds per row of every single model and cascade, one figure per round, by a clock of seconds.

    Members are opened with one thread; `load.rows` pictures of the test part are taken, spread evenly.
    """
    rows = part.images[evenly_spread(len(part.images), load.rows)]
    ways: dict[ChosenPlan, Callable[[Images], Labels]] = {}
    for plan in plans:
        single, spec = len(plan.members) == 1, plan.spec_of(part.base)
        way = partial(ask_single, members, plan.members[0]) if single else partial(ask_cascade, members, spec)
        ways[plan] = partial(way, batch=load.batch)
    for ask in ways.values():
        ask(rows[: _WARM_UP_BATCHES * load.batch])
    figures: dict[ChosenPlan, list[float]] = {plan: [] for plan in ways}
    order = list(ways)
    for number in range(load.rounds):
        say(f"timing batches of {load.batch}: round {number + 1} of {load.rounds}")
        turn = number * len(order) // load.rounds
        for plan in order[turn:] + order[:turn]:
            begun = clock()
            ways[plan](rows)
            figures[plan].append(1000 * (clock() - begun) / len(rows))
    return figures


def ask_single(members: LocalMembers, name: str, images: Images, *, batch: int) -> Labels:
    """Labels int64 (n,) that one member gives, asked batch by batch."""
    parts = [members.ask(name, images[first : first + batch]) for first in range(0, len(images), batch)]
    return np.concatenate([np.argmax(part, axis=1) for part in parts])


def ask_cascade(members: LocalMembers, spec: CascadeSpec, images: Images, *, batch: int) -> Labels:
    """Labels int64 (n,) that a cascade gives, deferred rows pooled over batches."""
    # Beside the batch that arrives a batch may wait at every stage.
    run = CascadeRun(spec, capacity_rows=batch * (len(spec.stages) + 1))
    label = np.full(len(images), -1, np.int64)
    row_in_slot = np.zeros(run.capacity_rows, np.intp)

    def asked(stage: int, rows: npt.NDArray[np.intp]) -> list[npt.NDArray[np.float32]]:
        return [members.ask(member.name, images[rows]) for member in spec.stages[stage].members]

    def ask_later_stages(*, least: int) -> None:
        for stage in range(1, len(spec.stages)):
            while run.waiting(stage) >= least:
                slots = run.next(stage, batch)
                rows = row_in_slot[slots]
                outcome = run.feed(slots, asked(stage, rows))
                label[rows[outcome.answers.row]] = outcome.answers.label

    for first in range(0, len(images), batch):
        rows = np.arange(first, min(first + batch, len(images)))
        arrivals = arrivals_from_policies(
            [0], [len(rows)], policies=[Policy()], now_ns=[0], default_deadline_us=spec.limits.default_deadline_us
        )
        outcome = run.admit(arrivals, asked(0, rows))
        label[rows[outcome.answers.row]] = outcome.answers.label
        row_in_slot[outcome.slots] = rows[outcome.deferred]
        ask_later_stages(least=batch)
    ask_later_stages(least=1)
    return label


def spread_of(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest over the rounds."""
    return {"median": float(np.median(values)), "min": float(min(values)), "max": float(max(values))}


def results_of(
    choices: Choices,
    part: TestPart,
    *,
    members: LocalMembers,
    loads: Sequence[TimingLoad],
    command: str,
    classes: Sequence[str],
    say: Say,
    kept: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates and times the choices; gives the content of results.json.

    Choices were read back from the file they were written to; members are opened with one thread. With earlier
    results of the same choices in `kept`, their times are taken and none are measured.
    """
    found = evaluate_choices(choices, part, say=say)
    about = ("macs", "preprocess_macs", "resolution_px", "parameters")
    known = {
        name: {key: getattr(members.manifest(name), key) for key in about} for name in choices.source["members"]
    }
    plans = _timed_plans(choices)
    figures: Figures
    if kept is not None:
        figures = figures_from_results(kept, plans)
    else:
        figures = {load.batch: timed(plans, part, members=members, load=load, say=say) for load in loads}
    _add_factors(found, choices, known, figures)
    machine = {**machine_here(), "cores": core_count()}
    machine |= {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    routes = [_route(plan, figures) for plan in plans]
    timing = {"loads": [asdict(load) for load in loads], "threads": 1, "routes": routes}
    return {
        "format": FORMAT,
        "command": command,
        "data": "glyphs",
        "classes": list(classes),
        "plan_part": choices.source,
        "rehearsal": list(choices.margin_validation),
        "test_part": {"rows": part.records.rows, "data_sha256": part.data_sha256},
        "drawn_with": {name: version(name) for name in _DRAWN_WITH},
        "machine": machine if kept is None else kept["machine"],
        "members": known,
        "timing": timing if kept is None else kept["timing"],
        **found,
    }


def _timed_plans(choices: Choices) -> list[ChosenPlan]:
    """Every single model, and both plans of each comparison that says times; each plan once."""
    lines = (line for line in choices.comparisons if line.claim in _TIMED and line.one is not None)
    compared = (plan for line in lines for plan in (line.one, line.other) if plan is not None)
    return list(dict.fromkeys([*choices.picture["single"], *compared]))


def _add_factors(found: dict[str, Any], choices: Choices, known: dict[str, Any], figures: Figures) -> None:
    """Adds ratios of times, and of MACs with those of the resizing, to the lines that `evaluate_choices` gave."""
    lines = {claim: iter(of_claim) for claim, of_claim in found["claims"].items()}
    for comparison in choices.comparisons:
        line = next(lines[comparison.claim])
        if comparison.one is None:
            continue
        line["macs_factor_with_resizing"] = _full_cost(line["other"], known) / _full_cost(line["one"], known)
        if comparison.claim in _TIMED:
            line["time_factor"] = _time_factors(figures, comparison.one, comparison.other)
    hardest, headline = found["against_test_best"], choices.headline
    if hardest is not None and headline is not None:
        single = next(one for one in choices.picture["single"] if one.text == hardest["other"]["plan"])
        hardest["time_factor"] = _time_factors(figures, headline, single)


def _full_cost(facts: dict[str, Any], known: dict[str, dict[str, Any]]) -> float:
    """Mean MACs per row, those of the resizing inside the graphs included."""
    spent = np.cumsum(
        [sum(known[name]["macs"] + known[name]["preprocess_macs"] for name in stage) for stage in facts["stages"]]
    )
    return float(spent @ np.array(facts["exit_share"]))


def _time_factors(figures: Figures, one: ChosenPlan, other: ChosenPlan) -> dict[str, dict[str, float]]:
    """Batch size -> how many times as fast `one` is as `other`, formed within each round."""
    return {
        str(batch): spread_of([b / a for a, b in zip(figure[one], figure[other], strict=True)])
        for batch, figure in figures.items()
    }


def _route(plan: ChosenPlan, figures: Figures) -> dict[str, Any]:
    return {
        "plan": plan.text,
        "stages": [list(stage) for stage in plan.stages],
        "thresholds": list(plan.thresholds),
        "ms_per_row": {
            str(batch): {**spread_of(figure[plan]), "rounds": figure[plan]} for batch, figure in figures.items()
        },
    }


def figures_from_results(kept: dict[str, Any], plans: Sequence[ChosenPlan]) -> Figures:
    """The times in earlier results of plans in the order in which they are timed.

    Raises:
        DataError: the results hold times of other plans.
    """
    routes = kept["timing"]["routes"]
    wanted = [([list(stage) for stage in plan.stages], list(plan.thresholds)) for plan in plans]
    if wanted != [(route["stages"], route["thresholds"]) for route in routes]:
        raise DataError("times in the earlier results", got="those of other plans", fix=_MEASURE_ANEW)
    by_plan = dict(zip(plans, (route["ms_per_row"] for route in routes), strict=True))
    batches = [load["batch"] for load in kept["timing"]["loads"]]
    return {batch: {plan: ms[str(batch)]["rounds"] for plan, ms in by_plan.items()} for batch in batches}


def results_from_path(path: Path, *, formats: Sequence[int] = (FORMAT,)) -> dict[str, Any]:
    """Reads results.json.

    Raises:
        DataError: the file is missing or holds something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"results {path}", got=error, fix=WRITTEN_BY) from error
    if not isinstance(results, dict) or results.get("format") not in formats:
        expected = f"an object with format {FORMAT}"
        raise DataError(f"results {path}", got="other JSON", expected=expected, fix=WRITTEN_BY)
    return results


def kept_results(folder: Path) -> dict[str, Any]:
    """The results in a folder, to evaluate their choices again.

    Raises:
        DataError: there are none, or the choices beside them are others.
    """
    kept = results_from_path(folder / RESULTS, formats=_TIMED_FORMATS)
    if sha256_of_path(folder / CHOICES) != kept["choices_sha256"]:
        raise DataError(f"{folder / CHOICES}", got="other choices than those of the results", fix=_MEASURE_ANEW)
    return kept


def check_same(kept: dict[str, Any], plan: PlanPart, test: TestPart) -> None:
    """Refuses pictures and members other than those of the kept results.

    Raises:
        DataError: names what differs.
    """
    before = [kept[part]["data_sha256"] for part in ("plan_part", "test_part")]
    if [plan.data_sha256, test.data_sha256] != before:
        drawn = kept.get("drawn_with", {})
        fix = "draw them with " + ", ".join(f"{name} {version}" for name, version in drawn.items())
        fix = f"{fix}, or {_MEASURE_ANEW}" if drawn else _MEASURE_ANEW
        raise DataError("pictures", got="others than those of the earlier results", fix=fix)
    about = test.records.meta["members"]
    before = kept["plan_part"]["members"]
    if changed := [name for name, one in before.items() if about[name]["sha256"] != one["sha256"]]:
        raise DataError("members", got=f"other models than before: {', '.join(changed)}", fix=_MEASURE_ANEW)
