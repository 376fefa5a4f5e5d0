"""One repository with a cascade for everything the served tests look at, and the answers to expect."""

import dataclasses
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.bls.metrics import FLUSH_INTERVAL_S
from orchestrator.cli.demo_routes import NEAR_THRESHOLD
from orchestrator.decision import AnsweredRows, Policy
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.repository.index import plan_of
from orchestrator.repository.render import render
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec import CascadeSpec, Gear, Gears, Member, Stage
from perf.routes.obedient import COMMITTED, ONNX_MEMBERS, onnx_member
from tests.serving.models import add_python

# The corner of every scanned digit is blank, so a mark there tells a member what to do and changes no real row.
BREAK, SPOIL = 16.0, 15.0

# A member with one sure answer per row, the sum of its pixels modulo 10; it waits at a gate, a file.
MEMBER = """
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

GATE = Path({gate!r})
# A byte for every row that came while the gate was shut, so that a test knows when they are here.
ARRIVED = GATE.with_suffix(".arrived")


class TritonPythonModel:
    def execute(self, requests):
        until = time.monotonic() + 30
        if not GATE.exists():
            rows = sum(len(pb_utils.get_input_tensor_by_name(request, "image").as_numpy()) for request in requests)
            with ARRIVED.open("ab") as file:
                file.write(b"." * rows)
        while not GATE.exists() and time.monotonic() < until:
            time.sleep(0.002)
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rows = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        corner = rows[:, 0, 0, 0]
        if (corner == {broken}).any() or GATE.with_suffix(".broken").exists():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("out of order\\nsecond line"))
        logits = np.zeros((len(rows), 10), np.float32)
        logits[np.arange(len(rows)), rows.sum(axis=(1, 2, 3)).astype(int) % 10] = 200
        logits[corner == {spoilt}] = np.nan
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)])
"""
CONFIG = """
max_batch_size: 64
input [{ name: "image" data_type: TYPE_FP32 dims: [1, 8, 8] }]
output [{ name: "logits" data_type: TYPE_FP32 dims: [10] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


@dataclass(frozen=True, kw_only=True)
class ServedRepository:
    """A running server with its plans, test rows and recorded member outputs."""

    server: EmbeddedServer
    repository: Path
    specs: dict[str, CascadeSpec]
    images: npt.NDArray[np.float32]
    records: Records

    @contextmanager
    def closed(self, member: str) -> Iterator[Path]:
        """Keeps a member's gate shut; touching the file given opens it early."""
        path = gate_of(self.repository, member)
        path.with_suffix(".arrived").write_bytes(b"")
        path.unlink()
        try:
            yield path
        finally:
            path.touch()

    @contextmanager
    def failing(self, member: str) -> Iterator[None]:
        """Makes a member fail every call."""
        path = gate_of(self.repository, member).with_suffix(".broken")
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    def calls(self, member: str) -> float:
        """Calls that a member has answered or failed so far."""
        names = ("nv_inference_request_success", "nv_inference_request_failure")
        found = (
            value for name, labels, value in _metrics(self.server) if name in names and labels["model"] == member
        )
        return sum(found)

    def arrived(self, member: str) -> int:
        """Rows that have come to a member since its gate was shut."""
        return gate_of(self.repository, member).with_suffix(".arrived").stat().st_size

    def easy_and_hard(self, cascade: str = "three_stages") -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Test rows the first stage is sure of, and those it is not, none of them near a threshold.

        Every cascade made here that begins with the smallest member alone has the same ones.
        """
        offline = Offline(self.specs[cascade], self.records)
        clear = ~offline.near
        first = offline.answers.exit_stage == 0
        return np.flatnonzero(first & clear), np.flatnonzero(~first & clear)


class Offline:
    """What a plan answers by replay, for every recorded row.

    Attributes:
        answers: by row.
        near: bool (n,), within 1e-5 of a threshold on the way: rounding may send it either way.
    """

    def __init__(self, spec: CascadeSpec, records: Records, policy: Policy | None = None) -> None:
        self.answers: AnsweredRows = replay(spec, records, policy)
        self.near = np.zeros(records.rows, np.bool_)
        shift = 0.0 if policy is None else policy.threshold_shift
        for stage, part in enumerate(spec.stages[:-1]):
            if part.threshold is not None:
                forced = replay(spec, records, Policy(min_stage=stage, max_stage=stage))
                close = np.abs(forced.confidence - (part.threshold + shift)) < NEAR_THRESHOLD
                self.near |= close & (self.answers.exit_stage >= stage)

    def wrong(self, served: object, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Those of the rows whose served answer is another, rows near a threshold aside."""
        differs = np.zeros(len(rows), np.bool_)
        for name in ("label", "exit_stage", "status", "cost"):
            differs |= getattr(self.answers, name)[rows] != getattr(served, name)
        for name in ("probabilities", "confidence"):
            gap = np.abs(getattr(self.answers, name)[rows] - getattr(served, name))
            differs |= (gap > 1e-4).reshape(len(rows), -1).any(axis=1)
        return rows[differs & ~self.near[rows]]


def gate_of(repository: Path, member: str) -> Path:
    return repository.parent / f"{member}.open"


def sure_labels(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """What the members made here answer."""
    labels: npt.NDArray[np.int64] = rows.sum(axis=(1, 2, 3)).astype(np.int64) % 10
    return labels


def build(repository: Path, records: Records) -> dict[str, CascadeSpec]:
    """Fills a repository and returns its cascades by name."""
    for name in ONNX_MEMBERS:
        shutil.copytree(COMMITTED / name, repository / name)
    # The committed rendering itself, not a new one: it finds the runtime in the checkout.
    (repository / "digits_cascade").symlink_to(COMMITTED / "digits_cascade")
    for name in ("gated", "first", "moody", "lost"):
        gate = gate_of(repository, name)
        gate.touch()
        code = MEMBER.format(gate=str(gate), broken=BREAK, spoilt=SPOIL)
        add_python(repository, name, code, config=CONFIG)
    base = plan_of(COMMITTED, "digits_cascade")
    made = _cascades(base, records)
    for spec in made:
        render(spec, repository, standalone=True)
    shutil.rmtree(repository / "lost")
    return {spec.name: spec for spec in (base, *made)}


def _cascades(base: CascadeSpec, records: Records) -> list[CascadeSpec]:
    small, medium, large = (onnx_member(name) for name in ONNX_MEMBERS)
    warm = dataclasses.replace(medium, weight=2.0, temperature=1.5)
    pair = (small, warm)

    def cascade(name: str, *stages: tuple[Member, ...], combine: str, score: str) -> CascadeSpec:
        made = tuple(Stage(members=members) for members in stages)
        spec = dataclasses.replace(base, name=name, stages=made, combine=combine, score=score, fit=None)
        return _with_thresholds(spec, records)

    plain = {"combine": "mean_logit", "score": "max_prob"}
    three = cascade("three_stages", (small,), (medium,), (large,), **plain)

    def ending(name: str, last: str, *, on_failure: str = "error") -> CascadeSpec:
        stage = Stage(members=(_made_here(last),), on_failure=on_failure)
        return dataclasses.replace(three, name=name, stages=(three.stages[0], stage))

    first = Stage(members=(_made_here("first"),), threshold=0.5)
    return [
        three,
        dataclasses.replace(three, name="gated_first", stages=(first, Stage(members=(large,)))),
        ending("gated_cascade", "gated"),
        ending("moody_cascade", "moody"),
        ending("lenient_cascade", "moody", on_failure="answer"),
        ending("lost_cascade", "lost"),
        dataclasses.replace(three, name="geared_cascade", gears=_gears(three)),
        dataclasses.replace(ending("geared_gated", "gated"), gears=_gears(three, stages=2, impatient=True)),
        cascade("pair_mean_logit", pair, (large,), combine="mean_logit", score="max_prob"),
        cascade("pair_mean_prob", pair, (large,), combine="mean_prob", score="top2_gap"),
        cascade("pair_vote", pair, (large,), combine="vote", score="agreement"),
        cascade("pair_last", (small,), (warm, large), combine="last", score="neg_entropy"),
    ]


def _gears(three: CascadeSpec, *, stages: int = 3, impatient: bool = False) -> Gears:
    """Gears from half the thresholds down to stage 0 alone; impatient ones shift at the first wait."""
    own = [stage.threshold or 0 for stage in three.stages[: stages - 1]]
    shares = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0) if impatient else (0.5, 0.0)
    cheaper = tuple(
        Gear(thresholds=tuple(share * threshold for threshold in own), mean_cost=1.0 + share) for share in shares
    )
    if not impatient:
        return Gears(cheaper=cheaper)
    return Gears(cheaper=cheaper, raise_wait_us=100_000, lower_wait_us=50_000, raise_after_us=0, lower_after_us=0)


def _made_here(name: str) -> Member:
    return Member(name=name, output="logits", cost=1e6)


def _with_thresholds(spec: CascadeSpec, records: Records) -> CascadeSpec:
    """Thresholds that defer about a third of the rows at every stage, however well the members were trained."""
    stages = list(spec.stages)
    for number in range(len(stages) - 1):
        scores = np.sort(replay(spec, records, Policy(min_stage=number, max_stage=number)).confidence)
        place = len(scores) // 3
        # A score that many rows share, as agreement's, must not become the threshold itself.
        below = scores[scores < scores[place]]
        low = below[-1] if len(below) else scores[0]
        threshold = float((low + scores[scores > low][0]) / 2)
        stages[number] = dataclasses.replace(stages[number], threshold=threshold)
    return dataclasses.replace(spec, stages=tuple(stages))


def metrics_of(
    server: EmbeddedServer, model: str, *, until: Callable[[dict[str, float]], bool] = lambda _: True
) -> dict[str, float]:
    """The committee's counters of one model, once the condition holds and nothing has changed for a while.

    Counters reach the server once a second, so what is still to come shows within that time.
    """
    seen, since_s = counters_of(server, model), time.monotonic()
    deadline_s = since_s + 20
    while time.monotonic() < since_s + 1.5 * FLUSH_INTERVAL_S or not until(seen):
        assert time.monotonic() < deadline_s, seen
        time.sleep(0.1)
        now = counters_of(server, model)
        if now != seen:
            seen, since_s = now, time.monotonic()
    return seen


def counters_of(server: EmbeddedServer, model: str) -> dict[str, float]:
    """The counters of one cascade as the server has them now, by name and label, e.g. "exits_total 0"."""
    found: dict[str, float] = {}
    for name, labels, value in _metrics(server):
        if name.startswith("committee_") and labels.pop("model") == model:
            found[" ".join([name.removeprefix("committee_"), *labels.values()])] = value
    return found


def pending_of(server: EmbeddedServer, model: str) -> float:
    """Requests that wait in Triton's queue for a model."""
    name = "nv_inference_pending_request_count"
    return sum(value for got, labels, value in _metrics(server) if got == name and labels["model"] == model)


def _metrics(server: EmbeddedServer) -> Iterator[tuple[str, dict[str, str], float]]:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    for line in lines:
        if line.startswith("#") or "{" not in line:
            continue
        name, rest = line.split("{", 1)
        labels, value = rest.rsplit("} ", 1)
        yield name, dict(part.split("=", 1) for part in labels.replace('"', "").split(",")), float(value)
