"""`committee probe`: ask a served cascade for the answer to one row, as a health check."""

import json
from typing import Annotated

import typer

from orchestrator.probe import ANSWERED, BUSY, HTTP_URL, MOST_TIMEOUT_S
from orchestrator.probe import probe as ask


def probe(
    model: Annotated[str, typer.Option("--model", "-m", help="Cascade, ensemble or member to ask.")],
    url: Annotated[str, typer.Option(help="HTTP address of the server; https:// before it for TLS.")] = HTTP_URL,
    timeout_s: Annotated[
        float, typer.Option(min=0.01, max=MOST_TIMEOUT_S, help="Longest wait for the answer.")
    ] = 5.0,
    alive: Annotated[bool, typer.Option("--alive", help="Exit with 0 also where it is busy or draining.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Ask a cascade about a row of zeros, through all its stages, and say in one line whether it answers.

    Exits with 1 when it does not answer, and with 6 when it is alive but too busy for the row, or draining.

    Example: committee probe --model digits_cascade --url 127.0.0.1:8000
    """
    code, text = ask(url, model, timeout_s=timeout_s)
    outcome = {ANSWERED: "answered", BUSY: "busy"}.get(code, "failed")
    typer.echo(json.dumps({"model": model, "outcome": outcome, "message": text}) if as_json else text)
    if code and not (alive and code == BUSY):
        raise typer.Exit(code)
