"""Tokenizers and an image decoder in the real server, asked as other clients do; bad rows fail alone."""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from export.deriving.decoder import decoder_model, rows_of_size
from export.deriving.tokenizer import tokenizer_model
from export.deriving.writing import write_deriving
from export.member import export_committee, member_exports
from export.sources import ExportOptions
from orchestrator.rows.pictures import image_from_bytes, row_from_image
from orchestrator.serving.process import EmbeddedServer
from tests.export.deriving.builders import SHAPES, save_tokenizer
from tests.export.deriving.test_tokens import tokens_of
from tests.export.tables import save_classifier, wine
from tests.rows.broken_pictures import BAD_EXIF, encoded, float_tiff, noise
from tests.servers import running_server

pytestmark = pytest.mark.triton
SIZE, PREPROCESS = rows_of_size((12, 16), shortest_px=16, mode="RGB")
BAD_TEXTS = {
    "not UTF-8": b"\xff", "empty": b"", "10 MB": b"words " * 1_700_000, "one word of 10 MB": b"x" * 10_000_000,
}  # fmt: skip
BAD_PICTURES = {
    "empty": (b"", "no picture that can be read"),
    "text": (b"no picture", "no picture that can be read"),
    "cut off": (encoded(noise(64), "PNG")[:200], "no picture that can be read"),
    "EXIF": (BAD_EXIF["text"], "EXIF that cannot be read"),
    "without a range": (float_tiff(np.zeros((8, 8))), "floats as samples, and no range of them"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deriving")
    for shape in SHAPES:
        model = tokenizer_model(save_tokenizer(folder / "sources" / shape, shape))
        write_deriving(folder / "repository", model, force=False)
    pairs = tokenizer_model(f"hf:{folder / 'sources' / 'bert'}", pair=True)
    write_deriving(folder / "repository", pairs, force=False)
    for kind, name in (("words", "words"), ("boosted", "trees")):
        source = save_classifier(folder / f"{name}.joblib", kind)
        plans = member_exports([f"{name}={source}"], ExportOptions())
        export_committee(folder / "repository", plans, force=False, progress=lambda _: None)
    write_deriving(folder / "repository", decoder_model(SIZE, PREPROCESS, name="image_decoder"), force=False)
    return folder / "repository"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with running_server(repository) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: EmbeddedServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_address) as made:
        yield made


def given(name: str, rows: list[bytes], kind: Any = grpc) -> list[Any]:
    array = np.array(rows, np.object_).reshape(-1, 1)
    tensor = kind.InferInput(name, list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return [tensor]


def sent(client: grpc.InferenceServerClient, model: str, name: str, rows: list[bytes]) -> "Future[Any]":
    """The answer, or the error, of a request that is in flight."""
    future: Future[Any] = Future()

    def done(result: Any, error: InferenceServerException | None) -> None:
        future.set_result(result) if error is None else future.set_exception(error)

    client.async_infer(model, given(name, rows), done)
    return future


@pytest.mark.parametrize("shape", SHAPES)
def test_texts_of_many_lengths_in_flight_get_their_own_tokens(
    client: grpc.InferenceServerClient, repository: Path, shape: str
) -> None:
    model, alone = f"tokenizer_{shape}", tokens_of(repository, shape)
    batches = [[b"word " * (i % 9 + 1), *([b"a longer text, of two rows"] * (i % 3))] for i in range(40)]
    flying = [sent(client, model, "text", batch) for batch in batches]
    for batch, future in zip(batches, flying, strict=True):
        result = future.result(timeout=60)
        for name, array in alone(batch).items():
            assert np.array_equal(result.as_numpy(name), array), name


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_a_bad_text_fails_its_request_in_one_line_and_no_other(
    client: grpc.InferenceServerClient, kind: str
) -> None:
    neighbours = [sent(client, "tokenizer_bert", "text", [b"good"]) for _ in range(8)]
    bad = sent(client, "tokenizer_bert", "text", [b"good", BAD_TEXTS[kind]])
    neighbours += [sent(client, "tokenizer_bert", "text", [b"good"]) for _ in range(8)]
    with pytest.raises(InferenceServerException, match="text: row 1: got ") as caught:
        bad.result(timeout=60)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "\n" not in caught.value.message()
    assert len({future.result(timeout=60).as_numpy("input_ids").tobytes() for future in neighbours}) == 1


def test_pairs_of_texts_in_flight_get_their_own_tokens_and_a_bad_one_is_named(
    client: grpc.InferenceServerClient, repository: Path
) -> None:
    def pair(first: bytes, second: bytes) -> list[Any]:
        return [*given("text", [first]), *given("text_pair", [second])]

    rows = [(b"word " * (i % 7 + 1), b"another text " * (i % 5 + 1)) for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.infer, "tokenizer_bert_pair", pair(*row)) for row in rows]
        bad = pool.submit(client.infer, "tokenizer_bert_pair", pair(b"good", b"\xff"))
    for row, future in zip(rows, asked, strict=True):
        for name, array in tokens_of(repository, "bert_pair")([row]).items():
            assert np.array_equal(future.result().as_numpy(name), array), name
    with pytest.raises(InferenceServerException, match="text_pair: row 0: got byte 0xff"):
        bad.result()


def posted(server: EmbeddedServer, model: str, value: object) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a request as curl makes it."""
    host, _, port = server.http_address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [value]}
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_curl_sends_a_string_and_a_null_is_an_error(server: EmbeddedServer, repository: Path) -> None:
    status, answer = posted(server, "tokenizer_bert", "a sentence, é")
    assert status == 200
    found = {one["name"]: one["data"] for one in answer["outputs"]}
    wanted = tokens_of(repository, "bert")(["a sentence, é".encode()])
    assert found == {name: array.ravel().tolist() for name, array in wanted.items()}
    status, answer = posted(server, "tokenizer_bert", None)
    # Triton's own refusal: it reaches no model.
    assert status >= 400
    assert "\n" not in answer["error"]
    assert posted(server, "tokenizer_bert", "good")[0] == 200


def test_pictures_become_the_rows_that_clients_make(client: grpc.InferenceServerClient) -> None:
    pictures = [encoded(noise(20 + i, seed=i), "PNG" if i % 2 else "JPEG") for i in range(20)]
    flying = [sent(client, "image_decoder", "encoded", pictures[i : i + 2]) for i in range(19)]
    for place, future in enumerate(flying):
        rows = future.result(timeout=60).as_numpy("image")
        assert (rows.dtype, rows.shape) == (np.uint8, (2, 3, 12, 16))
        for row, data in zip(rows, pictures[place : place + 2], strict=True):
            image = image_from_bytes(data, what="picture")
            assert np.array_equal(row, row_from_image(image, PREPROCESS, dtype="uint8", dims=(3, 12, 16)))


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_fails_its_request_in_one_line_and_no_other(
    client: grpc.InferenceServerClient, kind: str
) -> None:
    good = encoded(noise(20), "PNG")
    neighbours = [sent(client, "image_decoder", "encoded", [good]) for _ in range(4)]
    bad, said = BAD_PICTURES[kind]
    failed = sent(client, "image_decoder", "encoded", [good, bad])
    neighbours += [sent(client, "image_decoder", "encoded", [good]) for _ in range(4)]
    with pytest.raises(InferenceServerException, match=f"encoded: row 1: got .*{said}") as caught:
        failed.result(timeout=60)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert len({future.result(timeout=60).as_numpy("image").tobytes() for future in neighbours}) == 1


def test_members_of_text_and_of_tables_answer_as_scikit_learn_does(
    client: grpc.InferenceServerClient, repository: Path
) -> None:
    words, trees = (joblib.load(repository.parent / f"{name}.joblib") for name in ("words", "trees"))
    texts = ["A good FILM", "", "x1 of bad naïve ИЮЛЬ"]
    result = client.infer("words", given("text", [text.encode() for text in texts]))
    assert result.as_numpy("logits") == pytest.approx(words.predict_proba(texts), abs=1e-5)
    rows = wine()[0][::9]
    tensor = grpc.InferInput("features", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    got = client.infer("trees", [tensor]).as_numpy("logits")
    assert got == pytest.approx(trees.predict_proba(rows), abs=1e-5)


def test_requests_share_a_batch(client: grpc.InferenceServerClient) -> None:
    """Texts of different length are rows of one shape, STRING [1], so Triton's batcher takes them together."""
    for model in ("tokenizer_bert", "image_decoder"):
        assert client.get_model_config(model, as_json=True)["config"]["dynamic_batching"]
    statistics = client.get_inference_statistics("tokenizer_bert", as_json=True)["model_stats"][0]
    assert int(statistics["execution_count"]) < int(statistics["inference_count"])


def test_the_http_client_gets_the_same(server: EmbeddedServer, repository: Path) -> None:
    texts = [b"one", b"two of them"]
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        result = client.infer("tokenizer_roberta", given("text", texts, tritonclient.http))
    assert np.array_equal(result.as_numpy("input_ids"), tokens_of(repository, "roberta")(texts)["input_ids"])
