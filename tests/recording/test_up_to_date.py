"""A finished recording given again has nothing to do, unless anything that decides it is another."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.__main__ import run
from tests.recording.builders import NAMES, picture, png, write_folder, write_member


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    write_folder(tmp_path / "pictures", each=10)
    for seed, name in enumerate(("a", "b")):
        write_member(tmp_path / "repository", name, seed=seed)
    monkeypatch.chdir(tmp_path)
    return ["record", "a", "b", "--data", "pictures", "--repository", "repository", "-o", "out.npz", "--json"]


def recorded(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(words) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    del summary["seconds"]
    return summary


def test_the_same_command_says_the_same_and_leaves_the_file(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = recorded(words, capsys)
    assert first["up_to_date"] is False
    stamp = Path("out.npz").stat().st_mtime_ns
    assert recorded(words, capsys) == first | {"up_to_date": True}
    assert Path("out.npz").stat().st_mtime_ns == stamp
    assert recorded([*words, "--restart"], capsys) == first
    assert Path("out.npz").stat().st_mtime_ns != stamp


def _another_picture() -> None:
    Path("pictures", NAMES[0], "000.png").write_bytes(png(np.full((4, 4, 3), 7, np.uint8)))


def _another_picture_that_looks_as_old() -> None:
    path = Path("pictures", NAMES[0], "000.png")
    stat = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    path.write_bytes(png(picture(1)).ljust(stat.st_size, b" "))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


def _another_member() -> None:
    write_member(Path("others"), "b", seed=9)
    for file in ("1/model.onnx", "manifest.json"):
        Path("others/b", file).replace(Path("repository/b", file))


def _another_label() -> None:
    Path("pictures", NAMES[0], "000.png").rename(Path("pictures", NAMES[1], "900.png"))


@pytest.mark.parametrize(
    "change", [_another_picture, _another_picture_that_looks_as_old, _another_member, _another_label]
)
def test_other_rows_or_members_are_recorded_again(
    words: list[str], change: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = recorded(words, capsys)
    change()
    after = recorded(words, capsys)
    assert after["up_to_date"] is False
    assert after["data_sha256"] != before["data_sha256"] or after["members"] != before["members"]


@pytest.mark.parametrize(
    "more",
    [["--limit", "5"], ["--cost", "a=3"], ["--skip-bad"], ["--output-kind", "a=logits"]],
    ids=lambda m: m[0],
)
def test_other_options_are_recorded_again(
    words: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(words, capsys)
    assert recorded([*words, *more], capsys)["up_to_date"] is False
    assert recorded([*words, *more], capsys)["up_to_date"] is True


def test_half_of_a_recording_is_not_taken_for_the_whole(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(words, capsys)
    assert run(["split", "out.npz", "-o", "half.npz", "--rest", "rest.npz"]) == 0
    Path("rest.npz").replace("out.npz")
    again = recorded(words, capsys)
    assert (again["rows"], again["up_to_date"]) == (30, False)


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_broken_file_is_recorded_again(
    words: list[str], damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(words, capsys)
    whole = Path("out.npz").read_bytes()
    Path("out.npz").write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert recorded(words, capsys)["up_to_date"] is False
    assert Path("out.npz").read_bytes() == whole
