import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.errors import RepositoryError
from orchestrator.repository.files import MARK, copy_model, new_folder, sha256_of_path, write_all
from tests.repository.builders import snapshot

WRITER = """
import sys
from pathlib import Path
from orchestrator.repository.files import write_all
texts = [letter * 300_000 for letter in "ab"]
print("ready", flush=True)
while True:
    for text in texts:
        write_all(Path(sys.argv[1]), {"one": text, "deep/two": text})
"""


def test_files_of_equal_content_keep_their_time(tmp_path: Path) -> None:
    first = write_all(tmp_path, {"a/b.txt": "text", "c": b"bytes"})
    assert [path.name for path in first.written] == ["b.txt", "c"]
    before = (tmp_path / "c").stat().st_mtime_ns
    second = write_all(tmp_path, {"a/b.txt": "other", "c": b"bytes"})
    assert [path.name for path in second.written] == ["b.txt"]
    assert [path.name for path in second.unchanged] == ["c"]
    assert (tmp_path / "c").stat().st_mtime_ns == before


def test_other_users_can_read_what_is_written(tmp_path: Path) -> None:
    write_all(tmp_path, {"a": "text"})
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "delays_s",
    [(0.003,), pytest.param((0.0, 0.001, 0.005, 0.011, 0.02, 0.05), marks=pytest.mark.slow)],
    ids=["once", "often"],
)
def test_a_writer_killed_at_any_time_leaves_whole_files(tmp_path: Path, delays_s: tuple[float, ...]) -> None:
    for delay_s in delays_s:
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05 + delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        for name in ("one", "deep/two"):
            text = (tmp_path / name).read_text()
            assert text in ("a" * 300_000, "b" * 300_000)


def test_a_folder_that_cannot_be_made_is_a_repository_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RepositoryError, match="writing"):
        write_all(tmp_path / "file", {"a": "text"})


def test_a_new_folder_appears_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as building:
        (building / "model").mkdir()
        assert not target.exists()
    assert sorted(path.name for path in target.iterdir()) == [MARK, "model"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_earlier_folder_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target) as building:
        (building / "a").write_text("first")
    before = snapshot(target)

    def fail() -> None:
        with new_folder(target) as building:
            (building / "a").write_text("second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert snapshot(target) == before
    assert list(tmp_path.iterdir()) == [target]


def test_an_earlier_rendering_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for word in ("first", "second"):
        with new_folder(target) as building:
            (building / word).write_text(word)
    assert "first" not in snapshot(target)
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis").write_text("years of work")
    for taken in (other, other / "thesis"):
        with pytest.raises(RepositoryError, match="files that no rendering made"), new_folder(taken):
            pass
    assert snapshot(other) == {"thesis": b"years of work"}


def test_a_copied_model_needs_nothing_outside_itself(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 10)
    model = tmp_path / "model"
    (model / "1" / "__pycache__").mkdir(parents=True)
    (model / "1" / "__pycache__" / "x.pyc").write_bytes(b"")
    (model / "1" / "model.onnx").symlink_to(tmp_path / "weights")
    copy_model(model, tmp_path / "copy")
    assert snapshot(tmp_path / "copy") == {"1/model.onnx": b"w" * 10}
    assert not (tmp_path / "copy" / "1" / "model.onnx").is_symlink()


def test_a_broken_link_in_a_model_is_a_repository_error(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match=r"copying .*gone"):
        copy_model(model, tmp_path / "copy")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_repository_error(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"")
    path.chmod(0)
    with pytest.raises(RepositoryError, match="Permission denied"):
        sha256_of_path(path)
