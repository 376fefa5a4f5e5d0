"""What a member's scores are: which output holds them, of which kind they are, and what records keep of it."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.decision import softmax
from orchestrator.planner.records import records_from_path
from orchestrator.spec import manifest_from_path
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.manifest import json_from_manifest
from tests.fakes.kserve import CLASSES, DTYPES, FakeKServe, FakeModel, Slot, cascade, images, member
from tests.fakes.kserve_fronts import GrpcFront
from tests.recording.builders import SIDE, rows_of, write_member

HEAD, OTHER, MARGIN = Slot("head", "FP32", (CLASSES,)), Slot("other", "FP32", (CLASSES,)), Slot("m", "FP32", (1,))
TEXT, MAP = Slot("text", "INT64", (CLASSES,)), Slot("map", "FP32", (2, CLASSES))
FREE = Slot("free", "FP32", (-1,))
PROBABILITIES = Slot("probabilities", "FP32", (CLASSES,))


def model(*outputs: Slot, **changes: Any) -> FakeModel:
    """Its scores are those of the output's name, so that a recording tells which one was asked."""

    def answer(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
        return {one.name: scores(one, len(rows)) for one in outputs}

    inputs = (Slot("image", "FP32", images([0]).shape[1:]),)
    return FakeModel(**{"name": "m", "answer": answer, "inputs": inputs, "outputs": outputs, **changes})


def scores(slot: Slot, rows: int) -> np.ndarray:
    seed = int(hashlib.sha256(slot.name.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng(seed)
    dtype = {"FP32": np.float32, "INT64": np.int64}[slot.dtype]
    return np.repeat(rng.normal(0, 9, (1, *slot.dims)), rows, axis=0).astype(dtype)


def record(tmp_path: Path, one: FakeModel, *words: str) -> int:
    np.savez(tmp_path / "rows.npz", images=images(range(30)))
    with GrpcFront(FakeKServe([one])) as front:
        command = ["record", "m", "--url", front.address, "--data", str(tmp_path / "rows.npz")]
        place = ["-o", str(tmp_path / "out.npz"), "--repository", str(tmp_path / "models")]
        return run([*command, *place, "--cost", "m=1", *words])


@pytest.mark.parametrize(
    ("outputs", "words", "taken"),
    [
        ((HEAD, MARGIN), (), HEAD),
        ((HEAD, OTHER), ("--output-tensor", "m=other"), OTHER),
        ((HEAD, OTHER, MARGIN, TEXT, MAP), ("--output-tensor", "m=head"), HEAD),
        ((HEAD, PROBABILITIES), ("--output-tensor", "m=head"), HEAD),
    ],
)
def test_the_output_that_is_named_or_the_only_one_that_can_be_is_recorded(
    tmp_path: Path, outputs: tuple[Slot, ...], words: tuple[str, ...], taken: Slot
) -> None:
    assert record(tmp_path, model(*outputs), *words) == 0
    records = records_from_path(tmp_path / "out.npz")
    np.testing.assert_array_equal(records.outputs["m"], scores(taken, 30))
    assert records.meta["members"]["m"]["output"] == taken.name


@pytest.mark.parametrize(
    ("outputs", "words", "said"),
    [
        ((HEAD, OTHER), (), "name the one with the scores: --output-tensor m=TENSOR"),
        ((HEAD, OTHER), ("--output-tensor", "m=x"), "got outputs head FP32"),
        ((HEAD, PROBABILITIES), (), "name the one with the scores: --output-tensor m=TENSOR"),
        ((HEAD, TEXT), ("--output-tensor", "m=text"), "expected a floating-point one of [n, classes]"),
        ((HEAD, MAP), ("--output-tensor", "m=map"), "expected a floating-point one of [n, classes]"),
        ((HEAD, MARGIN), ("--output-tensor", "m=m"), f" m=m: got outputs head FP32[-1, {CLASSES}], m "),
        ((HEAD, FREE), ("--output-tensor", "m=free"), "--output-tensor m=free: got outputs head FP32"),
        ((HEAD, OTHER), ("--output-tensor", "k=head"), "--output-tensor: got k, not recorded, expected one of m"),
        ((HEAD, OTHER), ("--output-tensor", "head"), "expected NAME=TENSOR"),
        ((HEAD, OTHER), ("--output-tensor", "m=head", "--output-tensor", "m=other"), "each once"),
    ],
)
def test_an_output_that_cannot_be_it_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outputs: tuple[Slot, ...],
    words: tuple[str, ...],
    said: str,
) -> None:
    assert record(tmp_path, model(*outputs), *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_an_answer_with_all_its_columns_has_its_scores_in_the_probabilities(tmp_path: Path) -> None:
    columns = [Slot(name, one.triton_dtype, (one.width(CLASSES),)) for name, one in ANSWER_COLUMNS.items()]

    def answer(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
        given = {one.name: np.zeros((len(rows), *one.dims), DTYPES[one.dtype]) for one in columns}
        sure = np.eye(CLASSES, dtype=np.float32)[np.arange(len(rows)) % CLASSES]
        return {**given, HEAD.name: scores(HEAD, len(rows)), "probabilities": sure}

    assert record(tmp_path, model(*columns, HEAD, answer=answer)) == 0
    assert records_from_path(tmp_path / "out.npz").meta["members"]["m"]["output"] == "probabilities"


def test_records_keep_how_a_member_without_a_manifest_is_asked(tmp_path: Path) -> None:
    groups = [{"count": 2, "kind": "KIND_CPU"}]
    free = (Slot("image", "FP32", (-1, *images([0]).shape[2:])), Slot("seed", "INT64", (1,)))
    settings = {"instance_group": groups, "input": [{"name": "image"}, {"name": "seed", "optional": True}]}
    assert record(tmp_path, model(HEAD, inputs=free, settings=settings, max_batch_size=8)) == 0
    about = records_from_path(tmp_path / "out.npz").meta["members"]["m"]
    assert about["input"] == {"name": "image", "dtype": "FP32", "dims": list(images([0]).shape[1:])}
    assert (about["output"], about["max_batch_size"], about["instances"]) == ("head", 8, 2)


def test_an_exported_member_keeps_the_output_of_its_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, data = tmp_path / "models", tmp_path / "rows.npz"
    write_member(repository, "m")
    np.savez(data, images=rows_of(8), labels=np.arange(8) % 3)
    words = ["record", "m", "--data", str(data), "-o", str(tmp_path / "o.npz"), "--repository", str(repository)]
    assert run([*words, "--output-tensor", "m=logits"]) == 0
    assert run([*words, "--output-tensor", "m=head"]) == 2
    assert "--output-tensor m=head: got logits in its manifest.json" in capsys.readouterr().err
    # Served with a head more, it is still the manifest's that is asked.
    outputs = (Slot("logits", "FP32", (3,)), Slot("head", "FP32", (3,)))
    served = model(*outputs, inputs=(Slot("image", "UINT8", (3, SIDE, SIDE)),))
    with GrpcFront(FakeKServe([served])) as front:
        assert run([*words, "--url", front.address, "--restart"]) == 0
    np.testing.assert_array_equal(records_from_path(tmp_path / "o.npz").outputs["m"], scores(outputs[0], 8))


def test_a_model_that_only_a_server_can_ask_is_told_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    words = ["record", "m", "--data", "digits:plan", "-o", str(tmp_path / "o.npz")]
    assert run([*words, "--repository", str(tmp_path / "models")]) == 2
    error = capsys.readouterr().err
    assert "ask it where it is served, with --url and --cost m=..., or export it" in error
    assert error.count("\n") == 1


# -- logits or probabilities ------------------------------------------------------------------------------


Scores = Callable[[np.ndarray], np.ndarray]


def logits(rows: np.ndarray) -> np.ndarray:
    keys = rows[:, 0, 0, 0].astype(int)
    return np.stack([np.random.default_rng(key).normal(0, 3, CLASSES) for key in keys]).astype(np.float32)


def probabilities(rows: np.ndarray) -> np.ndarray:
    return softmax(logits(rows))


def sigmoids(rows: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-2 * logits(rows)))).astype(np.float32)


class Recording:
    """Rows, and members of a fake server that give what a test says."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.output = folder, capsys, folder / "out.npz"
        np.savez(folder / "rows.npz", images=images(range(30)))

    def record(
        self, scores: Scores, said: str | None, *words: str, output: str = "probabilities"
    ) -> tuple[int, str]:
        """Exit code and text of recording a served member, whose tensor's name says nothing."""
        with self.served(scores, said, output) as front:
            return self.record_from(front, *words)

    def served(self, scores: Scores, said: str | None, output: str = "probabilities") -> GrpcFront:
        one = member(
            "m",
            answer=lambda rows, parameters: {output: scores(rows)},
            outputs=(Slot(output, "FP32", (CLASSES,)),),
            output_kind=said,
        )
        return GrpcFront(FakeKServe([one]))

    def record_from(self, front: GrpcFront, *words: str) -> tuple[int, str]:
        command = ["record", "m", "--url", front.address, "--cost", "m=1", "--data", f"{self.folder}/rows.npz"]
        code = run([*command, "-o", str(self.output), "--repository", str(self.folder), *words])
        captured = self.capsys.readouterr()
        return code, captured.out + captured.err

    def kind(self) -> str:
        return str(records_from_path(self.output).meta["members"]["m"]["output_kind"])


@pytest.fixture
def recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Recording:
    return Recording(tmp_path, capsys)


@pytest.mark.parametrize("output", ["logits", "probabilities"])
@pytest.mark.parametrize("scores", [logits, probabilities])
def test_a_served_members_kind_is_learned_from_its_configuration_never_from_a_name(
    recording: Recording, scores: Scores, output: str
) -> None:
    code, text = recording.record(scores, scores.__name__, output=output)
    assert code == 0, text
    assert recording.kind() == scores.__name__
    assert "taken for" not in text


@pytest.mark.parametrize("scores", [logits, probabilities])
def test_where_nobody_says_it_the_values_decide_or_the_option_and_a_note_says_so(
    recording: Recording, scores: Scores
) -> None:
    kind = scores.__name__
    code, text = recording.record(scores, None)
    assert code == 0
    assert f"nobody says what m gives: taken for {kind} by its values" in text
    assert recording.kind() == kind
    code, text = recording.record(scores, None, "--output-kind", f"m={kind}")
    assert (code, "taken for" in text, recording.kind()) == (0, False, kind)


@pytest.mark.parametrize(
    ("scores", "said", "words", "says"),
    [
        (probabilities, "logits", [], ("m: got values from", "distributions, expected logits, as parameter")),
        (logits, "probabilities", [], ("no distributions, expected probabilities, as parameter", "config.pbtxt")),
        (logits, None, ["--output-kind", "m=probabilities"], ("as --output-kind says", "leave --output-kind out")),
        (sigmoids, None, [], ("sigmoids, expected logits or probabilities", "classes must exclude each other")),
        (sigmoids, "logits", [], ("sigmoids, expected logits, as parameter", "classes must exclude each other")),
        (sigmoids, "probabilities", [], ("expected probabilities, as parameter",)),
        (logits, "logits", ["--output-kind", "m=probabilities"], ("probabilities by --output-kind, logits by",)),
        (logits, None, ["--output-kind", "n=logits"], ("--output-kind: got n, not recorded",)),
        (logits, None, ["--output-kind", "m=logits"] * 2, ("--output-kind: got 'm=logits'", "m, each once")),
        (logits, None, ["--output-kind", "m=scores"], ("logits or probabilities",)),
    ],
)
def test_scores_that_are_not_what_is_said_are_one_line_and_no_records(
    recording: Recording, scores: Scores, said: str | None, words: list[str], says: tuple[str, ...]
) -> None:
    code, text = recording.record(scores, said, *words)
    assert (code, text.count("\n")) == (2, 1), text
    for word in says:
        assert word in text
    assert not recording.output.exists()


def test_logits_that_only_look_like_something_else_are_recorded_where_the_user_says_so(
    recording: Recording,
) -> None:
    with recording.served(sigmoids, "logits") as front:
        assert recording.record_from(front)[0] == 2
        # The rows that were asked about are kept for it.
        code, text = recording.record_from(front, "--output-kind", "m=logits")
    assert (code, "going on after 30 of 30 rows" in text) == (0, True)
    assert "if these are sigmoids, it fits no cascade" in text
    assert recording.kind() == "logits"


def test_a_manifest_and_a_served_configuration_that_disagree_are_one_line(recording: Recording) -> None:
    write_member(recording.folder, "m", classes=CLASSES, labels=None)
    code, text = recording.record(probabilities, "probabilities")
    assert code == 2
    assert "probabilities by parameter output_kind of its served configuration, logits by its manifest" in text


@pytest.mark.parametrize("random_weights", [False, True])
def test_members_in_this_process_are_held_to_their_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], random_weights: bool
) -> None:
    write_member(tmp_path, "m", output_kind="probabilities", random_weights=random_weights)
    np.savez(tmp_path / "rows.npz", images=rows_of(12))
    words = ["record", "m", "--repository", str(tmp_path), "--data", str(tmp_path / "rows.npz")]
    words += ["-o", str(tmp_path / "out.npz")]
    assert run(words) == 2
    text = capsys.readouterr().err
    assert "member m: got values from" in text
    assert "no distributions, expected probabilities, as its manifest says; export it again" in text
    path = tmp_path / "m/manifest.json"
    path.write_text(json_from_manifest(dataclasses.replace(manifest_from_path(path), output_kind="logits")))
    assert run(words) == 0
    assert records_from_path(tmp_path / "out.npz").meta["members"]["m"]["output_kind"] == "logits"


def test_a_cascade_is_recorded_as_what_it_answers(
    recording: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    with GrpcFront(FakeKServe([cascade()])) as front:
        words = ["record", "digits_cascade", "--url", front.address, "--cost", "digits_cascade=1", "-o"]
        assert run([*words, str(recording.output), "--data", f"{recording.folder}/rows.npz"]) == 0
    assert records_from_path(recording.output).meta["members"]["digits_cascade"]["output_kind"] == "probabilities"
    assert "taken for" not in capsys.readouterr().out


def test_a_recording_of_another_kind_ends_with_its_first_pieces(recording: Recording) -> None:
    np.savez(recording.folder / "rows.npz", images=images(range(4000)))
    with recording.served(logits, "probabilities") as front:
        assert recording.record_from(front)[0] == 2
        assert sum(len(call.rows) for call in front.fake.calls) < 2000
