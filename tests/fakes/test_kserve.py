import threading
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.fakes.kserve import FakeKServe, cascade, images, member
from tests.fakes.kserve_fronts import GrpcFront, HttpFront

FRONTS = {"grpc": (GrpcFront, triton_grpc), "http": (HttpFront, triton_http)}


class Raw:
    """The stock client against one front, as a Triton user would write it."""

    def __init__(self, fake: FakeKServe, module: object, address: str) -> None:
        self.fake, self.module = fake, module
        self.client = module.InferenceServerClient(address)

    def infer(self, model: str, rows: np.ndarray, **options: object) -> object:
        dtype = {"float32": "FP32", "float64": "FP64"}[str(rows.dtype)]
        sent = self.module.InferInput(str(options.pop("name", "image")), list(rows.shape), dtype)
        sent.set_data_from_numpy(rows)
        return self.client.infer(model, [sent], **options)


@pytest.fixture(params=FRONTS)
def raw(request: pytest.FixtureRequest) -> Iterator[Raw]:
    front_class, module = FRONTS[request.param]
    fake = FakeKServe([cascade(), member()])
    with front_class(fake) as front:
        made = Raw(fake, module, front.address)
        yield made
        made.client.close()


def code_of(error: InferenceServerException) -> str:
    return error.status().removeprefix("StatusCode.")


def test_a_stock_client_gets_every_output_of_a_cascade(raw: Raw) -> None:
    result = raw.infer("digits_cascade", images([3, 14, 25]))
    assert result.as_numpy("label").ravel().tolist() == [3, 4, 5]
    assert result.as_numpy("exit_stage").ravel().tolist() == [0, 1, 2]
    assert result.as_numpy("probabilities").dtype == np.float32


def test_parameters_and_wanted_outputs_arrive(raw: Raw) -> None:
    wanted = [raw.module.InferRequestedOutput("label")]
    result = raw.infer(
        "digits_cascade", images([25]), outputs=wanted, parameters={"max_stage": 1, "threshold_shift": 0.25}
    )
    assert result.as_numpy("status") is None
    call = raw.fake.calls[0]
    assert (call.parameters, call.outputs) == ({"max_stage": 1, "threshold_shift": 0.25}, ("label",))


def test_metadata_config_and_readiness_are_served(raw: Raw) -> None:
    options = {"as_json": True} if raw.module is triton_grpc else {}
    assert raw.client.get_model_metadata("digits_small", **options)["outputs"][0]["name"] == "logits"
    config = raw.client.get_model_config("digits_small", **options)
    assert int(config.get("config", config)["max_batch_size"]) == 8
    assert raw.client.is_server_live()
    assert raw.client.is_server_ready()
    assert raw.client.is_model_ready("digits_small")
    assert not raw.client.is_model_ready("nobody")
    raw.fake.ready = False
    assert not raw.client.is_server_ready()


@pytest.mark.parametrize(
    ("model", "rows", "options", "text"),
    [
        ("digits_small", images([1]).astype(np.float64), {}, "data-type"),
        ("digits_small", images([1])[:, :, :4], {}, "unexpected shape"),
        ("digits_small", images([1])[0], {}, "unexpected shape"),
        ("digits_small", images(range(9)), {}, "batch-size must be <= 8"),
        ("digits_small", images([1]), {"name": "other"}, "unexpected inference input"),
        ("digits_cascade", np.full((1, 1, 8, 8), np.nan, np.float32), {}, "NaN"),
        ("digits_cascade", images([1]), {"parameters": {"speed": 2}}, "speed"),
    ],
)
def test_wrong_requests_are_invalid_arguments(
    raw: Raw, model: str, rows: np.ndarray, options: dict[str, object], text: str
) -> None:
    with pytest.raises(InferenceServerException, match=text) as caught:
        raw.infer(model, np.ascontiguousarray(rows), **options)
    assert code_of(caught.value) in ("INVALID_ARGUMENT", "400")


def test_an_unknown_model_is_not_found(raw: Raw) -> None:
    with pytest.raises(InferenceServerException, match="unknown model") as caught:
        raw.infer("nobody", images([1]))
    assert code_of(caught.value) in ("NOT_FOUND", "404")


@pytest.mark.parametrize(
    ("code", "status"), [("UNAVAILABLE", "503"), ("INTERNAL", "500"), ("UNIMPLEMENTED", "501")]
)
def test_chosen_failures_come_as_often_as_asked_and_no_more(raw: Raw, code: str, status: str) -> None:
    raw.fake.fail_next(2, code, "out of paper")
    for _ in range(2):
        with pytest.raises(InferenceServerException, match="out of paper") as caught:
            raw.infer("digits_small", images([1]))
        assert code_of(caught.value) in (code, status)
    assert raw.infer("digits_small", images([1])).as_numpy("logits").shape == (1, 10)


def test_a_slow_server_is_slow_for_everybody_at_once_and_counts_them() -> None:
    fake = FakeKServe([member()], delay_s=0.2)
    with GrpcFront(fake) as front:
        made = Raw(fake, triton_grpc, front.address)
        threads = [threading.Thread(target=made.infer, args=("digits_small", images([1]))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made.client.close()
    assert fake.most_at_once == 3


def test_a_front_that_stopped_refuses_connections() -> None:
    fake = FakeKServe([member()])
    with GrpcFront(fake) as front:
        made = Raw(fake, triton_grpc, front.address)
        made.infer("digits_small", images([1]))
        front.stop()
        with pytest.raises(InferenceServerException) as caught:
            made.infer("digits_small", images([1]), client_timeout=5)
        made.client.close()
    assert code_of(caught.value) == "UNAVAILABLE"
