import sys
import zipfile
from pathlib import Path

import pytest

from export import runtimes
from export.runtimes import CACHE_VARIABLE, installed_version, runtime_folder, runtimes_from_text
from orchestrator.errors import ExportError
from orchestrator.spec.triton import RELEASES, image_runtimes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def test_the_installed_version_needs_no_folder() -> None:
    assert runtime_folder(installed_version()) is None


def test_a_version_nobody_has_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ExportError) as caught:
        runtime_folder("1.0.99")
    assert "ONNX Runtime 1.0.99: got" in str(caught.value)
    assert "choose other versions" in str(caught.value)
    assert f"onnxruntime/1.0.99-cp{sys.version_info.major}{sys.version_info.minor}," in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "onnxruntime").iterdir()) == []


def test_a_wheel_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(wanted: str, folder: Path, what: str) -> Path:
        fetched.append(wanted)
        path = folder / f"onnxruntime-{wanted}-cp311.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("onnxruntime/__init__.py", f"__version__ = {wanted!r}\n")
            archive.writestr("onnxruntime/capi/library.so", b"")
        return path

    monkeypatch.setattr(runtimes, "_fetched", fetch)
    first, second = runtime_folder("1.2.3"), runtime_folder("1.2.3")
    assert first == second
    assert first is not None
    assert (first / "onnxruntime/__init__.py").read_text() == "__version__ = '1.2.3'\n"
    assert fetched == ["1.2.3"]
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    (first / "onnxruntime/capi/library.so").unlink()
    (first / "onnxruntime/rubbish").write_text("")
    assert runtime_folder("1.2.3") == first
    assert fetched == ["1.2.3", "1.2.3"]
    assert sorted(path.name for path in (first / "onnxruntime").iterdir()) == ["__init__.py", "capi"]
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_damaged_wheel_and_a_cache_that_is_a_file_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(wanted: str, folder: Path, what: str) -> Path:
        (folder / "onnxruntime.whl").write_bytes(b"half of it")
        return folder / "onnxruntime.whl"

    monkeypatch.setattr(runtimes, "_fetched", fetch)
    with pytest.raises(ExportError, match="a damaged wheel"):
        runtime_folder("1.2.3")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ExportError, match=r"name another folder with COMMITTEE_CACHE"):
        runtime_folder("1.2.3")


def test_words_become_versions_oldest_first_and_once() -> None:
    known = image_runtimes()
    assert runtimes_from_text("images") == (known[0], known[-1])
    assert runtimes_from_text("all") == known
    assert runtimes_from_text("none") == ()
    assert runtimes_from_text("images,1.27.0") == (known[0], "1.27.0", known[-1])
    assert runtimes_from_text("1.9.0, all") == ("1.9.0", *known)
    assert runtimes_from_text("26.07, 1.9.0,1.19.2,24.10") == ("1.9.0", "1.19.2", "1.27.0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("26.10", "whose ONNX Runtime no public source names"),
        ("26.70", "did you mean 26.10"),
        ("newest", "got 'newest'"),
        ("", "got ''"),
        ("1.19", "got '1.19'"),
        ("01.19.2", "got '01.19.2'"),
        ("1.019.2", "got '1.019.2'"),
        ("1.19.02", "got '1.19.02'"),
        ("\u0661.19.2", "got '\u0661.19.2'"),
        ("images,none", "got 'none'"),
        ("images,", "got ''"),
    ],
)
def test_what_is_no_version_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ExportError) as caught:
        runtimes_from_text(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_has_each_release_once_in_order_and_the_runtimes_grow() -> None:
    assert list(RELEASES) == sorted(RELEASES)
    runtimes = [tuple(map(int, version.split("."))) for version in image_runtimes()]
    assert runtimes == sorted(runtimes)
