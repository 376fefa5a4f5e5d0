"""Asking members through BLS: one plain `exec` per member and chunk, members of a stage in parallel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.spec import CascadeSpec, Lead, Member
from orchestrator.spec.triton import ANY_VERSION

Rows = npt.NDArray[Any]


@dataclass(slots=True)
class StageResult:
    """What a stage's members said.

    Args:
        outputs: (n, k) per member in plan order, None for a member that failed.
        errors: by member's plan index, why it failed.
        later: what a lead said for the stages after it, (n, k) per member, NaN for rows it did not ask there.
    """

    outputs: list[Rows | None]
    errors: dict[int, str]
    later: tuple[list[Rows], ...] = ()


def workers_of(spec: CascadeSpec, stage: int) -> int:
    """How many workers ask a later stage at once.

    Where the plan does not say, one batch waits at the member while another runs, so that it never idles between
    two calls.
    """
    return spec.limits.workers_per_stage or 1 + min(member.instances for member in spec.stages[stage].members)


class MemberCalls:
    """Calls members; used from many threads at once.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
        versions: model name -> version to ask by number; for others the server chooses. May change at any time.
        may_ask_lead: whether the plan's lead may be asked now.
    """

    def __init__(
        self,
        pb_utils: Any,
        spec: CascadeSpec,
        *,
        versions: Mapping[str, int],
        may_ask_lead: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pb = pb_utils
        self._spec = spec
        self._versions = versions
        self._may_ask_lead = may_ask_lead
        self._cpu = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        self._first = np.cumsum([0, *(len(stage.members) for stage in spec.stages)])
        extra = max(len(stage.members) - 1 for stage in spec.stages)
        # Stage 0 and the workers of every later stage may fan out at the same time.
        self._pool = ThreadPoolExecutor(extra * 4, "committee-member") if extra else None

    def ask(self, stage: int, rows: Rows, tensor: Any | None = None) -> StageResult:
        """Asks every member of a stage.

        Args:
            stage: which one.
            rows: (n, *dims).
            tensor: the server's tensor behind `rows`, forwarded without a copy where name and size allow.
        """
        members = self._spec.stages[stage].members
        if len(members) == 1:
            (member,) = members
            answer = self._ask_member(stage, member, rows, tensor)
            if isinstance(answer, str):
                return StageResult([None], {int(self._first[stage]): answer})
            return StageResult([answer], {})
        assert self._pool is not None, "made where a stage has several members"
        # The calling thread asks the first member itself: one hand-over fewer.
        others = [self._pool.submit(self._ask_member, stage, m, rows, tensor) for m in members[1:]]
        said = [self._ask_member(stage, members[0], rows, tensor), *(f.result() for f in others)]
        outputs: list[Rows | None] = []
        errors: dict[int, str] = {}
        for index, answer in enumerate(said):
            if isinstance(answer, str):
                errors[int(self._first[stage]) + index] = answer
                outputs.append(None)
            else:
                outputs.append(answer)
        return StageResult(outputs, errors)

    def ask_first(self, rows: Rows, tensor: Any | None = None) -> StageResult:
        """Asks stage 0, by the lead where the plan has one; a lead that fails is stepped over.

        Args:
            rows: (n, *dims).
            tensor: as for `ask`.
        """
        lead = self._spec.lead
        if lead is None or not self._may_ask_lead():
            return self.ask(0, rows, tensor)
        covered = self._spec.stages[: lead.stages]
        names = _covered_members(self._spec, lead)
        try:
            said = self._ask_in_parts(lead.name, names, rows=rows, tensor=tensor, size=lead.max_batch_size)
        except Exception:  # whatever it was, the members are there and say what is wrong
            said = ""
        expected = (len(rows), self._spec.classes)
        if isinstance(said, str) or any(output.shape != expected for output in said):
            return self.ask(0, rows, tensor)
        each = iter(said)
        first, *later = [[next(each) for _ in stage.members] for stage in covered]
        return StageResult(list(first), {}, tuple(later))

    def ask_about_row(self, model: str, row: Rows) -> Rows | str:
        """What a member, or the lead, says of one row (1, *dims): float (1, k), or why it says nothing."""
        spec, lead = self._spec, self._spec.lead
        outputs, source = [], None
        if lead is not None and model == lead.name:
            outputs = _covered_members(spec, lead)
        else:
            member = next(member for member in spec.members if member.name == model)
            outputs, source = [member.output], member.input
        try:
            said = self._ask_in_parts(model, outputs, rows=row, tensor=None, size=1, input_name=source)
        except Exception as error:  # whatever the server's classes raise
            return f"{type(error).__name__} {error}"
        return said if isinstance(said, str) else np.concatenate(said, axis=-1)

    def close(self) -> None:
        """Ends the helper threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask_member(self, stage: int, member: Member, rows: Rows, tensor: Any | None) -> Rows | str:
        """The member's output (n, k), or why there is none."""
        try:
            name = member.input or self._spec.input.name
            said = self._ask_in_parts(
                member.name,
                [member.output],
                rows=rows,
                tensor=tensor if name == self._spec.input.name else None,
                size=member.max_batch_size,
                input_name=name,
            )
            if isinstance(said, str):
                return f"stage {stage} member {member.name}: {said}"
            (output,) = said
        except Exception as error:  # a caller waits: whatever broke must become its answer
            return f"stage {stage} member {member.name}: {type(error).__name__} {error}"
        expected = (len(rows), self._spec.classes)
        if output.shape != expected:
            wrong = f"output {member.output} has shape {list(output.shape)}, expected {list(expected)}"
            return f"stage {stage} member {member.name}: {wrong}"
        return output

    def _ask_in_parts(
        self,
        model: str,
        outputs: Sequence[str],
        *,
        rows: Rows,
        tensor: Any | None,
        size: int,
        input_name: str | None = None,
    ) -> list[Rows] | str:
        """The model's outputs for all rows, asked in parts of at most `size`, or why there are none."""
        if tensor is not None and len(rows) <= size:
            return self._exec(model, outputs, tensor)
        parts = []
        for start in range(0, len(rows), size):
            chunk = self._pb.Tensor(input_name or self._spec.input.name, rows[start : start + size])
            answer = self._exec(model, outputs, chunk)
            if isinstance(answer, str):
                return answer
            parts.append(answer)
        return parts[0] if len(parts) == 1 else [np.concatenate(each) for each in zip(*parts, strict=True)]

    def _exec(self, model: str, outputs: Sequence[str], tensor: Any) -> list[Rows] | str:
        request = self._pb.InferenceRequest(
            model_name=model,
            model_version=self._versions.get(model, ANY_VERSION),
            requested_output_names=list(outputs),
            inputs=[tensor],
            preferred_memory=self._cpu,
        )
        response = request.exec()
        if response.has_error():
            return " ".join(str(response.error().message()).split())
        arrays: list[Rows] = []
        for name in outputs:
            output = self._pb.get_output_tensor_by_name(response, name)
            if output is None:
                return f"answered without its output {name}"
            # The view dies with the response, which frees its shared memory; the sums outlive it.
            arrays.append(output.as_numpy().copy())
        return arrays


def _covered_members(spec: CascadeSpec, lead: Lead) -> list[str]:
    return [member.name for stage in spec.stages[: lead.stages] for member in stage.members]


def merged(parts: Sequence[Rows]) -> Rows:
    """One batch of several requests' rows."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
