"""The committee of `committee demo --text`: recorded, planned and rendered from committed members."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orchestrator.cli.demo_routes import DemoCommittee
from orchestrator.cli.plan_pool import pool_from_records
from orchestrator.errors import InfeasibleError, RepositoryError
from orchestrator.planner.dataset_split import records_of_rows
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.plan import Infeasible, PlanResult, plan_from_records
from orchestrator.planner.records import Records
from orchestrator.planner.replay import evaluate
from orchestrator.recording.job import records_of, wanted_rows
from orchestrator.repository.checked import render_checked
from orchestrator.repository.render import ensemble_from_cascade
from orchestrator.rows.docstrings import docstrings_split
from orchestrator.spec import CascadeSpec, Member, Stage
from orchestrator.spec.deriving import is_deriving
from orchestrator.spec.manifest import MANIFEST

CASCADE, ENSEMBLE = "docstrings_cascade", "docstrings_ensemble"
EPSILON = 0.01
# Rows of the test part that are served by every route.
TEST_ROWS = 1_000
_WHAT_IT_IS = (
    "The rows are paragraphs of the docstrings of scipy, scikit-learn and matplotlib, names removed: which of 20 "
    "subpackages does each document? Real text that needs no download; it is no public benchmark and says nothing "
    "of other text (docs/text-study.md).",
    "Rows per second are those of one short run beside its own client on this machine; `python -m perf text-study "
    "--served` measures. MACs are means over the recorded texts, each at its own length; the tokenizer's are not "
    "among them.",
)


def text_committee(repository: Path, output: Path, progress: Callable[[str], None]) -> DemoCommittee:
    """Records members on the plan part of the docstrings, plans, and renders what is served into `output`.

    Args:
        repository: the members, and the models that make what they read from text.
        output: folder that gets model_repository.
        progress: told what is being done.

    Raises:
        RepositoryError: there are no members.
        InfeasibleError: no plan can be certified.
        CommitteeError: whatever recording and rendering raise.
    """
    manifests = sorted(repository.glob(f"*/{MANIFEST}"))
    derive = [path.parent.name for path in manifests if is_deriving(path)]
    members = [path.parent.name for path in manifests if not is_deriving(path)]
    if not members:
        fix = "run it in a clone of the project, or name the members' repository"
        raise RepositoryError(f"members of texts in {repository}", got="none", fix=fix)

    def recorded(part: str) -> Records:
        progress(f"asking {len(members)} members about docstrings:{part}")
        return records_of(repository, members, f"docstrings:{part}", derive=derive)

    planned, best = _planned(recorded("plan"), repository, derive, progress)
    spec = planned.spec
    whole = recorded("test")
    tested = records_of_rows(whole, wanted_rows(whole.rows, TEST_ROWS))
    every = ensemble_from_cascade(_with_all(spec, planned.pool), ENSEMBLE)
    alone = [_alone(spec, member) for member in planned.pool]
    progress("rendering")
    served = output / "model_repository"
    _, report = render_checked(repository, cascades=[spec], ensembles=[every, *alone], output=served)
    if not report:
        raise RepositoryError(f"repository {served}", got=str(report))
    split = docstrings_split("test")
    rows = np.flatnonzero(np.isin(split.ids, tested.ids))
    assert tested.labels is not None
    return DemoCommittee(
        repository=served,
        spec=spec,
        ensemble=ENSEMBLE,
        records=tested,
        rows=np.array([split.texts[row].encode() for row in rows], object)[:, None],
        labels=tested.labels,
        what="test paragraphs",
        asked={member.name: one.name for member, one in zip(planned.pool, alone, strict=True)},
        before=(_promise(planned), _outcome(planned.spec, whole, best)),
        after=_WHAT_IT_IS,
        with_speed=True,
    )


def _planned(
    records: Records, repository: Path, derive: list[str], progress: Callable[[str], None]
) -> tuple[PlanResult, str]:
    """The cheapest plan that is certified to be about as accurate as the most accurate member, and that one."""
    progress("planning")
    assert records.labels is not None
    right = {name: int((said.argmax(axis=1) == records.labels).sum()) for name, said in records.outputs.items()}
    best = max(right, key=lambda name: right[name])
    pool = pool_from_records(records, repository, name=CASCADE, cost=None, derive=derive)
    options = SearchOptions(combines=("mean_prob", "mean_logit"))
    found = plan_from_records(pool.spec, records, Goal(reference=best, epsilon=EPSILON), options=options)
    if isinstance(found, Infeasible):
        raise InfeasibleError("plan", got=found.unmet.got, expected=found.unmet.expected)
    return found, best


def _promise(planned: PlanResult) -> str:
    fit = planned.spec.fit
    assert fit is not None
    stages = ", then ".join(" and ".join(one.name for one in stage.members) for stage in planned.spec.stages)
    guarantee = fit.extra["guarantee"]
    return f"Planned: {stages}. Certified on {guarantee['rows']:,} rows of their own: {guarantee['statement']}."


def _outcome(spec: CascadeSpec, whole: Records, reference: str) -> str:
    """What came of the promise, on more rows than are served: a thousand tell little of one point."""
    found = evaluate(spec, whole, reference=reference)
    low, high = found.difference_ci95
    return (
        f"Replayed on all {found.rows:,} test rows: accuracy minus that of {reference} {found.difference:+.4f} "
        f"(95 % interval {low:+.4f} to {high:+.4f}); the table is of {TEST_ROWS:,} of them, which are served."
    )


def _with_all(spec: CascadeSpec, pool: tuple[Member, ...]) -> CascadeSpec:
    return dataclasses.replace(spec, stages=(Stage(members=pool),), gears=None)


def _alone(spec: CascadeSpec, member: Member) -> CascadeSpec:
    """The member behind what it needs, as Triton's own ensemble."""
    return dataclasses.replace(_with_all(spec, (member,)), name=f"{member.name}_from_text", fit=None)
