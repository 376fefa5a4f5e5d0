"""The probe and the draining mark among people and servers that mean no good; the rest is in tests/served."""

import os
from pathlib import Path

import pytest

from orchestrator import probe as probing
from orchestrator.probe import drain, mark, mark_of


def test_a_mark_follows_no_link_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_MARKS", tmp_path)
    victim = tmp_path / "victim"
    victim.write_text("precious things")
    path = mark_of(os.getpid())
    for link in (path, path.with_name(f"{path.name}.new")):
        link.symlink_to(victim)
    mark([os.getpid()], ["cascade"])
    assert victim.read_text() == "precious things"
    assert path.read_text().endswith(" cascade")
    assert not path.is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


def test_draining_says_which_cascades_could_not_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_MARKS", tmp_path)
    monkeypatch.setattr(probing, "servers_of", lambda _: [os.getpid()])
    monkeypatch.setattr(probing, "cascades_in", lambda _: ["cascade"])
    # What cannot be replaced, as somebody else's file cannot where the folder is sticky.
    (mark_of(os.getpid()) / "inside").mkdir(parents=True)
    assert drain("http://127.0.0.1:1", tmp_path, timeout_s=0.1) == ["cascade"]
    assert [path.name for path in tmp_path.iterdir()] == [mark_of(os.getpid()).name]
