import os
from pathlib import Path

import pytest

from orchestrator.errors import RepositoryError
from orchestrator.serving.control import ModelEntry, check_models, scan_repository
from tests.serving.models import add_python


def add(repository: Path, name: str, config: str | None, *files: str) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.mark.parametrize(
    ("config", "files", "backend"),
    [
        ('backend: "onnxruntime"', [], "onnxruntime"),
        ('platform: "onnxruntime_onnx"', [], "onnxruntime"),
        ('platform: "tensorrt_plan"', [], "tensorrt"),
        ('platform: "ensemble"', [], "ensemble"),
        (None, ["1/model.onnx"], "onnxruntime"),
        ("max_batch_size: 4", ["1/model.plan"], "tensorrt"),
        (None, ["1/model.py"], "python"),
        (None, ["2/model.pt"], "pytorch"),
        (None, ["1/something.else"], None),
        ('backend: "of_the_future" future_field: 7', [], "of_the_future"),
    ],
)
def test_the_backend_is_what_triton_will_take_it_for(
    tmp_path: Path, config: str | None, files: list[str], backend: str | None
) -> None:
    add(tmp_path, "model", config, *files)
    assert scan_repository(tmp_path) == (ModelEntry(name="model", backend=backend),)


def test_a_python_model_may_call_whom_its_files_name(tmp_path: Path) -> None:
    add(tmp_path, "small", None, "1/model.onnx")
    add(tmp_path, "smaller", None, "1/model.onnx")
    add(tmp_path, "large", None, "1/model.onnx")
    add(tmp_path, "teacher", None, "1/model.onnx")
    caller = add_python(tmp_path, "cascade", 'MODEL = "large"', config='parameters { key: "t" }')
    (caller / "1" / "cascade.json").write_text('{"members": [{"name": "small"}]}')
    assert {model.name: model.calls for model in scan_repository(tmp_path)} == {
        "small": (),
        "smaller": (),
        "large": (),
        "teacher": (),
        "cascade": ("large", "small"),
    }


def test_an_ensemble_calls_its_steps(tmp_path: Path) -> None:
    add(tmp_path, "first", None, "1/model.onnx")
    add(tmp_path, "both", 'platform: "ensemble" ensemble_scheduling { step [{ model_name: "first" }] }')
    assert scan_repository(tmp_path)[0].calls == ("first",)


def test_files_and_hidden_folders_are_no_models(tmp_path: Path) -> None:
    add(tmp_path, "model", 'backend: "python"')
    add(tmp_path, ".git", None)
    (tmp_path / "README.md").touch()
    assert [model.name for model in scan_repository(tmp_path)] == ["model"]


def test_a_repository_that_is_missing_a_file_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"nowhere does not exist.*`repository`"):
        scan_repository(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match=r"file: got a file.*`repository`"):
        scan_repository(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match=r"empty: got no model in it.*`repository`"):
        scan_repository(tmp_path / "empty")


def test_a_repository_or_model_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    model = add(tmp_path, "model", 'backend: "python"')
    for folder in (tmp_path, model):
        folder.chmod(0)
        try:
            if os.access(folder, os.R_OK):
                pytest.skip("this user may read everything")
            with pytest.raises(RepositoryError, match=r"Permission denied.*read access"):
                scan_repository(tmp_path)
        finally:
            folder.chmod(0o755)


def test_a_malformed_configuration_is_named_with_its_line(tmp_path: Path) -> None:
    add(tmp_path, "model", 'backend: "python"\nmax_batch_size: "many"\n')
    with pytest.raises(RepositoryError, match=r"model/config\.pbtxt at line 2 is no model configuration.*many"):
        scan_repository(tmp_path)
    (tmp_path / "model" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(RepositoryError, match=r"model/config\.pbtxt is not UTF-8 text"):
        scan_repository(tmp_path)


def test_every_model_the_server_cannot_run_is_named(tmp_path: Path) -> None:
    add(tmp_path, "engine", 'backend: "tensorrt"')
    add(tmp_path, "script", None, "1/model.pt")
    add(tmp_path, "fine", 'backend: "onnxruntime"')
    add(tmp_path, "pipeline", 'platform: "ensemble"')
    expected = "got model engine with backend tensorrt, model script with backend pytorch, .*docker compose up"
    with pytest.raises(RepositoryError, match=expected) as caught:
        check_models(scan_repository(tmp_path), tmp_path)
    assert "fine" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_engine_names_the_image_that_serves_it(tmp_path: Path) -> None:
    add(tmp_path, "small_trt", 'backend: "tensorrt"', "1/model.plan")
    expected = (
        r"model small_trt with backend tensorrt, .*nvcr\.io/nvidia/tritonserver:.*docker compose up -d triton$"
    )
    with pytest.raises(RepositoryError, match=expected):
        check_models(scan_repository(tmp_path), tmp_path)


def test_a_model_that_brings_its_backend_along_is_left_to_triton(tmp_path: Path) -> None:
    add(tmp_path, "model", 'backend: "own"', "1/libtriton_own.so")
    check_models(scan_repository(tmp_path), tmp_path)


def test_a_model_folder_whose_name_a_shell_would_split_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "my model", 'backend: "python"')
    with pytest.raises(RepositoryError, match=r"'my model'.*rename"):
        check_models(scan_repository(tmp_path), tmp_path)
