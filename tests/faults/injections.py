"""What is done to the product, each as a context manager: injected on entering, removed on leaving."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from orchestrator.errors import ServingError
from orchestrator.repository.render import render
from perf.load.checked import CheckedLoad
from perf.load.misbehaving import bad_messages, cancelling, in_background, refused
from perf.load.poisson import METHOD, message_from_rows
from perf.routes.obedient import OBEDIENT, ONNX_MEMBERS, STRICT
from tests.faults.frame import LIMIT_S, Bed, Inject

# Two bodies that end Triton's HTTP frontend: a shape of a billion rows with one number, and lists in lists.
SHAPE_BODY = b'{"inputs":[{"name":"image","shape":[1000000000,1,8,8],"datatype":"FP32","data":[0]}]}'.ljust(174)
NESTED_BODY = b'{"inputs":' + b"[" * 200_000
MIDDLE = ONNX_MEMBERS[1]


def killed(model: str | None) -> Inject:
    """Kills a model's process, or Triton itself."""

    @contextmanager
    def inject(bed: Bed) -> Iterator[None]:
        pid = bed.product.server_pid if model is None else bed.product.stub(model)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        yield

    return inject


def frozen(model: str) -> Inject:
    """Stops a model's process, and lets it go on."""

    @contextmanager
    def inject(bed: Bed) -> Iterator[None]:
        pid = bed.product.stub(model)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return inject


def ordered(do: str, *, marked: bool = False) -> Inject:
    """The last member hangs, is slow or fails."""

    @contextmanager
    def inject(bed: Bed) -> Iterator[None]:
        bed.repository.order(do, marked=marked)
        try:
            yield
        finally:
            bed.repository.order()

    return inject


def breaker_opened(bed: Bed) -> "contextlib.AbstractContextManager[None]":
    """The last member fails until its breaker is open, as the metric says."""

    @contextmanager
    def inject() -> Iterator[None]:
        with ordered("fail")(bed):
            yield
            lines = [line for line in bed.product.scrape().splitlines() if line.startswith("committee_breaker")]
            if not any(STRICT in line and float(line.rsplit(" ", 1)[1]) > 0 for line in lines):
                bed.complain("no breaker opened")

    return inject()


def asked_besides(order: str, **load: Any) -> Inject:
    """More clients ask while the last member does as ordered."""

    @contextmanager
    def inject(bed: Bed) -> Iterator[None]:
        more = CheckedLoad(
            address=bed.product.grpc, model=STRICT, known=bed.known, limit_s=LIMIT_S, streams=0, **load
        )
        with ordered(order)(bed), more.running():
            yield
        bed.others += more.done

    return inject


@contextmanager
def file_replaced(bed: Bed) -> Iterator[None]:
    """The middle member's file becomes another model's."""
    path = next((bed.repository.folder / MIDDLE).glob("*/model.onnx"))
    other = next((bed.repository.folder / ONNX_MEMBERS[0]).glob("*/model.onnx"))
    kept = path.read_bytes()
    _put(path, other.read_bytes())
    try:
        yield
    finally:
        _put(path, kept)


def _put(path: Path, data: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(data)
    beside.replace(path)


def moved_away(pattern: str) -> Inject:
    """Something in the middle member's folder goes, and comes back."""

    @contextmanager
    def inject(bed: Bed) -> Iterator[None]:
        path = next((bed.repository.folder / MIDDLE).glob(pattern))
        away = bed.folder / "away"
        path.rename(away)
        try:
            yield
        finally:
            away.rename(path)

    return inject


@contextmanager
def plan_swapped(bed: Bed) -> Iterator[None]:
    """Version 2 of the plan, with half the thresholds, is loaded and unloaded again."""
    folder = bed.repository.folder
    render(bed.repository.with_thresholds(0.5)[0], folder, version=2)
    bed.product.control.load(STRICT)
    try:
        yield
    finally:
        _without_version_2(bed)


@contextmanager
def plan_without_member(bed: Bed) -> Iterator[None]:
    """Version 2 of the plan names a member that is not there; the server is told to load it."""
    folder = bed.repository.folder / STRICT
    shutil.copytree(folder / "1", folder / "2")
    plan = folder / "2" / "cascade.json"
    plan.write_text(plan.read_text().replace(OBEDIENT, "digits_missing"))
    try:
        with contextlib.suppress(ServingError):
            bed.product.control.load(STRICT)
            bed.complain("a plan that names a missing member was accepted")
        yield
        if not (bed.product.is_ready(STRICT) and bed.product.is_ready()):
            bed.complain("not ready although the old plan serves")
    finally:
        _without_version_2(bed)


def _without_version_2(bed: Bed) -> None:
    shutil.rmtree(bed.repository.folder / STRICT / "2")
    bed.product.control.load(STRICT)


@contextmanager
def stopped(bed: Bed) -> Iterator[None]:
    """`committee serve` is told to stop."""
    bed.product.terminate()
    yield


@contextmanager
def stopped_with_an_idle_stream(bed: Bed) -> Iterator[None]:
    """The same, while a client has a stream open on which it asked once."""

    async def ask_once(stop: asyncio.Event, asked: threading.Event) -> None:
        async with grpc.aio.insecure_channel(bed.product.grpc) as channel:
            stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
            await stream.write(_message(bed))
            await stream.read()
            asked.set()
            await stop.wait()

    with in_background(ask_once):
        bed.product.terminate()
        yield
        bed.product.ended_within(40)


@contextmanager
def cancelling_clients(bed: Bed) -> Iterator[None]:
    """Clients cancel their requests within 40 ms, while the last member is slow."""
    with ordered("slow")(bed), cancelling(bed.product.grpc, _message(bed)):
        yield


# A client whose process is killed while its requests are under way.
_LEAVING = """
import grpc, sys, time
channel = grpc.insecure_channel(sys.argv[1])
message = bytes.fromhex(sys.argv[2])
calls = [channel.unary_unary(sys.argv[3]).future(message) for _ in range(64)]
time.sleep(0.3)
print("asked", flush=True)
time.sleep(60)
"""


@contextmanager
def leaving_clients(bed: Bed) -> Iterator[None]:
    """Clients with 64 requests under way each are killed, while the last member is slow."""
    with ordered("slow")(bed):
        for _ in range(2):
            words = [sys.executable, "-c", _LEAVING, bed.product.grpc, _message(bed).hex(), METHOD]
            client = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert client.stdout is not None
            client.stdout.readline()
            client.kill()
            client.wait()
            client.stdout.close()
        yield


@contextmanager
def bad_requests(bed: Bed) -> Iterator[None]:
    """Requests of a wrong shape, with NaN, with unknown parameters: each must be INVALID_ARGUMENT."""
    bad = bad_messages(STRICT, bed.known.images[:1], input_name="image")
    with refused(bed.product.grpc, bad, bed.complain, limit_s=LIMIT_S):
        yield


def posted(body: bytes) -> Inject:
    """One HTTP request to the cascade."""

    @contextmanager
    def inject(bed: Bed) -> Iterator[None]:
        host, port = bed.product.http.rsplit(":", 1)
        head = f"POST /v2/models/{STRICT}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(head.encode() + body)
            with contextlib.suppress(OSError):
                connection.recv(1)
        yield

    return inject


@contextmanager
def metrics_scraped(bed: Bed) -> Iterator[None]:
    """Eight scrapers ask for the metrics without a pause."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            if "committee_rows_total" not in bed.product.scrape():
                bed.complain("a scrape without the cascade's metrics")

    threads = [threading.Thread(target=scrape, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(15)


# Becomes a program that may write no file larger than a page.
_SMALL_FILES = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def batch_on_a_full_disk(bed: Bed) -> Iterator[None]:
    """`committee batch` may write no file larger than a page: it says so in a line and leaves nothing."""
    rows, output = bed.folder / "rows.npy", bed.folder / "full"
    np.save(rows, bed.known.images)
    output.mkdir(exist_ok=True)
    words = ["batch", "--model", STRICT, "--url", bed.product.grpc, str(rows), str(output / "answers.npz")]

    # A launcher of its own: to fork here would copy gRPC's threads.
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_FILES, sys.executable, "-m", "orchestrator", *words],
        capture_output=True,
        timeout=60,
    )
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode != 1 or not said or "answers" not in said[-1] or "fault of committee" in said[-1]:
        bed.complain(f"batch on a full disk: exit {done.returncode}, {said[-1:]}")
    left = sorted(path.name for path in output.iterdir())
    if "answers.npz" in left:
        bed.complain(f"batch on a full disk left {left}")
    yield


def _message(bed: Bed) -> bytes:
    return message_from_rows(STRICT, bed.known.images[bed.known.by_stage[-1][:4]], input_name="image")
