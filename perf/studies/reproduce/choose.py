"""Every choice behind every claim, made on the plan part: nothing here can see another row.

Claims by key: 1 two averaged models against one bigger; 2 ensembles at each single model's cost; 3 cascades
against every single model at no lower accuracy; 4 the same with a worst case no dearer than the single model;
5 one network at two resolutions; 6a and 6b combine modes and scores at the same accuracy and at the same cost;
7 how many stages.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from orchestrator.planner.search import RIGHT, SearchResult
from orchestrator.progress import Progress
from orchestrator.spec import COMBINES, SCORES
from orchestrator.spec.shares import evenly_spread
from perf.studies.reproduce.parts import MemberGroups, PlanPart, groups_from_names
from perf.studies.reproduce.plans import (
    DELTA,
    EPSILONS,
    HEADLINE,
    MARGIN_SE,
    NO_MARGIN,
    Choices,
    ChosenPlan,
    PlanComparison,
    SearchSpace,
    best_at_cost,
    certified,
    cheapest_at_accuracy,
    ensembles_of,
    no_worse,
    search_space_of,
    searched,
    short,
    validate_margins,
)

_NONE_AHEAD = "no cheaper plan is ahead by the margin on the plan part"
_NONE_LEVEL = "none is as accurate on the plan part"
# Points of each kind in the figure; more of them would overlap.
_DRAWN = 14
# The table about stages takes its targets from this many of the highest costs.
_STAGE_TARGETS = 3

Singles = dict[str, ChosenPlan]


def choose(part: PlanPart, *, quantiles: int, margin_splits: int, progress: Progress) -> Choices:
    """Chooses every plan that will be evaluated.

    So many `quantiles` are tried per stage, besides "never"; margins are validated on splits of the plan part.
    """
    names = list(part.records.outputs)
    groups = groups_from_names(names)
    space = search_space_of(part, names, quantiles=quantiles, progress=progress)
    singles = {name: space.averaged([name]) for name in space.names}
    best = max(space.names, key=lambda name: (singles[name].accuracy, -singles[name].mean_cost))
    whole = searched(space)
    comparisons = (
        *_headline(space, whole, singles[best]),
        *_two_against_one(space, groups, singles),
        *_ensembles(space, singles),
        *(_no_worse(space, whole, single, claim="3", label=short(name)) for name, single in singles.items()),
        *_worst_case(space, singles),
        *(_self_cascade(space, groups, singles) if groups.pair else ()),
        *_modes(space, singles[best]),
        *_stages(space, singles, whole),
    )
    cascades = [plan for plan in reversed(whole.frontiers[RIGHT]) if plan.thresholds]
    picture = {
        "single": tuple(singles.values()),
        "ensemble": _thinned(ensembles_of(space)),
        "cascade": _thinned([space.plan_of(plan) for plan in cascades]),
    }
    return Choices(
        source=_source(space, best),
        comparisons=comparisons,
        picture=picture,
        margin_validation=tuple(validate_margins(space, best, splits=margin_splits)),
    )


def _source(space: SearchSpace, best: str) -> dict[str, Any]:
    records = space.part.records
    known = records.meta["members"]
    return {
        "data": "glyphs",
        "part": "plan",
        "rows": records.rows,
        "rows_propose": len(space.split.search),
        "rows_confirm": len(space.split.certify),
        "data_sha256": space.part.data_sha256,
        "members": {
            member.name: {"sha256": known[member.name]["sha256"], "macs": member.cost}
            for member in space.table.pool
        },
        "most_accurate": best,
        "quantiles": space.quantiles,
        "margin_se": MARGIN_SE,
        "epsilons": list(EPSILONS),
        "delta": DELTA,
    }


def _line(
    claim: str, label: str, plan: ChosenPlan | None, other: ChosenPlan, *, without: str = ""
) -> PlanComparison:
    """A comparison; `without` says why there is no plan, where there is none."""
    return PlanComparison(claim=claim, label=label, one=plan, other=other, note="" if plan else without)


def _no_worse(
    space: SearchSpace, found: SearchResult, single: ChosenPlan, *, claim: str, label: str
) -> PlanComparison:
    """A plan by the rule of "no lower accuracy" against a single model."""
    plan = no_worse(space, found, space.right(single.members[0]), below_cost=single.mean_cost)
    return _line(claim, label, plan, single, without=_NONE_AHEAD)


def _best(names: Iterable[str], singles: Singles) -> str:
    return max(names, key=lambda name: singles[name].accuracy)


def _best_by_cost(singles: Singles) -> list[str]:
    """The most accurate member of every cost, cheapest first."""
    costs = sorted({plan.mean_cost for plan in singles.values()})
    return [_best([name for name, plan in singles.items() if plan.mean_cost == cost], singles) for cost in costs]


def _headline(space: SearchSpace, whole: SearchResult, single: ChosenPlan) -> Iterator[PlanComparison]:
    yield _no_worse(space, whole, single, claim=HEADLINE, label="the headline plan")
    for epsilon in EPSILONS:
        yield certified(space, single, epsilon=epsilon)


def _two_against_one(space: SearchSpace, groups: MemberGroups, singles: Singles) -> Iterator[PlanComparison]:
    best = [_best(size, singles) for size in groups.sizes]
    for place in range(1, len(best)):
        pairs = [("two seeds", groups.sizes[place - 1][:2])]
        if place > 1:
            pairs.append(("two sizes", (best[place - 2], best[place - 1])))
        for kind, pair in pairs:
            if len(pair) == 2:
                label = f"{kind} against {short(best[place])}"
                yield _line("1", label, space.averaged(pair), singles[best[place]])


def _ensembles(space: SearchSpace, singles: Singles) -> Iterator[PlanComparison]:
    frontier = ensembles_of(space)
    for name in _best_by_cost(singles):
        affordable = [plan for plan in frontier if plan.mean_cost <= singles[name].mean_cost]
        plan, label = affordable[-1] if affordable else None, f"at the cost of {short(name)}"
        yield _line("2", label, plan, singles[name], without="no two members cost so little")


def _worst_case(space: SearchSpace, singles: Singles) -> Iterator[PlanComparison]:
    costs = sorted({single.mean_cost for single in singles.values()})
    found = {cost: searched(space, max_worst_cost=cost) for cost in costs}
    for name, single in singles.items():
        line = _no_worse(space, found[single.mean_cost], single, claim="4", label=short(name))
        yield line
        if line.one is None:
            level = cheapest_at_accuracy(space, found[single.mean_cost], accuracy=single.accuracy)
            if level is not None and level.mean_cost < single.mean_cost:
                yield _line("4", f"{short(name)}{NO_MARGIN}", level, single)


def _self_cascade(space: SearchSpace, groups: MemberGroups, singles: Singles) -> Iterator[PlanComparison]:
    high = singles[groups.pair[1]]
    pair, last, others = space.of(groups.pair), space.of(groups.pair, combine="last"), space.of(groups.members)
    both = searched(pair)
    yield _no_worse(pair, both, high, claim="5", label="both averaged, with the margin")
    averaged = cheapest_at_accuracy(pair, both, accuracy=high.accuracy)
    second = cheapest_at_accuracy(last, searched(last, combine="last"), accuracy=high.accuracy)
    family = cheapest_at_accuracy(others, searched(others), accuracy=high.accuracy)
    yield _line("5", "both averaged", averaged, high, without=_NONE_LEVEL)
    yield _line("5", "the second answer alone", second, high, without=_NONE_LEVEL)
    yield _line("5", "the family's cascade", family, high, without=_NONE_LEVEL)
    if averaged is not None and family is not None:
        yield _line("5", "both averaged against the family's cascade", averaged, family)


def _modes(like: SearchSpace, target: ChosenPlan) -> Iterator[PlanComparison]:
    """Every combine mode with every score, each compared with the planner's defaults."""
    default: ChosenPlan | None = None
    for combine in COMBINES:
        space = like.of(like.names, combine=combine, scores=[score for score in SCORES if score != "agreement"])
        for score in SCORES:
            found = searched(space, combine=combine, score=score)
            plan = cheapest_at_accuracy(space, found, accuracy=target.accuracy)
            # The first pair, mean_logit and max_prob, is the planner's default.
            default = default or plan
            label = f"{combine}, {score}"
            yield _line("6a", label, plan, default or target, without=_NONE_LEVEL)
            if default is not None:
                same = best_at_cost(space, found, mean_cost=default.mean_cost)
                yield _line("6b", label, same, default, without="all cost more")


def _stages(space: SearchSpace, singles: Singles, whole: SearchResult) -> Iterator[PlanComparison]:
    found = {stages: searched(space, max_stages=stages) for stages in (1, 2, 3)} | {4: whole}
    for name in _best_by_cost(singles)[-_STAGE_TARGETS:]:
        for stages, frontier in found.items():
            plan = cheapest_at_accuracy(space, frontier, accuracy=singles[name].accuracy)
            several = f"at most {stages} stages" if stages > 1 else "1 stage"
            yield _line("7", f"{short(name)}, {several}", plan, singles[name])


def _thinned(plans: list[ChosenPlan]) -> tuple[ChosenPlan, ...]:
    return tuple(plans[place] for place in evenly_spread(len(plans), _DRAWN))
