"""A repository of digits whose last member hangs, is slow or fails as it is told, for all rows or marked ones."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from orchestrator.decision import Policy
from orchestrator.planner.records import Records
from orchestrator.planner.replay import replay
from orchestrator.recording.job import records_of
from orchestrator.repository.index import plan_of
from orchestrator.repository.render import render
from orchestrator.rows.digits import digits_split
from orchestrator.spec import CascadeSpec, Limits, Member, Stage, manifest_from_path
from perf.harness.machine import ROOT

COMMITTED = ROOT / "model_repository"
ONNX_MEMBERS = ("digits_small", "digits_medium", "digits_large")
OBEDIENT = "digits_obedient"
STRICT, LENIENT = "faults_cascade", "lenient_cascade"
# The corner of every scanned digit is blank, and so small a number there changes no answer by more than rounding.
MARK = 2.0**-20
MEMBER_TIMEOUT_MS = 1000
# Rows in the table of deferred rows, few enough to fill it in a test.
DEFERRED_ROWS = 256

CODE = """
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

ORDERS = Path({orders!r})


def order_for(rows):
    order = json.loads(ORDERS.read_text() or "{{}}")
    marked = (rows.reshape(len(rows), -1)[:, 0] != 0).any()
    return order.get("do") if marked or not order.get("marked") else None


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession({model!r}, options)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rows = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        while (order := order_for(rows)) == "hang":
            time.sleep(0.02)
        if order == "slow":
            time.sleep(0.15)
        if order == "fail":
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("out of order"))
        logits = self.session.run(["logits"], {{"image": rows}})[0]
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", np.ascontiguousarray(logits))])
"""
CONFIG = """backend: "python"
max_batch_size: 64
input [{ name: "image" data_type: TYPE_FP32 dims: [1, 8, 8] }]
output [{ name: "logits" data_type: TYPE_FP32 dims: [10] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


@dataclass(frozen=True, kw_only=True)
class ObedientRepository:
    """Where it lies, its plan as served and as replay knows it, and rows with what the members said of them."""

    folder: Path
    orders: Path
    served: CascadeSpec
    plan: CascadeSpec
    images: npt.NDArray[np.float32]
    records: Records

    def order(self, do: str | None = None, *, marked: bool = False) -> None:
        """Tells the last member what to do from now on: "hang", "slow", "fail" or, with None, its work."""
        beside = self.orders.with_suffix(".new")
        beside.write_text(json.dumps({} if do is None else {"do": do, "marked": marked}))
        beside.replace(self.orders)

    def with_thresholds(self, share: float) -> tuple[CascadeSpec, CascadeSpec]:
        """The plan as served and as replay knows it, with thresholds of a share of its own."""
        return _scaled(self.served, share), _scaled(self.plan, share)


def obedient_repository(folder: Path) -> ObedientRepository:
    """Writes it into a new folder: a plan of three stages, and the same with `on_failure: answer` at the last."""
    folder.mkdir(parents=True)
    orders = folder.parent / "orders.json"
    for name in ONNX_MEMBERS[:-1]:
        shutil.copytree(COMMITTED / name, folder / name)
    model = next((COMMITTED / ONNX_MEMBERS[-1]).glob("*/model.onnx"))
    member = folder / OBEDIENT
    (member / "1").mkdir(parents=True)
    (member / "1" / "model.py").write_text(CODE.format(orders=str(orders), model=str(model)))
    (member / "config.pbtxt").write_text(CONFIG)
    records = records_of(COMMITTED, list(ONNX_MEMBERS), "digits:test")
    plan = _plan(records)
    served = dataclasses.replace(plan, stages=(*plan.stages[:-1], Stage(members=(_obedient(),))))
    lenient = Stage(members=(_obedient(),), on_failure="answer")
    for spec in (served, dataclasses.replace(served, name=LENIENT, stages=(*plan.stages[:-1], lenient))):
        render(spec, folder)
    images = digits_split("test").images
    made = ObedientRepository(
        folder=folder, orders=orders, served=served, plan=plan, images=images, records=records
    )
    made.order()
    return made


def _plan(records: Records) -> CascadeSpec:
    """A stage for each of the three members; a third of the rows that reach a stage go on."""
    limits = Limits(max_deferred_rows=DEFERRED_ROWS)
    if hasattr(limits, "member_timeout_ms"):
        limits = dataclasses.replace(limits, **{"member_timeout_ms": MEMBER_TIMEOUT_MS})
    base = dataclasses.replace(plan_of(COMMITTED, "digits_cascade"), name=STRICT, fit=None, gears=None)
    stages = [Stage(members=(onnx_member(name),)) for name in ONNX_MEMBERS]
    spec = dataclasses.replace(base, stages=tuple(stages), limits=limits)
    for number in range(2):
        scores = np.sort(replay(spec, records, Policy(min_stage=number, max_stage=number)).confidence)
        middle = float((scores[len(scores) // 3] + scores[len(scores) // 3 + 1]) / 2)
        stages[number] = dataclasses.replace(stages[number], threshold=middle)
        spec = dataclasses.replace(spec, stages=tuple(stages))
    return spec


def _scaled(spec: CascadeSpec, share: float) -> CascadeSpec:
    stages = tuple(
        stage if stage.threshold is None else dataclasses.replace(stage, threshold=share * stage.threshold)
        for stage in spec.stages
    )
    return dataclasses.replace(spec, stages=stages)


def _obedient() -> Member:
    return Member(name=OBEDIENT, output="logits", cost=1e6)


def onnx_member(name: str) -> Member:
    """A committed member of digits as plans have it."""
    manifest = manifest_from_path(COMMITTED / name / "manifest.json")
    return Member(
        name=name,
        output=manifest.output.name,
        cost=manifest.macs,
        max_batch_size=manifest.max_batch_size,
        sha256=manifest.sha256,
    )
