"""The core against a slow, plain, row-by-row reading of the decision semantics in float64."""

import math

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.decision import softmax
from orchestrator.spec import COMBINES, SCORES, CascadeSpec
from orchestrator.spec.answer import ABSTAINED
from tests.decision.builders import Case, answer_all, make_case


def plain_softmax(z: list[float]) -> list[float]:
    top = max(z)
    e = [math.exp(value - top) for value in z]
    return [value / sum(e) for value in e]


def member_view(member, raw: np.ndarray) -> tuple[list[float], list[float]]:
    z = [float(value) for value in raw]
    if member.output_kind == "probabilities":
        z = [math.log(max(value, 1e-30)) for value in z]
    z = [value / member.temperature for value in z]
    return z, plain_softmax(z)


def combine(
    spec: CascadeSpec, asked: list[tuple[int, object, list[float], list[float]]]
) -> tuple[list[float], int]:
    """Distribution and label from (stage, member, z, p) of all members asked so far."""
    newest = max(stage for stage, *_ in asked)
    used = [part for part in asked if spec.combine != "last" or part[0] == newest]
    total = sum(member.weight for _, member, _, _ in used)
    k = spec.classes
    mean_p = [sum(m.weight * p[c] for _, m, _, p in used) / total for c in range(k)]
    if spec.combine == "mean_logit":
        mean_p = plain_softmax([sum(m.weight * z[c] for _, m, z, _ in used) / total for c in range(k)])
    if spec.combine == "vote":
        votes = [sum(m.weight for _, m, z, _ in used if z.index(max(z)) == c) / total for c in range(k)]
        most = max(votes)
        label = max((c for c in range(k) if abs(votes[c] - most) < 1e-9), key=lambda c: (mean_p[c], -c))
        return votes, label
    return mean_p, mean_p.index(max(mean_p))


def score(spec: CascadeSpec, p: list[float], label: int, asked: list) -> float:
    if spec.score == "max_prob":
        return p[label]
    if spec.score == "top2_gap":
        first, second = sorted(p)[-1], sorted(p)[-2]
        return first - second
    if spec.score == "neg_entropy":
        return 1 + sum(value * math.log(value) for value in p if value > 0) / math.log(len(p))
    same = sum(m.weight for _, m, z, _ in asked if z.index(max(z)) == label)
    return same / sum(m.weight for _, m, _, _ in asked)


def plain_answer(case: Case, row: int) -> tuple[int, int, list[float], float, bool, bool]:
    """Label, exit stage, distribution, score, abstained, and whether rounding could decide otherwise."""
    asked: list = []
    doubtful = False
    for number, stage in enumerate(case.spec.stages):
        asked += [(number, m, *member_view(m, case.outputs[m.name][row])) for m in stage.members]
        p, label = combine(case.spec, asked)
        sure = score(case.spec, p, label, asked)
        runner_up = sorted(p)[-2]
        doubtful |= p[label] - runner_up < 1e-4
        final = number == len(case.spec.stages) - 1
        for bound in (stage.threshold, stage.low):
            doubtful |= bound is not None and abs(sure - bound) < 1e-4
        if final or (stage.threshold is not None and sure >= stage.threshold):
            return label, number, p, sure, False, doubtful
        if stage.low is not None and sure <= stage.low:
            return label, number, p, sure, True, doubtful
    raise AssertionError("the last stage answers")


@given(
    st.integers(0, 2**20),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.sampled_from(COMBINES),
    st.sampled_from(SCORES),
    st.booleans(),
)
def test_the_core_agrees_with_the_plain_reading(
    seed: int, sizes: list[int], combine: str, score: str, low: bool
) -> None:
    if score == "agreement":
        sizes = [max(2, sizes[0]), *sizes[1:]]
    case = make_case(
        seed=seed, sizes=sizes, rows=6, classes=4, combine=combine, score=score,
        quantile=0.5, low=low, sharpness=2.0, kinds=True,
    )  # fmt: skip
    done = answer_all(case)
    compared = 0
    for row in range(case.rows):
        label, stage, p, sure, abstained, doubtful = plain_answer(case, row)
        if doubtful:
            continue
        compared += 1
        assert done.exit_stage[row] == stage
        assert done.label[row] == label
        assert np.allclose(done.probabilities[row], p, atol=2e-5)
        assert abs(done.confidence[row] - sure) < 2e-5
        assert bool(done.status[row] & ABSTAINED) == abstained
    assume(compared > 0)


@given(st.integers(0, 2**20), st.integers(1, 5), st.integers(2, 8))
def test_softmax_of_mean_logits_is_the_renormalised_geometric_mean(seed: int, members: int, classes: int) -> None:
    z = np.random.default_rng(seed).normal(size=(members, classes)).astype(np.float32) * 3
    direct = softmax(z.mean(axis=0, keepdims=True))[0]
    geometric = np.exp(np.log(softmax(z)).mean(axis=0))
    assert np.allclose(direct, geometric / geometric.sum(), atol=1e-6)
