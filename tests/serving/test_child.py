import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.serving.child import Child

# Starts a process of its own, says so, and waits.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep({seconds})
"""


def start(code: str, log_path: Path) -> Child:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return Child(command, environment=dict(os.environ), log_path=log_path)


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_output_goes_to_the_log_and_the_status_is_the_programs(log_path: Path) -> None:
    child = start("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)", log_path)
    assert child.wait(10)
    assert child.status == 7
    assert sorted(log_path.read_text().split()) == ["err", "out"]


def test_it_has_a_session_of_its_own_so_that_ctrl_c_passes_it_by(log_path: Path) -> None:
    child = start("import time; time.sleep(60)", log_path)
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.kill()


def test_terminate_asks_and_kill_ends(log_path: Path) -> None:
    child = start(
        """
        import signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
        print("ready", flush=True)
        for _ in range(600): time.sleep(0.1)
        """,
        log_path,
    )
    wait_for(lambda: "ready" in log_path.read_text())
    child.terminate()
    wait_for(lambda: "asked" in log_path.read_text())
    assert not child.wait(0.2)
    assert child.status is None
    child.kill()
    assert child.status == -signal.SIGKILL


@pytest.mark.parametrize("seconds", [60, 0])
def test_what_it_started_ends_with_it_killed_or_not(log_path: Path, seconds: int) -> None:
    child = start(PARENT.format(seconds=seconds), log_path)
    wait_for(lambda: log_path.exists() and log_path.read_text().endswith("\n"))
    grandchild = int(log_path.read_text())
    if seconds:
        assert alive(grandchild)
        child.kill()
    assert child.wait(10)
    wait_for(lambda: not alive(grandchild))


def test_it_survives_the_thread_that_asked_for_it(log_path: Path) -> None:
    made: list[Child] = []
    thread = threading.Thread(target=lambda: made.append(start("import time; time.sleep(60)", log_path)))
    thread.start()
    thread.join()
    assert not made[0].wait(0.5)
    made[0].kill()


def test_it_ends_when_our_process_is_killed(log_path: Path) -> None:
    code = f"""
    import os, sys, time
    from pathlib import Path
    from orchestrator.serving.child import Child

    code = "import time; print('up', flush=True); time.sleep(60)"
    child = Child([sys.executable, "-c", code], environment=dict(os.environ), log_path=Path({str(log_path)!r}))
    print(child.pid, flush=True)
    time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout is not None
        pid = int(us.stdout.readline())
        # Once the program runs, the launcher before it has told the kernel.
        wait_for(lambda: log_path.exists() and log_path.read_text() == "up\n")
        assert alive(pid)
        us.kill()
    wait_for(lambda: not alive(pid))


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        start("pass", tmp_path / "nowhere" / "log")
