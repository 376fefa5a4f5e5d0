import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.__main__ import run
from tests.cli.digits import digit_spec, fake_server, images, write_plan
from tests.commands import printed_by
from tests.fakes.kserve import CLASSES, FakeKServe, FakeModel, Slot
from tests.fakes.kserve_fronts import GrpcFront, HttpFront
from tests.rows.broken_pictures import BAD_EXIF


@dataclass
class Asking:
    """The command against a fake server."""

    fake: FakeKServe
    grpc: str
    http: str
    repository: Path
    capsys: pytest.CaptureFixture[str]

    def infer(self, *arguments: object, model: str = "digits_cascade", code: int = 0) -> str:
        """Runs the command and gives what it printed, to stderr where it failed."""
        words: list[object] = ["infer", "--model", model, "--repository", self.repository]
        if "--url" not in arguments:
            words += ["--url", self.grpc]
        return printed_by([*words, *arguments], self.capsys, code=code)

    def rows(self, *arguments: object, **options: object) -> list[dict]:
        """The rows of the JSON document."""
        return json.loads(self.infer(*arguments, "--json", **options))["rows"]


@pytest.fixture
def asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Asking]:
    fake = fake_server()
    repository = write_plan(tmp_path / "repository")
    with GrpcFront(fake) as grpc_front, HttpFront(fake) as http_front:
        yield Asking(fake, grpc_front.address, http_front.address, repository, capsys)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(array: np.ndarray, name: str = "rows.npy") -> Path:
        np.save(tmp_path / name, array)
        return tmp_path / name

    return save


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


def test_a_batch_is_printed_row_by_row(asking: Asking, saved: Callable[..., Path]) -> None:
    path = saved(images([3, 14, 25]))
    out = asking.infer(path)
    lines = [cells(line) for line in out.splitlines() if "rows.npy[" in line]
    assert [line[1:4] for line in lines] == [
        ["digit 3", "0.8585", "0"],
        ["digit 4", "0.8585", "1"],
        ["digit 5", "0.8585", "2"],
    ]
    assert [line[4] for line in lines] == ["1,000", "2,000", "3,000"]
    assert all(float(line[5]) > 0 for line in lines)
    assert "status" not in out
    # Every row is a request of its own.
    assert [len(call.rows) for call in asking.fake.calls] == [1] * 3


def test_one_row_needs_no_batch_axis(asking: Asking, saved: Callable[..., Path]) -> None:
    (row,) = asking.rows(saved(images([17])[0]))
    assert (row["label"], row["label_name"], row["exit_stage"], row["cost"]) == (7, "digit 7", 1, 2000)
    assert len(row["probabilities"]) == 10
    assert row["latency_ms"] > 0


def test_http_answers_the_same(asking: Asking, saved: Callable[..., Path]) -> None:
    path = saved(images([3, 25]))
    over_grpc, over_http = asking.rows(path), asking.rows(path, "--url", asking.http, "--http")
    for row in (*over_grpc, *over_http):
        row.pop("latency_ms")
    assert over_grpc == over_http


def test_the_policy_is_sent_and_a_capped_row_says_so(asking: Asking, saved: Callable[..., Path]) -> None:
    out = asking.infer(
        saved(images([25])), "--max-stage", 1, "--min-stage", 1, "--threshold-shift", -0.5, "--deadline-us", 9000
    )
    assert "capped" in out
    assert asking.fake.calls[0].parameters == {
        "min_stage": 1,
        "max_stage": 1,
        "threshold_shift": -0.5,
        "deadline_us": 9000,
    }


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".webp", ".gif", ".pgm"])
def test_a_picture_goes_through_the_plans_preprocessing(asking: Asking, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"seven{ending}"
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0, 0] = round(7 / 16 * 255) + 1
    Image.fromarray(pixels).save(path, **({"lossless": True} if ending == ".webp" else {}))
    (row,) = asking.rows(path)
    assert (row["row"], row["label"]) == (str(path), 7)
    assert asking.fake.calls[0].rows.shape == (1, 1, 8, 8)


def test_a_digit_shows_its_true_label(asking: Asking) -> None:
    (row,) = asking.rows("digit:12")
    assert row["true_label"] == 2
    assert "true label" in asking.infer("digit:12")


def test_a_member_can_be_asked_like_a_cascade(asking: Asking, saved: Callable[..., Path]) -> None:
    (row,) = asking.rows(saved(images([4])), model="digits_small")
    assert (row["label"], row["exit_stage"], row["cost"]) == (4, 0, 0)
    assert "label_name" not in row


def test_parameters_that_a_member_has_no_use_for_are_one_note(asking: Asking, saved: Callable[..., Path]) -> None:
    words = ["infer", str(saved(images([4]))), "--url", asking.grpc, "--repository", str(asking.repository)]
    words += ["--max-stage", "1", "--deadline-us", "900000", "--model"]
    assert run([*words, "digits_small"]) == 0
    note = "note: digits_small has no stages and ignores max_stage, deadline_us\n"
    assert asking.capsys.readouterr().err == note
    assert run([*words, "digits_cascade"]) == 0
    assert asking.capsys.readouterr().err == ""


def test_explain_shows_every_stage_and_where_the_row_leaves(asking: Asking, saved: Callable[..., Path]) -> None:
    (row,) = asking.rows(saved(images([14])), "--explain")
    stages = row["stages"]
    assert [stage["members"] for stage in stages] == [["digits_small"], ["digits_medium"], ["digits_large"]]
    assert [(stage["reached"], stage["exits"]) for stage in stages] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert [stage["exits"] for stage in stages].index(True) == row["exit_stage"]
    assert [stage["threshold"] for stage in stages] == [0.5, 0.5, None]
    assert stages[0]["score"] < 0.5 <= stages[1]["score"]
    assert stages[1]["top"][0][0] == row["label"] == 4
    out = asking.infer(saved(images([14])), "--explain")
    assert [word in out for word in ("passes on", "answers", "not asked", "0.500000")] == [True] * 4


def test_explain_asks_a_member_of_several_outputs_for_the_one_of_the_plan(
    asking: Asking, saved: Callable[..., Path]
) -> None:
    def with_another(model: FakeModel) -> FakeModel:
        def answer(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
            given = model.answer(rows, parameters)
            return {**given, "probabilities": np.full_like(given["logits"], 0.1)}

        outputs = (*model.outputs, Slot("probabilities", "FP32", (CLASSES,)))
        return dataclasses.replace(model, outputs=outputs, answer=answer)

    expected = asking.rows(saved(images([14])), "--explain")[0]["stages"]
    cascade, *members = asking.fake.models
    asking.fake.models = [cascade, *map(with_another, members)]
    assert asking.rows(saved(images([14])), "--explain")[0]["stages"] == expected


def test_explain_needs_a_plan(asking: Asking, saved: Callable[..., Path]) -> None:
    line = asking.infer(saved(images([1])), "--explain", model="digits_small", code=2)
    assert "only cascades can be explained" in line
    assert asking.fake.calls == []


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("missing.npy", "no such file"),
        ("rows.csv", "no such file"),
        ("rows.doc", "expected digit:INDEX, .npy, .png or .jpg"),
        ("digit:x", "expected a whole number"),
        ("digit:-1", "expected a whole number"),
    ],
)
def test_sources_that_are_none_are_one_line(asking: Asking, source: str, text: str) -> None:
    assert text in asking.infer(source, code=2)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (images([1]).astype(np.float64), "got dtype float64, expected float32"),
        (np.zeros((2, 3, 8, 8), np.float32), "got shape [1, 3, 8, 8], expected [n, 1, 8, 8]"),
        (np.zeros(8, np.float32), "rank"),
        (np.zeros((0, 1, 8, 8), np.float32), "at least one row"),
        (np.float32(3), "at least one row"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(
    asking: Asking, saved: Callable[..., Path], array: np.ndarray, text: str
) -> None:
    line = asking.infer(saved(array), code=2)
    assert text in line
    assert "rows.npy" in line


def test_files_that_are_not_what_they_are_called_are_one_line(asking: Asking, tmp_path: Path) -> None:
    for name in ("a.npy", "a.png"):
        path = tmp_path / name
        path.write_bytes(b"nothing of the kind")
        assert name in asking.infer(path, code=2)


@pytest.mark.parametrize("kind", BAD_EXIF)
def test_a_picture_that_breaks_its_decoder_is_one_line(asking: Asking, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "sideways.jpg"
    path.write_bytes(BAD_EXIF[kind])
    assert "sideways.jpg: got EXIF that cannot be read" in asking.infer(path, code=2)


def test_a_refused_row_is_named_in_the_servers_words_and_is_5(asking: Asking, saved: Callable[..., Path]) -> None:
    rows = images([1, 2])
    rows[1] = np.nan
    line = asking.infer(saved(rows), code=5)
    assert "rows.npy[1]" in line
    assert "NaN" in line


def test_an_unknown_model_and_a_missing_server_are_one_line_and_5(
    asking: Asking, saved: Callable[..., Path]
) -> None:
    path = saved(images([1]))
    assert "nobody" in asking.infer(path, model="nobody", code=5)
    for more in ([], ["--http"]):
        assert "check that the server runs" in asking.infer(path, "--url", "127.0.0.1:9", *more, code=5)
    assert "host:port" in asking.infer(path, "--url", "localhost", code=2)


def test_names_with_brackets_survive_the_table(asking: Asking, saved: Callable[..., Path]) -> None:
    path = saved(images([3])[0], "[red]three.npy")
    assert "[red]three.npy" in asking.infer(path)


def test_a_plan_without_class_names_shows_numbers(asking: Asking, saved: Callable[..., Path]) -> None:
    path = asking.repository / "digits_cascade" / "1" / "cascade.json"
    document = json.loads(path.read_text())
    document["labels"] = None
    path.write_text(json.dumps(document))
    assert digit_spec().labels is not None
    assert "digit 3" not in asking.infer(saved(images([3])))
