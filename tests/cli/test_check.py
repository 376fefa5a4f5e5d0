import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from orchestrator.cli.check import check
from orchestrator.errors import RepositoryError
from orchestrator.repository.render import render
from tests.repository.builders import add_member, spec_of

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
APP = typer.Typer()
APP.command()(check)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "model_repository"
    render(spec_of(add_member(repository, "small", seed=1), add_member(repository, "large", seed=2)), repository)
    return repository


def test_a_good_repository_exits_with_zero_and_one_line(repository: Path) -> None:
    result = RUNNER.invoke(APP, ["--repository", str(repository)])
    assert result.exit_code == 0
    assert result.output == "3 models checked: no faults\n"


def test_faults_are_listed_in_a_table_and_exit_with_one(repository: Path) -> None:
    (repository / "small" / "1" / "model.onnx").unlink()
    path = repository / "cascade" / "1" / "cascade.json"
    path.write_text(path.read_text().replace('"dims": [\n        4', '"dims": [\n        2,\n        2'))
    result = RUNNER.invoke(APP, ["--repository", str(repository)])
    assert result.exit_code == 1
    assert "1/model.onnx is missing" in result.output
    # Brackets are text here, not the table's markup.
    assert "expected the plan's [2, 2]" in " ".join(result.output.replace("│", " ").split())
    assert "faults" in result.output.splitlines()[-1]


def test_names_limit_what_is_looked_at(repository: Path) -> None:
    (repository / "notes").mkdir()
    assert RUNNER.invoke(APP, ["--repository", str(repository)]).exit_code == 1
    assert RUNNER.invoke(APP, ["cascade", "--repository", str(repository)]).exit_code == 0


def test_json_is_one_document_also_when_there_are_faults(repository: Path) -> None:
    (repository / "notes").mkdir()
    result = RUNNER.invoke(APP, ["--repository", str(repository), "--json"])
    assert result.exit_code == 1
    value = json.loads(result.output)
    assert (value["passed"], value["faults"][0]["model"]) == (False, "notes")


def test_a_repository_that_is_none_is_an_error_for_the_one_line_seam(tmp_path: Path) -> None:
    result = RUNNER.invoke(APP, ["--repository", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, RepositoryError)
    assert "does not exist" in str(result.exception)
