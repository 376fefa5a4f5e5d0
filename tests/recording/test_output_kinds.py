"""`committee record` holds what members give against what is said of it, in this process and on a server."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.decision import softmax
from orchestrator.planner.records import records_from_path
from orchestrator.spec import manifest_from_path
from orchestrator.spec.manifest import json_from_manifest
from tests.fakes.kserve import CLASSES, FakeKServe, Slot, cascade, images, member
from tests.fakes.kserve_fronts import GrpcFront
from tests.recording.builders import rows_of, write_member

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
        (
            probabilities,
            "logits",
            [],
            ("member m: got values from", "distributions, expected logits, as parameter"),
        ),
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
