import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.errors import DataError, RepositoryError
from orchestrator.spec import manifest_from_path
from perf.__main__ import app
from perf.studies.drawn import DrawnPart
from perf.studies.reproduce import claims
from perf.studies.reproduce.claims import SECTIONS
from perf.studies.reproduce.command import Effort, folder_by_name, md_from_results, require_writable, run
from perf.studies.reproduce.evaluate import RESULTS, TimingLoad, results_from_path
from perf.studies.reproduce.parts import MEMBERS, PartRecorder
from perf.studies.reproduce.plans import CHOICES, choices_from_path
from perf.studies.training import REPOSITORY
from tests.perf.studies.reproduce import builders

DOCS = Path(__file__).parents[4] / "docs/reproduce"
SMALL = Effort(
    rows=250,
    quantiles=5,
    margin_splits=1,
    loads=(TimingLoad(batch=32, rows=64, rounds=2), TimingLoad(batch=1, rows=4, rounds=2)),
)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def reproduced(root: Path, draw: Any = builders.draw, *, again: bool = False) -> Path:
    """Runs everything in a folder with tiny members; gives the folder of results."""
    if not (root / "repository").exists():
        builders.write_members(root / "repository")
    run(
        root / "docs/tiny", effort=SMALL, repository=root / "repository", names=tuple(builders.MEMBERS), draw=draw,
        classes="abcde", cache=root / "cache", command="python -m perf reproduce", say=lambda text: None,
        again=again,
    )  # fmt: skip
    return root / "docs/tiny"


def draw_another_test_part(part: str, rows: int | None) -> DrawnPart:
    return builders.draw(part, rows) if part == "plan" else builders.pictures(99, rows or 250, 20_000)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reproduce")

    def draw(part: str, rows: int | None) -> DrawnPart:
        # The test part is not so much as drawn before the choices are on disk.
        assert part == "plan" or (root / "docs/tiny" / CHOICES).is_file()
        return builders.draw(part, rows)

    return reproduced(root, draw)


def test_the_command_writes_choices_results_a_figure_and_a_document_and_leaves_nothing_else(done: Path) -> None:
    assert sorted(path.name for path in done.iterdir()) == [CHOICES, "frontier.png", RESULTS]
    assert (done / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in done.parent.iterdir()) == ["tiny", "tiny.md"]
    kept = (".records.npz", ".records.npz.recording")
    assert all(path.name.endswith(kept) for path in (done.parents[1] / "cache").iterdir())


def test_every_claim_has_a_table_with_rows_estimates_and_intervals(done: Path) -> None:
    results = results_from_path(done / RESULTS)
    assert set(results["claims"]) == {"headline", *(section.claim for section in SECTIONS)}
    for lines in results["claims"].values():
        assert lines
        for line in lines:
            if line["one"] is None:
                assert line["note"]
                continue
            for key in ("difference", "macs_factor"):
                low, high = line[f"{key}_ci95"]
                assert low <= line[key] <= high
            low, high = line["one"]["accuracy_ci95"]
            assert line["one"]["n"] == SMALL.rows
            assert low <= line["one"]["accuracy"] <= high


def test_the_document_is_what_the_results_render_to(done: Path) -> None:
    text = done.with_name("tiny.md").read_text()
    assert text == md_from_results(results_from_path(done / RESULTS), folder="tiny")


def test_measured_times_stand_beside_the_claims_about_cascades(done: Path) -> None:
    results = results_from_path(done / RESULTS)
    with_plan = [line for claim in ("3", "5") for line in results["claims"][claim] if line["one"]]
    assert with_plan
    for line in with_plan:
        assert set(line["time_factor"]) == {"32", "1"}
        assert all(0 < one["min"] <= one["median"] <= one["max"] for one in line["time_factor"].values())
    assert {"cpu", "cores", "onnxruntime"} <= set(results["machine"])
    assert set(results["drawn_with"]) == {"pillow", "matplotlib"}


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """All of it elsewhere, to be spoiled."""
    shutil.copytree(done.parents[1], tmp_path / "root")
    return tmp_path / "root/docs/tiny"


def test_judging_again_gives_the_same_results_and_keeps_the_times(done: Path, copied: Path) -> None:
    results = json.loads((done / RESULTS).read_text())
    # Of an older format, which had no such line.
    (copied / RESULTS).write_text(json.dumps({**results, "format": 1, "against_test_best": None}))
    reproduced(copied.parents[1], again=True)
    assert json.loads((copied / RESULTS).read_text()) == results
    assert (copied / CHOICES).read_bytes() == (done / CHOICES).read_bytes()


def test_judging_other_pictures_or_choices_again_is_one_line(copied: Path) -> None:
    before = (copied / RESULTS).read_bytes()
    with pytest.raises(DataError, match=r"others than those of the earlier results; draw them with pillow \d"):
        reproduced(copied.parents[1], draw_another_test_part, again=True)
    (copied / CHOICES).write_text((copied / CHOICES).read_text() + " ")
    with pytest.raises(DataError, match="other choices than those of the results"):
        reproduced(copied.parents[1], again=True)
    assert (copied / RESULTS).read_bytes() == before


def test_a_damaged_recording_is_made_again(copied: Path) -> None:
    for path in (copied.parents[1] / "cache").iterdir():
        path.write_bytes(b"PK")
    before = json.loads((copied / RESULTS).read_text())
    reproduced(copied.parents[1], again=True)
    assert json.loads((copied / RESULTS).read_text()) == before


def test_a_place_that_cannot_be_written_is_one_line_before_any_work(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RepositoryError, match="results in"):
        require_writable(tmp_path / "file/results")
    with pytest.raises(RepositoryError, match="results in"):
        require_writable(tmp_path / "file")
    shutil.rmtree(copied)
    copied.with_name("tiny.md").unlink()
    copied.with_name("tiny.md").mkdir()

    def nobody(part: str, rows: int | None) -> DrawnPart:
        raise AssertionError("drawn before the place was looked at")

    with pytest.raises(RepositoryError, match=r"tiny\.md: got a folder"):
        reproduced(copied.parents[1], nobody)


def test_the_folder_one_stands_in_has_a_name_and_the_root_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_by_name(Path()) == folder_by_name(tmp_path) == tmp_path
    assert folder_by_name(Path("docs/reproduce")) == Path("docs/reproduce")
    with pytest.raises(DataError, match="root folder"):
        folder_by_name(Path("/"))


def test_changing_the_test_part_changes_no_choice(done: Path, tmp_path: Path) -> None:
    again = reproduced(tmp_path, draw_another_test_part)
    assert (again / CHOICES).read_bytes() == (done / CHOICES).read_bytes()
    ours, theirs = (json.loads((folder / RESULTS).read_text()) for folder in (done, again))
    assert ours["claims"] != theirs["claims"]
    assert ours["choices_sha256"] == theirs["choices_sha256"]


def test_a_test_part_before_the_choices_or_of_plan_rows_is_refused(done: Path) -> None:
    root = done.parents[1]

    def recorder(draw: Any) -> PartRecorder:
        return PartRecorder(
            repository=root / "repository", names=tuple(builders.MEMBERS), draw=draw, rows=SMALL.rows,
            cache=root / "cache", say=lambda text: None,
        )  # fmt: skip

    plan = recorder(builders.draw).plan_part()
    with pytest.raises(DataError, match="choices written before"):
        recorder(builders.draw).test_part(plan=plan, choices=root / "nothing.json")
    with pytest.raises(DataError, match="250 rows of the plan part"):
        recorder(lambda _, rows: builders.draw("plan", rows)).test_part(plan=plan, choices=done / CHOICES)


def test_missing_members_are_one_line_with_the_command_that_makes_them(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["reproduce", "--repository", str(tmp_path)])
    assert isinstance(result.exception, RepositoryError)
    assert "python -m perf glyphs" in str(result.exception)
    assert f"{len(MEMBERS)} of {len(MEMBERS)} missing" in str(result.exception)


def tables_of(text: str) -> dict[str, list[list[str]]]:
    """Section's title -> the cells of its table, head included."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("|") and "---" not in line:
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def check_numbers(text: str, results: dict[str, Any]) -> int:
    """Reads every table back and compares it with the results; gives the numbers compared."""
    found, count = tables_of(text), 0
    keys = {
        claims.DIFFERENCE[0]: lambda line: [100 * line["difference"], *(100 * x for x in line["difference_ci95"])],
        claims.ACCURACY[0]: lambda line: [
            100 * x for x in (line["one"]["accuracy"], *line["one"]["accuracy_ci95"])
        ],
        claims.FACTOR[0]: lambda line: [line["macs_factor"], *line["macs_factor_ci95"]],
    }
    for section in SECTIONS:
        head, *rows = found[section.title]
        lines = results["claims"][section.claim]
        assert len(rows) == len(lines)
        for row, line in zip(rows, lines, strict=True):
            cells = dict(zip(head, row, strict=True))
            assert cells[""] == line["label"]
            for name in keys.keys() & cells.keys() if line["one"] else ():
                numbers = [float(number) for number in _NUMBER.findall(cells[name])]
                assert numbers == pytest.approx(keys[name](line)[: len(numbers)], abs=0.00501)
                count += len(numbers)
    return count


def test_the_tables_read_back_hold_the_numbers_of_the_results(done: Path) -> None:
    results = results_from_path(done / RESULTS)
    text = done.with_name("tiny.md").read_text()
    assert check_numbers(text, results) > 200
    wrong = json.loads(json.dumps(results))
    line = next(line for line in wrong["claims"]["7"] if line["one"])
    line["difference"] += 0.01
    with pytest.raises(AssertionError):
        check_numbers(text, wrong)


@pytest.mark.skipif(not (DOCS / RESULTS).is_file(), reason="docs/reproduce is not there")
def test_the_committed_document_holds_the_numbers_of_the_committed_results() -> None:
    results = results_from_path(DOCS / RESULTS)
    text = DOCS.with_name("reproduce.md").read_text()
    # What it says of the pictures holds of those that the members were trained on, too.
    manifests = [manifest_from_path(REPOSITORY / name / "manifest.json") for name in MEMBERS]
    assert {one.versions["pillow"] for one in manifests} == {results["drawn_with"]["pillow"]}
    assert text == md_from_results(results, folder="reproduce")
    assert check_numbers(text, results) > 200
    choices = choices_from_path(DOCS / CHOICES)
    assert results["plan_part"] == choices.source
    assert [line["label"] for line in results["claims"]["3"]] == [
        one.label for one in choices.comparisons if one.claim == "3"
    ]
    assert results["plan_part"]["rows"] == results["test_part"]["rows"] == 20_000
