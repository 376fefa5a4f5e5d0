"""`committee infer` about words, numbers and several inputs at once, against a fake server."""

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage
from orchestrator.spec.derived import Derived, DerivedTensor
from tests.cli.digits import write_plan
from tests.commands import printed_by
from tests.fakes.kserve import (
    CASCADE_OUTPUTS,
    FakeKServe,
    FakeModel,
    Slot,
    cascade_answer,
    images,
    text_answer,
    text_cascade,
)
from tests.fakes.kserve_fronts import GrpcFront, HttpFront

Infer = Callable[..., str]
FEATURES, TOKENS = Slot("features", "FP32", (3,)), Slot("input_ids", "INT64", (-1,))


def by_sum(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
    return cascade_answer(images(rows.sum(axis=1).astype(int)), {})


def by_text_and_sum(rows: dict[str, np.ndarray], parameters: object) -> dict[str, np.ndarray]:
    assert set(rows) == {"text", "input_ids"}
    keys = [len(text) + ids.sum() for (text,), ids in zip(rows["text"], rows["input_ids"], strict=True)]
    return cascade_answer(images(keys), {})


@pytest.fixture
def fronts() -> Iterator[SimpleNamespace]:
    models = [
        text_cascade(),
        text_cascade("table", inputs=(FEATURES,), answer=by_sum),
        text_cascade("both", inputs=(Slot("text", "BYTES", (1,)), TOKENS), answer=by_text_and_sum),
        text_cascade("pictures", answer=lambda rows, parameters: text_answer(rows, parameters)),
    ]
    fake = FakeKServe(models)
    with GrpcFront(fake) as grpc, HttpFront(fake) as http:
        yield SimpleNamespace(fake=fake, grpc=grpc.address, http=http.address)


@pytest.fixture
def infer(fronts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Infer:
    """Runs the command; gives what it printed, to stderr where it failed."""

    def asked(*words: object, model: str = "reviews", code: int = 0, http: bool = False) -> str:
        where = ["--url", fronts.http, "--http"] if http else ["--url", fronts.grpc]
        options = ["infer", "--model", model, *where, "--repository", tmp_path]
        return printed_by([*options, *words], capsys, code=code)

    return asked


def labels(printed: str) -> dict[str, int]:
    return {row["row"]: row["label"] for row in json.loads(printed)["rows"]}


@pytest.mark.parametrize("http", [False, True])
def test_sentences_are_rows_over_both_protocols(infer: Infer, http: bool) -> None:
    texts = ["a sentence", "", 'quotes "and"\nlines', "\N{GRINNING FACE}", "see reviews.csv", "digit:3", "1,2,3"]
    found = labels(infer("--json", "--", *texts, http=http))
    assert found == {text: len(text.encode()) % 10 for text in texts}


def test_long_texts_and_line_ends_stay_one_line_of_the_table(infer: Infer) -> None:
    out = infer("two\nlines", "x" * 500)
    assert "two\\nlines" in out
    assert "x" * 60 + "..." in out
    assert "x" * 61 not in out


def test_lines_of_stdin_are_rows(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    def stdin(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    stdin(b"one\n\nthree \r\nin.csv")
    assert list(labels(infer("first", "-", "--json"))) == ["first", "one", "", "three ", "in.csv"]
    stdin(b"fine\nbad \xff\n")
    assert "got byte 0xff after 4 characters, expected UTF-8" in infer("-", code=2)
    stdin(b"")
    assert "stdin: got no lines" in infer("-", code=2)


def test_a_table_is_read_as_everywhere(infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("review,x,y,z\none,1,2,3\nthree,4,5,6\n")
    path = tmp_path / "in.csv"
    assert labels(infer(path, "--text", "review", "--json")) == {f"{path}[0]": 3, f"{path}[1]": 5}
    assert labels(infer(path, "--columns", "z,y,x", "--json", model="table")) == {f"{path}[0]": 6, f"{path}[1]": 5}
    assert "expected a column of text; see --text" in infer(path, code=2)
    assert "got no such file" in infer(tmp_path / "absent.csv", code=2)
    (tmp_path / "in.jsonl").write_text('{"text": null}\n')
    assert "row 0 (line 1) text: got null" in infer(tmp_path / "in.jsonl", code=2)


def test_numbers_with_commas_are_a_row_of_a_model_of_numbers(infer: Infer) -> None:
    assert labels(infer("--json", "--", "-1, 2.5,3.5", "1e0,2,3", model="table")) == {
        "-1, 2.5,3.5": 5,
        "1e0,2,3": 6,
    }
    assert "got 2 numbers, expected 3" in infer("1,2", code=2, model="table")
    assert "number 1: got 'x', expected a number" in infer("1,x,3", code=2, model="table")
    assert "an unknown kind of row" in infer("a sentence", code=2, model="table")
    assert "number 2: got 1e+40, expected a number that float32 holds" in infer("1,2,1e40", code=2, model="table")


def test_an_object_is_a_row_of_a_model_of_numbers_as_it_is_a_line_of_a_table(infer: Infer) -> None:
    whole, named = '{"features": [1, 2, 3]}', '{"a": 4, "b": 5, "c": 6}'
    assert labels(infer(whole, named, "--json", model="table")) == {whole: 6, named: 5}
    assert labels(infer(named, "--json", "--columns", "c,b", "--columns", "a", model="table")) == {named: 5}
    assert "got no JSON" in infer('{"features": [1, 2', code=2, model="table")
    # Of a model of text it is a text.
    assert labels(infer(whole, "--json")) == {whole: len(whole) % 10}


def test_a_model_of_several_inputs_is_asked_with_json(infer: Infer) -> None:
    row = '{"input_ids": [1, 2, 3], "text": "ab"}'
    assert labels(infer(row, "--json", model="both")) == {row: 8}
    assert "expected a column input_ids" in infer('{"text": "a"}', code=2, model="both")
    assert "got no JSON" in infer("a sentence", code=2, model="both")
    assert "input_ids: got 'x', expected a number" in infer(
        '{"input_ids": ["x"], "text": ""}', code=2, model="both"
    )


def test_what_each_stage_makes_of_a_text_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids, text = Slot("ids", "INT64", (-1,)), Slot("text", "BYTES", (1,))

    def logits(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {"logits": np.stack([-sums, sums], axis=1).astype(np.float32)}

    scores = (Slot("logits", "FP32", (2,)),)
    short = FakeModel(
        "short", lambda rows, _: logits(np.array([len(one) - 3 for (one,) in rows])), (text,), scores
    )
    sums = FakeModel("sums", lambda rows, _: logits(rows.sum(axis=1) - 5), (ids,), scores)
    tokenizer = FakeModel("tok", lambda rows, _: {"tokens": np.array([[len(rows[0, 0])] * 2])}, (text,), (
        Slot("tokens", "INT64", (-1,)),
    ))  # fmt: skip
    cascade = text_cascade("reviews", outputs=tuple(
        Slot(one.name, one.dtype, (2,)) if one.name == "probabilities" else one for one in CASCADE_OUTPUTS
    ))  # fmt: skip
    spec = CascadeSpec(
        name="reviews", classes=2, inputs=(InputSpec(name="text", dtype="STRING", dims=(1,)),),
        derived=(Derived(name="tok", inputs={"text": "text"}, outputs=(
            DerivedTensor(name="ids", dtype="INT64", dims=(-1,), source="tokens"),
        )),),
        stages=(
            Stage(members=(Member(name="short", output="logits", inputs={"text": "text"}),), threshold=0.999),
            Stage(members=(Member(name="sums", output="logits", inputs={"ids": "ids"}),)),
        ),
    )  # fmt: skip
    write_plan(tmp_path, spec)
    with GrpcFront(FakeKServe([cascade, short, sums, tokenizer])) as front:
        words = ["infer", "-m", "reviews", "--url", front.address, "--repository", str(tmp_path), "--explain"]
        assert run([*words, "--json", "abcd"]) == 0, capsys.readouterr()
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert [stage["members"] for stage in row["stages"]] == [["short"], ["sums"]]
    assert [stage["top"][0][0] for stage in row["stages"]] == [1, 1]


def test_json_by_curl_answers_the_same(fronts: SimpleNamespace, infer: Infer) -> None:
    body = {"inputs": [{"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["a sentence", "another"]}]}
    url = f"http://{fronts.http}/v2/models/reviews/infer"
    ran = subprocess.run(["curl", "-s", url, "-d", json.dumps(body)], capture_output=True, check=True, timeout=20)
    found = {one["name"]: one["data"] for one in json.loads(ran.stdout)["outputs"]}
    assert found["label"] == list(labels(infer("a sentence", "another", "--json")).values())
