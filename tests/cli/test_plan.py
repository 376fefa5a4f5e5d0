from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.app import run
from orchestrator.spec import cascade_from_path

ROOT = Path(__file__).parents[2]
MEMBERS = ["digits_small", "digits_medium", "digits_large"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    path = tmp_path_factory.mktemp("records") / "plan.npz"
    repository = str(ROOT / "model_repository")
    assert run(["record", *MEMBERS, "--data", "digits:plan", "-o", str(path), "--repository", repository]) == 0
    return path


def plan(records: Path, output: Path, *options: str) -> int:
    repository = str(ROOT / "model_repository")
    return run(
        ["plan", str(records), "--name", "digits_cascade", "-o", str(output), "--repository", repository, *options]
    )


def test_the_committed_plan_is_what_the_command_finds_on_the_plan_split(records: Path, tmp_path: Path) -> None:
    assert plan(records, tmp_path / "cascade.json", "--max-mean-cost-share", "0.166666") == 0
    found = cascade_from_path(tmp_path / "cascade.json")
    assert found == cascade_from_path(ROOT / "model_repository/digits_cascade/1/cascade.json")
    assert found.fit.split == "digits:plan"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "got no budget"),
        (
            ("--max-mean-cost", "1", "--max-mean-cost-share", "1"),
            2,
            "got --max-mean-cost and --max-mean-cost-share",
        ),
        (("--max-mean-cost-share", "nan"), 2, "--max-mean-cost-share: got nan"),
        (("--max-mean-cost", "-1"), 2, "--max-mean-cost: got -1"),
        (("--max-mean-cost", "5"), 3, "expected at least 12160"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    assert plan(records, tmp_path / "cascade.json", *options) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cascade.json").exists()


def test_an_output_that_is_a_folder_is_refused(records: Path, tmp_path: Path) -> None:
    assert plan(records, tmp_path, "--max-mean-cost", "1e6") == 2
