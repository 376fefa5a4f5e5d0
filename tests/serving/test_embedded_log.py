from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.serving.embedded import failure_reasons, is_port_in_use, loaded_models, log_tail

# Lines of real logs, shortened.
LOG = r"""
W1124 21:57:25.720882 15322 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1124 21:57:25.721043 15322 server.cc:241] "CudaDriverHelper has not been initialized."
I1124 21:57:25.722000 15322 model_lifecycle.cc:472] "loading: bad:1"
I1124 21:57:25.774422 15332 pb_stub.cc:298]  Failed to initialize Python stub for auto-complete: no such thing
E1124 21:57:25.785100 15322 model_lifecycle.cc:642] "failed to load 'bad' version 1: Internal: ModuleNotFoundError: No module named 'x'\n\nAt:\n  /r/bad/1/model.py(1): <module>\n"
E1124 21:57:25.852091 15322 model_lifecycle.cc:642] "failed to load 'worse' version 2: Internal: TritonModelException: worse: two\nlines\n\nAt:\n  /b/model.py(143): _refuse\n"
I1124 21:57:26.112091 15322 model_lifecycle.cc:839] "successfully loaded 'good'"
I1124 21:57:25.852120 15322 model_lifecycle.cc:777] "failed to load 'bad'"
+-------+---------+
| Model | Version |
+-------+---------+
error: creating server: Internal - failed to load all models
"""  # noqa: E501 - a log's lines are as long as they are


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "triton.log"
    file.write_text(LOG)
    return file


def test_each_model_at_fault_is_named_once_with_what_is_wrong_and_not_where(path: Path) -> None:
    assert failure_reasons(path) == [
        "model bad: ModuleNotFoundError: No module named 'x'",
        "model worse: two lines",
    ]


def test_a_model_whose_folder_cannot_be_used_is_named(path: Path) -> None:
    path.write_text("E1124 21:57:25.1 15322 manager.cc:1] \"Poll failed for model directory 'odd': no version\"")
    assert failure_reasons(path) == ["model odd: no version"]


def test_without_a_model_at_fault_the_servers_own_errors_are_the_reason(path: Path) -> None:
    path.write_text(
        'E1124 21:57:25.721043 15322 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        "E1124 21:57:46.51 15378 main.cc:257] \"failed to start HTTP service: '127.0.0.1:1' already in use \"\n"
    )
    assert failure_reasons(path) == ["failed to start HTTP service: '127.0.0.1:1' already in use"]
    assert is_port_in_use(failure_reasons(path)[0])


def test_the_tail_holds_what_models_print_and_leaves_the_chatter_out(path: Path) -> None:
    with path.open("a") as file:
        file.write("terminate called\n  what(): bad luck\n")
    tail = log_tail(path, 10)
    assert tail[-2:] == ["terminate called", "  what(): bad luck"]
    assert "Failed to initialize" in tail[0]
    assert len(tail) == 3
    assert log_tail(path, 1) == tail[-1:]


def test_loaded_models_are_those_that_said_so(path: Path) -> None:
    assert loaded_models(path) == {"good"}


def test_no_log_says_nothing(tmp_path: Path) -> None:
    for path in (None, tmp_path / "nowhere"):
        assert log_tail(path, 5) == []
        assert failure_reasons(path) == []
        assert loaded_models(path) == set()
