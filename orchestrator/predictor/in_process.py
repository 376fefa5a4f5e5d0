"""A cascade or a member in this process: ONNX Runtime runs members, the server's core decides."""

import asyncio
import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.rows import checked_rows, non_finite_fault, objects, over_last_bucket
from orchestrator.client.answers import OutputKinds, Rows, ServedAnswers, answers_from_outputs
from orchestrator.decision import Policy
from orchestrator.decision.all_stages import answer_all
from orchestrator.errors import InputError, MemberError, RefusedError, RepositoryError, UnknownModelError
from orchestrator.files import sha256_of_path
from orchestrator.local import LocalMembers
from orchestrator.predictor.deriving import local_deriver
from orchestrator.repository.index import plan_path
from orchestrator.rows.blocks import RowBlock
from orchestrator.spec import CascadeSpec, InputSpec, Member, cascade_from_path
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.processor import core_count
from orchestrator.spec.rows import AnyRows, groups_of_one_shape, ready_rows, rows_at, stacked
from orchestrator.spec.served_model import ModelInfo, TensorInfo, scores_output


@dataclass(frozen=True, kw_only=True)
class LocalModels:
    """Models of a repository, whose ONNX members run in this process.

    Args:
        repository: folder with the plan as `committee render` places it, and the members.
        threads: of each member's session; with one, equal machines give equal bits.
    """

    repository: Path
    threads: int = 1

    def opened(self) -> "InProcessAnswers":
        """Opens nothing yet: a model is opened when it is first asked for."""
        return InProcessAnswers(self)


class InProcessAnswers:
    """Answers rows as a server with the same repository would; arguments and errors are those of its client."""

    def __init__(self, models: LocalModels) -> None:
        self.kinds = OutputKinds()
        self._models = models
        self._opened: dict[str, _LocalCascade | _LocalMember] = {}
        # Sessions let go of Python's lock: more threads than processors only wait for each other.
        self._threads = ThreadPoolExecutor(max(1, core_count() // models.threads))

    async def metadata(self, model: str) -> ModelInfo:
        """The model's tensors and batch limit.

        Raises RepositoryError or SpecError where it cannot be opened.
        """
        if model not in self._opened:
            self._opened[model] = await asyncio.to_thread(_opened, self._models, model)
        return self._opened[model].info

    async def identity(self, model: str) -> str:
        """The same for ever: what has been opened stays as it is."""
        return model

    async def infer(self, model: str, rows: AnyRows, *, policy: Policy | None = None) -> ServedAnswers:
        """Answers; rows that a member failed for have label -1.

        Raises:
            InputError: the rows do not fit the model.
            RefusedError: it does not take their values.
        """
        info = await self.metadata(model)
        opened, ready = self._opened[model], ready_rows(info, rows)
        run = asyncio.get_running_loop().run_in_executor
        return await run(self._threads, opened.answers, ready, policy or Policy(), self.kinds)

    async def ready(self, model: str | None = None) -> bool:
        """Always: nothing here can go away."""
        del model
        return True

    async def close(self) -> None:
        """Lets the members go."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._opened = {}


def _opened(models: LocalModels, model: str) -> "_LocalCascade | _LocalMember":
    folder = models.repository / model
    if not folder.is_dir():
        raise UnknownModelError(f"model {model}", got=f"none in {models.repository}", expected="one of its models")
    path = plan_path(folder)
    return _LocalMember(models, model) if path is None else _LocalCascade(models, path)


class _LocalMember:
    """A member alone."""

    def __init__(self, models: LocalModels, name: str) -> None:
        self._members = LocalMembers(models.repository, [name], threads=models.threads)
        kind = self._members.manifest(name).output_kind
        self.info = dataclasses.replace(self._members.info(name), output_kind=kind)

    def answers(self, rows: Mapping[str, Rows], policy: Policy, kinds: OutputKinds) -> ServedAnswers:
        """Its scores as answers."""
        del policy
        scores = self._members.ask(self.info.name, rows)
        return answers_from_outputs(self.info, [({scores_output(self.info): scores}, len(scores))], kinds=kinds)


class _LocalCascade:
    """A plan with its members."""

    def __init__(self, models: LocalModels, path: Path) -> None:
        spec = self._spec = cascade_from_path(path)
        self.info = dataclasses.replace(_info(spec, path.parent.name), plan_sha256=sha256_of_path(path))
        self._members = LocalMembers(
            models.repository, [member.name for member in spec.members], threads=models.threads
        )
        for member in spec.members:
            found = self._members.manifest(member.name).sha256
            if member.sha256 not in (None, found):
                what = f"member {member.name} of {spec.name}"
                fix = "export the planned one again, or plan again"
                raise RepositoryError(what, got=f"sha256 {found}", expected=f"{member.sha256} as planned", fix=fix)
        self._derivers = {one.name: local_deriver(models.repository, one.name) for one in spec.derived}

    def answers(self, rows: Mapping[str, Rows], policy: Policy, kinds: OutputKinds) -> ServedAnswers:
        """The plan's answers to rows."""
        del kinds
        for tensor in self._spec.inputs:
            _check(tensor, rows[tensor.name])
        count = len(next(iter(rows.values())))
        table = dict(rows)

        def ask(stage: int, where: npt.NDArray[np.intp]) -> list[npt.NDArray[np.float32]]:
            self._derive(table, stage, where)
            return [self._scores(member, table, where) for member in self._spec.stages[stage].members]

        done, _ = answer_all(self._spec, count, ask, policy=policy)
        columns: dict[str, Any] = {
            name: np.zeros((count, self._spec.classes) if column.is_vector else count, column.numpy_dtype)
            for name, column in ANSWER_COLUMNS.items()
        }
        columns["label"][:] = -1
        for name, column in columns.items():
            column[done.position] = getattr(done, name)
        return ServedAnswers(**columns)

    def _derive(self, table: dict[str, Rows], stage: int, where: npt.NDArray[np.intp]) -> None:
        """Makes the tensors that a stage reads for rows that lack them; a row that cannot be read keeps None."""
        for model in self._spec.derived_for(stage):
            for output in model.outputs:
                table.setdefault(output.name, objects([None] * len(next(iter(table.values())))))
            reads = self._spec.tensors_of(model)
            lacking = where[[table[model.outputs[0].name][row] is None for row in where]]
            lacking = lacking[[_has(table, reads, row) for row in lacking]]
            if len(lacking):
                given = {own: _picked(table[ours], lacking) for own, ours in reads.items()}
                made = self._derivers[model.name].completed(RowBlock(ids=lacking, rows=given), next(iter(reads)))
                assert isinstance(made.rows, Mapping)
                for place, row in enumerate(made.ids.tolist()):
                    tensors = {output: made.rows[output.name][place] for output in model.outputs}
                    # As in the server: what no bucket holds is not made.
                    if not any(over_last_bucket(output, tensor.shape) for output, tensor in tensors.items()):
                        for output, tensor in tensors.items():
                            table[output.name][row] = tensor

    def _scores(
        self, member: Member, table: Mapping[str, Rows], where: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.float32]:
        """A member's scores (n, k) of some rows, NaN of those that it fails for."""
        reads = self._spec.tensors_of(member)
        scores = np.full((len(where), self._spec.classes), np.nan, np.float32)
        good = np.flatnonzero([_has(table, reads, row) for row in where])
        if len(good):
            rows = {own: _picked(table[ours], where[good]) for own, ours in reads.items()}
            scores[good] = self._asked(member.name, rows, len(good))
        return scores

    def _asked(self, name: str, rows: Mapping[str, Rows], count: int) -> npt.NDArray[np.float32]:
        try:
            return self._members.ask(name, rows)
        except (MemberError, InputError):
            if count == 1:
                return np.full((1, self._spec.classes), np.nan, np.float32)
            # One row fails a whole batch: halves find it.
            halves = (slice(0, count // 2), slice(count // 2, count))
            return np.concatenate([self._asked(name, rows_at(rows, h), h.stop - h.start) for h in halves])


def _has(table: Mapping[str, Rows], reads: Mapping[str, str], row: int) -> bool:
    return all(table[ours][row] is not None for ours in reads.values())


def _picked(column: Rows, where: npt.NDArray[np.intp]) -> Rows:
    """Some rows of a tensor, as one array where they are of one shape."""
    picked: Rows = column[where]
    return stacked(list(picked)) if picked.dtype == object and picked.ndim == 1 else picked


@dataclass(frozen=True)
class _Sent:
    """A tensor as the runtime reads it of a request."""

    array: Rows

    def as_numpy(self) -> Rows:
        return self.array


def _check(tensor: InputSpec, rows: Rows) -> None:
    """Refuses what the runtime would refuse, by its own checks."""
    try:
        for _, group in groups_of_one_shape({tensor.name: rows}):
            found = checked_rows(_Sent(group[tensor.name]), tensor)
            if tensor.non_finite == "reject" and found.dtype.kind == "f" and not np.isfinite(found).all():
                raise non_finite_fault(tensor.name, found)
    except InputError as error:
        # As a client tells of what a server has said.
        raise RefusedError(f"input {tensor.name}", got=error) from error


def _info(spec: CascadeSpec, version: str) -> ModelInfo:
    """A cascade as a server would describe it; ONNX Runtime reads its text here, as it does there."""
    return ModelInfo(
        name=spec.name,
        platform="python",
        versions=(version,),
        max_batch_size=spec.limits.max_batch_size,
        inputs=tuple(
            TensorInfo(
                name=one.name,
                dtype="BYTES" if one.is_text else one.dtype,
                shape=(-1, *one.dims),
                is_c_string=one.is_text,
            )
            for one in spec.inputs
        ),
        outputs=tuple(
            TensorInfo(name=name, dtype=column.triton_dtype, shape=(-1, column.width(spec.classes)))
            for name, column in ANSWER_COLUMNS.items()
        ),
    )
