"""A headless Chromium driven over the DevTools protocol, through two pipes: no port, no driver, no package."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The browser starts from a cold disk in continuous integration.
TIMEOUT_S = 60.0


def chromium_path() -> str | None:
    """Where the browser is, None where none is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a running browser."""

    def __init__(self, process: subprocess.Popen[bytes], read_fd: int, write_fd: int) -> None:
        self._process = process
        self._read_fd, self._write_fd = read_fd, write_fd
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read_fd], [], [], max(0.0, deadline_s - time.monotonic()))
            data = os.read(self._read_fd, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError(f"the browser said nothing; exit status {self._process.poll()}")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def open(self, path: Path, *, scheme: str = "light", width: int = 1280, height: int = 800) -> None:
        """Shows a file and waits until it is loaded."""
        self.events.clear()
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.ask("Page.navigate", url=path.resolve().as_uri())
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.evaluate("document.readyState + location.href.slice(0, 5)") != "completefile:":
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{path} did not load")

    def press(self, key: str, times: int = 1) -> None:
        """Presses a key on whatever has the focus."""
        code = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}[key]
        text = {"Enter": "\r"}.get(key)
        extra = {} if text is None else {"text": text}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                         **(extra if kind == "keyDown" else {}))  # fmt: skip

    def type(self, text: str) -> None:
        """Types into whatever has the focus."""
        self.ask("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """Writes what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def trouble(self) -> list[str]:
        """Everything the page complained about since it was opened."""
        wrong = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                wrong.append(json.dumps(event["params"]["exceptionDetails"])[:500])
            if event.get("method") == "Log.entryAdded":
                wrong.append(event["params"]["entry"]["text"])
        return wrong

    def requests(self) -> list[str]:
        """Addresses the page asked for since it was opened, pictures inside it left out."""
        urls = [
            e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]


@contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A browser with a fresh profile; it is gone when the block ends.

    Args:
        home: an empty folder for the profile.
    """
    path = chromium_path()
    assert path is not None, "no Chromium: apt-get install chromium"
    to_browser, from_browser = os.pipe(), os.pipe()

    def hand_over() -> None:
        # The browser reads commands from 3 and answers on 4; copies first, since the pipes may be these numbers.
        commands, answers = os.dup(to_browser[0]), os.dup(from_browser[1])
        high = [os.dup(commands), os.dup(answers)]
        while min(high) <= 4:
            high = [os.dup(one) for one in high]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    command = [
        path, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--mute-audio",
        "--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, preexec_fn=hand_over, pass_fds=(3, 4), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        yield Browser(process, from_browser[0], to_browser[1])
    finally:
        # It ends by itself when nobody holds the other end of its pipe.
        os.close(to_browser[1])
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser[0])
