"""Memory that a server leaves behind is removed once, and only once, nobody lives who uses it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.probe import mark, mark_of
from orchestrator.serving.machine import SHM, make_work_folder
from orchestrator.serving.shared_memory import SharedMemoryClaim, remove_ownerless

# Makes a claim and memory under it, starts a process that inherits the lock, and is killed.
OWNER = """
import os, signal, subprocess, sys
from pathlib import Path
from orchestrator.serving.shared_memory import SHM, SharedMemoryClaim
claim = SharedMemoryClaim(Path(sys.argv[1]))
(SHM / f"{claim.prefix}memory").write_bytes(bytes(8192))
heir = subprocess.Popen(["sleep", "60"], pass_fds=(claim.file_number,), stdout=subprocess.DEVNULL)
print(claim.prefix, heir.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def work_folder() -> Iterator[Path]:
    folder = make_work_folder()
    yield folder
    if folder.exists():
        folder.rmdir()


def files_with(prefix: str) -> list[str]:
    return sorted(path.name for path in SHM.glob(f"{prefix}*"))


def test_what_a_killed_owner_leaves_goes_when_the_last_process_that_uses_it_has_ended(work_folder: Path) -> None:
    words = [sys.executable, "-c", OWNER, str(work_folder)]
    prefix, heir = subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout.split()
    try:
        remove_ownerless()
        assert len(files_with(prefix)) == 2
    finally:
        os.kill(int(heir), 9)
    for _ in range(100):
        if not remove_ownerless() and files_with(prefix):
            continue
        break
    assert files_with(prefix) == []
    assert not work_folder.exists()


def test_a_claim_that_is_held_stays_and_its_release_leaves_nothing(work_folder: Path) -> None:
    claim = SharedMemoryClaim(work_folder)
    try:
        (SHM / f"{claim.prefix}memory").write_bytes(b"used")
        remove_ownerless()
        assert len(files_with(claim.prefix)) == 2
        assert work_folder.exists()
    finally:
        claim.release()
    assert files_with(claim.prefix) == []
    claim.release()


def test_marks_of_ended_servers_are_removed_unless_they_may_run_elsewhere() -> None:
    with subprocess.Popen(["sleep", "60"]) as server:
        mark([server.pid], ["cascade"])
        path, elsewhere = mark_of(server.pid), mark_of(f"1{os.getpid()}")
        elsewhere.write_text("1 cascade pid:[1]")
        try:
            remove_ownerless()
            assert path.exists()
            server.kill()
            server.wait()
            remove_ownerless()
            assert not path.exists()
            assert elsewhere.exists()
        finally:
            path.unlink(missing_ok=True)
            elsewhere.unlink(missing_ok=True)


def test_a_folder_that_is_no_work_folder_is_left_alone(tmp_path: Path) -> None:
    owner = SHM / f"committee_{os.getpid()}_test_owner"
    owner.write_text(str(tmp_path))
    remove_ownerless()
    assert not owner.exists()
    assert tmp_path.exists()


def test_pipes_and_links_of_others_neither_hold_the_cleaner_up_nor_are_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text(str(tmp_path))
    pipe, link = (SHM / f"committee_{os.getpid()}_{kind}_owner" for kind in ("pipe", "link"))
    os.mkfifo(pipe)
    link.symlink_to(victim)
    try:
        # In a process of its own, which ends the test where it hangs.
        words = "from orchestrator.serving.shared_memory import remove_ownerless; remove_ownerless()"
        subprocess.run([sys.executable, "-c", words], timeout=20, check=True)
        assert pipe.is_fifo()
        assert link.is_symlink()
    finally:
        pipe.unlink()
        link.unlink()
