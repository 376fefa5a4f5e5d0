"""The cascade driven by a client: every member is an ordinary request over gRPC.

Nothing of it runs in the server, and every stage is a round trip of the client's own.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from orchestrator.client.error_mapping import FOREIGN, error_from
from perf.routes.baselines.deciding import BaselinePlan, Batch
from perf.routes.spec import AskAsync, AskSync, Rows

TIMEOUT_S = 60.0


@contextmanager
def sync_client(address: str, *, plan: BaselinePlan, dtype: str) -> Iterator[AskSync]:
    """A cascade at host:port driven by blocking calls, from any number of threads over one channel.

    Yields:
        rows (n, *dims) -> int32 (n,) exit stages.
    """
    with triton.InferenceServerClient(address) as client:

        def ask(rows: Rows) -> npt.NDArray[np.int32]:
            batch = Batch(plan, len(rows))
            for request in _requests(plan, rows, batch=batch, dtype=dtype):
                try:
                    result = client.infer(**request)
                except FOREIGN as error:
                    raise error_from(error, what=f"model {request['model_name']} at {address}") from error
                batch.add(result.as_numpy(plan.output))
            return _stages(batch)

        yield ask


@asynccontextmanager
async def asyncio_client(address: str, *, plan: BaselinePlan, dtype: str) -> AsyncIterator[AskAsync]:
    """As `sync_client`, with requests awaited in one event loop."""
    async with triton_aio.InferenceServerClient(address) as client:

        async def ask(rows: Rows) -> npt.NDArray[np.int32]:
            batch = Batch(plan, len(rows))
            for request in _requests(plan, rows, batch=batch, dtype=dtype):
                try:
                    result = await client.infer(**request)
                except FOREIGN as error:
                    raise error_from(error, what=f"model {request['model_name']} at {address}") from error
                batch.add(result.as_numpy(plan.output))
            return _stages(batch)

        yield ask


def _requests(plan: BaselinePlan, rows: Rows, *, batch: Batch, dtype: str) -> Iterator[dict[str, Any]]:
    """Member after member about the rows that are open then, while there are any."""
    for member in plan.members:
        if not len(batch.open):
            return
        part = rows if len(batch.open) == len(rows) else rows[batch.open]
        tensor = triton.InferInput(plan.input, list(part.shape), dtype)
        tensor.set_data_from_numpy(part)
        yield {"model_name": member, "inputs": [tensor], "client_timeout": TIMEOUT_S}


def _stages(batch: Batch) -> npt.NDArray[np.int32]:
    stages: npt.NDArray[np.int32] = batch.answers["exit_stage"][:, 0]
    return stages
