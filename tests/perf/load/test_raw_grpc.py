from __future__ import annotations

import numpy as np
from tritonclient.grpc import service_pb2

from perf.load.raw_grpc import outputs_from_bytes, request_bytes, with_parameter


def test_messages_hold_their_row_and_the_next_ones_round_and_round() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    messages = request_bytes("m", rows, input_name="image", batch=2, parameters={"deadline_us": 5})
    assert len(messages) == 3
    last = service_pb2.ModelInferRequest.FromString(messages[2])
    assert (last.model_name, list(last.inputs[0].shape), last.inputs[0].datatype) == ("m", [2, 2], "FP32")
    assert last.parameters["deadline_us"].int64_param == 5
    np.testing.assert_array_equal(np.frombuffer(last.raw_input_contents[0], np.float32), [4, 5, 0, 1])


def test_a_parameter_is_added_to_a_ready_message_and_nothing_else_changes() -> None:
    (plain,) = request_bytes("m", np.ones((1, 2), np.float32), input_name="image", batch=1, parameters={"gear": 1})
    message = service_pb2.ModelInferRequest.FromString(with_parameter(plain, "deadline_at_us", 1 << 50))
    assert message.parameters.pop("deadline_at_us").int64_param == 1 << 50
    assert message == service_pb2.ModelInferRequest.FromString(plain)


def test_answers_are_read_by_name() -> None:
    response = service_pb2.ModelInferResponse()
    for name, values in (("exit_stage", np.array([[1], [0]], np.int32)), ("cost", np.ones((2, 1), np.float32))):
        response.outputs.add(
            name=name, datatype="INT32" if values.dtype == np.int32 else "FP32", shape=values.shape
        )
        response.raw_output_contents.append(values.tobytes())
    found = outputs_from_bytes(response.SerializeToString(), ("exit_stage",))
    assert list(found) == ["exit_stage"]
    np.testing.assert_array_equal(found["exit_stage"], [[1], [0]])
    assert sorted(outputs_from_bytes(response.SerializeToString())) == ["cost", "exit_stage"]
