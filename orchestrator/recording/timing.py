"""How long members take: calls of every batch in turns, so that what else the machine does reaches all alike.

Members are asked in this process or on a server, in the way in which they are recorded.
"""

import contextlib
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.client.endpoint import Endpoint
from orchestrator.client.sync import SyncClient
from orchestrator.decision import CascadeRun, Policy
from orchestrator.decision.evaluate import arrivals_from_policies
from orchestrator.errors import DataError, InputError, MemberError, RefusedError, ServerFaultError
from orchestrator.progress import Advance, Progress, no_advance, no_progress
from orchestrator.recording.job import RecordOptions, source_for
from orchestrator.recording.pool import RecordingPool, opened_pool
from orchestrator.recording.served_timing import (
    DEFERRED,
    FIRST,
    FIRST_HERE,
    LATER,
    LATER_HERE,
    PASSED,
    TURNED_ROWS,
    ServedCascade,
    cascade_calls,
    in_turn,
    parts_of,
    paused_requests,
)
from orchestrator.serving.stubs import stubs_of
from orchestrator.spec import CascadeSpec, Member, Stage
from orchestrator.spec.cascade import UNKNOWN_INPUT
from orchestrator.spec.deriving import deriving_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.rows import AnyRows, Array, numpy_dtype, ready_rows
from orchestrator.spec.served_model import ModelInfo, TensorInfo
from orchestrator.spec.shares import evenly_spread
from orchestrator.spec.timing import CallTime, MemberTiming, Timing, machine_here
from orchestrator.spec.validation import MOST_ROWS, Faults

BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Words of a made-up text, and values of a made-up row of numbers: tokens, masks and pixels may all be 1.
_TEXT, _NUMBER = b"word ", 1
_PROC = Path("/proc")
Key = TypeVar("Key", bound=Hashable)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TimeOptions:
    """What is measured.

    Args:
        batches: rows per call.
        rounds: in each every member is asked with every batch, in turns.
        slot_ms: how long a batch is asked again and again within a round; once at least.
        length: values along an axis that varies, of rows that are made up.
        threads: of each member in this process.
        data: rows to ask about, as for records; None makes some up.
        derive: models that make tensors of those rows, which are timed too.

    Raises:
        SpecError: values out of range, keyed by argument.
    """

    batches: tuple[int, ...] = BATCHES
    rounds: int = 11
    slot_ms: float = 20.0
    length: int = 64
    threads: int = 1
    data: RecordOptions | None = None
    derive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = Faults("timing", of_arguments=True)
        faults.check("batches", len(self.batches) > 0, "got none, expected at least one")
        for batch in self.batches:
            faults.integer("batches", batch, low=1, high=MOST_ROWS)
        for name in ("rounds", "length", "threads"):
            faults.integer(name, getattr(self, name), low=1, high=MOST_ROWS)
        faults.number("slot_ms", self.slot_ms, low=0, high=3_600_000)
        faults.close()


def measured_rounds(
    calls: Mapping[Key, Callable[[], object]],
    *,
    rounds: int,
    slot_s: float,
    clock: Callable[[], float] = time.perf_counter,
    advance: Advance = no_advance,
) -> dict[Key, Floats]:
    """Mean milliseconds of every call within each round, float64 (rounds,).

    Each round begins with another call, so that none always follows the same one; before the first all are made
    once, unmeasured. So is the first of several calls in a slot: a process that had to wait has to wake up.
    """
    keys = list(calls)
    found: dict[Key, list[float]] = {key: [] for key in keys}
    repeated = set()
    for key, call in calls.items():
        begun = clock()
        call()
        if clock() - begun < slot_s:
            repeated.add(key)
    for number in range(rounds):
        turn = number * len(keys) // rounds
        for key in keys[turn:] + keys[:turn]:
            if key in repeated:
                calls[key]()
            begun, made = clock(), 0
            while made == 0 or clock() - begun < slot_s:
                calls[key]()
                made += 1
            found[key].append(1000 * (clock() - begun) / made)
            advance(1)
    return {key: np.array(values) for key, values in found.items()}


def call_time(batch: int, figures: Floats) -> CallTime:
    """Median and quartiles over the rounds, of milliseconds."""
    low, middle, high = (float(f"{part:.6g}") for part in np.quantile(figures, (0.25, 0.5, 0.75)))
    return CallTime(batch=batch, ms=middle, low_ms=low, high_ms=high)


def made_rows(info: ModelInfo, count: int, *, length: int) -> dict[str, Array]:
    """Rows that a member takes, by tensor: ones, and texts of so many words; sizes that vary are `length`."""
    return {tensor.name: _made(info, tensor, count, length) for tensor in info.inputs}


def _made(info: ModelInfo, tensor: TensorInfo, count: int, length: int) -> Array:
    shape = (count, *(length if size < 0 else size for size in tensor.shape[1:]))
    dtype = numpy_dtype(tensor, f"input {tensor.name} of model {info.name}")
    if tensor.is_text:
        return np.full((count, *(1 if size < 0 else size for size in tensor.shape[1:])), _TEXT * length, object)
    return np.full(shape, _NUMBER, dtype)


def time_members(
    names: Sequence[str],
    repository: Path,
    options: TimeOptions,
    *,
    url: str | Endpoint | None = None,
    cascade: ServedCascade | None = None,
    timeout_s: float = 60.0,
    progress: Progress = no_progress,
) -> Timing:
    """Times members in this process, or on a server at `url`; with a cascade of that server what it adds, too.

    Raises:
        CommitteeError: a member cannot be opened, or fails; the data cannot be used.
    """
    if not names:
        raise DataError("members", got="none", expected="names of members to time")
    if url is None:
        # Its own memory is no member's.
        import onnxruntime  # noqa: F401

    rows = None if options.data is None else _stored_rows(names, repository, options, url=url)
    names, threads = tuple(dict.fromkeys(names)), options.threads
    with contextlib.ExitStack() as stack:
        timed = []
        for name in names:
            before = _memory_bytes()
            costs = {name: 1.0}
            opened = opened_pool([name], repository, url=url, cost=costs, timeout_s=timeout_s, threads=threads)
            one = _timed_member(stack.enter_context(opened), options, rows)
            # Its largest batch is what it needs room for.
            _ask_first(one, options)
            after = _memory_bytes()
            held = None if before is None or after is None else max(0, after - before)
            if url is not None:
                held = None if cascade is None or cascade.pid is None else _served_bytes(name, cascade.pid)
            timed.append(replace(one, memory_bytes=held))
        for name in options.derive:
            opened = opened_pool(names, repository, url=url, cost=dict.fromkeys(names, 1.0), derive=[name])
            timed.append(_timed_deriver(stack.enter_context(opened), repository, options, rows))
            _ask_first(timed[-1], options)
        calls = {(one.name, batch): _asking(one, batch) for one in timed for batch in one.batches}
        local = None if url is not None else _local_cascade(timed[: len(names)])
        if local is not None:
            calls |= local.calls(options.batches)
        elif url is not None and cascade is not None:
            # A fifth of a second to import, and not needed for members in this process.
            from orchestrator.client.over_grpc import GrpcClient

            client = stack.enter_context(GrpcClient(url, timeout_s=timeout_s))
            given = partial(_rows_for, client, rows, options)
            calls |= cascade_calls(client, cascade, options.batches, rows_for=given)
        with progress(f"timing {len(timed)} members", options.rounds * len(calls)) as advance:
            # With one thread that is the time of a call on a core of its own, whatever else the machine does.
            clock = time.thread_time if url is None and threads == 1 else time.perf_counter
            how: dict[str, Any] = {"rounds": options.rounds, "slot_s": options.slot_ms / 1000, "clock": clock}
            found = measured_rounds(calls, **how, advance=advance)
        pauses = () if url is None else paused_requests(calls, found, rounds=options.rounds)
    known = local or cascade
    parts = parts_of(found, (("",),) if known is None else known.stages)
    return Timing(
        asked=timed[0].pool.asked,
        machine=machine_here(),
        members=tuple(_member_timing(one, found) for one in timed),
        rounds=options.rounds,
        threads=None if url is not None else options.threads,
        first_stage=_call_times(parts[FIRST]),
        later_stage=_call_times(parts[LATER]),
        deferring=_call_times(parts[DEFERRED]),
        passed_on=_call_times(parts[PASSED]),
        first_in_process=_call_times(parts[FIRST_HERE]),
        later_in_process=_call_times(parts[LATER_HERE]),
        pauses=pauses,
    )


def _call_times(figures: Mapping[int, Floats]) -> tuple[CallTime, ...]:
    return tuple(call_time(batch, figures[batch]) for batch in sorted(figures))


def _rows_for(client: SyncClient, rows: AnyRows | None, options: TimeOptions, name: str) -> AnyRows:
    """Rows for a model of the server: those of the data, else made-up ones."""
    info = client.metadata(name)
    if rows is None:
        return made_rows(info, max(options.batches), length=options.length)
    return {one.name: rows[one.name] for one in info.inputs} if isinstance(rows, Mapping) else rows


@dataclass(frozen=True, kw_only=True)
class _TimedModel:
    """A model that is opened, alone in its pool or one that makes tensors for its members.

    Args:
        name: of the model.
        batches: that are timed.
        ask: asks about so many rows, of any batch.
    """

    name: str
    pool: RecordingPool
    batches: tuple[int, ...]
    ask: Callable[[int], Any]
    info: ModelInfo
    sha256: str | None
    memory_bytes: int | None = None


def _stored_rows(
    names: Sequence[str], repository: Path, options: TimeOptions, *, url: str | Endpoint | None
) -> AnyRows:
    """Rows of the data that can be used, spread evenly, as all models read them."""
    assert options.data is not None
    costs, most = dict.fromkeys(names, 1.0), max(TURNED_ROWS, *options.batches)
    with opened_pool(names, repository, url=url, cost=costs, derive=options.derive) as pool:
        source = source_for(pool, options.data)
        wanted = evenly_spread(len(source.ids), min(most, len(source.ids)))
        for piece in source.pieces(wanted, 0, most):
            block = pool.completed(piece.load())
            if len(block.ids):
                return block.rows
    raise DataError(f"data {options.data.data}", got="not one usable row", expected="at least one")


def _timed_member(pool: RecordingPool, options: TimeOptions, rows: AnyRows | None) -> _TimedModel:
    name, manifest = pool.names[0], next(iter(pool.manifests.values()), None)
    length = None if manifest is None else manifest.length
    batches, turns = _turns(pool.info, options, rows, pad=None if length is None else length.pad)
    return _TimedModel(
        name=name,
        pool=pool,
        batches=batches,
        ask=lambda batch: pool.scores(name, next(turns[batch])),
        info=pool.infos[name],
        sha256=None if manifest is None else manifest.sha256,
    )


def _timed_deriver(
    pool: RecordingPool, repository: Path, options: TimeOptions, rows: AnyRows | None
) -> _TimedModel:
    """The deriving model of a pool."""
    one, path = pool.derivers[0], repository / pool.derivers[0].info.name / MANIFEST
    batches, turns = _turns(one.info, options, rows)
    return _TimedModel(
        name=one.info.name,
        pool=pool,
        batches=batches,
        ask=lambda batch: one.derive(ready_rows(one.info, next(turns[batch]))),
        info=one.info,
        sha256=deriving_from_path(path).sha256 if path.is_file() else one.sha256,
    )


def _turns(
    info: ModelInfo, options: TimeOptions, rows: AnyRows | None, *, pad: Mapping[str, float] | None = None
) -> tuple[tuple[int, ...], dict[int, Iterator[AnyRows]]]:
    """The batches that a model is timed with, and rows for these and for those that are asked for."""
    limit = info.max_batch_size or MOST_ROWS
    # With its own largest call no larger batch is unknown: those are sent in several.
    batches = tuple(sorted({min(batch, limit) for batch in options.batches}))
    given = made_rows(info, max(options.batches), length=options.length) if rows is None else rows
    if isinstance(given, Mapping):
        given = {tensor.name: given[tensor.name] for tensor in info.inputs}
    return batches, {batch: in_turn(given, batch, pad=pad) for batch in {*batches, *options.batches}}


def _ask_first(one: _TimedModel, options: TimeOptions) -> None:
    """Asks a model about its largest batch; where it fails on made-up rows whose length varies, that is said."""
    try:
        one.ask(one.batches[-1])
    except (MemberError, InputError, RefusedError, ServerFaultError) as error:
        if options.data is not None or not any(
            tensor.is_text or -1 in tensor.shape[1:] for tensor in one.info.inputs
        ):
            raise
        raise DataError(
            f"timing of {one.name}",
            got=f"made-up rows of `length={options.length}`: {error}",
            expected="a length that the model takes",
            fix="name a smaller `length`, or rows of yours with `data`",
        ) from error


def _member_timing(one: _TimedModel, found: Mapping[tuple[str, int], Floats]) -> MemberTiming:
    return MemberTiming(
        name=one.name,
        calls=tuple(call_time(batch, found[one.name, batch]) for batch in one.batches),
        sha256=one.sha256,
        memory_bytes=one.memory_bytes,
        max_batch_size=one.info.max_batch_size or None,
        instances=one.info.instances or 1,
    )


def _asking(one: _TimedModel, batch: int) -> Callable[[], object]:
    return lambda: one.ask(batch)


@dataclass(frozen=True, kw_only=True)
class _LocalCascade:
    """A cascade in this process of the two members that take the least, or of the only one, asked twice.

    Its members are asked in turns with its decisions, because either is slower after the other than after itself.
    """

    first: _TimedModel
    second: _TimedModel

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Names of the members."""
        return (self.first.name,), (self.second.name,)

    def calls(self, batches: Sequence[int]) -> dict[tuple[str, int], Callable[[], object]]:
        """Batches that its first stage answers, that it defers as a whole, and that it defers for nobody."""
        most = max(batches)
        run = {
            FIRST: self._answering(most, defer=False),
            LATER: self._answering(most, defer=True),
            DEFERRED: self._answering(most, defer=True, ask_on=False),
        }
        return {(key, batch): partial(answer, batch) for key, answer in run.items() for batch in batches}

    def _answering(self, most: int, *, defer: bool, ask_on: bool = True) -> Callable[[int], None]:
        # No score is below 0 or above 1.
        thresholds = (2.0 if defer else 0.0, None)
        members = (Member(name=name, output="scores") for name in ("first", "second"))
        spec = CascadeSpec(
            name="timed",
            inputs=(UNKNOWN_INPUT,),
            classes=self.first.pool.classes,
            stages=tuple(Stage(members=(one,), threshold=at) for one, at in zip(members, thresholds, strict=True)),
        )
        run = CascadeRun(spec, capacity_rows=most)

        def answer(batch: int) -> None:
            arrivals = arrivals_from_policies([0], [batch], policies=[Policy()], now_ns=[0], default_deadline_us=1)
            run.admit(arrivals, [self.first.ask(batch)])
            if defer and ask_on:
                run.feed(run.next(1, batch), [self.second.ask(batch)])
            elif defer:
                run.drop(np.zeros(1, np.int64))

        return answer


def _local_cascade(timed: Sequence[_TimedModel]) -> _LocalCascade:
    two = sorted(timed, key=lambda one: (one.pool.manifests[one.name].macs, one.name))[:2]
    alike = two[0].pool.classes == two[-1].pool.classes
    return _LocalCascade(first=two[0], second=two[-1] if alike else two[0])


def _memory_bytes(process: int | str = "self") -> int | None:
    """Memory of a process that is not swapped out; None where the system does not say."""
    try:
        pages = (_PROC / str(process) / "statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _served_bytes(name: str, server: int) -> int | None:
    """Memory of the processes that a server of ours runs a model in; None where it is in the server's own."""
    found = [_memory_bytes(stub.pid) for stub in stubs_of(server) if stub.model == name]
    known = [one for one in found if one is not None]
    return sum(known) if known else None


def lines_of_timing(timing: Timing) -> Iterator[tuple[str, ...]]:
    """Table lines for people: who, batch, ms per call with quartiles, ms per row."""
    parts = {
        FIRST: timing.first_stage,
        LATER: timing.later_stage,
        DEFERRED: timing.deferring,
        PASSED: timing.passed_on,
        FIRST_HERE: timing.first_in_process,
        LATER_HERE: timing.later_in_process,
    }
    runtime = [(f"runtime, {name}", calls) for name, calls in parts.items()]
    for name, calls in (*((one.name, one.calls) for one in timing.members), *runtime):
        for call in calls:
            spread = f"{call.low_ms:.4g} to {call.high_ms:.4g}"
            yield name, str(call.batch), f"{call.ms:.4g}", spread, f"{call.ms / call.batch:.4g}"
