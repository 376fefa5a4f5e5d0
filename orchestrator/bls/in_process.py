"""Members of leading stages that the cascade runs itself, from the files that their Triton models serve.

It saves the messages to a member and back, and for stage 0 the hand-over to a thread that may be lost in a call. A
crash in a run takes the cascade with it, so that a plan has to ask for it (`in_process`). onnxruntime is imported
here and nowhere else in the runtime; where it is missing, or a file cannot be used, the Triton model is called.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.bls.metrics import Counters
from orchestrator.bls.pieces import Refusal
from orchestrator.bls.rows import Rows
from orchestrator.errors import for_clients
from orchestrator.spec import CascadeSpec, Member
from orchestrator.spec.planned_models import PlannedModel

_decoded = np.frompyfunc(bytes.decode, 1, 1)


class InProcessMember:
    """A member in this process; asked from many threads, it makes as many runs at once as it has instances.

    Args:
        member: what the plan says of it.
        reads: its tensors, and the cascade's for them.
        session: of ONNX Runtime.
        metrics: counts runs.

    Raises:
        ValueError: the file has other tensors than the plan.
    """

    def __init__(self, member: Member, reads: Mapping[str, str], session: Any, metrics: Counters) -> None:
        inputs = {one.name: one.type for one in session.get_inputs()}
        if inputs.keys() != reads.keys():
            raise ValueError(f"it reads {', '.join(inputs)}, the plan gives it {', '.join(reads)}")
        outputs = {one.name: one.type for one in session.get_outputs()}
        if outputs.get(member.output, "tensor(string)") == "tensor(string)":
            raise ValueError(f"no output {member.output} of numbers")
        self.name, self._session, self._output, self._metrics = member.name, session, member.output, metrics
        self._texts = [name for name, kind in inputs.items() if kind == "tensor(string)"]
        self._instances = threading.BoundedSemaphore(member.instances)

    def run(self, tensors: Sequence[Any]) -> list[Rows] | Refusal:
        """The output (n, k) for rows, the server's tensors by the member's names for them."""
        arrays: dict[str, Rows] = {one.name(): one.as_numpy() for one in tensors}
        with self._instances:
            begun_ns = time.monotonic_ns()
            try:
                arrays |= {name: _decoded(arrays[name]) for name in self._texts}
                return list(self._session.run([self._output], arrays))
            except Exception as error:  # as a refusal, so that the rows at fault are found
                return Refusal(for_clients(f"{type(error).__name__} {error}"))
            finally:
                rows = len(next(iter(arrays.values())))
                self._metrics.ran_in_process(self.name, rows, time.monotonic_ns() - begun_ns)


class InProcess:
    """The members that a plan wants run here and that can be; the log says which cannot, and why.

    Args:
        spec: the cascade.
        planned: its models, held against the plan.
        metrics: has which members are here, and counts runs.
        log: writes one line to the server's log.

    Attributes:
        members: by name; read for every call, and may get fewer.
        has_stage_0: whether no other process is asked for stage 0.
    """

    def __init__(
        self, spec: CascadeSpec, planned: Sequence[PlannedModel], *, metrics: Counters, log: Callable[[str], None]
    ) -> None:
        self._metrics, self._log = metrics, log
        self.members: dict[str, InProcessMember] = {}
        for member, model in zip(spec.members_in_process, planned, strict=False):
            try:
                made = InProcessMember(member, spec.tensors_of(member), _session(model), metrics)
                self.members[member.name] = made
            except Exception as error:  # whatever onnxruntime raises: the model can still be called
                said = "onnxruntime is not installed" if isinstance(error, ImportError) else str(error)
                log(f"committee: {member.name} is called, not run in process: {' '.join(said.split())}")
            metrics.is_in_process(member.name, is_here=member.name in self.members)
        # What is derived for a stage is asked of another model, whatever its members are.
        are_here = all(member.name in self.members for member in spec.stages[0].members)
        self.has_stage_0 = are_here and not spec.derived_for(0)

    def drop(self, name: str) -> None:
        """A run was given up, as none is where stage 0 is all here: the member's model is called from now on."""
        if self.members.pop(name, None) is not None:
            self._metrics.is_in_process(name, is_here=False)
            self._log(f"committee: {name} is called from now on: a run in process took too long")


def _session(model: PlannedModel) -> Any:
    import onnxruntime  # optional: plans that want nothing in process need it not, nor wait for it

    if model.file is None:
        raise ValueError("its file is not compared with a hash in the plan")
    if model.file.suffix != ".onnx":
        raise ValueError(f"got {model.file.name}, expected an ONNX file")
    options = onnxruntime.SessionOptions()
    # As members are served: parallelism comes from instances.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model.file), options, providers=["CPUExecutionProvider"])
    # Only now, so that what was opened is what was planned.
    if (fault := model.fault()) is not None:
        raise ValueError(fault)
    return session
