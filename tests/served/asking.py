"""The stock asyncio client with as little around it as the tests need."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(address)
    try:
        yield client
    finally:
        await client.close()


async def ask(
    client: triton.InferenceServerClient, model: str, rows: npt.NDArray[Any], **parameters: Any
) -> SimpleNamespace:
    """Every output by name; single values lose their last axis."""
    tensor = triton.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    result = await client.infer(model, [tensor], parameters=parameters or None, client_timeout=40.0)
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
    """The code and the message of a request that must fail, checked to be one line without a traceback."""
    try:
        answer = await ask(client, model, rows, **parameters)
    except InferenceServerException as error:
        message = str(error.message())
        assert message.strip()
        assert "\n" not in message
        assert "Traceback" not in message
        return str(error.status()).removeprefix("StatusCode."), message
    raise AssertionError(f"{model} answered {answer} to a request it had to refuse")


def joined(parts: list[SimpleNamespace]) -> SimpleNamespace:
    """Answers of several requests as one."""
    return SimpleNamespace(**{k: np.concatenate([getattr(part, k) for part in parts]) for k in vars(parts[0])})
