"""Records of the docstrings members, the time they take in this process, and the plans that both allow."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from orchestrator.cli.plan_pool import pool_from_records
from orchestrator.local import LocalMembers
from orchestrator.planner.goal import Goal, SearchOptions
from orchestrator.planner.intervals import clopper_pearson, paired_difference
from orchestrator.planner.plan import Infeasible, plan_from_records
from orchestrator.planner.records import Records
from orchestrator.planner.replay import exits_and_cost, replay
from orchestrator.rows.docstrings import DocstringsSplit, docstrings_split
from orchestrator.spec import CascadeSpec
from perf.harness.machine import machine_here
from perf.studies.text.members import TOKENIZER
from perf.studies.text.transformer import ids_of, padded

Say = Callable[[str], None]
CASCADE = "docstrings_cascade"
CERTIFIED = "certified"
# With one thread, CPU time is the time that a call takes on a core of its own, whatever else the machine does.
THREADS = 1
BATCHES = (1, 32)
# Rows of each turn, by batch: about as long for one as for the other.
_TIMED_ROWS = {1: 100, 32: 192}
_ROUNDS = 3
_COST_BATCH = 32


class TextMembers:
    """The members of a repository, asked with texts; encoders behind its tokeniser."""

    def __init__(self, repository: Path, names: Sequence[str]) -> None:
        self._members = LocalMembers(repository, names, threads=THREADS)
        self._tokenizer = Tokenizer.from_file(str(repository / TOKENIZER / "1" / "tokenizer.json"))
        self.names = tuple(names)

    def ask(self, name: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Logits (n, k) of texts, in one batch of the longest one's length."""
        if self.is_linear(name):
            return self._members.ask(name, list(texts))
        ids, mask = padded(ids_of(self._tokenizer, texts))
        return self._members.ask(name, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})

    def is_linear(self, name: str) -> bool:
        """Whether it takes the text itself."""
        return self._members.manifest(name).inputs[0].name == "text"

    def facts(self, name: str) -> dict[str, Any]:
        """What its manifest says of its size."""
        manifest = self._members.manifest(name)
        found = {key: getattr(manifest, key) for key in ("sha256", "parameters", "macs")}
        return found | {"macs_at": manifest.length.macs_at if manifest.length else None}


def answers_of(members: TextMembers, name: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """What a member says of all rows; rows of about the same length are asked together."""
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    parts = [order[at : at + _COST_BATCH] for at in range(0, len(order), _COST_BATCH)]
    said = np.concatenate([members.ask(name, [texts[row] for row in part]) for part in parts])
    found = np.empty_like(said)
    found[order] = said
    return found


def records_of(members: TextMembers, part: str, cost_ms: dict[str, float], *, say: Say) -> Records:
    """Records of a part; costs are milliseconds of CPU time per row."""
    say(f"reading docstrings, {part}")
    rows: DocstringsSplit = docstrings_split(part)
    outputs = {}
    for name in members.names:
        say(f"asking {name} about {part}")
        outputs[name] = answers_of(members, name, rows.texts)
    about = {name: {"output_kind": "logits", "sha256": members.facts(name)["sha256"]} for name in members.names}
    meta = {"data": f"docstrings:{part}", "data_sha256": rows.sha256(), "cost_unit": "ms", "members": about}
    return Records(ids=rows.ids, labels=rows.labels, groups=rows.groups, outputs=outputs, cost=cost_ms, meta=meta)


@dataclass(frozen=True, kw_only=True)
class TimePerRow:
    """Milliseconds of CPU time per row: the median over rounds, and the least and the most."""

    median: float
    least: float
    most: float


def times_of(
    routes: dict[str, Callable[[int, Sequence[str]], None]], texts: Sequence[str], *, rounds: int, say: Say
) -> dict[str, dict[str, TimePerRow]]:
    """CPU time of each route and batch size, all taking turns within a round: route -> batch -> time."""
    seen: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        say(f"timing, round {number} of {rounds}")
        for batch in BATCHES:
            few = texts[: _TIMED_ROWS[batch]]
            for name, route in routes.items():
                begun = time.process_time()
                route(batch, few)
                # The first round warms up.
                if number:
                    seen.setdefault((name, batch), []).append(1e3 * (time.process_time() - begun) / len(few))
    return {
        name: {
            str(batch): TimePerRow(
                median=float(np.median(seen[name, batch])),
                least=min(seen[name, batch]),
                most=max(seen[name, batch]),
            )
            for batch in BATCHES
        }
        for name in routes
    }


def asked_alone(members: TextMembers, name: str) -> Callable[[int, Sequence[str]], None]:
    """A route: one member about every row."""

    def route(batch: int, texts: Sequence[str]) -> None:
        for at in range(0, len(texts), batch):
            members.ask(name, texts[at : at + batch])

    return route


def asked_in_stages(
    members: TextMembers, spec: CascadeSpec, exit_stage: npt.NDArray[np.integer[Any]]
) -> Callable[[int, Sequence[str]], None]:
    """A route: each stage's members about the rows that reach it, in full batches; without the decision."""

    def route(batch: int, texts: Sequence[str]) -> None:
        for place, stage in enumerate(spec.stages):
            left = [text for text, exits_at in zip(texts, exit_stage, strict=False) if exits_at >= place]
            for member in stage.members:
                asked_alone(members, member.name)(batch, left)

    return route


def member_lines(members: TextMembers, parts: dict[str, Records], times: dict[str, Any]) -> list[dict[str, Any]]:
    """Each member: size, accuracy with its interval on each part, time."""
    lines = []
    for name in members.names:
        line: dict[str, Any] = {"name": name, **members.facts(name), "ms": times[name]}
        for part, records in parts.items():
            right = _right(records, name)
            line[part] = {
                "accuracy": float(right.mean()),
                "ci95": clopper_pearson(int(right.sum()), len(right)),
            }
        lines.append(line)
    return lines


def _right(records: Records, name: str) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = records.outputs[name].argmax(axis=1) == records.labels
    return right


def chosen(records: Records, best: str, repository: Path) -> Iterable[tuple[str, CascadeSpec | None, str]]:
    """Plans chosen on the plan part: what was asked, the plan or None, what is promised or why there is none."""
    options = SearchOptions(combines=("mean_logit", "mean_prob", "last"))
    pool = pool_from_records(records, repository, name=CASCADE, cost=None, derive=[TOKENIZER]).spec
    accuracy = float(_right(records, best).mean())
    goals = {
        "as accurate on the plan part": Goal(min_accuracy=accuracy, certify=False),
        **{
            f"{CERTIFIED} to lose at most {100 * epsilon:g} points": Goal(reference=best, epsilon=epsilon)
            for epsilon in (0.01, 0.02)
        },
    }
    for words, goal in goals.items():
        found = plan_from_records(pool, records, goal, options=options)
        if isinstance(found, Infeasible):
            yield words, None, str(found.unmet.got)
        elif found.fallback_reason is not None:
            yield words, None, str(found.fallback_reason.got)
        elif [member.name for member in found.spec.members] == [best]:
            yield words, None, "nothing is cheaper"
        else:
            yield words, found.spec, "" if goal.certify else "no promise"


def study(
    repository: Path, names: Sequence[str], *, rounds: int = _ROUNDS, say: Say
) -> tuple[dict[str, Any], dict[str, Records], dict[str, CascadeSpec]]:
    """All figures as JSON values, the records of the parts, and the plans by what was asked for.

    Costs are milliseconds of CPU time per row.

    Plans are chosen on the plan part; the test part is asked about afterwards and judges them once.
    """
    members = TextMembers(repository, names)
    texts = docstrings_split("plan").texts
    alone = times_of({name: asked_alone(members, name) for name in names}, texts, rounds=rounds, say=say)
    cost = {name: alone[name][str(_COST_BATCH)].median for name in names}
    planned = records_of(members, "plan", cost, say=say)
    best = max(names, key=lambda name: int(_right(planned, name).sum()))
    say("planning")
    plans = list(chosen(planned, best, repository))
    tested = records_of(members, "test", cost, say=say)
    parts = {"plan": planned, "test": tested}
    lines = [_plan_line(words, spec, said, parts, best) for words, spec, said in plans]
    routes = {best: asked_alone(members, best)}
    for words, spec, _ in plans:
        if spec is not None:
            routes[words] = asked_in_stages(members, spec, replay(spec, planned).exit_stage)
    measured = times_of(routes, texts, rounds=rounds, say=say)
    for line in lines:
        if line["asked"] in measured:
            line["ms"] = {batch: asdict(one) for batch, one in measured[line["asked"]].items()}
            line["times_as_fast"] = {
                batch: measured[best][batch].median / one.median for batch, one in measured[line["asked"]].items()
            }
    document = {
        "machine": machine_here(),
        "threads": THREADS,
        "rounds": rounds,
        "rows": {part: records.rows for part, records in parts.items()},
        "groups": {part: len(set(np.asarray(records.groups).tolist())) for part, records in parts.items()},
        "data_sha256": {part: records.data_sha256 for part, records in parts.items()},
        "best": best,
        "members": member_lines(
            members, parts, {n: {b: asdict(t) for b, t in by.items()} for n, by in alone.items()}
        ),
        "plans": lines,
    }
    return document, parts, {words: spec for words, spec, _ in plans if spec is not None}


def _plan_line(
    words: str,
    spec: CascadeSpec | None,
    said: str,
    parts: dict[str, Records],
    best: str,
) -> dict[str, Any]:
    line: dict[str, Any] = {"asked": words, "said": said, "stages": None}
    if spec is None:
        return line
    line |= {
        "stages": [[member.name for member in stage.members] for stage in spec.stages],
        "combine": spec.combine,
        "score": spec.score,
        "thresholds": [stage.threshold for stage in spec.stages[:-1]],
    }
    for part, records in parts.items():
        answers = replay(spec, records)
        right = answers.label == records.labels
        share, cost = exits_and_cost(spec, answers.exit_stage)
        difference, between = paired_difference(right, _right(records, best))
        line[part] = {
            "accuracy": float(right.mean()),
            "ci95": clopper_pearson(int(right.sum()), len(right)),
            "difference": difference,
            "difference_ci95": between,
            "exit_share": share,
            "mean_cost_ms": cost,
        }
    return line
