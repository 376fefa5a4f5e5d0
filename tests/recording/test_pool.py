from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.errors import DataError
from orchestrator.recording.pool import opened_pool


@pytest.mark.parametrize("url", [None, "127.0.0.1:1"])
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["./a", "a"], r"got './a', expected names of members"),
        (["a/"], r"got 'a/', expected"),
        (["a", "../b", "b c"], r"got '../b', 'b c', expected"),
        (["a" * 129], "128 letters"),
        (["a", "ensemble"], "got ensemble, expected another name"),
        (["a", "a"], "a more than once"),
        ([], "got none"),
    ],
)
def test_names_that_plan_would_refuse_are_not_recorded(
    tmp_path: Path, names: list[str], said: str, url: str | None
) -> None:
    with pytest.raises(DataError, match=said), opened_pool(names, tmp_path, url=url):
        pass


def test_a_manifest_that_describes_another_version_than_is_served_is_named(tmp_path: Path) -> None:
    shutil.copytree(Path("model_repository") / "digits_small", tmp_path / "digits_small")
    with opened_pool(["digits_small"], tmp_path) as pool:
        assert pool.version_notes() == []
    shutil.copytree(tmp_path / "digits_small" / "1", tmp_path / "digits_small" / "2")
    with opened_pool(["digits_small"], tmp_path) as pool:
        (note,) = pool.version_notes()
    assert note == "digits_small: version 2 is served, its manifest.json describes 1/model.onnx"
    config = tmp_path / "digits_small" / "config.pbtxt"
    config.write_text(f"{config.read_text()}version_policy {{ specific {{ versions: [1] }} }}\n")
    with opened_pool(["digits_small"], tmp_path) as pool:
        assert pool.version_notes() == []
