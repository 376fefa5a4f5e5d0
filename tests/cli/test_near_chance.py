"""Labels in another order than the members' classes: noted by `record`, refused by `plan` unless it is allowed."""

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.__main__ import run
from orchestrator.planner.records import records_from_path
from orchestrator.spec import cascade_from_path
from tests.cli.planning import plan, write_made
from tests.planner.builders import made_records
from tests.recording.builders import rows_of, write_member

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Bench:
    """A member, and rows labelled with what it answers, in one form or another."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *, classes: int = 10) -> None:
        self.folder, self.capsys = folder, capsys
        self.repository = folder / "repository"
        write_member(self.repository, "a", seed=1, classes=classes, labels=None, even=True, macs=5.0)
        self.images = rows_of(300)
        self.record(np.zeros(300, int))
        self.answers = records_from_path(folder / "out.npz").outputs["a"].argmax(1)

    def record(self, labels: np.ndarray, *options: object, code: int = 0) -> str:
        """Records the rows with labels; gives stdout, or stderr where it failed."""
        np.savez(self.folder / "rows.npz", images=self.images, labels=labels)
        words = ["record", "a", "--data", self.folder / "rows.npz", "-o", self.folder / "out.npz", *options]
        assert run([*map(str, words), "--repository", str(self.repository)]) == code
        out = self.capsys.readouterr()
        return out.err if code else out.out

    def plan(self, *options: object, code: int = 0) -> tuple[str, str]:
        """Plans with the records; gives stdout and stderr."""
        words = ["plan", self.folder / "out.npz", "-o", self.folder / "plan.json", *options]
        assert run([*map(str, words), "--repository", str(self.repository)]) == code
        return self.capsys.readouterr()


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8])
def test_labels_from_1_to_k_are_told_as_such_with_what_to_do_and_that_works(
    bench: Bench, dtype: type[np.generic]
) -> None:
    labels = (bench.answers + 1).astype(dtype)
    error = bench.record(labels, code=2)
    assert "got labels from 1 to 10, expected 0 to 9; they look 1-based: say so with --first-label 1" in error
    assert "accuracy 1.0000" in bench.record(labels, "--first-label", 1)
    assert records_from_path(bench.folder / "out.npz").labels.tolist() == bench.answers.tolist()
    error = bench.record(bench.answers, "--first-label", 1, code=2)
    assert "got labels from 0 to 9, expected 1 to 10" in error


def test_1_based_labels_whose_last_class_is_missing_are_told_by_the_answers(bench: Bench) -> None:
    bench.images = bench.images[bench.answers < 9]
    labels = bench.answers[bench.answers < 9] + 1
    assert "each less 1 fits them: record with --first-label 1" in bench.record(labels)
    # Labels that start at 1 and are right: no word of it.
    bench.images, right = bench.images[labels > 1], labels[labels > 1] - 1
    assert "note" not in bench.record(right)


def test_records_made_elsewhere_with_labels_from_1_to_k_say_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = made_records(0, rows=300)
    path = write_made(tmp_path / "r.npz", labels=made.labels + 1)
    assert plan(path, "--max-mean-cost", "6") == 2
    assert "got labels from 1 to 3, expected 0 to 2; they look 1-based: subtract 1 from each" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("labels", ["words", "none"])
def test_a_first_label_for_no_numbers_is_refused(bench: Bench, labels: str) -> None:
    words = np.array(NUMBERS)[bench.answers]
    if labels == "words":
        assert "got class names, expected numbers" in bench.record(words, "--first-label", 1, code=2)
        return
    np.save(bench.folder / "rows.npy", bench.images)
    error = bench.record(words, "--data", bench.folder / "rows.npy", "--first-label", 1, code=2)
    assert "got no labels, expected numbers" in error


def test_an_alphabetical_order_names_the_class_map_and_no_plan_is_written(bench: Bench) -> None:
    words = np.array(NUMBERS)[bench.answers]
    out = bench.record(words)
    assert "classes are taken in order: eight is 0, ..., zero is 9; if the members have another order" in out
    (note,) = (line for line in out.splitlines() if "near guessing" in line)
    assert "are the labels in the order of the members' classes?" in note
    assert "record with --class-map" in note
    _, error = bench.plan("--max-mean-cost", 6, code=2)
    assert "near guessing (0.1000), expected a plan that is better than guessing" in error
    assert "record with --class-map" in error
    assert not (bench.folder / "plan.json").exists()
    # What no plan can reach is explained by the same note.
    _, error = bench.plan("--min-accuracy", 0.9, code=3)
    assert "record with --class-map" in error
    bench.plan("--max-mean-cost", 6, "--allow-near-chance")
    assert cascade_from_path(bench.folder / "plan.json").labels == tuple(sorted(NUMBERS))


def test_with_the_class_map_it_is_planned_without_a_word_and_has_its_names(bench: Bench) -> None:
    path = bench.folder / "map.txt"
    path.write_text("".join(f"{name}\tthe digit {name}\n" for name in NUMBERS))
    assert "note" not in bench.record(np.array(NUMBERS)[bench.answers], "--class-map", path)
    assert records_from_path(bench.folder / "out.npz").meta["class_names"][3] == "the digit three"
    out, error = bench.plan("--max-mean-cost", 6, "--json")
    assert json.loads(out)["notes"] == []
    assert error == ""
    assert cascade_from_path(bench.folder / "plan.json").labels == tuple(f"the digit {name}" for name in NUMBERS)


def test_one_member_near_guessing_beside_a_better_one_is_a_note_on_stderr_and_in_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = made_records(0, rows=600)
    path = write_made(tmp_path / "r.npz", rows=600, **{"outputs/b": np.roll(made.outputs["c"], 1, axis=1)})
    assert plan(path, "--max-mean-cost", "6", "--json", "-o", tmp_path / "plan.json") == 0
    out, error = capsys.readouterr()
    (note,) = (note for note in json.loads(out)["notes"] if "near guessing" in note)
    assert note.startswith("b: accuracy")
    assert "and others are better" in note
    assert f"note: {note}\n" in error
    assert (tmp_path / "plan.json").is_file()
    # Where labels are not looked at, nothing is said of them.
    assert plan(path, "--label-free", "--epsilon", "0.9", "--json") == 0
    assert "near guessing" not in capsys.readouterr().err


def test_a_plan_that_has_to_take_the_member_near_guessing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = made_records(0, rows=600)
    path = write_made(tmp_path / "r.npz", rows=600, **{"outputs/a": np.roll(made.outputs["c"], 1, axis=1)})
    options = ("--max-mean-cost", "1", "--no-certify", "-o", tmp_path / "plan.json")
    assert plan(path, *options) == 2
    assert "or write it all the same with --allow-near-chance" in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists()
    assert plan(path, *options, "--allow-near-chance") == 0


def test_two_classes_answered_well_are_not_taken_for_guesses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = Bench(tmp_path, capsys, classes=2)
    wrong = np.random.default_rng(0).random(300) < 0.2
    assert "note" not in two.record(two.answers ^ wrong)
