"""The predictor: rows in, answers out, in order; picklable, so that other processes can open it for themselves."""

import math
import os
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.client.balancing import BALANCING
from orchestrator.client.endpoint import Addresses, endpoints_from_addresses
from orchestrator.client.loop import wait_in_loop
from orchestrator.client.over_grpc import AsyncGrpcClient
from orchestrator.decision import Policy
from orchestrator.errors import ClientError, InputError
from orchestrator.predictor.asking import (
    COLUMNS,
    PROBABILITIES,
    BlockOutcome,
    ModelAsker,
    Rows,
)
from orchestrator.predictor.pacing import request_rows
from orchestrator.predictor.patience import AsyncAnswers, Patience
from orchestrator.repository.index import picture_reader
from orchestrator.rows.blocks import ColumnNames, RowBlock
from orchestrator.spec.request import INPUT_DTYPES
from orchestrator.spec.rows import ready_rows
from orchestrator.spec.served_model import ModelInfo, class_count

if TYPE_CHECKING:
    from typing_extensions import Self

# Further attempts of a client at one request, within a second; then it is for the predictor to be patient.
RETRIES = 4
# What is read at once, so that requests of any size can be cut from it.
BLOCK_BYTES, BLOCK_ROWS = 4 << 20, 4096
# Rows of a block where nobody knows how large they are.
UNSIZED_ROWS = 256
# Processes in which clients were made: those before a fork are known after it.
_connected: set[int] = set()


@dataclass(frozen=True, kw_only=True)
class ServedModels:
    """Models of a server, or of several that serve the same ones, asked over gRPC."""

    servers: Addresses
    timeout_s: float = 60.0  # longest wait for one answer of one server

    def opened(self) -> AsyncAnswers:
        """A client, which connects when it first asks.

        Raises ClientError in a process forked from one with connections: gRPC does not work there.
        """
        if _connected and os.getpid() not in _connected:
            got = "a process forked from one that has connections to a server"
            fix = "start processes by spawn, or fork before the first row is asked"
            raise ClientError("predictor", got=got, fix=fix)
        _connected.add(os.getpid())
        count = len(endpoints_from_addresses(self.servers))
        # What one server does not answer in time its neighbours are asked, with as much time.
        balancing = replace(BALANCING, attempt_s=self.timeout_s)
        timeout_s = count * self.timeout_s
        return AsyncGrpcClient(self.servers, timeout_s=timeout_s, retries=RETRIES, balancing=balancing)


class Predictor:
    """Answers rows by a model, wherever its members run; nothing is connected or opened before the first row.

    Args:
        models: where the model runs: `ServedModels`, or another picklable object with such an `opened`.
        model: name of a cascade, an ensemble or a member.
        in_flight: requests under way at once.
        request_rows: rows per request; None takes the number at which most rows per second are answered.
        patience_s: how long a server that is away is waited for, before each answer; infinity until it is back.
        probabilities: whether answers have the whole distribution.
        columns: which columns of a table hold what, for `predict`; None for the usual names.
        repository: where cascade.json says how pictures become rows.
    """

    def __init__(
        self,
        models: Any,
        model: str,
        *,
        in_flight: int = 8,
        request_rows: int | None = None,
        patience_s: float = 0.0,
        probabilities: bool = False,
        columns: ColumnNames | None = None,
        repository: Path | None = None,
    ) -> None:
        self.models, self.model = models, model
        self.in_flight, self.request_rows = in_flight, request_rows
        self.patience_s, self.probabilities = patience_s, probabilities
        self.columns, self.repository = columns or ColumnNames(), repository
        self._asker: ModelAsker | None = None
        self._process = os.getpid()  # that opened it

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_asker": None}

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of connections or members; the next use opens them again."""
        asker, self._asker = self._asker, None
        if asker is not None and self._process == os.getpid():
            wait_in_loop(asker.client.close())

    @property
    def info(self) -> ModelInfo:
        """The model's tensors and batch limit.

        Raises ClientError where it cannot be asked.
        """
        return self._open().info

    def note(self) -> str | None:
        """What is doubtful about how the model's scores were taken, of all rows so far; None where nothing is."""
        asker = self._open()
        return asker.client.kinds.note(asker.info)

    def shares(self) -> dict[str, int]:
        """Requests that each of several servers has answered, by address; empty where there is one, or none."""
        servers = [] if self._asker is None else getattr(self._asker.client, "servers", [])
        return {server.address: server.answered for server in servers}

    def require_same_model(self) -> None:
        """Raises ChangedModelError where another plan is served than at first; not while nobody answers."""
        wait_in_loop(self._open().require_same_model())

    @property
    def rows_per_request(self) -> int:
        """How many a request has now, where the model takes so many."""
        return self._open().size.rows

    @property
    def block_rows(self) -> int:
        """Rows of the blocks that `outcomes` is given best: a multiple of those of a fixed request."""
        size = row_bytes_of(self.info)
        rows = UNSIZED_ROWS if size is None else min(BLOCK_ROWS, max(1, BLOCK_BYTES // size))
        step = self.request_rows or 1
        return max(step, rows // step * step)

    def outcomes(self, blocks: Iterator[RowBlock]) -> Generator[BlockOutcome, None, None]:
        """The answers to blocks of rows, in order; rows that are refused are listed beside them.

        Raises:
            ClientError: the server is gone for longer than patience lasts, too slow, fails whatever the rows, or
                serves another plan than at first; after `close` that is the plan that is asked.
            DataError: a block cannot be read.
        """
        outcomes = self._open().outcomes(blocks)
        try:
            while (outcome := wait_in_loop(_next_of(outcomes))) is not None:
                yield outcome
        finally:
            wait_in_loop(_ended(outcomes))

    def predict(self, rows: Any) -> Any:
        """Answers to rows, column by column, in their order.

        Args:
            rows: the model's inputs by name, each (n, *dims), or a pyarrow table or record batch with columns for
                them as in files.

        Returns:
            columns (n,) as in `ANSWER_COLUMNS`, and "refused": why a row has no answer, "" where it has one. Rows
            without an answer have label and exit stage -1 and NaN for numbers. A dict of arrays, or for a table a
            pyarrow table.

        Raises:
            InputError: the rows do not fit the model.
            DataError: the table has no usable columns.
            ClientError: see `outcomes`.
        """
        is_table = not isinstance(rows, Mapping)
        if is_table and not hasattr(rows, "schema"):
            expected = "a dict of arrays by input name, or a pyarrow table"
            raise InputError("rows", got=type(rows).__name__, expected=expected)
        block = self._block_of_table(rows) if is_table else self._block_of_arrays(rows)
        outcomes = self.outcomes(iter([block])) if block.size else ()
        classes = class_count(self.info) if self.probabilities else None
        answers = answers_of(outcomes, block.size, classes=classes)
        if not is_table:
            return answers
        # pyarrow is optional.
        import pyarrow as pa

        return pa.table({name: list(one) if one.ndim > 1 else one for name, one in answers.items()})

    def _block_of_arrays(self, rows: Mapping[str, Any]) -> RowBlock:
        if rows and all(_is_empty(one) for one in rows.values()):
            return RowBlock(ids=np.arange(0), rows=next(iter(rows.values())))
        ready = ready_rows(self.info, rows)
        count = len(next(iter(ready.values())))
        return RowBlock(ids=np.arange(count), rows=ready if len(ready) > 1 else next(iter(ready.values())))

    def _block_of_table(self, table: Any) -> RowBlock:
        # pyarrow is optional.
        from orchestrator.rows.parquet import block_of_arrow

        reader = picture_reader(self.repository or Path("model_repository"), self.info)
        return block_of_arrow(table, self.info, columns=self.columns, read_picture=reader)

    def _open(self) -> ModelAsker:
        if self._asker is None or self._process != os.getpid():
            # Threads, connections and sessions of another process do not work in one that was forked from it.
            self._asker, self._process = wait_in_loop(self._opened()), os.getpid()
        return self._asker

    async def _opened(self) -> ModelAsker:
        client = self.models.opened()
        patience = Patience(client, self.patience_s)
        try:
            info = await patience.answer_of(lambda: client.metadata(self.model))
            identity = await patience.answer_of(lambda: client.identity(self.model))
        except BaseException:
            await client.close()
            raise
        size = request_rows(
            self.request_rows,
            limit=info.max_batch_size,
            row_bytes=row_bytes_of(info),
            in_flight=self.in_flight,
        )
        return ModelAsker(
            client=client,
            info=info,
            # By the plan's own thresholds: a job must not get other answers for the load that it makes itself.
            policy=Policy(gear=0) if info.has_stages else None,
            size=size,
            in_flight=self.in_flight,
            patience=patience,
            identity=identity,
            probabilities=self.probabilities,
        )


def _is_empty(column: Any) -> bool:
    return column.shape[:1] == (0,) if isinstance(column, np.ndarray) else isinstance(column, list) and not column


def answers_of(outcomes: Iterable[BlockOutcome], rows: int, *, classes: int | None) -> dict[str, Rows]:
    """The answers (n,) or (n, k) to rows whose ids are their positions; see `Predictor.predict`.

    With `classes` there are as many probabilities for each row, even where no row has an answer.
    """
    answers: dict[str, Rows] = {}
    if classes is not None:
        answers[PROBABILITIES] = np.full((rows, classes), np.nan, np.float32)
    for name, column in COLUMNS.items():
        fill = np.nan if issubclass(column.numpy_dtype, np.floating) else -1 if name != "status" else 0
        answers[name] = np.full(rows, fill, column.numpy_dtype)
    refused = np.full(rows, "", object)
    for outcome in outcomes:
        for part in outcome.answered:
            for name, values in part.answers.items():
                if name not in answers:
                    answers[name] = np.full((rows, *values.shape[1:]), np.nan, values.dtype)
                answers[name][part.ids] = values
        for one in outcome.refused:
            refused[int(one.id)] = one.reason
    return {**answers, "refused": refused.astype(np.str_)}


def row_bytes_of(info: ModelInfo) -> int | None:
    """Bytes of one row as a request carries it; None for text and for lengths that vary."""
    sizes = [math.prod(tensor.shape[1:]) for tensor in info.inputs]
    if any(tensor.is_text or -1 in tensor.shape[1:] for tensor in info.inputs):
        return None
    types = [np.dtype(INPUT_DTYPES.get(tensor.dtype, "float32")) for tensor in info.inputs]
    return sum(size * kind.itemsize for size, kind in zip(sizes, types, strict=True))


async def _next_of(outcomes: AsyncGenerator[BlockOutcome, None]) -> BlockOutcome | None:
    return await anext(outcomes, None)


async def _ended(outcomes: AsyncGenerator[BlockOutcome, None]) -> None:
    await outcomes.aclose()
