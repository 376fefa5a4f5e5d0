"""`committee serve`: the embedded Triton in the foreground, until Ctrl-C."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.errors import RepositoryError, ServingError
from orchestrator.repository import check_plans
from orchestrator.serving import log
from orchestrator.serving.options import ServeOptions
from orchestrator.serving.planned import LOOK_S, CascadeWatch
from orchestrator.serving.process import EmbeddedServer
from orchestrator.spec.triton import EMBEDDED, IS_READY_SINCE

_LOG_LINES = 15


def serve(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    host: Annotated[str, typer.Option(help="Address to bind; 0.0.0.0 serves other machines too.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port, 0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port, 0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port, 0 picks a free one.")] = 8002,
    startup_timeout_s: Annotated[float, typer.Option(help="Longest wait for every model to be ready.")] = 120.0,
    stop_timeout_s: Annotated[float, typer.Option(help="Longest wait for requests in flight.")] = 30.0,
    log_path: Annotated[Path | None, typer.Option(help="Where to keep Triton's log.")] = None,
    log_verbose: Annotated[int, typer.Option(help="Triton's verbosity, 0 to 9.")] = 0,
    config_name: Annotated[
        str | None, typer.Option(help="Serve members with their configs/NAME.pbtxt; gpu for a CUDA machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready.")] = False,
) -> None:
    """Serve a model repository with the embedded Triton until Ctrl-C or SIGTERM.

    A cascade whose member is no longer the one its plan names is unloaded until it is again.

    Example: committee serve --repository model_repository --grpc-port 9001
    """
    options = ServeOptions(
        repository=repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        startup_timeout_s=startup_timeout_s,
        stop_timeout_s=stop_timeout_s,
        log_path=log_path,
        log_verbose=log_verbose,
        config_name=config_name,
    )
    _check_plans(repository)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # The same way out as Ctrl-C, whatever asks us to end.
        signal.signal(number, _interrupt)
    people = Console(stderr=True)
    with people.status("starting Triton") as status:
        server = EmbeddedServer(options, progress=lambda text: status.update(f"Triton: {text}"))
        try:
            _start(server, people)
            status.stop()
            _announce(server, as_json=as_json)
            _wait(server, people)
        except KeyboardInterrupt:
            status.start()
        finally:
            server.stop()
    people.print("Triton stopped.")


def _check_plans(repository: Path) -> None:
    """Refuses at once a plan that the server could not load after some seconds of starting.

    A missing, empty or closed repository is left to the server's own words.
    """
    try:
        folders = [path for path in repository.iterdir() if path.is_dir()]
    except OSError:
        return
    if not folders:
        return
    report = check_plans(repository)
    if not report:
        got = "; ".join(f"{fault.model} {fault.field}: {fault.text}" for fault in report.faults)
        raise RepositoryError(f"model repository {repository}", got=got, fix="see committee check")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _start(server: EmbeddedServer, people: Console) -> None:
    try:
        server.start()
    except ServingError:
        _print_log(server, people)
        raise


def _wait(server: EmbeddedServer, people: Console) -> None:
    status = _watched(server, people)
    _print_log(server, people)
    got = f"exit status {status}"
    if status is not None and status < 0:
        got = f"signal {signal.Signals(-status).name}"
    raise ServingError("embedded Triton ended by itself", got=got, fix=f"the whole log is {server.log_path}")


def _watched(server: EmbeddedServer, people: Console) -> int | None:
    """Waits for the server to end by itself, and meanwhile compares its cascades with their plans."""
    if EMBEDDED >= IS_READY_SINCE:
        # The server asks the cascades themselves.
        return server.wait()

    def tell(text: str) -> None:
        people.print(text, highlight=False, soft_wrap=True, markup=False)

    watch = CascadeWatch(server.options.repository, server.control, tell=tell)
    while (status := server.wait(LOOK_S)) is None:
        watch.look()
    return status


def _print_log(server: EmbeddedServer, people: Console) -> None:
    for line in log.tail(server.log_path, _LOG_LINES):
        people.print(f"  [dim]{escape(line)}[/dim]", highlight=False, soft_wrap=True)


def _announce(server: EmbeddedServer, *, as_json: bool) -> None:
    if as_json:
        ready = {
            "grpc": server.grpc_address,
            "http": server.http_address,
            "metrics": server.metrics_address,
            "pid": server.pid,
            "triton_version": server.version,
            "models": list(server.model_names),
            "log": str(server.log_path),
        }
        typer.echo(json.dumps(ready))
        return
    typer.echo(f"Triton {server.version} is ready with {', '.join(server.model_names)}")
    typer.echo(f"  gRPC     {server.grpc_address}")
    typer.echo(f"  HTTP     http://{server.http_address}")
    typer.echo(f"  metrics  http://{server.metrics_address}/metrics")
    typer.echo(f"  log      {server.log_path}")
    typer.echo("For development and first contact; `docker compose up` serves the same repository in production.")
    typer.echo("Ctrl-C stops it.")
