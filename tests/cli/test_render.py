import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from orchestrator.cli.render import render
from orchestrator.errors import CommitteeError, RepositoryError, SpecError
from orchestrator.repository.check import check
from orchestrator.spec import json_from_cascade
from tests.repository.builders import add_member, snapshot, spec_of

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
APP = typer.Typer()
APP.command()(render)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "model_repository"
    spec = spec_of(add_member(repository, "small", seed=1), add_member(repository, "large", seed=2))
    (tmp_path / "cascade.json").write_text(json_from_cascade(spec))
    return repository


def run(repository: Path, *arguments: object) -> object:
    return RUNNER.invoke(APP, [*map(str, arguments), "--repository", str(repository)])


def test_a_plan_becomes_a_folder_and_is_checked(repository: Path, tmp_path: Path) -> None:
    result = run(repository, tmp_path / "cascade.json")
    assert result.exit_code == 0, result.output
    files = "labels.txt, 1/cascade.json, 1/model.py, config.pbtxt"
    assert result.output.splitlines()[0] == f"wrote {repository / 'cascade'}: {files}"
    assert result.output.splitlines()[-1] == "3 models checked: no faults"
    again = run(repository, tmp_path / "cascade.json")
    assert "wrote" not in again.output
    # The cascade's four, and a config for either device of its two members.
    assert "8 files already up to date" in again.output


def test_all_members_become_an_ensemble_on_request(repository: Path, tmp_path: Path) -> None:
    result = run(repository, tmp_path / "cascade.json", "--ensemble", "together")
    assert result.exit_code == 0, result.output
    assert (repository / "together" / "1" / ".gitkeep").is_file()
    assert not (repository / "cascade").exists()


def test_without_plans_everything_the_repository_holds_is_rendered(repository: Path, tmp_path: Path) -> None:
    run(repository, tmp_path / "cascade.json")
    run(repository, "--ensemble", "together")
    output = tmp_path / "build" / "compose" / "model_repository"
    result = run(repository, "--standalone", "--output", output)
    assert result.exit_code == 0, result.output
    assert {path.name for path in output.iterdir() if path.is_dir()} == {
        "small", "large", "cascade", "together", "together_mean",
    }  # fmt: skip
    assert (output / "cascade" / "1" / "orchestrator" / "bls" / "model.py").is_file()
    assert check(output)
    # One line per model, however many files the runtime has, and one for the file beside them.
    assert len(result.output.splitlines()) == 7
    assert (output / "committee_probe.py").is_file()


def test_faults_of_what_was_rendered_exit_with_one(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "cascade.json"
    value = json.loads(path.read_text())
    value["stages"][0]["members"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(value))
    result = run(repository, path)
    assert result.exit_code == 1
    assert "plan again" in result.output
    as_json = run(repository, path, "--json")
    assert as_json.exit_code == 1
    document = json.loads(as_json.output)
    assert document["written"] == []
    assert document["check"]["faults"][0]["field"] == "member small"


def test_a_kept_config_is_named(repository: Path, tmp_path: Path) -> None:
    with (repository / "small" / "config.pbtxt").open("a") as file:
        file.write("# tuned\n")
    result = run(repository, tmp_path / "cascade.json")
    assert f"kept {repository / 'small' / 'config.pbtxt'}" in result.output


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["missing.json"], SpecError, "does not exist"),
        ([], RepositoryError, "no plan in it; name a cascade.json"),
        (["--ensemble", "together"], RepositoryError, "got 0 plans, expected one"),
        (["cascade.json", "--output", "out", "--force"], RepositoryError, "expected neither with it"),
        (["cascade.json", "--output", "full"], RepositoryError, "files that no rendering made"),
        (["cascade.json", "--model-version", "0"], RepositoryError, "got 0, expected at least 1"),
        (["cut.json"], SpecError, "line 1 column"),
        (["cascade.json", "--ensemble", "a/b"], SpecError, "expected a model name"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    kind: type[CommitteeError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.json").write_text('{"format": 1')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis").write_text("years of work")
    before = snapshot(tmp_path)
    result = run(repository, *arguments)
    assert type(result.exception) is kind
    assert message in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    assert snapshot(tmp_path) == before


def test_leading_stages_run_in_process_where_that_is_asked_for_and_can_be(
    repository: Path, tmp_path: Path
) -> None:
    path = repository / "cascade" / "1" / "cascade.json"
    for stages in (2, 0):
        result = run(repository, tmp_path / "cascade.json", "--in-process", stages)
        assert result.exit_code == 0, result.output
        assert json.loads(path.read_text()).get("in_process", 0) == stages
    with pytest.raises(
        RepositoryError, match="render --in-process: got 3, expected at most 2, the stages of cascade"
    ):
        raise run(repository, tmp_path / "cascade.json", "--in-process", 3).exception
    before = snapshot(repository)
    add_python_member(repository / "small")
    result = run(repository, tmp_path / "cascade.json", "--in-process", 1)
    assert result.exit_code == 1
    assert "got model.py, expected an ONNX file to run in process; render with fewer stages" in result.output
    assert snapshot(repository)["cascade/1/cascade.json"] == before["cascade/1/cascade.json"]


def add_python_member(folder: Path) -> None:
    """Another model of the same tensors in a member's place."""
    shutil.rmtree(folder)
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text("class TritonPythonModel:\n    pass\n")
    (folder / "config.pbtxt").write_text(
        'backend: "python"\nmax_batch_size: 8\n'
        'input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]\n'
        'output [{ name: "logits" data_type: TYPE_FP32 dims: [3] }]\n'
    )
