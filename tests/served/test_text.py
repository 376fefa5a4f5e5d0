"""A cascade of text on the real server: served equals replay, by our commands too, and what is refused."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as aio
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from orchestrator.__main__ import run
from orchestrator.cli.batch import REFUSED
from orchestrator.planner.records import records_from_path
from tests.commands import printed_by
from tests.served.asking import ask_tensors, client_of, refused
from tests.served.texts import LAST_BUCKET, MEMBERS, MOST_TOKENS, STRICT, TEXT, TOKENIZER, TOKENS, ServedTexts

pytestmark = [pytest.mark.triton, pytest.mark.export, pytest.mark.timeout(120)]
Tensors = dict[str, np.ndarray]


async def all_answered(served: ServedTexts, requests: Iterable[list[int]], in_flight: int = 64) -> int:
    """Asks about texts, so many requests at a time; each answer must be replay's. Gives the number of rows."""
    turns = asyncio.Semaphore(in_flight)
    async with client_of(served.server.grpc_address) as client:

        async def one(places: list[int]) -> int:
            async with turns:
                outputs = await ask_tensors(client, TEXT, {"text": served.rows(*places)})
            # Near a threshold rounding decides, which differs with the rows of a batch.
            sure = np.isin(places, served.sure)
            served.assert_right(np.array(places)[sure], {name: column[sure] for name, column in outputs.items()})
            return int(sure.sum())

        return sum(await asyncio.gather(*(one(places) for places in requests)))


def requests_of(served: ServedTexts, *sizes: int, seed: int = 0) -> list[list[int]]:
    """Every text once for each size, in requests of that many in random order."""
    draws, made = np.random.default_rng(seed), []
    for size in sizes:
        order = draws.permutation(len(served.texts))
        made += [order[start : start + size].tolist() for start in range(0, len(order), size)]
    return made


def test_every_text_is_answered_as_replay_says_with_64_requests_in_flight(served_texts: ServedTexts) -> None:
    rows = asyncio.run(all_answered(served_texts, requests_of(served_texts, 1, 5)))
    assert rows == 2 * len(served_texts.sure) >= 400
    lengths = [len(text) for text in served_texts.texts]
    assert min(lengths) < 20, "no short texts"
    assert max(lengths) > 300, "no long texts"
    assert set(served_texts.answers.exit_stage) == {0, 1, 2}


@pytest.mark.slow  # thousands of rows
def test_thousands_of_rows_in_requests_of_any_size_are_answered_as_replay_says(served_texts: ServedTexts) -> None:
    requests = [one for seed in range(5) for one in requests_of(served_texts, 1, 2, 7, 32, seed=seed)]
    assert asyncio.run(all_answered(served_texts, requests)) == 20 * len(served_texts.sure)


def test_batch_answers_a_table_as_replay_says(
    served_texts: ServedTexts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.npz"
    said = printed_by(
        ["batch", served_texts.table, out, "--model", TEXT, "--text", "body", *at(served_texts)], capsys
    )
    assert f"{len(served_texts.texts)} of {len(served_texts.texts)} rows answered" in said
    with np.load(out) as found:
        sure = served_texts.sure
        assert found["id"].tolist() == list(range(len(served_texts.texts)))
        assert found["label"][sure].tolist() == served_texts.answers.label[sure].tolist()
        assert found["exit_stage"][sure].tolist() == served_texts.answers.exit_stage[sure].tolist()


def test_batch_leaves_out_rows_that_are_refused_and_says_why(
    served_texts: ServedTexts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first that this cascade is ever asked about.
    texts = ["Draw a line", "", None, "Fit a linear model", "\0"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    out = tmp_path / "answers.npz"
    words = ["batch", tmp_path / "in.jsonl", out, "--model", STRICT, "--text", "body", *at(served_texts)]
    assert run([*map(str, words)]) == REFUSED
    assert "2 of 5 rows answered, 3 refused" in capsys.readouterr().out
    with np.load(out) as found:
        assert found["id"].tolist() == [0, 3]
    refused = [json.loads(line) for line in out.with_suffix(".npz.refused.jsonl").read_text().splitlines()]
    reasons = {line["id"]: line["reason"] for line in refused}
    assert "got null" in reasons[2]
    assert all("got a text without a token" in reasons[row] for row in (1, 4)), reasons


def at(served: ServedTexts) -> list[object]:
    return ["--url", served.server.grpc_address, "--repository", served.repository]


def test_infer_names_classes_and_explains(served_texts: ServedTexts, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [served_texts.texts[place] for place in served_texts.sure[:3]]
    printed = printed_by(["infer", "--model", TEXT, *texts, "--json", "--explain", *at(served_texts)], capsys)
    rows = json.loads(printed)["rows"]
    assert [row["label"] for row in rows] == served_texts.answers.label[served_texts.sure[:3]].tolist()
    assert all(row["label_name"] for row in rows)


def test_members_are_recorded_on_the_server_as_in_this_process(
    served_texts: ServedTexts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "records.npz"
    words = ["--data", served_texts.table, "--text", "body", "--derive", TOKENIZER, "--limit", 40, "-o", out]
    printed_by(["record", *MEMBERS, *words, *at(served_texts)], capsys)
    found = records_from_path(out)
    kept = np.searchsorted(served_texts.records.ids.astype(int), found.ids.astype(int))
    for name in MEMBERS:
        np.testing.assert_allclose(found.outputs[name], served_texts.records.outputs[name][kept], atol=1e-4)


LINES = "Get and set the axes of a figure, and draw lines of any width"
IDS = np.array([[2, 5, 6, 3]])
ONES = np.ones_like(IDS)


def text(*values: str | bytes) -> Tensors:
    return {"text": np.array([[value] for value in values], object)}


def tokens(ids: np.ndarray = IDS, mask: np.ndarray | None = None, **more: np.ndarray) -> Tensors:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask, **more}


# The cascade, a request, and words of its only answer.
BAD: dict[str, tuple[str, Tensors, str]] = {
    "empty": (TEXT, text(""), "tokenizer_docstrings: text: row 0: got a text without"),
    "spaces": (STRICT, text("  \t"), "strict_tokenizer: text: row 0: got a text without a token"),
    "not UTF-8, at a member": (
        TEXT,
        text("a", b"\xff\xfe"),
        "input text row 1: got byte 0xff at 0, which is not UTF",
    ),
    "a zero, at a member": (TEXT, text("a", "Draw \0 a line"), "input text row 1: got a zero byte (NUL) at 5"),
    "not UTF-8, at a tokenizer": (STRICT, text(b"cut \xc3"), "got byte 0xc3 at 4, which is not UTF-8"),
    "more tokens than the tokenizer takes": (STRICT, text(f"{LINES}, {LINES}"), f"expected at most {MOST_TOKENS}"),
    "more tokens than the last bucket": (
        STRICT,
        text("a b c d e f g h i j k l m"),
        f"at most {LAST_BUCKET}, the last",
    ),
    "ten megabytes": (TEXT, text(b"x" * 10_000_000), "got 10000000 bytes, expected at most 262144"),
    "one bad text of three": (STRICT, text("Draw a line", b"\xff", "Fit"), "row 1: got byte 0xff at 0"),
    "an id outside the vocabulary": (TOKENS, tokens(IDS * 10**6), "indices element out of data bounds"),
    "a mask that is shorter": (TOKENS, tokens(mask=ONES[:, :2]), "stage 0 member docstrings_tiny"),
    "a mask of zeros": (TOKENS, tokens(mask=ONES * 0), "input attention_mask: got nothing but zeros in row 0"),
    "longer than every bucket": (TOKENS, tokens(np.ones((1, 97), np.int64)), "got length 97, expected at most 96"),
    "no values": (TOKENS, tokens(IDS[:, :0]), "input input_ids: got shape [1, 0]"),
    "other numbers of rows": (TOKENS, tokens(IDS.repeat(2, axis=0), ONES), "batch size"),
    "a missing tensor": (TOKENS, {"input_ids": IDS}, "expected 2 inputs but got 1"),
    "an extra tensor": (TOKENS, tokens(token_type_ids=ONES), "expected 2 inputs but got 3"),
    "another dtype": (TOKENS, tokens(IDS.astype(np.int32), ONES), "INT32"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_one_line_and_neighbours_in_flight_are_answered(
    served_texts: ServedTexts, name: str
) -> None:
    model, tensors, words = BAD[name]

    async def run() -> None:
        async with client_of(served_texts.server.grpc_address) as client:
            bad = [asyncio.create_task(refused(ask_tensors(client, model, tensors))) for _ in range(3)]
            await all_answered(served_texts, requests_of(served_texts, 3)[:40])
            for task in bad:
                code, message = await task
                assert code == "INVALID_ARGUMENT", message
                assert words in message
                assert "try again" not in message

    asyncio.run(run())


def test_what_a_text_may_be_is_answered(served_texts: ServedTexts) -> None:
    """Texts of many tokens are cut, and other letters are text."""

    async def run() -> None:
        async with client_of(served_texts.server.grpc_address) as client:
            for given in (LINES * 50, "\u65e5\u672c\u8a9e" * 2000, "\U0001f600 smile"):
                await ask_tensors(client, TEXT, text(given))
            # A tokenizer reads past it.
            await ask_tensors(client, STRICT, text("zero \0 inside"))

    asyncio.run(run())


def test_ten_megabytes_of_text_over_http_are_refused_too(served_texts: ServedTexts) -> None:
    """As binary data: as JSON they end the frontend of Triton 24.10, SECURITY.md says."""
    tensor = http.InferInput("text", [1, 1], "BYTES")
    tensor.set_data_from_numpy(text(b"x" * 10_000_000)["text"])
    with http.InferenceServerClient(served_texts.server.http_address, network_timeout=60) as client:
        with pytest.raises(InferenceServerException, match="got 10000000 bytes, expected at most 10000"):
            client.infer(STRICT, [tensor])
        assert client.is_server_live()


def any_request(served: ServedTexts, draws: np.random.Generator) -> tuple[str, Tensors]:
    """Texts of any bytes and lengths, or ids and masks of any values, good and bad ones."""
    rows, length = int(draws.integers(1, 4)), int(draws.integers(1, 99))
    if draws.random() < 0.6:
        kinds = (
            lambda: served.texts[draws.integers(len(served.texts))],
            lambda: served.texts[draws.integers(len(served.texts))][: draws.integers(12)],
            lambda: draws.bytes(draws.integers(20)),
            lambda: "".join(map(chr, draws.integers(32, 0x2FFF, draws.integers(40)))),
            lambda: "w " * draws.integers(200),
        )
        return str(draws.choice([TEXT, STRICT])), text(*(kinds[draws.integers(len(kinds))]() for _ in range(rows)))
    ids, mask = draws.integers(0, 4000, (rows, length)), np.ones((rows, length), np.int64)
    ids[0, 0] = draws.choice([2, -1, 10**9], p=[0.9, 0.05, 0.05])
    odd = int(draws.integers(8))
    if odd == 0:
        mask = mask[:, : max(1, length - 2)]
    elif odd == 1:
        mask = draws.integers(0, 2, mask.shape)
    elif odd == 2:
        mask[:, length // 2 :] = 0
    return TOKENS, tokens(ids, mask)


def test_any_request_gets_beside_others_what_it_gets_alone(served_texts: ServedTexts) -> None:
    draws = np.random.default_rng(5)
    requests = [any_request(served_texts, draws) for _ in range(200)]
    turns = asyncio.Semaphore(12)

    async def said(client: aio.InferenceServerClient, model: str, tensors: Tensors) -> object:
        try:
            # In a batch of many bad rows not every one is asked about alone again: UNAVAILABLE.
            async with turns:
                return await ask_tensors(client, model, tensors)
        except InferenceServerException as error:
            return str(error.status())

    async def run() -> tuple[list[object], list[object]]:
        async with client_of(served_texts.server.grpc_address) as client:
            beside = await asyncio.gather(*(said(client, *one) for one in requests))
            return beside, [await said(client, *one) for one in requests]

    refused = 0
    for request, beside, alone in zip(requests, *asyncio.run(run()), strict=True):
        if isinstance(alone, str):
            refused += 1
            assert beside == alone == "StatusCode.INVALID_ARGUMENT", request
        else:
            assert isinstance(beside, dict), (request, beside)
            assert isinstance(alone, dict)
            np.testing.assert_allclose(beside["probabilities"], alone["probabilities"], atol=1e-5)
            np.testing.assert_array_equal(beside["exit_stage"], alone["exit_stage"])
    assert 40 < refused < 160
