"""Rows of several tensors, of text, of lengths that vary, and tensors derived for them, over the fake server."""

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.bls import breaker
from orchestrator.bls import door as door_module
from orchestrator.bls.rows import objects, padded, unpadded
from orchestrator.spec import CascadeSpec, InputSpec, Limits, Member, Stage
from orchestrator.spec.answer import DEGRADED
from tests.bls.fixtures import EASY, HARD, K, ask_all, eventually, loaded, two_stages
from tests.bls.kinds import DERIVING, KINDS, PAD, TAIL, Kind, derive, tokens_of
from tests.fakes.triton import FakeTriton, InferenceResponse, Request, TritonError

WIDTH = 2 * K
ONE, SEVERAL, LENGTHS, LATER, AT_ONCE = KINDS


def spec_of(kind: Kind, **limits: Any) -> CascadeSpec:
    return kind.plan(two_stages(limits=Limits(max_batch_size=64, **limits)), WIDTH)


def answering_without(spec: CascadeSpec) -> CascadeSpec:
    """The plan, which goes on where a member fails."""
    return dataclasses.replace(
        spec, stages=tuple(dataclasses.replace(one, on_failure="answer") for one in spec.stages)
    )


def server(kind: Kind, **models: Callable[[Any], Any]) -> FakeTriton:
    said = {
        "small": lambda given: kind.rows(given, WIDTH)[:, :K],
        "large": lambda given: kind.rows(given, WIDTH)[:, K:],
        DERIVING: derive,
    }
    return FakeTriton({**said, **models}, input_name=None)


def asking(kind: Kind, *rows: np.ndarray, **changes: np.ndarray | None) -> Request:
    given = {**kind.tensors(np.stack(rows)), **changes}
    return Request({name: array for name, array in given.items() if array is not None})


def label(response: InferenceResponse) -> list[int]:
    error = response.error()
    assert error is None, error.message()
    return [int(one) for one in response.column("label")[:, 0]]


def refusal(response: InferenceResponse) -> tuple[int, str]:
    error = response.error()
    assert error is not None
    assert "\n" not in error.message()
    return error.code(), error.message()


ODD_TEXT = b"1,2,3,4,5,6"
TEXT = SEVERAL.tensors(np.stack([EASY]))["text"]
X = np.stack([EASY])


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (SEVERAL, {"x": None}, "input x: got no such tensor in the request, expected x [n, 6]"),
        (SEVERAL, {"text": None}, "input text: got no such tensor in the request, expected text [n, 1]"),
        (SEVERAL, {"more": X}, "request: got tensors more, expected x, text"),
        (SEVERAL, {"x": X.repeat(2, axis=0)}, "request: got rows x 2, text 1, expected as many in every tensor"),
        (SEVERAL, {"x": X[:0]}, "input x: got an empty batch"),
        (SEVERAL, {"x": X.astype(np.float64)}, "input x: got dtype float64, expected FP32"),
        (SEVERAL, {"x": X * np.float32("nan")}, "input x: got NaN or infinity in 1 of 1 rows, first row 0"),
        (SEVERAL, {"text": X}, "input text: got dtype float32, expected STRING"),
        (SEVERAL, {"text": TEXT[:, 0]}, "input text: got shape [1], expected [n, 1]"),
        (LENGTHS, {"ids": np.zeros((1, 14), np.float32)}, "input ids: got length 14, expected at most 13, the"),
        (LENGTHS, {"ids": np.zeros((1, 0), np.float32)}, "input ids: got shape [1, 0], expected [n, any]"),
        (LENGTHS, {"mask": np.zeros((1, 7), np.int64)}, "input mask: got nothing but zeros in row 0"),
        (LENGTHS, {"mask": np.zeros((1, 7, 1), np.int64)}, "input mask: got shape [1, 7, 1], expected [n, any]"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_one_line_and_its_neighbours_are_answered(
    tmp_path: Path, kind: Kind, changes: dict[str, Any], words: str
) -> None:
    requests = [asking(kind, EASY), asking(kind, EASY, **changes), asking(kind, HARD, EASY)]
    with loaded(tmp_path, server(kind), spec_of(kind)) as model:
        first, bad, last = ask_all(model, requests)
    assert (label(first), label(last)) == ([0], [2, 0])
    code, message = refusal(bad)
    assert code == TritonError.INVALID_ARG
    assert words in message


def rows_of_lengths(*lengths: int) -> list[Request]:
    """Requests of one hard row each, with tails of these lengths."""
    return [Request(tokens_of(np.stack([HARD]), [length])) for length in lengths]


def test_batches_hold_rows_of_one_bucket_and_are_padded_to_the_longest(tmp_path: Path) -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {"small": [], "large": []}

    def seen(name: str, start: int) -> Callable[[Any], np.ndarray]:
        def said(given: Any) -> np.ndarray:
            shapes[name].append(given["input_ids"].shape)
            return LENGTHS.rows(given, WIDTH)[:, start : start + K]

        return said

    fake = server(LENGTHS, small=seen("small", 0), large=seen("large", K))
    spec = spec_of(LENGTHS, workers_per_stage=1)
    # Buckets end at 7, 10, 11 and 13.
    with loaded(tmp_path, fake, spec) as model:
        responses = ask_all(model, rows_of_lengths(1, 4, 2, 3, 7, 0))
        model._flusher.flush()
    assert [label(one) for one in responses] == [[2]] * 6
    # Rows of 7, 10, 8, 9, 13 and 6 values.
    assert shapes["small"] == [(2, 7), (3, 10), (1, 13)]
    assert sorted(shapes["large"]) == [(1, 13), (2, 7), (3, 10)]
    values, filling = 2 * (2 * 7 + 3 * 10 + 13), 2 * (1 + 2 + 1)
    for name in shapes:
        assert fake.total("committee_values_total", member=name) == values
        assert fake.total("committee_padding_values_total", member=name) == filling


@pytest.mark.parametrize("has_buckets", [True, False])
@pytest.mark.parametrize("hard", [False, True])
def test_tensors_of_unlike_lengths_are_refused_beside_others_as_they_are_alone(
    tmp_path: Path, has_buckets: bool, hard: bool
) -> None:
    spec = spec_of(LENGTHS)
    if not has_buckets:
        spec = dataclasses.replace(spec, inputs=tuple(dataclasses.replace(one, buckets=()) for one in spec.inputs))
    row = HARD if hard else EASY
    padded_by_client = tokens_of(np.stack([row]), [1])
    # The mask says nothing of the last value, which is padding.
    unlike = {**padded_by_client, "ids": np.pad(padded_by_client["ids"], ((0, 0), (0, 1)), constant_values=PAD)}
    with loaded(tmp_path, server(LENGTHS), spec) as model:
        ask_all(model, [asking(LENGTHS, HARD)])
        for _ in range(3):
            (alone,) = ask_all(model, [Request(unlike)])
            # Members complain where ids and mask differ in shape.
            others = [*rows_of_lengths(4, 1, 3), asking(LENGTHS, EASY)]
            first, *good, last = ask_all(model, [Request(unlike), *others, Request(unlike)])
            assert refusal(first) == refusal(last) == refusal(alone)
            assert refusal(alone)[0] == TritonError.INVALID_ARG
            assert [label(one) for one in good] == [[2]] * 3 + [[0]]


def test_a_plan_of_one_tensor_has_no_metric_of_padding(tmp_path: Path) -> None:
    fake = FakeTriton({"small": lambda rows: rows[:, :K], "large": lambda rows: rows[:, K:]})
    with loaded(tmp_path, fake):
        assert not [name for name, _ in fake.metrics if name.startswith("committee_padding")]


def test_a_table_full_of_bytes_refuses_unsure_rows_and_lets_go_of_what_it_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_module, "MOST_WAIT_S", 0.05)
    gate = threading.Event()

    def held(given: Any) -> np.ndarray:
        assert gate.wait(10)
        return LATER.rows(given, WIDTH)[:, K:]

    spec = spec_of(LATER, max_deferred_bytes=100, max_deferred_rows=1000)
    with loaded(tmp_path, server(LATER, large=held), spec) as model:
        first = asking(LATER, *[HARD] * 8)
        assert model.execute([first]) is None
        easy, hard = asking(LATER, EASY), asking(LATER, HARD)
        listed = model.execute([easy, hard])
        assert label(listed[0]) == [0]
        code, message = refusal(listed[1])
        assert code == TritonError.UNAVAILABLE
        assert "limits.max_deferred_bytes does (100)" in message
        gate.set()
        assert first.sender.done.wait(10)
        eventually(lambda: model._scheduler.bytes_in_table == 0)
        assert label(ask_all(model, [asking(LATER, HARD)])[0]) == [2]
        assert all(one is None for one in model._scheduler._inputs._columns["text"][:, 0])


def test_bytes_bound_rows_of_one_size_too() -> None:
    spec = two_stages(limits=Limits(max_deferred_rows=16, max_deferred_bytes=100))
    assert spec.most_deferred == (4, None)
    assert two_stages().most_deferred == (16, None)
    assert spec_of(LATER).most_deferred == (2048, 1 << 30)


@pytest.mark.parametrize("kind", [LATER, AT_ONCE], ids=lambda kind: kind.name)
def test_a_tensor_is_derived_once_per_row_at_the_first_stage_that_reads_it(tmp_path: Path, kind: Kind) -> None:
    fake = server(kind)
    with loaded(tmp_path, fake, spec_of(kind)) as model:
        assert [label(one) for one in ask_all(model, [asking(kind, EASY, HARD), asking(kind, HARD)])] == [
            [0, 2],
            [2],
        ]
        model._flusher.flush()
    derived = sum(rows for name, rows in fake.asked if name == DERIVING)
    assert derived == (2 if kind is LATER else 3)
    assert fake.total("committee_cost_total") == 3 * 1.0 + 2 * 10.0 + derived * 5.0


def test_a_stage_after_that_reads_the_same_tensors_does_not_derive_them_again(tmp_path: Path) -> None:
    two = two_stages()
    unsure = dataclasses.replace(two.stages[1], threshold=0.9)
    last = Stage(members=(Member(name="last", output="logits", cost=100.0),))
    spec = LATER.plan(dataclasses.replace(two, stages=(two.stages[0], unsure, last)), WIDTH)
    said = {"large": lambda given: LATER.rows(given, WIDTH)[:, :K] * 0, "last": server(LATER).members["large"]}
    fake = server(LATER, **said)
    with loaded(tmp_path, fake, spec) as model:
        assert label(ask_all(model, [asking(LATER, HARD, EASY, HARD)])[0]) == [2, 0, 2]
    assert sum(rows for name, rows in fake.asked if name == DERIVING) == 2
    assert sum(rows for name, rows in fake.asked if name == "last") == 2


def fails(given: Any) -> Any:
    raise RuntimeError("no such word")


def fewer(given: Any) -> Any:
    return {name: output[1:] for name, output in derive(given).items()}


def odd(given: Any) -> Any:
    return {name: output.astype(np.float64) for name, output in derive(given).items()}


def long(given: Any) -> Any:
    made = derive(given)
    return {
        name: np.concatenate([output, np.ones((len(output), 9), output.dtype)], 1) for name, output in made.items()
    }


BAD = {
    "fails": (fails, "tokens: no such word", TritonError.UNAVAILABLE),
    "fewer rows": (fewer, "tokens: output input_ids is float32 [", TritonError.UNAVAILABLE),
    "another dtype": (odd, "tokens: output input_ids is float64", TritonError.UNAVAILABLE),
    "too long": (long, "tokens: ids: got length", TritonError.INVALID_ARG),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", [LATER, AT_ONCE], ids=lambda kind: kind.name)
def test_a_deriving_model_that_fails_counts_as_the_members_that_read_what_it_makes(
    tmp_path: Path, name: str, kind: Kind
) -> None:
    model, words, expected = BAD[name]
    fake = server(kind, **{DERIVING: model})
    with loaded(tmp_path / "error", fake, spec_of(kind)) as cascade:
        easy, hard = ask_all(cascade, [asking(kind, EASY), asking(kind, HARD)])
        cascade._flusher.flush()
    code, message = refusal(hard)
    assert code == expected
    assert words in message
    assert "stage 1 member large" in message if kind is LATER else "stage 0 member small" in message
    assert (label(easy) == [0]) if kind is LATER else refusal(easy)
    assert fake.total("committee_member_failures_total", member=DERIVING) == (1 if kind is LATER else 2)
    assert not [model for model, _ in fake.asked if model == ("large" if kind is LATER else "small")]
    if kind is LATER:
        with loaded(
            tmp_path / "answer", server(kind, **{DERIVING: model}), answering_without(spec_of(kind))
        ) as cascade:
            (response,) = ask_all(cascade, [asking(kind, HARD)])
        assert label(response) == [0]
        assert int(response.column("status")[0, 0]) & DEGRADED


def left_out(given: Any) -> Any:
    return {name: output[given["words"][:, 0] != ODD_TEXT] for name, output in derive(given).items()}


def without_mask(given: Any) -> Any:
    made = derive(given)
    return made if ODD_TEXT not in given["words"] else {"input_ids": made["input_ids"]}


def in_other_bits(given: Any) -> Any:
    made = derive(given)
    return made if ODD_TEXT not in given["words"] else {name: one.astype(np.int32) for name, one in made.items()}


@pytest.mark.parametrize("derives", [left_out, without_mask, in_other_bits])
def test_a_text_that_makes_odd_outputs_fails_its_request_alone(
    tmp_path: Path, derives: Callable[[Any], Any]
) -> None:
    fake = server(AT_ONCE, **{DERIVING: derives})
    bad = asking(AT_ONCE, EASY, text=np.array([[ODD_TEXT]], object))
    with loaded(tmp_path, fake, spec_of(AT_ONCE)) as model:
        first, refused, last = ask_all(model, [asking(AT_ONCE, EASY), bad, asking(AT_ONCE, HARD)])
    assert (label(first), label(last)) == ([0], [2])
    assert refusal(refused)[0] == TritonError.INVALID_ARG


def test_one_bad_text_fails_its_request_alone(tmp_path: Path) -> None:
    fake = server(AT_ONCE)
    bad = asking(AT_ONCE, EASY, text=np.array([[b"no number"]], object))
    with loaded(tmp_path, fake, spec_of(AT_ONCE)) as model:
        first, refused, last = ask_all(model, [asking(AT_ONCE, EASY), bad, asking(AT_ONCE, HARD)])
    assert (label(first), label(last)) == ([0], [2])
    code, message = refusal(refused)
    assert code == TritonError.INVALID_ARG
    assert message.startswith("stage 0 member small: tokens: could not convert string to float")
    assert "try again" not in message


def test_a_missing_deriving_model_is_a_missing_member(tmp_path: Path) -> None:
    fake = server(LATER)
    del fake.members[DERIVING]
    with loaded(tmp_path, fake, spec_of(LATER)) as model:
        easy, hard = ask_all(model, [asking(LATER, EASY), asking(LATER, HARD)])
    assert label(easy) == [0]
    assert refusal(hard)[0] == TritonError.UNAVAILABLE
    assert "tokens" in refusal(hard)[1]


@pytest.mark.parametrize("kind", [LATER, AT_ONCE], ids=lambda kind: kind.name)
def test_a_deriving_model_that_hangs_is_given_up_and_asked_again_when_it_works(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "PROBE_S", 0.02)
    goes_on = threading.Event()

    def hangs(given: Any) -> Any:
        assert goes_on.wait(10)
        return derive(given)

    fake = server(kind, **{DERIVING: hangs})
    with loaded(tmp_path, fake, spec_of(kind, member_timeout_ms=50)) as model:
        (hard,) = ask_all(model, [asking(kind, HARD)])
        code, message = refusal(hard)
        assert code == TritonError.UNAVAILABLE
        assert "tokens: no answer within 50 ms" in message
        lost = lambda: (model._flusher.flush(), fake.total("committee_calls_out", member=DERIVING))[1]  # noqa: E731
        assert lost() == 1
        goes_on.set()
        eventually(lambda: lost() == 0)
        assert fake.total("committee_calls_out") == 0
        (again,) = ask_all(model, [asking(kind, HARD)])
    assert label(again) == [2]


def test_a_deriving_models_breaker_opens_and_a_probe_closes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "PROBE_S", 0.02)
    monkeypatch.setattr(breaker, "LEAST_CALLS", 3)
    does = [fails]
    fake = server(LATER, **{DERIVING: lambda given: does[0](given)})
    with loaded(tmp_path, fake, spec_of(LATER)) as model:
        for _ in range(3):
            ask_all(model, [asking(LATER, HARD)])
        eventually(lambda: "tokens: not asked, most of its calls fail" in refusal(
            ask_all(model, [asking(LATER, HARD)])[0])[1])  # fmt: skip
        does[0] = derive
        eventually(lambda: ask_all(model, [asking(LATER, HARD)])[0].error() is None)


def test_rows_keep_one_length_in_all_tensors_of_a_deriving_model() -> None:
    tensors = {one.name: one for one in LENGTHS.inputs(WIDTH)}
    tensors["types"] = dataclasses.replace(tensors["mask"], name="types")
    ids = np.array([[1, 2, PAD, PAD], [PAD, PAD, PAD, PAD], [1, 2, 3, TAIL]], np.float32)
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    made = unpadded({"ids": ids, "mask": mask, "types": mask * 0}, tensors)
    assert [row.tolist() for row in made["ids"]] == [[1, 2, PAD], [PAD], [1, 2, 3, TAIL]]
    assert [row.tolist() for row in made["mask"]] == [[1, 1, 1], [0], [1, 1, 1, 1]]
    assert [len(row) for row in made["types"]] == [3, 1, 4]
    again, filling = padded(made["ids"], tensors["ids"])
    np.testing.assert_array_equal(again, ids)
    assert filling == 1 + 3


def test_a_length_may_be_any_axis() -> None:
    tensor = InputSpec(name="x", dtype="FP32", dims=(2, -1, 3), pad=9)
    rows = [np.ones((2, length, 3), np.float32) for length in (1, 3)]
    column, filling = padded(objects(rows), tensor)
    assert column.shape == (2, 2, 3, 3)
    assert filling == 2 * 2 * 3
    assert (column[0, :, 1:] == 9).all()
    back = unpadded({"x": column}, {"x": tensor})["x"]
    assert [row.shape for row in back] == [(2, 1, 3), (2, 3, 3)]


def test_a_deriving_models_file_is_watched_as_a_members_is(tmp_path: Path) -> None:
    path = tmp_path / "repository" / DERIVING / "1" / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text("derives")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    spec = spec_of(LATER)
    spec = dataclasses.replace(spec, derived=(dataclasses.replace(spec.derived[0], sha256=digest),))
    fake = server(LATER)
    with loaded(tmp_path, fake, spec) as model:
        assert label(ask_all(model, [asking(LATER, HARD)])[0]) == [2]
        path.write_text("derives otherwise")
        eventually(lambda: ask_all(model, [asking(LATER, EASY)])[0].error() is not None)
        code, message = refusal(ask_all(model, [asking(LATER, EASY)])[0])
    assert code == TritonError.UNAVAILABLE
    assert "member tokens is not as planned" in message
    assert not [line for line in fake.log if "probe" in line], fake.log
    # Asked for rows alone, not by the watch.
    assert [rows for name, rows in fake.asked if name == DERIVING] == [1]
