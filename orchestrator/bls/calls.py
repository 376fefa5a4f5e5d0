"""Asking members through BLS: one plain `exec` per member and chunk, members of a stage in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.spec import CascadeSpec, Member

Rows = npt.NDArray[Any]


@dataclass(slots=True)
class StageResult:
    """What a stage's members said.

    Args:
        outputs: (n, k) per member in plan order, None for a member that failed.
        errors: by member's plan index, why it failed.
    """

    outputs: list[Rows | None]
    errors: dict[int, str]


class MemberCalls:
    """Calls members; used from many threads at once.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec) -> None:
        self._pb = pb_utils
        self._spec = spec
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
        if self._pool is None or len(members) == 1:
            said = [self._ask_member(stage, member, rows, tensor) for member in members]
        else:
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

    def close(self) -> None:
        """Ends the helper threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask_member(self, stage: int, member: Member, rows: Rows, tensor: Any | None) -> Rows | str:
        """The member's output (n, k), or why there is none."""
        where = f"stage {stage} member {member.name}"
        try:
            parts = []
            size = member.max_batch_size
            for start in range(0, len(rows), size):
                whole = start == 0 and len(rows) <= size
                answer = self._exec(member, rows[start : start + size], tensor if whole else None)
                if isinstance(answer, str):
                    return f"{where}: {answer}"
                parts.append(answer)
            output = parts[0] if len(parts) == 1 else np.concatenate(parts)
        except Exception as error:  # a caller waits: whatever broke must become its answer
            return f"{where}: {type(error).__name__} {error}"
        expected = (len(rows), self._spec.classes)
        if output.shape != expected:
            return f"{where}: output {member.output} has shape {list(output.shape)}, expected {list(expected)}"
        return output

    def _exec(self, member: Member, rows: Rows, tensor: Any | None) -> Rows | str:
        name = member.input or self._spec.input.name
        if tensor is None or name != self._spec.input.name:
            tensor = self._pb.Tensor(name, rows)
        request = self._pb.InferenceRequest(
            model_name=member.name,
            requested_output_names=[member.output],
            inputs=[tensor],
            preferred_memory=self._cpu,
        )
        response = request.exec()
        if response.has_error():
            return " ".join(str(response.error().message()).split())
        output = self._pb.get_output_tensor_by_name(response, member.output)
        if output is None:
            return f"answered without its output {member.output}"
        # The view dies with the response, which frees its shared memory; the sums outlive it.
        array: Rows = output.as_numpy().copy()
        return array


def merged(parts: Sequence[Rows]) -> Rows:
    """One batch of several requests' rows."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
