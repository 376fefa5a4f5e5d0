"""A folder's contents are replaced, and the folder stays what it is."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import DiskError
from orchestrator.files import contents_of, disk_error_from, recover_folder, replaced_file, replaced_folder
from tests.repository.builders import snapshot

PROGRAM = """
import os, signal, sys
from pathlib import Path
from orchestrator.files import replaced_folder

renames = 0
rename = Path.rename

def dying(self, target):
    global renames
    renames += 1
    if renames > int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

with replaced_folder(Path(sys.argv[1]), first="mark") as building:
    for name in ("mark", "a", "b", "c"):
        (building / name).mkdir()
        (building / name / "file").write_text(f"new {name}")
    Path.rename = dying
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def replace(target: Path, files: dict[str, str]) -> None:
    with replaced_folder(target, first="mark") as building:
        fill(building, files)


def texts(folder: Path) -> dict[str, str]:
    return {name: data.decode() for name, data in snapshot(folder).items()}


FILES = st.dictionaries(
    st.sampled_from(["a/1", "a/2/x", "a/2/y", "b/1", "c", "mark"]), st.sampled_from(["", "one", "two"])
)


@given(first=FILES, second=FILES)
def test_the_folder_stays_and_has_the_new_contents_and_what_is_equal_is_not_touched(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, str], second: dict[str, str]
) -> None:
    target = tmp_path_factory.mktemp("swap") / "out"
    replace(target, first)
    inode = target.stat().st_ino
    before = {path.name: path.stat().st_ino for path in target.iterdir()}
    replace(target, second)
    assert target.stat().st_ino == inode
    assert texts(target) == second
    after = {path.name: path.stat().st_ino for path in target.iterdir()}
    for name in {*before, *after}:
        old, new = ({k: v for k, v in side.items() if k.split("/")[0] == name} for side in (first, second))
        assert (before.get(name) == after.get(name)) == (old == new), name
    assert list(target.parent.iterdir()) == [target]


def test_a_link_is_replaced_by_what_it_was_equal_to(tmp_path: Path) -> None:
    fill(tmp_path, {"elsewhere": "text", "out/kept": "kept"})
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    replace(tmp_path / "out", {"a": "text", "kept": "kept"})
    assert not (tmp_path / "out" / "a").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "text"


@pytest.mark.parametrize("fails_at", range(5))
def test_a_rename_that_is_refused_leaves_everything_as_it_was(
    target: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    fill(target, {"a/file": "old a", "b/file": "old b", "gone": "old"})
    before, calls, rename = texts(target), iter(range(100)), Path.rename

    def failing(self: Path, place: Path) -> Path:
        if self.name.endswith("probe") or next(calls) != fails_at:
            return rename(self, place)
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="busy"):
        replace(target, {"a/file": "new a", "b/file": "new b", "c": "new"})
    assert texts(target) == before
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("renames", range(9))
def test_a_killed_run_leaves_whole_entries_and_the_next_one_completes_them(target: Path, renames: int) -> None:
    fill(target, {"a/file": "old a", "b/file": "old b", "gone/file": "old gone"})
    inode = target.stat().st_ino
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(target), str(renames)], check=False)
    new = {f"{name}/file": f"new {name}" for name in ("mark", "a", "b", "c")}
    # mark in; a away and in; b away and in; c in; gone away; all done
    assert done.returncode == (-signal.SIGKILL if renames < 8 else 0)
    for name, text in texts(target).items():
        assert text in (f"old {name.split('/')[0]}", f"new {name.split('/')[0]}")
    assert ("mark/file" in texts(target)) == (renames > 0)
    recover_folder(target)
    assert {"a", "b"} <= set(contents_of(target))
    assert list(target.parent.iterdir()) == [target]
    replace(target, new)
    assert texts(target) == new
    assert target.stat().st_ino == inode
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["mark", "a", "b", "c", "gone"])
def test_an_interrupt_between_a_rename_and_what_follows_leaves_everything_as_it_was(
    target: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill(target, {"a/file": "old a", "b/file": "old b", "gone/file": "old"})
    before, rename, interrupts = texts(target), Path.rename, iter([True])

    def interrupted(self: Path, place: Path) -> Path:
        renamed = rename(self, place)
        if self.name == name and next(interrupts, False):
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(target, {"mark": "", "a/file": "new a", "b/file": "new b", "c/file": "new"})
    assert texts(target) == before
    assert list(target.parent.iterdir()) == [target]


def test_where_undoing_fails_the_rest_is_undone_and_nothing_is_deleted(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(target, {"a/file": "old a", "b/file": "old b", "c/file": "old c"})
    rename = Path.rename

    def failing(self: Path, place: Path) -> Path:
        # Entry c cannot be taken away, and b, once away, not be brought back.
        if self == target / "c" or (self.name == "b" and self.parent.name == "old"):
            raise OSError(16, "Device or resource busy")
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="busy"):
        replace(target, {"a/file": "new a", "b/file": "new b", "c/file": "new c"})
    assert texts(target) == {"a/file": "old a", "c/file": "old c"}
    monkeypatch.undo()
    recover_folder(target)
    assert texts(target) == {"a/file": "old a", "b/file": "old b", "c/file": "old c"}
    assert list(target.parent.iterdir()) == [target]


def test_a_second_interrupt_while_the_first_one_is_undone_loses_no_entry(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(target, {"a/file": "old a", "gone/file": "old"})
    rename, interrupts = Path.rename, iter([True, True])

    def interrupted(self: Path, place: Path) -> Path:
        if self.name == "gone" and self.parent.name == "old" and next(interrupts, False):
            raise KeyboardInterrupt
        renamed = rename(self, place)
        if self.name == "gone" and next(interrupts, False):
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(target, {"a/file": "new a"})
    assert texts(target) == {"a/file": "new a", "gone/file": "old"}


def test_what_was_removed_stays_removed_where_the_run_is_killed_as_it_cleans_up(target: Path) -> None:
    fill(target, {"gone/file": "old"})
    dying = "import os, shutil; shutil.rmtree = lambda *given, **named: os._exit(9)\n"
    done = subprocess.run([sys.executable, "-c", dying + PROGRAM, str(target), "100"], check=False)
    assert done.returncode == 9
    assert len(list(target.parent.iterdir())) == 2
    recover_folder(target)
    assert "gone" not in contents_of(target)
    assert list(target.parent.iterdir()) == [target]


def test_a_second_writer_is_refused_and_changes_nothing(target: Path) -> None:
    fill(target, {"a": "old"})
    with replaced_folder(target) as building:
        fill(building, {"a": "new"})
        with pytest.raises(BlockingIOError, match="another process is writing there"):
            replace(target, {"a": "other"})
        with pytest.raises(BlockingIOError, match="another process is writing there"):
            recover_folder(target)
    assert texts(target) == {"a": "new"}
    replace(target, {"a": "other"})
    assert texts(target) == {"a": "other"}
    assert list(target.parent.iterdir()) == [target]


def test_of_two_that_make_a_new_folder_the_later_one_is_refused(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_late() -> None:
        with replaced_folder(target) as building:
            fill(building, {"a": "later"})
            monkeypatch.setattr(os, "getpid", os.getppid)
            replace(target, {"a": "earlier"})

    with pytest.raises(BlockingIOError, match="another process is writing there"):
        replace_late()
    assert texts(target) == {"a": "earlier"}
    assert list(target.parent.iterdir()) == [target]


def test_what_a_running_process_has_begun_is_left_to_it(target: Path) -> None:
    begun = target.parent / f".out.partial-{os.getppid()}"
    fill(begun, {"new/a": "half"})
    replace(target, {"a": "text"})
    assert begun.is_dir()


def test_the_lost_and_found_of_a_disk_is_nobodys_content(target: Path) -> None:
    (target / "lost+found").mkdir(parents=True)
    assert contents_of(target) == []
    replace(target, {"a": "text"})
    assert (target / "lost+found").is_dir()


@pytest.fixture
def bind_mount(tmp_path: Path) -> Iterator[Path]:
    """A folder that is mounted at another place; skips where that is not allowed."""
    source, place = tmp_path / "source", tmp_path / "mounted"
    for folder in (source, place):
        folder.mkdir()
    if subprocess.run(["mount", "--bind", source, place], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_where_nothing_can_be_renamed_in_from_outside_the_new_contents_are_made_inside(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.mkdir()
    rename = Path.rename

    def guarded(self: Path, place: Path) -> Path:
        # As at a mount point, across whose edge nothing is renamed.
        if (target in self.parents) != (target in place.parents):
            raise OSError(18, "Invalid cross-device link")
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", guarded)
    _check_replacing(target, seen_at=target)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("names", [("mounted", "source"), ("source", "mounted")])
def test_a_folder_that_is_mounted_elsewhere_has_its_new_contents_in_both_places(
    bind_mount: Path, names: tuple[str, str]
) -> None:
    target, other = (bind_mount.with_name(name) for name in names)
    _check_replacing(target, seen_at=other)


def _check_replacing(target: Path, *, seen_at: Path) -> None:
    inode = target.stat().st_ino
    for files in ({"a/1": "one", "b": "kept"}, {"a/1": "two", "b": "kept", "c/d/e": "new"}, {"c/d/e": "new"}):
        replace(target, files)
        assert texts(target) == texts(seen_at) == files
        assert target.stat().st_ino == inode


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", *([] if path is None else [str(path)]))


@pytest.mark.parametrize("names_file", [True, False])
def test_a_full_disk_is_told_by_the_name_a_file_or_folder_would_have(target: Path, names_file: bool) -> None:
    with pytest.raises(DiskError, match=rf"^no space left on {target};"), replaced_file(target) as fresh:
        full(fresh if names_file else None)
    assert not list(target.parent.iterdir())
    for _ in range(2):
        inside = target / "a" / "file" if names_file else target
        with pytest.raises(DiskError, match=rf"^no space left on {inside};"), replaced_folder(target) as building:
            full(building / "a" / "file" if names_file else None)
        # The second time into a folder that exists.
        target.mkdir(exist_ok=True)
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_of_two_names_the_one_that_was_written_to_is_told() -> None:
    error = disk_error_from(OSError(errno.ENOSPC, "No space left on device", "source", None, "copy"))
    assert str(error).startswith("no space left on copy;")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.ECONNRESET, errno.EINVAL])
def test_errors_that_are_no_fault_of_a_disk_stay_as_they_are(target: Path, number: int) -> None:
    with pytest.raises(OSError, match="because") as caught, replaced_file(target):
        raise OSError(number, "because")
    assert caught.value.errno == number


def test_a_folder_that_was_removed_is_told_and_a_file_that_was_removed_on_purpose_is_not(tmp_path: Path) -> None:
    with replaced_file(tmp_path / "file") as fresh:
        fresh.unlink()
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(DiskError, match=f"{place} removed"), replaced_file(place / "file"):
        shutil.rmtree(place)


def test_a_folder_that_was_made_anew_meanwhile_is_told(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def made_anew() -> None:
        place.rename(tmp_path / "elsewhere")
        place.mkdir()

    with pytest.raises(DiskError, match=f"{place} removed"), replaced_file(place / "file"):
        made_anew()
