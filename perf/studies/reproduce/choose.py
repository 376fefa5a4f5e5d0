"""Every choice of every claim, made on the plan part: nothing here can see another row.

Claims by key: 1 two averaged models against one bigger; 2 ensembles at each single model's cost; 3 cascades
against every single model at no lower accuracy; 4 the same with a worst case no dearer than the single model;
5 one network at two resolutions; 6a and 6b combine modes and scores at the same accuracy and at the same cost;
7 how many stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from orchestrator.planner.search import RIGHT, SearchResult
from orchestrator.progress import Progress
from orchestrator.spec import COMBINES, SCORES
from perf.studies.reproduce.choices import HEADLINE, NO_MARGIN, Choices, ChosenPlan, PlanComparison, short
from perf.studies.reproduce.parts import MemberGroups, PlanPart, groups_from_names
from perf.studies.reproduce.search_space import (
    DELTA,
    EPSILONS,
    MARGIN_SE,
    SearchSpace,
    best_at_cost,
    certified,
    cheapest_at_accuracy,
    ensembles_of,
    no_worse,
    search_space_of,
    searched,
    validate_margins,
)

NONE_AHEAD = "no cheaper plan is ahead by the margin on the plan part"
NONE_LEVEL = "none is as accurate on the plan part"
# Points of each kind in the figure; more would hide each other.
DRAWN = 14
# Targets of the table about stages: the most accurate of so many costs, from the top.
STAGE_TARGETS = 3


def choose(part: PlanPart, *, quantiles: int, margin_splits: int, progress: Progress) -> Choices:
    """All plans that will be judged.

    Args:
        part: what they are chosen on.
        quantiles: thresholds tried per stage, besides "never".
        margin_splits: splits of the plan part on which the margin is tried.
        progress: shows searches.
    """
    names = list(part.records.outputs)
    family = groups_from_names(names)
    space = search_space_of(part, names, quantiles=quantiles, progress=progress)
    singles = {name: space.averaged([name]) for name in space.names}
    best = max(space.names, key=lambda name: (singles[name].accuracy, -singles[name].mean_cost))
    whole = searched(space)
    comparisons = (
        *_headline(space, whole, singles[best]),
        *_two_against_one(space, family, singles),
        *_ensembles(space, singles),
        *_cascades(space, whole, singles),
        *_worst_case(space, singles),
        *(_self_cascade(part, family, singles, like=space) if family.pair else ()),
        *_modes(part, space, singles[best]),
        *_stages(space, singles, whole),
    )
    picture = {
        "single": tuple(singles.values()),
        "ensemble": _thinned(ensembles_of(space)),
        "cascade": _thinned(_real_cascades(space, whole)),
    }
    return Choices(
        source=_source(part, space, best),
        comparisons=comparisons,
        picture=picture,
        margin_validation=tuple(validate_margins(space, best, splits=margin_splits)),
    )


def _source(part: PlanPart, space: SearchSpace, best: str) -> dict[str, Any]:
    known = part.records.meta["members"]
    return {
        "data": "glyphs",
        "part": "plan",
        "rows": part.records.rows,
        "rows_propose": len(space.split.search),
        "rows_confirm": len(space.split.certify),
        "data_sha256": part.data_sha256,
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


def _headline(space: SearchSpace, whole: SearchResult, single: ChosenPlan) -> Iterator[PlanComparison]:
    name = single.members[0]
    yield _held_to(space, whole, single, claim=HEADLINE, label="the headline plan")
    for epsilon in EPSILONS:
        found = certified(space, name, epsilon=epsilon)
        yield PlanComparison(
            claim=HEADLINE,
            label=f"epsilon {epsilon:g}",
            one=found.plan,
            other=single,
            note=found.note,
            guarantee=found.guarantee,
        )


def _held_to(
    space: SearchSpace, found: SearchResult, single: ChosenPlan, *, claim: str, label: str
) -> PlanComparison:
    """A plan by the rule of "no lower accuracy" against a single model."""
    reference = space.right(single.members[0])
    plan = no_worse(space, found, reference, below_cost=single.mean_cost)
    return PlanComparison(claim=claim, label=label, one=plan, other=single, note="" if plan else NONE_AHEAD)


def _best(names: tuple[str, ...], singles: dict[str, ChosenPlan]) -> str:
    return max(names, key=lambda name: singles[name].accuracy)


def _best_by_cost(singles: dict[str, ChosenPlan]) -> list[str]:
    """The most accurate member of every cost, cheapest first."""
    costs = sorted({plan.mean_cost for plan in singles.values()})
    return [
        _best(tuple(name for name, plan in singles.items() if plan.mean_cost == cost), singles) for cost in costs
    ]


def _two_against_one(
    space: SearchSpace, family: MemberGroups, singles: dict[str, ChosenPlan]
) -> Iterator[PlanComparison]:
    best = [_best(size, singles) for size in family.sizes]
    for place in range(1, len(best)):
        bigger = singles[best[place]]
        pairs = [("two seeds", family.sizes[place - 1][:2])]
        if place > 1:
            pairs.append(("two sizes", (best[place - 2], best[place - 1])))
        for kind, pair in pairs:
            if len(pair) == 2:
                yield PlanComparison(
                    claim="1",
                    label=f"{kind} against {short(best[place])}",
                    one=space.averaged(pair),
                    other=bigger,
                )


def _ensembles(space: SearchSpace, singles: dict[str, ChosenPlan]) -> Iterator[PlanComparison]:
    best = ensembles_of(space)
    for name in _best_by_cost(singles):
        affordable = [plan for plan in best if plan.mean_cost <= singles[name].mean_cost]
        yield PlanComparison(
            claim="2",
            label=f"at the cost of {short(name)}",
            one=affordable[-1] if affordable else None,
            other=singles[name],
            note="" if affordable else "no two members cost so little",
        )


def _cascades(space: SearchSpace, whole: SearchResult, singles: dict[str, ChosenPlan]) -> Iterator[PlanComparison]:
    for name, single in singles.items():
        yield _held_to(space, whole, single, claim="3", label=short(name))


def _worst_case(space: SearchSpace, singles: dict[str, ChosenPlan]) -> Iterator[PlanComparison]:
    costs = sorted({single.mean_cost for single in singles.values()})
    found = {cost: searched(space, max_worst_cost=cost) for cost in costs}
    for name, single in singles.items():
        line = _held_to(space, found[single.mean_cost], single, claim="4", label=short(name))
        yield line
        if line.one is None:
            level = cheapest_at_accuracy(space, found[single.mean_cost], accuracy=single.accuracy)
            if level is not None and level.mean_cost < single.mean_cost:
                yield PlanComparison(claim="4", label=f"{short(name)}{NO_MARGIN}", one=level, other=single)


def _self_cascade(
    part: PlanPart, family: MemberGroups, singles: dict[str, ChosenPlan], *, like: SearchSpace
) -> Iterator[PlanComparison]:
    high = singles[family.pair[1]]
    pair, last, others = (
        search_space_of(part, names, quantiles=like.quantiles, progress=like.progress, combine=combine)
        for names, combine in (
            (family.pair, "mean_logit"),
            (family.pair, "last"),
            (family.members, "mean_logit"),
        )
    )
    both = searched(pair)
    ahead = _held_to(pair, both, high, claim="5", label="both averaged, with the margin")
    yield ahead
    averaged = cheapest_at_accuracy(pair, both, accuracy=high.accuracy)
    lastly = cheapest_at_accuracy(last, searched(last, combine="last"), accuracy=high.accuracy)
    rivals = cheapest_at_accuracy(others, searched(others), accuracy=high.accuracy)
    for label, plan in (
        ("both averaged", averaged),
        ("the second answer alone", lastly),
        ("the family's cascade", rivals),
    ):
        yield PlanComparison(claim="5", label=label, one=plan, other=high, note="" if plan else NONE_LEVEL)
    if averaged is not None and rivals is not None:
        yield PlanComparison(
            claim="5", label="both averaged against the family's cascade", one=averaged, other=rivals
        )


def _modes(part: PlanPart, like: SearchSpace, target: ChosenPlan) -> Iterator[PlanComparison]:
    """Every combine mode with every score; all are held against the planner's defaults."""
    names, scores = like.names, [score for score in SCORES if score != "agreement"]
    default: ChosenPlan | None = None
    for combine in COMBINES:
        space = search_space_of(
            part, names, quantiles=like.quantiles, progress=like.progress, combine=combine, scores=scores
        )
        for score in SCORES:
            found = searched(space, combine=combine, score=score)
            plan = cheapest_at_accuracy(space, found, accuracy=target.accuracy)
            # The first pair is the default one, mean_logit and max_prob.
            default = default or plan
            label = f"{combine}, {score}"
            yield PlanComparison(
                claim="6a", label=label, one=plan, other=default or target, note="" if plan else NONE_LEVEL
            )
            if default is not None:
                same = best_at_cost(space, found, mean_cost=default.mean_cost)
                yield PlanComparison(
                    claim="6b", label=label, one=same, other=default, note="" if same else "all cost more"
                )


def _stages(space: SearchSpace, singles: dict[str, ChosenPlan], whole: SearchResult) -> Iterator[PlanComparison]:
    found = {stages: searched(space, max_stages=stages) for stages in (1, 2, 3)} | {4: whole}
    for name in _best_by_cost(singles)[-STAGE_TARGETS:]:
        for stages, frontier in found.items():
            plan = cheapest_at_accuracy(space, frontier, accuracy=singles[name].accuracy)
            several = f"at most {stages} stages" if stages > 1 else "1 stage"
            yield PlanComparison(claim="7", label=f"{short(name)}, {several}", one=plan, other=singles[name])


def _real_cascades(space: SearchSpace, whole: SearchResult) -> list[ChosenPlan]:
    found = [one.choice for one in whole.frontiers[RIGHT] if one.choice.thresholds]
    return [space.plan_of(choice) for choice in reversed(found)]


def _thinned(plans: list[ChosenPlan]) -> tuple[ChosenPlan, ...]:
    places = np.unique(np.linspace(0, len(plans) - 1, DRAWN).round().astype(int)) if plans else ()
    return tuple(plans[place] for place in places)
