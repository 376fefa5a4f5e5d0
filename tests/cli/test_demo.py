"""`committee demo --text`: what it plans, serves and says, on few rows and two of its members."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from orchestrator.__main__ import run
from orchestrator.cli import demo_text
from orchestrator.cli.demo_routes import DemoCommittee, sentences_from_report, table_from_report
from orchestrator.planner.records import Records
from orchestrator.repository.index import plan_of

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = ROOT / "perf/text/model_repository"


def test_each_member_is_asked_by_the_model_that_takes_the_rows() -> None:
    few = np.zeros((2, 10), np.float32)
    records = Records(
        ids=np.arange(2),
        labels=np.zeros(2, np.int64),
        outputs={"b": few, "a": few},
        cost={"b": 5.0, "a": 1.0},
        meta={},
    )
    committee = DemoCommittee(
        repository=Path("somewhere"),
        spec=plan_of(ROOT / "model_repository", "digits_cascade"),
        ensemble="all",
        records=records,
        rows=few,
        labels=np.zeros(2, np.int64),
        what="rows",
        asked={"b": "b_from_text"},
    )
    routes = committee.routes()
    assert [(one.name, one.model) for one in routes[:3]] == [("a", "a"), ("b", "b_from_text"), ("all", "all")]
    assert [one.macs for one in routes[:3]] == [1.0, 5.0, 6.0]
    assert routes[-1].kind == "cascade"


def test_rows_per_second_are_told_where_running_the_members_takes_longer_than_calling_them() -> None:
    report = json.loads((ROOT / "docs/demo/report.json").read_text())
    for route in report["routes"]:
        route["requests_per_s"] = 1_230.0 if route["kind"] == "cascade" else 246.0
    assert not any("times as many rows" in one for one in sentences_from_report(report))
    report |= {"with_speed": True, "before": ["first"], "after": ["last"]}
    first, *between, last = sentences_from_report(report)
    assert (first, last) == ("first", "last")
    assert between[-1] == "One row a request, it answers 5.0 times as many rows per second as digits_large."
    console = Console(width=80, record=True)
    console.print(table_from_report(report))
    assert " 1230 " in console.export_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--url", "127.0.0.1:1"], "--url: got --text too"),
        (
            ["--repository", "model_repository/digits_small"],
            "members of texts in model_repository/digits_small: got none",
        ),
    ],
)
def test_what_the_demo_of_texts_cannot_do_is_one_line(
    words: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert run(["demo", "--text", *words, "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # It asks the members about 5,000 rows and starts a server.
def test_it_plans_serves_and_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers", reason="the tokenizer runs here too: make setup")
    for path in MEMBERS.iterdir():
        if path.name != "docstrings_large":
            shutil.copytree(path, tmp_path / "members" / path.name)
    monkeypatch.setattr(demo_text, "TEST_ROWS", 150)
    words = ["--repository", tmp_path / "members", "--output", tmp_path / "out", "--rounds", 1, "--json"]
    assert run(["demo", "--text", *map(str, words)]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [route["name"] for route in report["routes"]]
    assert names == ["docstrings_linear", "docstrings_tiny", "docstrings_ensemble", "docstrings_cascade"]
    assert (report["rows_test"], report["replay_mismatches"]) == (150, 0)
    assert "with probability at least 0.95" in report["before"][0]
    assert report["routes"][-1]["exit_share"][0] > 0.5
    served = plan_of(tmp_path / "out" / "model_repository", "docstrings_cascade")
    assert [one.name for one in served.inputs] == ["text"]
