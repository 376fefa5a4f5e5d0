"""`python -m perf readme`: all blocks, or one line and documents that are left alone."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.demo_routes import sentences_from_report
from orchestrator.errors import DataError
from perf.readme import block_from_claims, write_blocks
from perf.studies.reproduce.command import md_from_results
from perf.studies.reproduce.evaluate import results_from_path

ROOT = Path(__file__).parents[2]
README, REPORT = ROOT / "README.md", ROOT / "docs/demo/report.json"
CLAIMS = ROOT / "docs/reproduce/results.json"
PERFORMANCE = ROOT / "docs/performance.md"
TARGETS = ROOT / "perf/verdict.json"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return results_from_path(CLAIMS)


def test_the_headline_says_on_which_pictures_the_single_model_is_the_most_accurate(
    results: dict[str, Any],
) -> None:
    said = " ".join(block_from_claims(results).split())
    assert "single model that is most accurate on the pictures plans are chosen on" in said
    beside = results["against_test_best"]
    assert f"at {100 * beside['difference']:+.2f} points" in said.partition("turns out most accurate")[2]
    same = copy.deepcopy(results)
    same["against_test_best"]["other"] = same["claims"]["headline"][0]["other"]
    assert "is the most accurate one on the test pictures too" in " ".join(block_from_claims(same).split())


def test_more_macs_are_said_to_be_more(results: dict[str, Any]) -> None:
    dear = copy.deepcopy(results)
    dear["claims"]["headline"][0] |= {"macs_factor": 0.17, "macs_factor_ci95": [0.16, 0.2]}
    dear["against_test_best"] |= {"macs_factor": 0.5}
    said = " ".join(block_from_claims(dear).split())
    assert "**5.88 times more MACs** (95 % interval 5.00 to 6.25)" in said
    assert "it takes 2.00 times more MACs, at" in said
    document = " ".join(md_from_results(dear, folder="reproduce").split())
    assert "**5.88 times more MACs** (95 % interval 5.00 to 6.25; " in document
    assert "0.17 times" not in document
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    for route in report["routes"]:
        route["mean_mmacs"] *= 100 if route["kind"] == "cascade" else 1
    assert "The cascade spends 3.87 times more MACs per row than digits_large;" in sentences_from_report(report)[0]


def test_no_headline_is_said_as_plainly(results: dict[str, Any]) -> None:
    none = copy.deepcopy(results)
    none["claims"]["headline"][0] |= {"one": None, "note": "no cheaper plan is ahead"}
    none["against_test_best"] = None
    assert "there is no headline: no cheaper plan is ahead" in " ".join(block_from_claims(none).split())


def without_claims(results: dict[str, Any]) -> str:
    return json.dumps({**results, "claims": {}})


@pytest.mark.parametrize(
    ("spoiled", "text", "says"),
    [
        ("readme", None, "document .*No such file"),
        ("readme", lambda _: "no blocks", "no markers"),
        ("performance", None, "document .*No such file"),
        ("performance", lambda _: "no blocks", "no markers"),
        ("report", None, "report .*committee demo"),
        ("report", lambda _: "[]", "other JSON .*committee demo"),
        ("report", lambda _: "{}", "other JSON .KeyError.*committee demo"),
        ("claims", None, "results .*perf reproduce"),
        ("claims", lambda _: "{}", "expected an object with format .*perf reproduce"),
        ("targets", None, "verdicts .*perf run --full"),
        ("targets", lambda _: "{}", "no list of targets.*perf run --full"),
        ("targets", lambda _: '[{"target": "x"}]', "other JSON .KeyError.*perf run --full"),
        ("claims", without_claims, "other JSON .KeyError: 'headline'.*perf reproduce"),
    ],
)
def test_what_cannot_be_written_is_one_line_and_the_documents_are_left_alone(
    tmp_path: Path, results: dict[str, Any], spoiled: str, text: Callable[[dict[str, Any]], str] | None, says: str
) -> None:
    paths = {"readme": README, "performance": PERFORMANCE}
    paths |= {"report": REPORT, "claims": CLAIMS, "targets": TARGETS}
    for name, path in paths.items():
        paths[name] = tmp_path / name
        if name != spoiled:
            paths[name].write_text(path.read_text())
        elif text is not None:
            paths[name].write_text(text(results))
    before = {name: path.read_text() for name, path in paths.items() if path.exists()}
    with pytest.raises(DataError, match=says) as caught:
        write_blocks(**paths)
    assert "\n" not in str(caught.value)
    assert {name: path.read_text() for name, path in paths.items() if path.exists()} == before
