"""Inference requests as ready bytes: what a load generator may spend per request is the sending alone.

Requests are built once per row set, answers are kept as bytes and read after the load, so that building and
reading messages never holds up what is being timed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

METHOD = "/inference.GRPCInferenceService/ModelInfer"
# Rows of large pictures in batches pass gRPC's default of 4 MiB.
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, kw_only=True)
class FailedRequest:
    """An error in place of an answer.

    Args:
        code: gRPC's name of it.
        text: what the server says.
    """

    code: str
    text: str


def request_bytes(
    model: str,
    rows: npt.NDArray[Any],
    *,
    input_name: str,
    batch: int,
    parameters: Mapping[str, int] | None = None,
) -> list[bytes]:
    """One message per row: that row and the next ones, round and round.

    Args:
        model: Triton name.
        rows: (n, *dims).
        input_name: of the tensor.
        batch: rows per message.
        parameters: of every request, whole numbers.
    """
    twice = np.concatenate([rows, rows[: batch - 1]]) if batch > 1 else rows
    return [
        message_from_rows(model, twice[start : start + batch], input_name=input_name, parameters=parameters)
        for start in range(len(rows))
    ]


def message_from_rows(
    model: str, rows: npt.NDArray[Any], *, input_name: str, parameters: Mapping[str, int] | None = None
) -> bytes:
    """One message with all the rows (n, *dims); arguments as for `request_bytes`."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=input_name, datatype=np_to_triton_dtype(rows.dtype), shape=rows.shape)
    request.raw_input_contents.append(np.ascontiguousarray(rows).tobytes())
    for name, value in (parameters or {}).items():
        request.parameters[name].int64_param = value
    return bytes(request.SerializeToString())


def with_parameter(message: bytes, name: str, value: int) -> bytes:
    """A message from `request_bytes` with one parameter added."""
    # Protobuf reads two messages in a row as one and joins their maps, so the tensor is not encoded again.
    more = service_pb2.ModelInferRequest()
    more.parameters[name].int64_param = value
    return message + bytes(more.SerializeToString())


def outputs_from_bytes(answer: bytes, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The tensors of an answer by name, all of them if no names are given."""
    response = service_pb2.ModelInferResponse.FromString(answer)
    return {
        output.name: np.frombuffer(raw, triton_to_np_dtype(output.datatype)).reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        if names is None or output.name in names
    }


class RawClient:
    """Sends ready messages from one event loop; an error is an answer like any other.

    Args:
        address: host:port of the gRPC endpoint.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._call = self._channel.unary_unary(METHOD)

    async def __aenter__(self) -> "RawClient":
        await self._channel.channel_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def send(self, message: bytes) -> bytes | FailedRequest:
        """The bytes of the answer, or the error."""
        try:
            answer: bytes = await self._call(message)
        except grpc.aio.AioRpcError as error:
            return FailedRequest(code=error.code().name, text=str(error.details()))
        return answer
