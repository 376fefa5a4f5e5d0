"""The stock asyncio client with as little around it as the tests need."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from orchestrator.spec.answer import ANSWER_COLUMNS


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(address)
    try:
        yield client
    finally:
        await client.close()


def tensors_of(given: Mapping[str, npt.NDArray[Any]]) -> list[triton.InferInput]:
    made = []
    for name, array in given.items():
        made.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    return made


async def ask_tensors(
    client: triton.InferenceServerClient, model: str, given: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """What a cascade answers to rows of several tensors, by output."""
    result = await client.infer(model, tensors_of(given), client_timeout=60.0)
    return {name: result.as_numpy(name) for name in ANSWER_COLUMNS}


async def ask(
    client: triton.InferenceServerClient, model: str, rows: npt.NDArray[Any], **parameters: Any
) -> SimpleNamespace:
    """Every output by name; single values lose their last axis."""
    result = await client.infer(
        model, tensors_of({"image": rows}), parameters=parameters or None, client_timeout=40.0
    )
    outputs = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
    return SimpleNamespace(**{k: v if v.shape[1] > 1 else v[:, 0] for k, v in outputs.items()})


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for something to have happened; other tasks go on meanwhile."""
    deadline_s = time.monotonic() + 20
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline_s, f"{what}: it never came"
        await asyncio.sleep(0.02)


async def refusal(
    client: triton.InferenceServerClient, model: str, rows: npt.NDArray[Any], **parameters: Any
) -> tuple[str, str]:
    """As `refused`, of a request for one tensor."""
    return await refused(ask(client, model, rows, **parameters))


async def refused(answer: Awaitable[object]) -> tuple[str, str]:
    """The code and the message of a request that must fail, checked to be one short line without a traceback."""
    try:
        found = await answer
    except InferenceServerException as error:
        message = str(error.message())
        assert message.strip()
        assert "\n" not in message
        assert "Traceback" not in message
        assert len(message) < 4096
        return str(error.status()).removeprefix("StatusCode."), message
    raise AssertionError(f"{found} is the answer to a request that had to be refused")


def joined(parts: list[SimpleNamespace]) -> SimpleNamespace:
    """Answers of several requests as one."""
    return SimpleNamespace(**{k: np.concatenate([getattr(part, k) for part in parts]) for k in vars(parts[0])})
