"""`committee serve`: the embedded Triton in the foreground, until Ctrl-C."""

import json
import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.commandline import interrupt_on_signals
from orchestrator.errors import RepositoryError, ServingError
from orchestrator.repository.check import check_plans
from orchestrator.serving.control import scan_repository
from orchestrator.serving.machine import log_tail
from orchestrator.serving.options import ServeOptions, is_loopback, network_host
from orchestrator.serving.process import EmbeddedServer
from orchestrator.serving.supervision import MOST_RESTARTS, WITHIN_S, Supervision
from orchestrator.spec.triton import EMBEDDED

_LOG_LINES = 15


class Restart(str, Enum):
    """When the server is started again."""

    ON_FAILURE = "on-failure"
    NO = "no"


def serve(
    repository: Annotated[Path, typer.Option(help="Model repository to serve.")] = Path("model_repository"),
    host: Annotated[
        str, typer.Option(help="Address to bind; 0.0.0.0 or :: lets other machines ask too.")
    ] = "127.0.0.1",
    http_host: Annotated[
        str | None,
        typer.Option(
            help="Address to bind for HTTP where it is another: 127.0.0.1 keeps HTTP for probes while gRPC serves."
        ),
    ] = None,
    http_port: Annotated[int, typer.Option(help="HTTP port, 0 picks a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port, 0 picks a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port, 0 picks a free one.")] = 8002,
    startup_timeout_s: Annotated[float, typer.Option(help="Longest wait for every model to be ready.")] = 120.0,
    stop_timeout_s: Annotated[float, typer.Option(help="Longest wait for requests in flight.")] = 30.0,
    restart: Annotated[
        Restart,
        typer.Option(
            help="Start Triton again when it dies, or when a cascade's process dies with requests; "
            f"at most {MOST_RESTARTS} times within {WITHIN_S / 60:g} minutes."
        ),
    ] = Restart.ON_FAILURE,
    log_path: Annotated[Path | None, typer.Option(help="Where to keep Triton's log.")] = None,
    log_verbose: Annotated[int, typer.Option(help="Triton's verbosity, 0 to 9.")] = 0,
    config_name: Annotated[
        str | None, typer.Option(help="Serve members with their configs/NAME.pbtxt; gpu for a CUDA machine.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON when ready.")] = False,
) -> None:
    """Serve a model repository with the embedded Triton until Ctrl-C or SIGTERM.

    A cascade whose member is no longer the one its plan names is unloaded until it is again. A model whose process
    has died is loaded again.

    Example: committee serve --repository model_repository --grpc-port 9001
    """
    options = ServeOptions(
        repository=repository,
        host=host,
        http_host=http_host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        startup_timeout_s=startup_timeout_s,
        stop_timeout_s=stop_timeout_s,
        log_path=log_path,
        log_verbose=log_verbose,
        config_name=config_name,
    )
    # Refused at once: a repository or a plan that the server could not load after some seconds of starting.
    scan_repository(repository)
    report = check_plans(repository)
    if not report:
        got = "; ".join(f"{fault.model} {fault.field}: {fault.text}" for fault in report.faults)
        raise RepositoryError(f"model repository {repository}", got=got, fix="see committee check")
    # SIGTERM and SIGHUP stop the server in the same way as Ctrl-C.
    interrupt_on_signals()
    people = Console(stderr=True)

    def tell(text: str) -> None:
        people.print(text, highlight=False, soft_wrap=True, markup=False)

    with people.status("starting Triton") as status:
        server = EmbeddedServer(options, progress=lambda text: status.update(f"Triton: {text}"))
        try:
            server.start()
            status.stop()
            _announce(server, people, as_json=as_json)
            Supervision(server, restarts=restart is Restart.ON_FAILURE, tell=tell).run()
        except ServingError:
            for line in log_tail(server.log_path, _LOG_LINES):
                people.print(f"  [dim]{escape(line)}[/dim]", highlight=False, soft_wrap=True)
            raise
        except KeyboardInterrupt:
            status.start()
        finally:
            server.stop()
    people.print("Triton stopped.")


def _announce(server: EmbeddedServer, people: Console, *, as_json: bool) -> None:
    options = server.options
    hosts = {endpoint: options.host_of(endpoint) for endpoint in ("grpc", "http", "metrics")}
    addresses = {endpoint: server.address(network_host(host), endpoint) for endpoint, host in hosts.items()}
    if as_json:
        ready = {**addresses, "pid": server.pid, "triton_version": server.version}
        typer.echo(json.dumps({**ready, "models": list(server.model_names), "log": str(server.log_path)}))
    else:
        typer.echo(f"Triton {server.version} is ready with {', '.join(server.model_names)}")
        typer.echo(f"  gRPC     {addresses['grpc']}")
        typer.echo(f"  HTTP     http://{addresses['http']}")
        typer.echo(f"  metrics  http://{addresses['metrics']}/metrics")
        typer.echo(f"  log      {server.log_path}")
        typer.echo(production_words(server.options.repository))
        typer.echo("Ctrl-C stops it.")
    for text in _warnings(options):
        people.print(text, highlight=False, soft_wrap=True, markup=False)


def _warnings(options: ServeOptions) -> list[str]:
    """What anybody on the network may do, one line each."""
    found = []
    if not is_loopback(options.host):
        found.append(
            f"warning: bound to {options.host}, so anybody on the network may ask these models and read "
            "the metrics: there is no password and no encryption; put a firewall or a proxy in front, or use "
            "--host 127.0.0.1"
        )
    if not is_loopback(http := options.host_of("http")):
        found.append(
            f"warning: HTTP is bound to {http}, and one malformed request over it ends Triton {EMBEDDED}; "
            "give clients gRPC and use --http-host 127.0.0.1"
        )
    return found


def production_words(repository: Path) -> str:
    """How this repository is served in production."""
    first = "For development and first contact. In production NVIDIA's Triton image serves"
    if not any(repository.glob("*/*/cascade.json")):
        return f"{first} the same folder."
    command = f"committee render --repository {shlex.quote(str(repository))} --standalone --output FOLDER"
    return f"{first} what `{command}` writes."
