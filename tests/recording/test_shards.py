"""Parts of a recording: in order, whole or gone, and the same file whatever way they were cut."""

import functools
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import DataError
from orchestrator.planner.records import RecordsFile, records_from_path, write_records_in_parts
from orchestrator.recording.shards import RecordedPiece, Shards

ROWS, CLASSES = 23, 3
SCORES = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)
SKIPPED = {4: "broken", 17: "gone"}


def pieces(first: int, stop: int) -> list[RecordedPiece]:
    kept = np.array([at for at in range(first, stop) if at not in SKIPPED], np.int64)
    skipped = {at: why for at, why in SKIPPED.items() if first <= at < stop}
    digests = tuple(b"%d" % at for at in kept)
    return [
        RecordedPiece(
            first=first, stop=stop, kept=kept, outputs={"m": SCORES[kept]}, skipped=skipped, digests=digests
        )
    ]


def written(output: Path, cuts: list[int], *, reopen: bool = False) -> bytes:
    shards = Shards(output, {"a": 1}, restart=True)
    for first, stop in zip([0, *cuts], [*cuts, ROWS], strict=True):
        shards.add(pieces(first, stop))
        if reopen:
            shards.close()
            shards = Shards(output, {"a": 1})
            assert shards.done == shards.resumed == stop
    kept = shards.kept()
    assert shards.skipped() == SKIPPED
    digests = [b"%d" % at for at in range(ROWS) if at not in SKIPPED]
    assert shards.digest == functools.reduce(lambda all, one: sha256(all + one).digest(), digests, b"\0" * 32)
    about = {"labels": kept % CLASSES, "classes": CLASSES, "cost": {"m": 2.0}, "meta": {"b": "ä"}}
    file = RecordsFile(path=shards.output, ids=kept.astype(str), **about)
    write_records_in_parts(file, {"m": shards.outputs("m")})
    shards.remove()
    shards.close()
    assert not shards.folder.exists()
    return output.read_bytes()


@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, ROWS - 1)), reopen=st.booleans())
def test_the_file_does_not_depend_on_where_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int], reopen: bool
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    assert written(folder / "a.npz", []) == written(folder / "b.npz", sorted(cuts), reopen=reopen)
    found = records_from_path(folder / "b.npz")
    np.testing.assert_array_equal(found.outputs["m"], SCORES[[at for at in range(ROWS) if at not in SKIPPED]])
    assert found.meta == {"b": "ä"}


def test_another_header_is_refused_naming_what_differs_and_keeps_the_parts(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "r.npz", {"data": "x", "limit": None})
    shards.add(pieces(0, 5))
    shards.close()
    with pytest.raises(DataError, match=r"differs in data, limit.*`restart`"):
        Shards(tmp_path / "r.npz", {"data": "y", "limit": 3})
    again = Shards(tmp_path / "r.npz", {"data": "x", "limit": None})
    assert again.resumed == 5
    with pytest.raises(DataError, match="another process"):
        Shards(tmp_path / "r.npz", {"data": "x", "limit": None})
    again.close()
    for data in (b"{", b"[1]", b"\xff\xfe", b"[" * 100_000):
        (shards.folder / "header.json").write_bytes(data)
        with pytest.raises(DataError, match="cannot be read"):
            Shards(tmp_path / "r.npz", {"data": "x"})


def test_a_part_that_a_signal_lets_appear_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(tmp_path / "r.npz", {})
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        replace(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shards.add(pieces(0, 5))
    monkeypatch.undo()
    assert shards.done == 5
    shards.close()


def test_files_that_are_no_parts_are_left_alone(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "r.npz", {})
    shards.add(pieces(0, 5))
    shards.close()
    (shards.folder / "zzz.npz").write_bytes(b"mine")
    (shards.folder / "1-2-3.npz").write_bytes(b"mine")
    for restart in (False, True):
        again = Shards(tmp_path / "r.npz", {}, restart=restart)
        assert again.done == (0 if restart else 5)
        assert (again.folder / "zzz.npz").read_bytes() == b"mine"
        # Without parts of its own, closing it would throw the folder away.
        again.add(pieces(again.done, again.done + 1))
        again.close()


def test_parts_after_a_broken_one_are_not_trusted(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "r.npz", {})
    for first, stop in ((0, 5), (5, 9), (9, 12)):
        shards.add(pieces(first, stop))
    shards.close()
    middle = sorted(shards.folder.glob("*.npz"))[1]
    data = bytearray(middle.read_bytes())
    data[len(data) // 3] ^= 0xFF
    middle.write_bytes(data)
    again = Shards(tmp_path / "r.npz", {})
    assert (again.done, len(list(again.folder.glob("*.npz")))) == (5, 1)
    again.close()


def test_a_recording_without_parts_leaves_no_folder(tmp_path: Path) -> None:
    Shards(tmp_path / "r.npz", {}).close()
    assert list(tmp_path.iterdir()) == []
